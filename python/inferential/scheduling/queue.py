"""What waits: bounds, oldest first, removal. In which order it goes is the scheduler's affair."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from operator import attrgetter

from inferential.scheduling.heap import LazyHeap
from inferential.scheduling.request import Request

_is_queued = attrgetter("queued")


@dataclass(slots=True)
class Load:
    """What waits in all queues together."""

    requests: int = 0
    size_bytes: int = 0


class RequestQueue:
    """The waiting requests of one model, by arrival and by expiry. Every operation is O(log n) at most, amortised."""

    __slots__ = ("_by_arrival", "_by_expiry", "_total", "size_bytes")

    def __init__(self, total: Load) -> None:
        # OrderedDict, not dict: its first entry is found in O(1) however many were removed before it.
        self._by_arrival: OrderedDict[int, Request] = OrderedDict()
        self._by_expiry: LazyHeap[Request] = LazyHeap(_is_queued)
        self._total = total
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._by_arrival)

    def __iter__(self):  # type: ignore[no-untyped-def]
        """By arrival."""
        return iter(self._by_arrival.values())

    def add(self, request: Request) -> None:
        """Adds a request that is in no queue."""
        request.queued = True
        sequence = request.sequence
        self._by_arrival[sequence] = request
        self._by_expiry.push(request.expiry, sequence, request)
        size = request.size_bytes
        self.size_bytes += size
        total = self._total
        total.requests += 1
        total.size_bytes += size

    def remove(self, request: Request) -> None:
        """Takes out a request that is in this queue."""
        request.queued = False
        del self._by_arrival[request.sequence]
        self._by_expiry.discard()
        size = request.size_bytes
        self.size_bytes -= size
        total = self._total
        total.requests -= 1
        total.size_bytes -= size

    def oldest(self) -> Request | None:
        """The one that has been here longest."""
        for request in self._by_arrival.values():
            return request
        return None

    def first_to_expire(self) -> Request | None:
        """The one with the earliest expiry."""
        entry = self._by_expiry.top()
        return None if entry is None else entry[2]
