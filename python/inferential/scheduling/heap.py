"""A heap from which members may leave by other ways than its top."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_GARBAGE_ALLOWED = 64


class LazyHeap(Generic[T]):
    """Smallest rank first; equal ranks in the order of `tie`. O(log n) for everything, amortised.

    A member that leaves elsewhere stops being `alive` and is skipped when it comes to the top. `discard` counts such members: when
    they are more than half of the heap it is rebuilt without them, so garbage never exceeds what is alive by more than a constant.
    """

    __slots__ = ("_alive", "_dead", "_entries")

    def __init__(self, alive: Callable[[T], object]) -> None:
        self._alive = alive
        self._entries: list[tuple[Any, int, T]] = []
        self._dead = 0

    def push(self, rank: Any, tie: int, item: T) -> None:
        """Adds a member. `tie` must be unique among members of equal rank."""
        heappush(self._entries, (rank, tie, item))

    def discard(self) -> None:
        """One member left by another way."""
        self._dead = dead = self._dead + 1
        if dead > _GARBAGE_ALLOWED and 2 * dead > len(self._entries):
            alive = self._alive
            self._entries = [entry for entry in self._entries if alive(entry[2])]
            heapify(self._entries)
            self._dead = 0

    def top(self) -> tuple[Any, int, T] | None:
        """(rank, tie, member) of the first that is alive."""
        entries = self._entries
        alive = self._alive
        while entries:
            entry = entries[0]
            if alive(entry[2]):
                return entry
            heappop(entries)
            if self._dead:
                self._dead -= 1
        return None

    def pop(self) -> T:
        """Takes what `top` shows, which must have been asked just before.

        The caller ends its being alive itself.
        """
        return heappop(self._entries)[2]

    def __iter__(self) -> Iterator[T]:
        """Members that are alive, in no order."""
        alive = self._alive
        return (item for _, _, item in self._entries if alive(item))

    def __len__(self) -> int:
        """Entries held, dead ones included."""
        return len(self._entries)
