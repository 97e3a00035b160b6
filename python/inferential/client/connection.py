"""What the blocking and the asyncio connection share: session, socket, and how a request is put together. No waiting here."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable

from inferential import wire
from inferential.client.observation import Defaults, Draft, is_number
from inferential.client.options import Options
from inferential.client.reply import Sent
from inferential.client.session import Inbox, LinkState, Ping, Session, Stats
from inferential.client.socket import ClientSocket
from inferential.client.watchdog import Fallback, Watchdog
from inferential.errors import ConfigError, ConnectionClosedError, ObservationError
from inferential.types import Body, Kind, Observation, Status

logger = logging.getLogger("inferential.client")

_CONSTANTS = 64
_LOOK_EVERY_S = 0.0001  # news of the link takes longer to come; a send that finds it broken looks at once


class BaseConnection:
    """Session and socket of one connection; the subclasses add locking and waiting."""

    def __init__(self, options: Options, on_link: Callable[[LinkState], None] | None) -> None:
        if on_link is not None and not callable(on_link):
            raise ConfigError(f"on_link is {on_link!r}; it must be a function that takes a LinkState")
        self._options = options
        self._on_link = on_link
        self._pid = os.getpid()
        self._first_send_until_s: float | None = None
        self._looked_s = -math.inf
        self._constants: dict[tuple[object, ...], bytes] = {}
        self._session = Session(hold_off=options.hold_off, request_timeout_s=options.request_timeout_ms / 1e3)
        self._socket = ClientSocket(options)

    def __repr__(self) -> str:
        o = self._options
        return f"<{type(self).__name__} {o.client_id!r} to {o.server}: {self._session.link.value}>"

    @property
    def client_id(self) -> str:
        """As given."""
        return self._options.client_id

    @property
    def server(self) -> str:
        """The server's address."""
        return self._options.server

    @property
    def server_version(self) -> int | None:
        """The protocol the server speaks, 1 or 2; None until a reply on this link has told."""
        return self._session.server_version

    def _stats(self) -> Stats:
        return self._session.stats

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise ConnectionClosedError(
                "this connection was made before a fork, by the parent process; make a new one here"
            )

    def _read(self) -> None:
        """Takes in everything that has arrived, without waiting."""
        now = time.monotonic()
        if self._session.link is not LinkState.CLOSED:
            while self._socket.poll(0):
                now = time.monotonic()
                self._absorb(now)
        self._looked_s = now
        self._session.expire(now)

    def _look(self) -> None:
        """`_read`, unless the sockets were looked at a moment ago: as often as a robot can act on it, not at every send of a burst."""
        if time.monotonic() - self._looked_s >= _LOOK_EVERY_S:
            self._read()

    def _absorb(self, now: float) -> None:
        """Takes in one message that has arrived, or with news of the link everything."""
        # Events are read first and acted on last: all frames that came before them are then seen before them.
        events = self._socket.link_events()
        receive = self._session.receive
        for frames in self._socket.messages():
            receive(frames, time.monotonic())  # not `now`: one that comes meanwhile came later
        for up in events:
            if self._session.link_up() if up else self._session.link_down(now):
                self._tell_link()

    def _tell_link(self) -> None:
        if self._on_link is not None:
            try:
                self._on_link(self._session.link)
            except Exception:
                logger.exception("the on_link callback raised")

    def _handshake_deadline(self, now: float) -> float:
        """Until when a send may wait for a link that has never been up; in the past for all but the first."""
        if self._first_send_until_s is None:
            self._first_send_until_s = now + self._options.connect_timeout_ms / 1e3
        return self._first_send_until_s

    def _first_send_waited(self) -> None:
        """No send waits from here on."""
        self._first_send_until_s = 0.0

    def _pack(self, d: Draft) -> Body:
        try:
            packed = wire.pack(d.tensors, several_frames=self._session.several_frames, timestamps_ns=d.timestamps_ns)
        except ObservationError:
            raise
        except (TypeError, ValueError) as e:
            raise ObservationError(f"the tensors cannot be sent: {e}") from e
        size = sum(map(len, packed.frames))
        if size > self._options.max_message_bytes:
            raise ObservationError(
                f"the observation has {size} bytes, more than max_message_bytes ({self._options.max_message_bytes}); "
                "send fewer or encoded images (encode='jpeg')"
            )
        return packed

    def _send(self, inbox: Inbox, d: Draft, packed: Body) -> Sent:
        """Takes a request_id and transmits. Never waits."""
        session = self._session
        session.check_open()
        timestamp_ns = time.time_ns() if d.timestamp_ns is None else d.timestamp_ns
        try:
            envelope = wire.encode_observation_again(
                self._constant(inbox.model_id, d),
                request_id=session.next_request_id,
                timestamp_ns=timestamp_ns,
                urgency=d.urgency,
                steps_remaining=d.steps_remaining,
                metadata=d.metadata,
                tensors=packed.envelope,
            )
        except (TypeError, ValueError) as e:
            raise ObservationError(f"the observation cannot be encoded: {e}") from e
        sent = session.begin(inbox, d.slot, d.step_ms, timestamp_ns, time.monotonic())
        if sent.status is not None:
            return sent
        try:
            through = self._socket.transmit(envelope, packed.frames or (b"",))
        except BaseException:
            session.not_sent(sent.request_id, "the socket failed")
            raise
        if through:
            return sent
        sent = session.not_sent(sent.request_id, "the send queue is full")
        self._read()  # either nobody is there any more, as the monitor then says, or the queue is full
        return (
            sent
            if session.link is LinkState.UP
            else Sent(sent.request_id, sent.status, "the link to the server is down")
        )

    def _constant(self, model_id: str, d: Draft) -> bytes:
        """The fields of an envelope that seldom change from one observation to the next, encoded."""
        key = (model_id, d.latency_budget_ms, d.priority, d.step_ms, d.slot, d.latest_only)
        found = self._constants.get(key)
        if found is None:
            if len(self._constants) >= _CONSTANTS:  # a program that gives every observation a budget of its own
                self._constants.clear()
            found = self._constants[key] = wire.encode_observation(
                Observation(
                    self._options.client_id,
                    self._options.client_type,
                    model_id,
                    latency_budget_ms=d.latency_budget_ms,
                    priority=d.priority,
                    step_ms=d.step_ms,
                    slot=d.slot,
                    latest_only=d.latest_only,
                )
            )
        return found

    def _send_cancel(self, inbox: Inbox, request_id: int) -> bool:
        return self._session.may_cancel(inbox, request_id) and self._send_control(Kind.CANCEL, request_id)

    def _send_ping(self) -> Ping | None:
        ping = self._session.begin_ping(time.monotonic())
        if ping is not None and not self._send_control(Kind.PING, ping.request_id):
            self._session.end_ping(ping)
            return None
        return ping

    def _send_control(self, kind: Kind, request_id: int) -> bool:
        o = self._options
        observation = Observation(
            o.client_id, o.client_type, "", request_id, kind=kind, timestamp_ns=time.time_ns(), priority=1
        )
        return self._socket.transmit(wire.encode_observation(observation), (b"",))

    def _shut(self) -> bool:
        """Ends what is outstanding and closes the sockets. Returns whether it was open."""
        if not self._session.close(time.monotonic()):
            return False
        if self._pid == os.getpid():
            self._socket.close()
        return True

    def _release(self, *, wait: bool) -> None:
        """Gives back what the connections of this process share; see ClientSocket.release()."""
        if self._pid == os.getpid():
            self._socket.release(wait=wait)


