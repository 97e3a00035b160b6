"""Fair sharing: between the clients of one level, and between levels."""

from __future__ import annotations

from collections.abc import Sequence

from inferential.scheduling.request import Request
from inferential.tracking.clients import Stream


class FairClock:
    """The virtual time of one level at one model: start-time fair queueing (Goyal, Vin, Cheng 1996).

    Each request gets a tag, the virtual time at which its client is due: `max(clock, end of the client's last tag)`; a tag lasts
    `1 / share`. The clock is the largest tag served so far, so who was idle has saved nothing up. Smallest tag first serves clients in
    turn whatever their rates; and what was not served gives its tag back, so that who was refused goes first next time.
    """

    __slots__ = ("level", "now")

    def __init__(self, level: int) -> None:
        self.level = level
        self.now = 0.0

    def enter(self, stream: Stream) -> float:
        """The tag for the client's next request."""
        tags = stream.finish_tags
        tag = tags.get(self.level, 0.0)
        tag = max(tag, self.now)
        tags[self.level] = tag + 1.0 / stream.weight
        return tag

    def served(self, request: Request) -> None:
        """It went to a model."""
        self.now = max(self.now, request.tag)

    def left(self, request: Request) -> None:
        """It ended without having been served."""
        stream = request.stream
        if stream is not None:
            stream.finish_tags[self.level] -= 1.0 / stream.weight


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
