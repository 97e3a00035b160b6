"""The blocking client: one socket, no background thread. Time passes and frames are read inside its calls."""

from __future__ import annotations

import contextlib
import operator
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from inferential.client.base import BaseConnection, BaseModel
from inferential.client.core import deadline_after
from inferential.client.observation import Defaults, Encode, draft
from inferential.client.options import Options
from inferential.client.reply import PingResult, Reply, Sent
from inferential.client.session import Inbox, LinkState, Stats
from inferential.client.turn import Turn
from inferential.client.watchdog import Action, Fallback


class Connection(BaseConnection):
    """A connection to a server, made in the background: constructing it never blocks and never fails for want of a server.

    Args:
        server: address with port; `tcp://` may be left out.
        client_id: name of this client, for labels, cadence and fairness on the server.
        client_type: kind of client, say the robot's model.
        connect_timeout_ms: how long the first send waits for a link that has never been up. No later send ever waits.
        request_timeout_ms: when a request without a reply ends TIMED_OUT.
        heartbeat_ms: interval of heartbeats (300..1000); a link that is silent three times as long is down.
        linger_ms: how long what was sent may still leave after close().
        max_message_bytes: greatest frame taken from the server, and greatest observation sent.
        high_water_mark: messages in the send queue.
        hold_off: answer requests here while the server asks for a pause (REJECTED and UNAVAILABLE with retry_after_ms).
        zero_copy: send arrays of 256 KiB and more from their own memory: such an array must not be changed before its
            reply has come. With False they are copied when sent.
        on_link: called with each new LinkState, inside the call that notices it; it may not use the connection, but for
            `link_state` and `stats`.

    Raises:
        ConfigError: a setting is wrong.

    Thread-safety: one call at a time; another thread's call meanwhile raises ConcurrentWaitError. Different connections are
    independent. It must not be used after a fork in the child.
    """

    def __init__(
        self,
        server: str,
        client_id: str,
        client_type: str = "",
        *,
        connect_timeout_ms: float = 1000.0,
        request_timeout_ms: float = 30_000.0,
        heartbeat_ms: int = 1000,
        linger_ms: int = 200,
        max_message_bytes: int = 256 * 1024 * 1024,
        high_water_mark: int = 1000,
        hold_off: bool = True,
        zero_copy: bool = True,
        on_link: Callable[[LinkState], None] | None = None,
    ) -> None:
        options = Options(
            server,
            client_id,
            client_type,
            connect_timeout_ms,
            request_timeout_ms,
            heartbeat_ms,
            linger_ms,
            max_message_bytes,
            high_water_mark,
            hold_off,
            zero_copy,
        )
        super().__init__(options, on_link)
        self._turn = Turn(self._core)

    def model(
        self,
        model_id: str,
        latency_budget_ms: float = 50.0,
        priority: int = 1,
        step_ms: float | None = None,
        *,
        slot: str = "",
        latest_only: bool = False,
        fallback: Fallback | None = None,
    ) -> Model:
        """A handle on a model. Handles of one model share its inbox; what they say by default and their fallbacks are their own.

        Args:
            model_id: the model's name on the server.
            latency_budget_ms: deadline of a request, from its arrival; 0 leaves it to the server.
            priority: 0 (highest) to 1000.
            step_ms: how long one action lasts.
            slot: which body behind this connection.
            latest_only: a newer observation takes the place of one that is still queued.
            fallback: what act() does without a fresh answer: Hold, Decay, Zero or a callable; Zero() without one.

        Raises:
            ObservationError: an argument is wrong.
            ConnectionClosedError: after close().
        """
        self._core.session.check_open()
        defaults = Defaults(
            model_id, latency_budget_ms, priority, 0.0 if step_ms is None else step_ms, slot, latest_only
        )
        return Model(self, self._core.session.inbox(model_id), defaults, fallback)

    @property
    def link_state(self) -> LinkState:
        """The link, as of now. Any thread may ask."""
        self._turn.glance(self._core.read)  # a call that is under way keeps it up to date
        return self._core.session.link

    def wait_until_up(self, timeout_ms: float | None = None) -> bool:
        """Waits until the link is up. False where it is not after `timeout_ms` (None: as long as it takes), or closed.

        Raises:
            ConcurrentWaitError, ValueError (the timeout).
        """
        with self._turn:
            deadline = deadline_after(timeout_ms, time.monotonic())
            self._core.read()
            while self._core.session.link in (LinkState.CONNECTING, LinkState.DOWN) and time.monotonic() < deadline:
                self._core.wait(deadline)
            return self._core.session.link is LinkState.UP

    @property
    def stats(self) -> Stats:
        """A copy of the counters, as of now. Any thread may ask."""
        _ = self.link_state
        return self._core.session.stats

    def ping(self, timeout_ms: float = 1000.0) -> PingResult | None:
        """Asks the server whether it is there. It is a send as others are: the first waits for the link, within its timeout.

        Returns:
            None without an answer in time, with the link down, or from a server that speaks v1.

        Raises:
            ConnectionClosedError, ConcurrentWaitError, ValueError (the timeout).
        """
        with self._turn:
            self._core.session.check_open()
            deadline = deadline_after(timeout_ms, time.monotonic())
            self._core.read()
            self._core.await_handshake(deadline)
            ping = self._core.send_ping()
            if ping is None:
                return None
            try:
                while not ping.ended and time.monotonic() < deadline:
                    self._core.wait(deadline)
            finally:
                self._core.session.end_ping(ping)
            return ping.result

    def close(self) -> None:
        """Ends outstanding requests LINK_LOST and closes the sockets. Takes at most linger_ms, also with the server gone.

        Closing twice is no error. Replies that have arrived can still be taken.

        Raises:
            ConcurrentWaitError: another thread is in a call; end that one first.
        """
        with self._turn:
            self._core.read()
            if self._core.shut():
                self._core.release(wait=True)
                self._core.tell_link()

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # it may not have been constructed, or the interpreter ends
            if self._core.shut():
                self._core.release(wait=False)


