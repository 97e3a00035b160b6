"""Pacing a control loop (docs/protocol.md, section 6.8)."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Protocol

from inferential.types import is_number

_LEAST_HZ, _MOST_HZ = 1e-3, 1e6


class Hints(Protocol):
    """What can tell of phase shifts: a Model or an AsyncModel."""

    def take_phase_shift_ms(self) -> float:
        """The last hint that was not taken yet, 0 without one."""
        ...


def _check_hints(follow: object) -> None:
    if follow is not None and not hasattr(follow, "take_phase_shift_ms"):
        raise ValueError(f"follow is {follow!r}; it must be a model handle, as conn.model() returns it")


class Grid:
    """A fixed grid of ticks, without a clock: `period_s` apart, the first one period after `start_s`."""

    def __init__(self, hz: float, start_s: float) -> None:
        if not (is_number(hz) and _LEAST_HZ <= hz <= _MOST_HZ):  # NaN too
            raise ValueError(f"hz is {hz!r}; it must be from {_LEAST_HZ:g} to {_MOST_HZ:,.0f}")
        self.period_s = 1.0 / hz
        self._start_s = start_s
        self._ticks = 1  # number of the next one

    def shift(self, shift_s: float) -> None:
        """Moves every tick from now on, by what is left of `shift_s` after whole periods; by nothing where it is not finite or not
        above 0."""
        if 0 < shift_s < math.inf:
            self._start_s += math.fmod(shift_s, self.period_s)

    def advance(self, now: float) -> tuple[float, int]:
        """The time of the next tick that is not over, and how many have been missed since the last call."""
        tick = self._start_s + self._ticks * self.period_s
        missed = 0
        if now > tick:
            missed = math.ceil((now - tick) / self.period_s)
            self._ticks += missed
            tick = self._start_s + self._ticks * self.period_s
        self._ticks += 1
        return tick, missed


class Rate:
    """Paces a loop: `sleep()` waits until the next tick of a fixed grid. Ticks that were missed are skipped, not caught up.

    Args:
        hz: ticks per second, 0.001 to 1,000,000.
        follow: a model whose phase shift hints move the grid, each once and by less than a period, so that a fleet's observations
            spread out.

    Raises:
        ValueError: `hz` is not from 0.001 to 1,000,000.

    Not thread-safe: one per loop.
    """

    def __init__(
        self,
        hz: float,
        *,
        follow: Hints | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        _check_hints(follow)
        self._clock = clock
        self._sleep = sleep
        self._follow = follow
        self._grid = Grid(hz, clock())

    @property
    def period_ms(self) -> float:
        """From tick to tick."""
        return self._grid.period_s * 1e3

    def sleep(self) -> int:
        """Waits until the next tick. Returns how many ticks were missed, 0 when in time."""
        tick, missed = _next_tick(self._grid, self._follow, self._clock())
        # sleep() may return early by the timer's resolution
        while (left := tick - self._clock()) > 0:
            self._sleep(left)
        return missed


class AsyncRate:
    """Rate for asyncio: `await rate.sleep()`."""

    def __init__(self, hz: float, *, follow: Hints | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        _check_hints(follow)
        self._clock = clock
        self._follow = follow
        self._grid = Grid(hz, clock())

    @property
    def period_ms(self) -> float:
        """From tick to tick."""
        return self._grid.period_s * 1e3

    async def sleep(self) -> int:
        """Waits until the next tick. Returns how many ticks were missed, 0 when in time."""
        tick, missed = _next_tick(self._grid, self._follow, self._clock())
        # Also when late: other tasks get their turn.
        await asyncio.sleep(max(0.0, tick - self._clock()))
        while (left := tick - self._clock()) > 0:
            await asyncio.sleep(left)
        return missed


def _next_tick(grid: Grid, follow: Hints | None, now: float) -> tuple[float, int]:
    if follow is not None:
        grid.shift(follow.take_phase_shift_ms() / 1e3)
    return grid.advance(now)