class BaseModel:
    """A model on a connection: its inbox, what observations say by default, and its fallback."""

    def __init__(self, inbox: Inbox, defaults: Defaults, fallback: Fallback | None) -> None:
        self._inbox = inbox
        self._defaults = defaults
        self._watchdog = Watchdog(fallback)

    def __repr__(self) -> str:
        d = self._defaults
        return f"<{type(self).__name__} {d.model_id!r} latency_budget_ms={d.latency_budget_ms:g} priority={d.priority}>"

    @property
    def model_id(self) -> str:
        """The model's name."""
        return self._inbox.model_id

    @property
    def last_status(self) -> Status | int | None:
        """How the last get_result or act ended: OK, the status of the reply that ended it, TIMED_OUT; None where nothing was
        outstanding or it only looked."""
        return self._inbox.last_status

    @property
    def last_error(self) -> str:
        """The words that came with last_status."""
        return self._inbox.last_error

    @property
    def outstanding(self) -> int:
        """How many requests of this model have no outcome yet, as far as has been read."""
        return len(self._inbox.outstanding)

    def take_phase_shift_ms(self) -> float:
        """The server's last phase shift hint that was not taken yet, 0 without one. Rate(follow=model) uses it."""
        return self._inbox.take_phase_shift_ms()


def deadline_after(timeout_ms: float | None, now: float) -> float:
    """When a wait that begins now ends.

    Raises:
        ValueError: the timeout is no number of 0 or more.
    """
    if timeout_ms is None:
        return math.inf
    if not (is_number(timeout_ms) and timeout_ms >= 0):  # NaN too
        raise ValueError(
            f"timeout_ms is {timeout_ms!r}; it must be 0 or more, or None to wait for as long as requests are outstanding"
        )
    return now + timeout_ms / 1e3