class Model(BaseModel):
    """A model on a blocking connection, made by Connection.model(). Thread-safety: that of its connection."""

    def __init__(self, connection: Connection, inbox: Inbox, defaults: Defaults, fallback: Fallback | None) -> None:
        super().__init__(inbox, defaults, fallback)
        self._connection = connection  # which lives as long as its models
        self._core, self._turn = connection._core, connection._turn

    def observe(
        self,
        /,
        *,
        urgency: float = 0.0,
        steps_remaining: int | None = None,
        latency_budget_ms: float | None = None,
        priority: int | None = None,
        step_ms: float | None = None,
        slot: str | None = None,
        latest_only: bool | None = None,
        timestamp_ns: int | None = None,
        timestamps_ns: Mapping[str, int] | None = None,
        tensors: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
        encode: Encode | None = None,
        **values: Any,
    ) -> Sent:
        """Sends an observation. Waits only when it is the connection's first send and the link has never been up.

        Args:
            urgency: 0..1.
            steps_remaining: actions this robot still has to play.
            latency_budget_ms, priority, step_ms, slot, latest_only: instead of the handle's.
            timestamp_ns: wall clock of the observation; now without one.
            timestamps_ns: tensor name -> wall clock of its measurement.
            tensors: name -> array, for names that are arguments here.
            metadata: name -> string, likewise.
            encode: "jpeg", "png" or ("jpeg", quality) for every image among the tensors (uint8, (height, width, 1, 3 or 4)), or
                name -> such a format.
            **values: arrays are tensors, strings are metadata. An array is anything with `__array__` or `__dlpack__`.

        Raises:
            ObservationError: an argument is wrong; names it. Nothing was sent and no request_id used.
            MissingDependencyError: `encode` needs an image codec.
            ConnectionClosedError, ConcurrentWaitError.
        """
        d = draft(
            self._defaults,
            values,
            urgency=urgency,
            steps_remaining=steps_remaining,
            latency_budget_ms=latency_budget_ms,
            priority=priority,
            step_ms=step_ms,
            slot=slot,
            latest_only=latest_only,
            timestamp_ns=timestamp_ns,
            timestamps_ns=timestamps_ns,
            tensors=tensors,
            metadata=metadata,
            encode=encode,
        )
        with self._turn:
            return self._core.observe(self._inbox, d)

    def get_result(self, timeout_ms: float | None = 100.0) -> Reply | None:
        """For control loops: the first OK reply that is newer than the last one given out for its slot.

        None at once where no such reply can come: nothing is outstanding, or the newest request ended otherwise (`last_status` and
        `last_error` say how).

        Args:
            timeout_ms: then everything outstanding of this model is abandoned (TIMED_OUT), and the answer is None. 0 only looks and
                abandons nothing. None waits as long as something is outstanding (at most request_timeout_ms).

        Raises:
            ConcurrentWaitError, ValueError (the timeout).
        """
        with self._turn:
            return self._core.await_reply(self._core.session.result, self._inbox, timeout_ms, abandon=True)

    def next_reply(self, timeout_ms: float | None = 100.0) -> Reply | None:
        """For pipelines: the next terminal reply of any status, in order of arrival.

        None at once with nothing outstanding, and after `timeout_ms` (which abandons nothing).

        Raises:
            ConcurrentWaitError, ValueError (the timeout).
        """
        with self._turn:
            return self._core.await_reply(self._core.session.next_reply, self._inbox, timeout_ms, False)

    def act(self, timeout_ms: float = 100.0) -> Action:
        """get_result with the declared fallback: always an action, at most `timeout_ms` later, and at once where no fresh answer can
        come (link lost, refused, nothing outstanding).

        Raises:
            ConcurrentWaitError, ValueError (the timeout), and what a fallback callback raises.
        """
        reply = self.get_result(timeout_ms)
        if reply is not None:
            return self._watchdog.fresh(reply, time.monotonic())
        return self._watchdog.fall_back(self._inbox.last_status, time.monotonic())

    def cancel(self, request_id: int) -> bool:
        """Asks the server to cancel an outstanding request; its reply then says CANCELLED (or it was answered before).

        Returns:
            whether that was sent: only for an outstanding request, and to a server known to speak v2; never after close().

        Raises:
            ConcurrentWaitError; TypeError: the id is no integer.
        """
        number = operator.index(request_id)  # numpy's integers too
        with self._turn:
            self._core.read()
            return self._core.send_cancel(self._inbox, number)
