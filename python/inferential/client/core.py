"""What connections are made of: session, socket, and how a request is put together; and the blocking connection's waits."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from typing import Any

from inferential import wire
from inferential.client.observation import Draft
from inferential.client.options import Options
from inferential.client.reply import Reply, Sent
from inferential.client.session import WAIT, Inbox, LinkState, Ping, Session, Verdict
from inferential.client.socket import ClientSocket
from inferential.errors import ConfigError, ConnectionClosedError, ObservationError
from inferential.types import Body, Kind, Observation, as_float, is_number

logger = logging.getLogger("inferential.client")

_CONSTANTS = 64
_MOST_READ = 256  # messages taken in before whoever waits has a look at the time
_CONNECT_ANEW_S = 3.0
"""So long after a connection broke, if it is not back, it is made anew, once. ZMQ tries every half second by itself, but where it ended in
a breach of the protocol (a frame that is too large, another program at the address) it never tries again. Once, because that also ends an
attempt that is under way, and the lookup of a name may take longer."""
_LOOK_EVERY_S = 0.0001  # news of the link takes longer to come; a send that finds it broken looks at once


class Core:
    """Session and socket of one connection, and all that both connections do with them. Methods wait only where they say so; these are
    the blocking connection's.

    Attributes:
        options: the connection's settings.
        session, socket: what it is made of.
    """

    def __init__(self, options: Options, on_link: Callable[[LinkState], None] | None) -> None:
        if on_link is not None and not callable(on_link):
            raise ConfigError(f"on_link is {on_link!r}; it must be a function that takes a LinkState")
        self.options = options
        self._on_link = on_link
        self._pid = os.getpid()
        self._first_send_until_s: float | None = None
        self._looked_s = -math.inf
        self._drained_s = -math.inf
        """When nothing was left to read: a request that had run out of time by then can have no reply among what is unread."""
        self._connect_anew_s = math.inf
        self._moving = False
        """Whether a message or news of the link is being moved; still so in the next call where an exception ended the last one."""
        self._constants: dict[tuple[object, ...], bytes] = {}
        self.session = Session(
            hold_off=options.hold_off, request_timeout_s=options.request_timeout_ms / 1e3, server=options.server
        )
        self.socket = ClientSocket(options)

    @property
    def in_its_process(self) -> bool:
        """Whether this is the process that made it, and no fork of that."""
        return self._pid == os.getpid()

    def check_process(self) -> None:
        """Raises ConnectionClosedError in a forked child."""
        if not self.in_its_process:
            raise ConnectionClosedError(
                "this connection was made before a fork, by the parent process; make a new one here"
            )

    def mend(self) -> None:
        """To be called before all else. Where the last call was ended in the midst of a message (by a KeyboardInterrupt, or what else a
        signal handler raises), makes the link anew: what was sent or read by halves cannot be taken up again. What was outstanding
        ends LINK_LOST.
        """
        if not self._moving:
            return
        changed = False
        if self.session.link is not LinkState.CLOSED:
            self.socket.reopen()
            self._connect_anew_s = math.inf
            changed = self.session.link_down(time.monotonic())
        self._moving = False
        if changed:
            self.tell_link()

    def read(self) -> bool:
        """Takes in what has arrived, without waiting, but only so much at a time. Returns whether that was everything."""
        drained = self.session.link is LinkState.CLOSED
        if not drained:
            for _ in range(_MOST_READ):
                now = time.monotonic()
                if not self.socket.poll(0):
                    self._drained_s = now
                    drained = True
                    break
                self.absorb(now)
        self._looked_s = time.monotonic()
        self.pass_time(self._looked_s)
        return drained

    def pass_time(self, now: float) -> None:
        """What time alone does: requests run out of it, and a link that stays down is connected anew."""
        self.session.expire(self._drained_s)
        if now >= self._connect_anew_s and self.session.link is not LinkState.CLOSED:
            self.socket.connect_anew()
            self._connect_anew_s = math.inf

    def next_event(self) -> float:
        """When pass_time() next has something to do."""
        expiry = self.session.next_expiry()
        return self._connect_anew_s if expiry is None else min(expiry, self._connect_anew_s)

    def look(self) -> None:
        """`read`, unless the sockets were looked at a moment ago: as often as a robot can act on it, not at every send of a burst.

        Replies of a v1 server carry no id: one that is left would be taken for the answer to the next request.
        """
        if time.monotonic() - self._looked_s >= _LOOK_EVERY_S or self.session.server_version != 2:
            self.read()

    def absorb(self, now: float) -> None:
        """Takes in one message that has arrived, or with news of the link everything."""
        self._moving = True
        # Events are read first and acted on last: all frames that came before them are then seen before them.
        events = self.socket.link_events()
        receive = self.session.receive
        next_message = self.socket.next_message
        while (frames := next_message()) is not None:
            receive(frames, time.monotonic())  # not `now`: one that comes meanwhile came later
        for up in events:
            self._connect_anew_s = math.inf if up else now + _CONNECT_ANEW_S
            if self.session.link_up() if up else self.session.link_down(now):
                self.tell_link()
        self._moving = False

    def tell_link(self) -> None:
        """Calls on_link; what it raises is logged."""
        if self._on_link is not None:
            try:
                self._on_link(self.session.link)
            except Exception:
                logger.exception("the on_link callback raised")

    def handshake_deadline(self, now: float) -> float:
        """Until when a send may wait for a link that has never been up; in the past for all but the first."""
        if self._first_send_until_s is None:
            self._first_send_until_s = now + self.options.connect_timeout_ms / 1e3
        return self._first_send_until_s

    def first_send_waited(self) -> None:
        """No send waits from here on."""
        self._first_send_until_s = 0.0

    def pack(self, d: Draft) -> Body:
        """Lays the tensors out and encodes them.

        Raises:
            ObservationError: they cannot be sent.
        """
        try:
            packed = wire.pack(d.tensors, several_frames=self.session.several_frames, timestamps_ns=d.timestamps_ns)
        except ObservationError:
            raise
        except (TypeError, ValueError) as e:
            raise ObservationError(f"the tensors cannot be sent: {e}") from e
        size = sum(map(len, packed.frames))
        if size > self.options.max_message_bytes:
            raise ObservationError(
                f"the observation has {size} bytes, more than max_message_bytes ({self.options.max_message_bytes}); "
                "send fewer or encoded images (encode='jpeg')"
            )
        return packed

    def send(self, inbox: Inbox, d: Draft, packed: Body) -> Sent:
        """Takes a request_id and transmits. Never waits."""
        session = self.session
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
        if len(envelope) > self.options.max_message_bytes:
            raise ObservationError(
                f"the metadata and all else but the tensors has {len(envelope)} bytes, more than max_message_bytes "
                f"({self.options.max_message_bytes}): a server would drop the connection"
            )
        self._moving = True
        sent = session.begin(inbox, d.slot, d.step_ms, timestamp_ns, time.monotonic())
        if sent.status is not None:
            self._moving = False
            return sent
        through = self.socket.transmit(envelope, packed.frames or (b"",))
        self._moving = False
        if through:
            return sent
        sent = session.not_sent(sent.request_id, "the send queue is full")
        self.read()  # either nobody is there any more, as the monitor then says, or the queue is full
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
                    self.options.client_id,
                    self.options.client_type,
                    model_id,
                    latency_budget_ms=d.latency_budget_ms,
                    priority=d.priority,
                    step_ms=d.step_ms,
                    slot=d.slot,
                    latest_only=d.latest_only,
                )
            )
        return found

    def send_cancel(self, inbox: Inbox, request_id: int) -> bool:
        """Whether a CANCEL was sent."""
        return self.session.may_cancel(inbox, request_id) and self._send_control(Kind.CANCEL, request_id)

    def send_ping(self) -> Ping | None:
        """A ping that is on its way; None where there is nobody to answer."""
        ping = self.session.begin_ping(time.monotonic())
        if ping is not None and not self._send_control(Kind.PING, ping.request_id):
            self.session.end_ping(ping)
            return None
        return ping

    def _send_control(self, kind: Kind, request_id: int) -> bool:
        o = self.options
        observation = Observation(
            o.client_id, o.client_type, "", request_id, kind=kind, timestamp_ns=time.time_ns(), priority=1
        )
        envelope = wire.encode_observation(observation)
        self._moving = True
        through = self.socket.transmit(envelope, (b"",))
        self._moving = False
        return through

    def shut(self) -> bool:
        """Ends what is outstanding and closes the sockets. Returns whether it was open."""
        if not self.session.close(time.monotonic()):
            return False
        if self.in_its_process:
            self.socket.close()
        return True

    def release(self, *, wait: bool) -> None:
        """Gives back what the connections of this process share; see ClientSocket.release()."""
        if self.in_its_process:
            self.socket.release(wait=wait)

    # --- waiting: the blocking connection only ------------------------------------------------------------------------

    def wait(self, until_s: float) -> None:
        """Takes in something that has arrived; where there is nothing, waits for it until then."""
        until_s = min(until_s, self.next_event())
        if self.socket.poll(max(0, math.ceil(min(until_s - time.monotonic(), 3600.0) * 1e3))):
            self.absorb(time.monotonic())
            self._looked_s = time.monotonic()
        else:
            self._looked_s = self._drained_s = time.monotonic()
        self.pass_time(self._looked_s)

    def await_handshake(self, until_s: float) -> None:
        """Before a send: where it is the first and the link has never been up, waits for that, at most until then."""
        if self.session.link is LinkState.CONNECTING:
            until_s = min(until_s, self.handshake_deadline(time.monotonic()))
            while self.session.link is LinkState.CONNECTING and time.monotonic() < until_s:
                self.wait(until_s)
            self.first_send_waited()

    def observe(self, inbox: Inbox, d: Draft) -> Sent:
        """Sends an observation; waits for the handshake where it is the first."""
        self.session.check_open()
        self.look()
        packed = self.pack(d)
        self.await_handshake(math.inf)
        return self.send(inbox, d, packed)

    def await_reply(
        self, take: Callable[[Inbox, float], Verdict], inbox: Inbox, timeout_ms: Any, abandon: bool
    ) -> Reply | None:
        """Waits for what `take` (session.result or session.next_reply) hands out; None where there is nothing to wait for, or at the
        time-out, which abandons what is outstanding where that was asked for (0 only looks).
        """
        started = now = time.monotonic()
        deadline = deadline_after(timeout_ms, now)
        closed = self.session.link is LinkState.CLOSED
        if closed or inbox.replies:
            # What has been read is handed out without another look at the sockets.
            verdict = take(inbox, now)
            if verdict is not WAIT:
                return verdict
            if closed:
                return None
        while True:
            in_time = now < deadline
            if in_time and inbox.outstanding and not inbox.replies:
                self.wait(deadline)
            else:  # nothing to wait for, only news to read
                self.read()
            now = time.monotonic()
            verdict = take(inbox, now)
            if verdict is not WAIT:
                return verdict
            if not in_time:
                if abandon and deadline > started:
                    self.session.abandon(inbox)
                return None


def deadline_after(timeout_ms: Any, now: float) -> float:
    """When a wait that begins now ends: after so many ms, never with None, at once with a negative number, as of time that has run out.

    Raises:
        ValueError: the timeout is no number.
    """
    if timeout_ms is None:
        return math.inf
    if not is_number(timeout_ms) or math.isnan(as_float(timeout_ms)):
        raise ValueError(
            f"timeout_ms is {timeout_ms!r}; it must be a number, or None to wait for as long as requests are outstanding"
        )
    return now + max(0.0, as_float(timeout_ms)) / 1e3
