"""What priority levels of one model there are, and what the better ones need of the calls of the lower ones."""

from __future__ import annotations

import bisect
from itertools import pairwise

from inferential.scheduling.batching import Quantile, reserve_limit, tight_budget
from inferential.tracking.forecast import ArrivalRate

_LIVE_S = 10.0  # for so long after its last request more of a level is expected
# Levels that are reckoned with. Those below have the limit of the last one, so that nobody can make a decision slow.
_MOST_LEVELS = 32


class _Level:
    """Of one priority: how much time its requests have, and how many come."""

    __slots__ = ("_count", "_counts_until", "budget", "burst", "number", "rate", "seen_at")

    def __init__(self, number: int) -> None:
        self.number = number
        self.budget = tight_budget()
        self.rate = ArrivalRate()
        self.burst = Quantile(0.5, 1.0)
        """How many come within half a budget of one another."""
        self.seen_at = 0.0
        self._count = 0
        self._counts_until = 0.0

    def arrived(self, budget_s: float, now: float) -> None:
        self.budget.add(budget_s)
        self.rate.arrived(now)
        self.seen_at = now
        if now >= self._counts_until:
            if self._count:
                self.burst.add(float(self._count))
            self._count = 0
            self._counts_until = now + 0.5 * budget_s
        self._count += 1


class Levels:
    """The levels of one model. Times are seconds."""

    __slots__ = ("_by_number", "_sorted")

    def __init__(self) -> None:
        self._by_number: dict[int, _Level] = {}
        self._sorted: list[_Level] = []

    def arrived(self, number: int, budget_s: float, now: float) -> None:
        """A request of a level came."""
        level = self._by_number.get(number)
        if level is None:
            level = self._by_number[number] = _Level(number)
            bisect.insort(self._sorted, level, key=lambda level: level.number)
        level.arrived(budget_s, now)

    def better(self, number: int) -> bool:
        """Whether requests of a lower level than this one are about."""
        levels = self._sorted
        return bool(levels) and number < levels[-1].number

    def limits(
        self, now: float, call_s: float, item_s: float, spare_s: float, reserve: float, most: int
    ) -> dict[int, int]:
        """Of each level how large a batch may become by its requests: such that after it those of every better level can still be
        in time, whenever they arrive (batching.reserve_limit). Levels that are not named have none above them.

        Args:
            spare_s: taken from the better levels' budgets, and...
            reserve: ...so is this share of them.
            most: the largest batch of all.
        """
        levels = self._sorted
        found: dict[int, int] = {}
        if len(levels) < 2:
            return found
        live_since = now - _LIVE_S
        if any(level.seen_at < live_since for level in levels):
            levels = self._sorted = [level for level in levels if level.seen_at >= live_since]
            self._by_number = {level.number: level for level in levels}
        rate = burst = 0.0
        for i, (level, lower) in enumerate(pairwise(levels)):
            if i >= _MOST_LEVELS:
                found[lower.number] = most
                continue
            rate += level.rate.at(now)
            burst += level.burst.value
            budget_s = level.budget.value
            most = reserve_limit(call_s, item_s, budget_s, spare_s + reserve * budget_s, rate, burst, most)
            found[lower.number] = most
        return found
