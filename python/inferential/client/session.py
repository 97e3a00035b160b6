"""The client's side of the protocol as a pure state machine (docs/protocol.md, section 6).

No I/O and no clock: it is told of calls, received frames, link events and the time (`now`, monotonic seconds), and says what to
send and what to hand out. Shells that own a socket (blocking, aio) drive it. Not thread-safe.
"""

from __future__ import annotations

import dataclasses
import enum
import logging
import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from inferential.client.reply import PingResult, Reply, Sent
from inferential.errors import ConnectionClosedError, WireError
from inferential.types import Buffer, Reason, Status
from inferential.wire import Response, parse_response

logger = logging.getLogger("inferential.client")

INBOX_REPLIES = 65_536
_MAX_HOLD_OFF_MS = 24 * 3600 * 1e3  # a longer pause is no hint
_SLOTS = 256  # of a model that are remembered before those that are not in use are forgotten


class LinkState(enum.Enum):
    """The link to the server: CONNECTING until it is up for the first time, CLOSED for good."""

    CONNECTING = "connecting"
    UP = "up"
    DOWN = "down"
    CLOSED = "closed"


class Waiting(enum.Enum):
    """That there is nothing to hand out yet but may be."""

    WAIT = enum.auto()


WAIT: Final = Waiting.WAIT
Verdict: TypeAlias = "Reply | Literal[Waiting.WAIT] | None"


@dataclass(slots=True)
class Stats:
    """What became of a connection's requests. observe() calls = sent + not_sent + held_off, and of the sent ones
    each that has ended is counted once in ok, not_ok, timed_out or link_lost.

    Attributes:
        sent: requests that left this process.
        not_sent: requests that did not (link down, send queue full).
        ok: requests answered OK.
        not_ok: requests answered otherwise by the server, or by a reply that does not decode.
        late_replies: replies nobody waits for any more, and OK replies older than one that get_result had handed out.
        bad_replies: messages that do not decode and whose request could not be read.
        timed_out: requests abandoned by get_result or after request_timeout_ms.
        link_lost: requests that were outstanding when the link went down.
        held_off: requests answered here because the server had asked for a pause.
        replies_dropped: the oldest replies of a full inbox.
        reconnects: how often the link came up again.
    """

    sent: int = 0
    not_sent: int = 0
    ok: int = 0
    not_ok: int = 0
    late_replies: int = 0
    bad_replies: int = 0
    timed_out: int = 0
    link_lost: int = 0
    held_off: int = 0
    replies_dropped: int = 0
    reconnects: int = 0


@dataclass(frozen=True, slots=True)
class _HoldOff:
    until_s: float
    status: Status
    reason: Reason
    error: str


@dataclass(slots=True)
class Inbox:
    """What the session keeps of one model: its outstanding requests, and its replies that nobody has taken yet."""

    model_id: str
    replies: deque[Reply] = field(default_factory=deque)
    outstanding: OrderedDict[int, Pending] = field(default_factory=OrderedDict)  # in order of request_id
    delivered: dict[str, int] = field(default_factory=dict)  # slot -> greatest request_id given out by get_result
    hold_off: _HoldOff | None = None
    last_status: Status | None = None
    last_error: str = ""
    not_sent: str = ""
    """Why the newest observation was not sent; empty where it was."""
    phase_shift_ms: float = 0.0
    most_slots: int = _SLOTS

    def forget_slots(self) -> None:
        """Slots of which no reply can come any more need not be remembered: their names may keep changing."""
        used = {p.slot for p in self.outstanding.values()} | {r.slot for r in self.replies}
        self.delivered = {slot: delivered for slot, delivered in self.delivered.items() if slot in used}
        self.most_slots = max(_SLOTS, 2 * len(self.delivered))

    def take_phase_shift_ms(self) -> float:
        """The server's last hint that nobody has followed yet; 0 without one."""
        hint, self.phase_shift_ms = self.phase_shift_ms, 0.0
        return hint


@dataclass(slots=True)  # one for each request: not frozen, see inferential.types
class Pending:
    """A request without an outcome."""

    request_id: int
    inbox: Inbox
    slot: str
    step_ms: float
    timestamp_ns: int  # the observation's
    sent_s: float


@dataclass(slots=True)
class Ping:
    """A ping on its way: ended when `result` is set or it was lost."""

    request_id: int
    sent_s: float
    result: PingResult | None = None
    ended: bool = False


