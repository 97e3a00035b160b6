"""Fair sharing: between the clients of one level, and between levels."""

from __future__ import annotations

from collections.abc import Sequence

from inferential.scheduling.request import Request
from inferential.tracking.clients import Stream

_MOST_OWED = 8.0  # turns; an old grudge must not starve others


class FairClock:
    """The virtual time of one level at one model: start-time fair queueing (Goyal, Vin, Cheng 1996), with a memory for refusals.

    Each request is due at a virtual time: `max(clock, end of its client's last turn)`; a turn lasts `1 / share`. The clock is the latest
    due time served so far, so who was idle has saved nothing up. Earliest due first serves clients in turn whatever their rates. A
    request that was due but not served gives its turn back and its client is owed one: its next tag (the order) is its due time less
    what it is owed. So refusals go round. A client that has more waiting is owed nothing: who floods hurts itself alone.
    """

    __slots__ = ("level", "now")

    def __init__(self, level: int) -> None:
        self.level = level
        self.now = 0.0

    def enter(self, request: Request, stream: Stream) -> None:
        """Sets the tag of a client's next request."""
        account = stream.account(self.level)
        due = account.finish
        due = max(due, self.now)
        account.finish = due + 1.0 / stream.weight
        request.due = due
        request.tag = due - account.owed

    def served(self, request: Request) -> None:
        """It went to a model."""
        self.now = max(self.now, request.due)
        stream = request.stream
        if stream is not None:
            account = stream.account(self.level)
            if account.owed:
                account.owed = max(0.0, account.owed - 1.0 / stream.weight)

    def left(self, request: Request) -> None:
        """It ended without having been served."""
        stream = request.stream
        if stream is not None:
            account = stream.account(self.level)
            turn = 1.0 / stream.weight
            account.finish -= turn
            if request.due <= self.now and stream.queued <= 1:
                account.owed = min(_MOST_OWED, account.owed + turn)


class GuaranteedShare:
    """Strict order between levels, less a guaranteed share: each request that is served owes the lower levels that wait `share` of a
    request between them, and a level that is owed a whole one goes.
    """

    __slots__ = ("_owed", "_share")

    def __init__(self, share: float) -> None:
        self._share = share
        self._owed: dict[int, float] = {}

    def best(self, waiting: Sequence[int]) -> int:
        """The level that goes next; `waiting` is sorted and not empty."""
        owed = self._owed
        for level in waiting:
            if owed.get(level, 0.0) >= 1.0:
                return level
        return waiting[0]

    def served(self, level: int, waiting: Sequence[int]) -> None:
        """A request of `level` went; `waiting` (sorted) still have some."""
        owed = self._owed
        if owed.get(level, 0.0) >= 1.0:
            owed[level] -= 1.0
            return
        lower = [other for other in waiting if other > level]
        for other in lower:
            owed[other] = min(2.0, owed.get(other, 0.0) + self._share / len(lower))

    def emptied(self, level: int) -> None:
        """A level has nothing waiting; it saves nothing up."""
        self._owed.pop(level, None)
