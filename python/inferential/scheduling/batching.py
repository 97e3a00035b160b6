"""Which requests go together, and when (docs/scheduling.md, "Batches"). Pure arithmetic; times in seconds.

A call of n requests takes c(n) = fixed + item x n.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

_RECENT = 64


class Quantile:
    """Of the last 64 values."""

    __slots__ = ("_q", "_recent", "_stale", "_value")

    def __init__(self, q: float, unknown: float) -> None:
        self._q = q
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._value = unknown
        self._stale = 0

    def add(self, value: float) -> None:
        """Counts one."""
        self._recent.append(value)
        self._stale -= 1

    @property
    def value(self) -> float:
        """As of some 32 values ago at most."""
        if self._stale <= 0 and self._recent:
            ordered = sorted(self._recent)
            self._value = ordered[int(self._q * len(ordered))]
            self._stale = 8 if len(ordered) < _RECENT else _RECENT // 2
        return self._value


def tight_budget() -> Quantile:
    """The budget that nearly all recent requests have at least: the 10 % quantile. Infinite where nothing is known."""
    return Quantile(0.1, math.inf)


def batch_limit(fixed_s: float, item_s: float, budget_s: float, rate: float, most: int) -> int:
    """The largest batch that is worth it. At least 1.

    Of the largest that can be served without loss two fit in a budget, one after the other: c(n) <= budget / 2. Whoever arrives just after
    a batch has left can then still be in the next one, so nobody is lost by the moment of its arrival. Where not even one request
    fits twice: the largest batch that fits once.

    Where more arrive than such batches can serve some are lost anyhow, and larger ones serve more: up to the one that those who are
    still in time after it, having arrived in the last budget - c(n), just fill: n = rate x (budget - c(n)).
    """
    if budget_s == math.inf:
        return most
    for times in (2.0, 1.0):
        room = budget_s / times - fixed_s
        if room >= item_s:
            if item_s <= 0.0:
                return most
            largest = max(room / item_s, rate * (budget_s - fixed_s) / (1.0 + rate * item_s))
            return max(1, min(most, int(largest + 1e-9)))
    return 1


def reserve_limit(
    call_s: float, item_s: float, budget_s: float, spare_s: float, rate: float, burst: float, most: int
) -> int:
    """The largest batch of lower levels that leaves a better level its deadlines, whenever its requests arrive.

    One that arrives just after the batch has left waits for it, and runs in the next call together with those of its level that arrive
    meanwhile, at `rate` a second or `burst` of them at once: c(n) + c(max(burst, 1 + rate x c(n))) <= budget - spare. Where one
    request leaves that only without the spare time, 1. Where not even that, the largest batch that itself fits the budget; where none
    does, nothing is reserved.
    """

    def alone(room_s: float) -> float:
        """c(n) + c(max(burst, 1 + rate x c(n))) <= room, solved for c(n)."""
        return min((room_s - call_s - item_s) / (1.0 + rate * item_s), room_s - call_s - item_s * burst)

    one = call_s + item_s
    runs = alone(budget_s - spare_s)
    if runs < one:
        if alone(budget_s) >= one:
            return 1
        runs = budget_s - spare_s
        if runs < one:
            return most
    return most if item_s <= 0.0 else max(1, min(most, int((runs - call_s) / item_s + 1e-9)))


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
    now: float,
    size: int,
    limit: int,
    fixed_s: float,
    item_s: float,
    rate: float,
    latest: float,
    arrivals: Sequence[float],
) -> float:
    """Until when a batch of `size` that could leave now should wait for expected arrivals; `now`: not at all.

    Waiting d for k more delays by d each the `size` that are here, and those who come while the call runs, `rate` x c(size) of them: they
    go when it has ended. It saves the k from waiting for that: it pays where (size + rate x c(size)) x d < k x (c(size) - d).

    Args:
        rate: arrivals a second.
        latest: when the batch must leave at the latest for every deadline in it to hold.
        arrivals: the next expected arrivals, in order.
    """
    runs_s = fixed_s + item_s * size
    delayed = size + rate * runs_s
    wait = now
    for k, due in enumerate(arrivals, 1):
        if size + k > limit or due > latest - item_s * k:
            break
        delay = due - now
        if delayed * delay < k * (runs_s - delay):
            wait = due
    return wait
