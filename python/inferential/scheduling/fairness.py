"""Fair sharing: between the clients of one level, and between levels."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from operator import attrgetter

from inferential.scheduling.heap import LazyHeap
from inferential.scheduling.request import Request, in_order
from inferential.tracking.clients import Account, Stream

_MOST_OWED = 8.0  # turns; an old grudge must not starve others

_is_current = attrgetter("current")


class _Line:
    """One client's waiting requests, smallest key first, and its place among the other clients."""

    __slots__ = ("account", "current", "due", "first", "others", "turn")

    def __init__(
        self, account: Account, turn: float, due: float, first: Request, others: LazyHeap[Request] | None
    ) -> None:
        self.current = True
        """False once another line, with another first request, has taken its place."""
        self.account = account
        self.turn = turn
        """How long its turns last, in virtual time."""
        self.due = due
        """Virtual time of its next turn."""
        self.first = first
        self.others = others
        """All but the first; most clients never have any."""


class FairQueue:
    """The waiting requests of one level by their clients' shares: start-time fair queueing (Goyal, Vin, Cheng 1996), with a memory
    for refusals. Every operation is O(log n), amortised.

    Each client is due at a virtual time, `max(clock, end of its last turn)`; a turn lasts `1 / share`. Those due within the same
    round (of length 1) go by the key of their most urgent request, earlier rounds first: so clients are served in turn whatever their
    rates, and how urgent a client's requests are decides which of them takes its turn. The clock is the latest round served, so
    who was idle has saved nothing up. A client whose round it was when its request ended unserved is owed a turn, and is due that
    much earlier: refusals go round. One that has more waiting is owed nothing: who floods hurts itself alone.
    """

    __slots__ = ("_entered", "_lines", "_places", "level", "now")

    def __init__(self, level: int) -> None:
        self.level = level
        self.now = 0
        self._lines: dict[Stream, _Line] = {}
        self._places: LazyHeap[_Line] = LazyHeap(_is_current)
        self._entered = 0

    def push(self, request: Request) -> None:
        """A request begins to wait."""
        stream = request.stream
        assert stream is not None, "set at arrival"
        line = self._lines.get(stream)
        if line is None:
            account = stream.account(self.level)
            turn = 1.0 / stream.weight
            # Another clock's time (a strategy before this one, another replica's) may be ahead of this one.
            due = max(self.now, min(account.finish, self.now + 1 + turn))
            self._enter(stream, _Line(account, turn, due, request, None))
            return
        others = line.others
        if others is None:
            others = line.others = LazyHeap(in_order)
        first = line.first
        if (request.key, request.sequence) < (first.key, first.sequence):
            self._leave(line)
            self._enter(stream, _Line(line.account, line.turn, line.due, request, others))
            request = first
        others.push(request.key, request.sequence, request)

    def clear(self) -> None:
        """Nothing waits here any more; what clients have had, and are owed, stays."""
        self._lines.clear()
        self._places = LazyHeap(_is_current)

    def first(self) -> Request | None:
        """The one that goes next."""
        entry = self._places.top()
        return None if entry is None else entry[2].first

    def discard(self, request: Request, served: bool) -> None:
        """A request waits no more (`queued` is already False); `served`: it went to a model."""
        stream = request.stream
        assert stream is not None, "set at arrival"
        line = self._lines[stream]
        account, due = line.account, line.due
        if served:
            served_round = int(due - account.owed)
            if served_round > self.now:
                self.now = served_round
            account.finish = due = due + line.turn
            if account.owed:
                account.owed = max(0.0, account.owed - line.turn)
        elif int(due) <= self.now and stream.queued <= 1:
            account.owed = min(_MOST_OWED, account.owed + line.turn)
        others = line.others
        if request is not line.first:
            assert others is not None, "what is not the first is one of the others"
            others.discard()
            return
        self._leave(line)
        if others is None or others.top() is None:
            del self._lines[stream]
        else:
            # Where levels share a clock's time unevenly somebody may fall behind: that saves up no more than a round.
            self._enter(stream, _Line(account, line.turn, max(due, self.now - 1), others.pop(), others))

    def _enter(self, stream: Stream, line: _Line) -> None:
        self._lines[stream] = line
        self._entered += 1
        first = line.first
        rank = (int(line.due - line.account.owed), first.key, first.sequence)
        self._places.push(rank, self._entered, line)

    def _leave(self, line: _Line) -> None:
        line.current = False
        self._places.discard()


class GuaranteedShare:
    """Strict order between levels, less a guaranteed share: each request that is served owes the lower levels that wait `share` of a
    request between them. Whenever that makes a whole one, one of them goes; they take turns.
    """

    __slots__ = ("_last", "_owed", "_owing", "_share")

    def __init__(self, share: float) -> None:
        self._share = share
        self._owed = 0.0
        self._owing = 0
        """The level that owes it."""
        self._last = -1
        """The level that had the last turn."""

    def best(self, waiting: Sequence[int]) -> int:
        """The level that goes next; `waiting` is sorted and not empty."""
        if self._owed < 1.0 or len(waiting) < 2:
            return waiting[0]
        after = bisect(waiting, self._last, 1)
        return waiting[after if after < len(waiting) else 1]

    def served(self, level: int, waiting: Sequence[int]) -> None:
        """A request of `level` went; `waiting` (sorted, not empty) still have some."""
        if self._owed >= 1.0 and level > self._owing:  # whether by its turn or as nothing better waited
            self._owed -= 1.0
            self._last = level
        elif level < waiting[-1]:
            self._owed = min(2.0, self._owed + self._share)
            self._owing = level

    def emptied(self, level: int, waiting: Sequence[int]) -> None:
        """A level has nothing waiting; `waiting` still have some. Where it was the only lower one, nothing is saved up for it."""
        if not waiting or (len(waiting) == 1 and level > waiting[0]):
            self._owed = 0.0
