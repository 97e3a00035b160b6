"""Deadline order with priority levels, and the strategies built on it."""

from __future__ import annotations

import math
from bisect import bisect, bisect_left
from typing import Any

from inferential.config.schema import SchedulingConfig
from inferential.errors import ConfigError
from inferential.scheduling.base import Batch, Order, Scheduler, register_scheduler
from inferential.scheduling.fairness import FairQueue, GuaranteedShare
from inferential.scheduling.heap import LazyHeap
from inferential.scheduling.request import Request, in_order
from inferential.types import is_number


class _Level:
    """The waiting requests of one priority."""

    __slots__ = ("by_key", "by_share", "sharing")

    def __init__(self, number: int) -> None:
        self.by_key: LazyHeap[Request] = LazyHeap(in_order)
        self.by_share = FairQueue(number)
        self.sharing = False
        """Whether what waits is in `by_share` too: only while shares matter, for what nobody asks is not worth its time."""

    def first(self, contended: bool) -> Request | None:
        """The one that goes next."""
        if contended:
            if not self.sharing:
                self.sharing = True
                for request in self.by_key:
                    self.by_share.push(request)
            return self.by_share.first()
        if self.sharing:
            self.sharing = False
            self.by_share.clear()
        entry = self.by_key.top()
        return None if entry is None else entry[2]


class DeadlineOrder:
    """Smallest key first, levels only where it matters.

    Not contended: the smallest key of all goes, except that a better level goes ahead of keys that are earlier by at most `window_s`.
    Contended (or `strict`): the best level that waits goes, less the guaranteed share of the others; contended, clients of one
    level take turns.
    """

    __slots__ = ("_by_number", "_counts", "_keys", "_numbers", "_share", "_strict", "_window_s")

    def __init__(self, *, min_share: float, window_s: float, strict: bool = False) -> None:
        self._by_number: dict[int, _Level] = {}
        # Of the levels with something that waits, best first. Flat lists, because there may be a thousand levels.
        self._numbers: list[int] = []
        self._counts: list[int] = []
        self._keys: list[float] = []
        """The smallest of each."""
        self._share = GuaranteedShare(min_share)
        self._window_s = window_s
        self._strict = strict

    def push(self, request: Request) -> None:
        """See Order."""
        number, key = request.level, request.key
        level = self._by_number.get(number)
        if level is None:
            level = self._by_number[number] = _Level(number)
        at = bisect_left(self._numbers, number)
        if at == len(self._numbers) or self._numbers[at] != number:
            self._numbers.insert(at, number)
            self._counts.insert(at, 1)
            self._keys.insert(at, key)
        else:
            self._counts[at] += 1
            if key < self._keys[at]:
                self._keys[at] = key
        level.by_key.push(key, request.sequence, request)
        if level.sharing:
            level.by_share.push(request)

    def first(self, contended: bool) -> Request | None:
        """See Order."""
        numbers = self._numbers
        if not numbers:
            return None
        number = numbers[0]
        if len(numbers) > 1:
            number = self._share.best(numbers) if contended or self._strict else self._earliest()
        return self._by_number[number].first(contended)

    def rivals(self, request: Request) -> int:
        """See Order."""
        return sum(self._counts[: bisect(self._numbers, request.level)])

    def _earliest(self) -> int:
        """The best level whose smallest key is within the window of the smallest of all."""
        keys = self._keys
        limit = min(keys) + self._window_s
        for at, key in enumerate(keys):
            if key <= limit:
                return self._numbers[at]
        raise AssertionError("the smallest key is within its own window")

    def discard(self, request: Request, served: bool) -> None:
        """See Order."""
        number = request.level
        level = self._by_number[number]
        level.by_key.discard()
        if level.sharing:
            level.by_share.discard(request, served)
        numbers = self._numbers
        at = bisect_left(numbers, number)
        self._counts[at] -= 1
        entry = level.by_key.top()
        if entry is None:
            del numbers[at], self._counts[at], self._keys[at]
            self._share.emptied(number, numbers)
        else:
            self._keys[at] = entry[0]
        if served and numbers:
            self._share.served(number, numbers)


class DeadlineAware(Scheduler):
    """One order over all models: the most urgent request whose model has a free slot goes."""

    strict = False

    def order(self) -> Order:
        """See Scheduler."""
        config = self.config
        return DeadlineOrder(min_share=config.min_share, window_s=config.priority_window_ms / 1e3, strict=self.strict)


class ModelDeadline(DeadlineAware):
    """Deadline order within each model; models that compete for a slot take turns, however urgent their requests are."""

    takes_turns = True


class PriorityTiered(DeadlineAware):
    """Strict levels whether contended or not, less the guaranteed share; deadline order within a level."""

    strict = True


class BatchOptimized(DeadlineAware):
    """A batch leaves when it is full or its oldest request has waited `max_wait_ms`, not later."""

    def __init__(self, config: SchedulingConfig, max_wait_ms: Any = 10.0) -> None:
        super().__init__(config)
        if not (is_number(max_wait_ms) and 0.0 <= max_wait_ms < math.inf):
            raise ConfigError(
                f"scheduling.options: batch_optimized's max_wait_ms is {max_wait_ms!r}; it must be a number >= 0"
            )
        self._max_wait_s = float(max_wait_ms) / 1e3

    def hold_until(self, batch: Batch, now: float) -> float:
        """See Scheduler."""
        return now if batch.size >= batch.limit else batch.oldest_arrival + self._max_wait_s


register_scheduler("deadline_aware", DeadlineAware)
register_scheduler("model_deadline", ModelDeadline)
register_scheduler("priority_tiered", PriorityTiered)
register_scheduler("batch_optimized", BatchOptimized)