class Session:
    """All requests of one connection.

    Args:
        hold_off: answer requests here while the server asks for a pause.
        request_timeout_s: when a request without a reply ends TIMED_OUT.
        server: its address, for messages.
    """

    def __init__(self, *, hold_off: bool = True, request_timeout_s: float = 30.0, server: str = "") -> None:
        self.link = LinkState.CONNECTING
        self.server_version: int | None = None  # of the protocol; None until a reply has told
        self.next_request_id = 1
        self._hold_off = hold_off
        self._server = server
        self._request_timeout_s = request_timeout_s
        self._stats = Stats()
        self._inboxes: dict[str, Inbox] = {}
        # In order of sending. An OrderedDict finds its first entry at once, a dict only after all that were deleted before it.
        self._outstanding: OrderedDict[int, Pending] = OrderedDict()
        self._pings: dict[int, Ping] = {}
        self._v1_logged = False

    @property
    def stats(self) -> Stats:
        """A copy of the counters."""
        return dataclasses.replace(self._stats)

    @property
    def several_frames(self) -> bool:
        """Whether the server is known to read more than one payload frame."""
        return self.server_version == 2

    def inbox(self, model_id: str) -> Inbox:
        """The model's state, the same object each time."""
        return self._inboxes.setdefault(model_id, Inbox(model_id))

    # --- link ---------------------------------------------------------------------------------------------------------

    def link_up(self) -> bool:
        """The handshake succeeded. Returns whether that is a change."""
        if self.link in (LinkState.UP, LinkState.CLOSED):
            return False
        if self.link is LinkState.DOWN:
            self._stats.reconnects += 1
        self.link = LinkState.UP
        return True

    def link_down(self, now: float) -> bool:
        """The connection broke: every outstanding request ends LINK_LOST. Returns whether that is a change."""
        if self.link is not LinkState.UP:
            return False
        self._lose_all(now, "the link to the server went down before the reply came")
        self.link = LinkState.DOWN
        self.server_version = None
        for inbox in self._inboxes.values():
            inbox.hold_off = None
        return True

    def close(self, now: float) -> bool:
        """Ends everything. Returns whether it was open."""
        if self.link is LinkState.CLOSED:
            return False
        self.link = LinkState.CLOSED
        self._lose_all(now, "the connection was closed before the reply came")
        return True

    def _lose_all(self, now: float, why: str) -> None:
        for pending in list(self._outstanding.values()):
            self._stats.link_lost += 1
            self._end(pending, Status.LINK_LOST, why, now)
        for ping in self._pings.values():
            ping.ended = True
        self._pings.clear()

    # --- sending ------------------------------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Raises ConnectionClosedError after close()."""
        if self.link is LinkState.CLOSED:
            raise ConnectionClosedError("the connection is closed; make a new one")

    def begin(self, inbox: Inbox, slot: str, step_ms: float, timestamp_ns: int, now: float) -> Sent:
        """Takes the next request_id. With `status` None in the answer the request is outstanding and must be transmitted (or taken back
        by not_sent); else it has ended.

        Raises:
            ConnectionClosedError: no request_id is used.
        """
        self.check_open()
        request_id = self.next_request_id
        self.next_request_id += 1
        held = inbox.hold_off
        if held is not None:
            if now < held.until_s:
                self._stats.held_off += 1
                reply = Reply(
                    inbox.model_id,
                    request_id,
                    slot,
                    held.status,
                    reason=held.reason,
                    error=held.error,
                    retry_after_ms=(held.until_s - now) * 1e3,
                    observation_timestamp_ns=timestamp_ns,
                    step_ms=step_ms,
                    sent_s=now,
                    received_s=now,
                )
                self._deliver(inbox, reply)
                return Sent(request_id, held.status, held.error)
            inbox.hold_off = None
        if self.link is not LinkState.UP:
            self._stats.not_sent += 1
            why = inbox.not_sent = (
                f"no server has been reached at {self._server} yet"
                if self.link is LinkState.CONNECTING
                else "the link to the server is down"
            )
            return Sent(request_id, Status.NOT_SENT, why)
        self._stats.sent += 1
        inbox.not_sent = ""
        pending = Pending(request_id, inbox, slot, step_ms, timestamp_ns, now)
        self._outstanding[request_id] = inbox.outstanding[request_id] = pending
        return Sent(request_id)

    def not_sent(self, request_id: int, error: str) -> Sent:
        """The request that begin() has just let through could not be handed to the socket."""
        pending = self._outstanding.pop(request_id)
        del pending.inbox.outstanding[request_id]
        pending.inbox.not_sent = error
        self._stats.sent -= 1
        self._stats.not_sent += 1
        return Sent(request_id, Status.NOT_SENT, error)

    def may_cancel(self, inbox: Inbox, request_id: int) -> bool:
        """Whether a CANCEL may be sent: the server knows of it and the request is outstanding."""
        return self.server_version == 2 and self.link is LinkState.UP and request_id in inbox.outstanding

    def begin_ping(self, now: float) -> Ping | None:
        """A ping to transmit; None where there is nobody to answer: the link is not up, or the server speaks v1."""
        self.check_open()
        if self.link is not LinkState.UP or self.server_version == 1:
            return None
        ping = Ping(self.next_request_id, now)
        self.next_request_id += 1
        self._pings[ping.request_id] = ping
        return ping

    def end_ping(self, ping: Ping) -> None:
        """Nobody waits for it any more."""
        ping.ended = True
        self._pings.pop(ping.request_id, None)

    # --- receiving ----------------------------------------------------------------------------------------------------

    def receive(self, frames: Sequence[Buffer], now: float) -> None:
        """One message of the server, from the empty frame on."""
        try:
            if len(frames) < 2 or len(frames[0]):
                raise WireError("frames", "a reply has an empty frame, an envelope and at least one payload frame")
            response = parse_response(frames[1], frames[2:])
            if len(frames) < 3:
                raise WireError("frames", "the reply has no payload frame", response.request_id)
        except WireError as e:
            self._receive_bad(e, now)
            return
        request_id = response.request_id
        if request_id:
            self._note_v2(request_id)
            pending = self._outstanding.get(request_id)
            if pending is None:
                self._receive_unmatched(response, now)
                return
        else:
            self._note_v1()
            inbox = self._inboxes.get(response.model_id)
            if inbox is None or not inbox.outstanding:
                self._stats.late_replies += 1
                return
            pending = next(iter(inbox.outstanding.values()))
        self._answer(pending, response, now)

    def _answer(self, pending: Pending, response: Response, now: float) -> None:
        inbox = pending.inbox
        status = Status.OK if response.status == 0 else Status(response.status)
        reply = Reply(
            inbox.model_id,
            pending.request_id,
            pending.slot,
            status,
            observation_timestamp_ns=pending.timestamp_ns,
            step_ms=pending.step_ms,
            sent_s=pending.sent_s,
            received_s=now,
            response=response,
        )
        if status == Status.OK:
            self._stats.ok += 1
        else:
            self._stats.not_ok += 1
            reply.error = response.error
            reply.reason = Reason(response.reason)
            reply.retry_after_ms = wait_ms = response.retry_after_ms
            if self._hold_off and wait_ms > 0 and status in (Status.REJECTED, Status.UNAVAILABLE):
                until_s = now + min(wait_ms, _MAX_HOLD_OFF_MS) / 1e3
                inbox.hold_off = _HoldOff(until_s, status, reply.reason, reply.error)
        shift_ms = response.phase_shift_ms
        if 0 < shift_ms < math.inf:
            inbox.phase_shift_ms = shift_ms
        self._deliver(inbox, reply, pending)

    def _receive_bad(self, error: WireError, now: float) -> None:
        pending = self._outstanding.get(error.request_id)
        self._note_v2(error.request_id)
        if pending is None:
            self._stats.bad_replies += 1
            ping = self._pings.pop(error.request_id, None)
            if ping is not None:
                ping.ended = True
            logger.warning("a message of the server does not decode: %s", error)
            return
        self._stats.not_ok += 1
        self._end(pending, Status.MODEL_ERROR, f"the reply does not decode: {error}", now)

    def _receive_unmatched(self, response: Response, now: float) -> None:
        ping = self._pings.pop(response.request_id, None)
        if ping is None:
            self._stats.late_replies += 1
            return
        ping.ended = True
        if response.status == Status.OK:
            found = response.metadata
            models = {k.removeprefix("model:"): v == "ready" for k, v in found.items() if k.startswith("model:")}
            ping.result = PingResult(
                (now - ping.sent_s) * 1e3, found.get("server", ""), models, response.protocol_version
            )

    def _note_v2(self, request_id: int) -> None:
        if 0 < request_id < self.next_request_id:
            self.server_version = 2

    def _note_v1(self) -> None:
        if self.server_version is None:
            self.server_version = 1
        if not self._v1_logged:
            self._v1_logged = True
            logger.warning(
                "the server speaks protocol v1: replies are matched by model in order of arrival, and there are no error replies, "
                "deadlines, cancellation or pings"
            )

    def _end(self, pending: Pending, status: Status, error: str, now: float) -> None:
        reply = Reply(
            pending.inbox.model_id,
            pending.request_id,
            pending.slot,
            status,
            error=error,
            observation_timestamp_ns=pending.timestamp_ns,
            step_ms=pending.step_ms,
            sent_s=pending.sent_s,
            received_s=now,
        )
        self._deliver(pending.inbox, reply, pending)

    def _forget(self, pending: Pending) -> None:
        del self._outstanding[pending.request_id]
        del pending.inbox.outstanding[pending.request_id]

    def _deliver(self, inbox: Inbox, reply: Reply, ended: Pending | None = None) -> None:
        if len(inbox.replies) >= INBOX_REPLIES:
            inbox.replies.popleft()
            self._stats.replies_dropped += 1
        if ended is not None:
            # Without a call from here on, in which a signal handler could raise and leave it without an outcome.
            del self._outstanding[ended.request_id]
            del inbox.outstanding[ended.request_id]
        inbox.replies.append(reply)

    # --- handing out --------------------------------------------------------------------------------------------------

    def next_reply(self, inbox: Inbox, now: float) -> Verdict:
        """The oldest reply; None with nothing outstanding."""
        if inbox.replies:
            return _handed_out(inbox.replies.popleft(), now)
        return WAIT if inbox.outstanding else None

    def result(self, inbox: Inbox, now: float) -> Verdict:
        """The first OK reply that is newer than the last one given out for its slot; None where there will be none."""
        replies = inbox.replies
        while replies:
            reply = replies.popleft()
            if reply.status == Status.OK:
                delivered = inbox.delivered.get(reply.slot)
                if delivered is None or reply.request_id > delivered:
                    if delivered is None and len(inbox.delivered) >= inbox.most_slots:
                        inbox.forget_slots()
                    inbox.delivered[reply.slot] = reply.request_id
                    inbox.last_status, inbox.last_error = Status.OK, ""
                    return _handed_out(reply, now)
                self._stats.late_replies += 1
            elif not self._newer_expected(inbox, reply.request_id):
                inbox.last_status, inbox.last_error = reply.status, reply.error
                return None
        inbox.last_status, inbox.last_error = None, ""  # so far; abandon() says more
        if inbox.outstanding:
            return WAIT
        inbox.last_error = inbox.not_sent or "nothing was outstanding"
        return None

    def _newer_expected(self, inbox: Inbox, request_id: int) -> bool:
        newest = next(reversed(inbox.outstanding), 0)
        return newest > request_id or any(r.request_id > request_id for r in reversed(inbox.replies))

    def abandon(self, inbox: Inbox) -> None:
        """get_result ran out of time: all of the model's outstanding requests end TIMED_OUT, told by its returning none."""
        self._stats.timed_out += len(inbox.outstanding)
        for pending in list(inbox.outstanding.values()):
            self._forget(pending)
        inbox.last_status, inbox.last_error = Status.TIMED_OUT, "no reply came in the time given to get_result"

    # --- time ---------------------------------------------------------------------------------------------------------

    def next_expiry(self) -> float | None:
        """When expire() next has something to do."""
        for pending in self._outstanding.values():
            return pending.sent_s + self._request_timeout_s
        return None

    def expire(self, now: float) -> None:
        """Ends TIMED_OUT what has waited longer than the request timeout."""
        while self._outstanding:
            oldest = next(iter(self._outstanding.values()))
            if now < oldest.sent_s + self._request_timeout_s:
                return
            self._stats.timed_out += 1
            self._end(oldest, Status.TIMED_OUT, f"no reply came within {self._request_timeout_s * 1e3:g} ms", now)


def _handed_out(reply: Reply, now: float) -> Reply:
    reply.age_ms = (now - reply.sent_s) * 1e3
    return reply
