"""Which requests go together, and when (docs/scheduling.md, "Batches"). Pure arithmetic; times in seconds.

A call of n requests takes c(n) = fixed + item x n.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

_BUDGETS = 64
_BUDGET_QUANTILE = 0.1


class TightBudget:
    """The budget that nearly all recent requests have at least: the 10 % quantile of the last 64."""

    __slots__ = ("_recent", "_stale", "_value")

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_BUDGETS)
        self._value = math.inf
        self._stale = 0

    def add(self, budget_s: float) -> None:
        """Counts a request."""
        self._recent.append(budget_s)
        self._stale -= 1

    @property
    def value(self) -> float:
        """Infinite where nothing is known."""
        if self._stale <= 0 and self._recent:
            ordered = sorted(self._recent)
            self._value = ordered[int(_BUDGET_QUANTILE * len(ordered))]
            self._stale = 8 if len(ordered) < _BUDGETS else _BUDGETS // 2
        return self._value


def batch_limit(fixed_s: float, item_s: float, budget_s: float, most: int) -> int:
    """The largest batch of which two fit in a budget, one after the other: c(n) <= budget / 2.

    Then whoever arrives just after a batch has left can still be in the next one, so nobody is lost by the moment of its arrival.
    Where not even one request fits twice: the largest batch that fits once. At least 1.
    """
    if budget_s == math.inf:
        return most
    for times in (2.0, 1.0):
        room = budget_s / times - fixed_s
        if room >= item_s:
            return most if item_s <= 0.0 else max(1, min(most, int(room / item_s + 1e-9)))
    return 1


def enough(fixed_s: float, item_s: float, rate: float) -> float:
    """The smallest batch at which a replica keeps up with `rate` arrivals a second: n / c(n) >= rate. Infinite where none does."""
    left = 1.0 - rate * item_s
    return rate * fixed_s / left if left > 0.0 else math.inf


def fits(expiry: float, start: float, fixed_s: float, item_s: float, most: int) -> int:
    """How large a batch may be that begins at `start` and is to end by `expiry`; 0: not even one request can."""
    room = expiry - start - fixed_s
    if room < item_s:
        return 0
    if item_s <= 0.0 or room >= item_s * most:
        return most
    return int(room / item_s + 1e-9)


def worth_waiting(
    now: float, size: int, limit: int, fixed_s: float, item_s: float, latest: float, arrivals: Sequence[float]
) -> float:
    """Until when a batch of `size` that could leave now should wait for expected arrivals; `now`: not at all.

    Waiting d for k more delays the `size` that are here by d each, and saves the k from waiting for this call to end: it pays
    where size x d < k x (c(size) - d).

    Args:
        latest: when the batch must leave at the latest for every deadline in it to hold.
        arrivals: the next expected arrivals, in order.
    """
    runs_s = fixed_s + item_s * size
    wait = now
    for k, due in enumerate(arrivals, 1):
        if size + k > limit or due > latest - item_s * k:
            break
        delay = due - now
        if size * delay < k * (runs_s - delay):
            wait = due
    return wait
