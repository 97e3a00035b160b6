"""Rate on a clock of our own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from inferential.client.rate import AsyncRate, Grid, Rate


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Hints:
    def __init__(self, *hints_ms: float) -> None:
        self.hints_ms = list(hints_ms)

    def take_phase_shift_ms(self) -> float:
        return self.hints_ms.pop(0) if self.hints_ms else 0.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_it_keeps_the_grid_however_long_the_work_takes(clock: Clock) -> None:
    rate = Rate(50, clock=clock, sleep=clock.sleep)
    assert rate.period_ms == 20
    for i, work in enumerate([0.0, 0.019, 0.001, 0.015], 1):
        clock.now += work
        assert rate.sleep() == 0
        assert clock.now == pytest.approx(1000.0 + i * 0.020)


def test_missed_ticks_are_counted_and_skipped(clock: Clock) -> None:
    rate = Rate(50, clock=clock, sleep=clock.sleep)
    clock.now += 0.070  # over the ticks at 20, 40 and 60 ms
    assert rate.sleep() == 3
    assert clock.now == pytest.approx(1000.080)
    assert rate.sleep() == 0
    assert clock.now == pytest.approx(1000.100)


def test_a_tick_that_is_exactly_now_is_in_time() -> None:
    grid = Grid(4, 0.0)
    assert grid.advance(0.25) == (0.25, 0)
    assert grid.advance(0.75) == (0.75, 1)
    assert grid.advance(0.75) == (1.0, 0)


def test_a_million_ticks_do_not_drift() -> None:
    grid = Grid(3, 0.0)
    for _ in range(1_000_000):
        tick, _ = grid.advance(0.0)
    assert tick == pytest.approx(1_000_000 / 3, abs=1e-6)


def test_a_sleep_that_ends_early_is_continued(clock: Clock) -> None:
    rate = Rate(10, clock=clock, sleep=lambda seconds: clock.sleep(seconds / 2 if seconds > 0.001 else seconds))
    assert rate.sleep() == 0
    assert clock.now == pytest.approx(1000.1)


def test_it_follows_each_phase_shift_once(clock: Clock) -> None:
    rate = Rate(50, follow=Hints(0.0, 7.0), clock=clock, sleep=clock.sleep)
    ticks = []
    for _ in range(4):
        assert rate.sleep() == 0
        ticks.append(round((clock.now - 1000.0) * 1e3, 6))
    assert ticks == [20, 47, 67, 87]


def test_a_phase_shift_holds_a_loop_up_for_less_than_a_period(clock: Clock) -> None:
    longer = [3 * 20.0 + 7.0, 3.4e38, 1e308]
    for hint in longer:
        grid = Grid(50, clock.now)
        grid.shift(hint / 1e3)
        tick, missed = grid.advance(clock.now)
        assert missed == 0
        assert clock.now + 0.020 <= tick < clock.now + 0.040
    grid = Grid(50, 0.0)
    grid.shift(0.067)
    assert grid.advance(0.0)[0] == pytest.approx(0.027)


@pytest.mark.parametrize("hint", [0.0, -3.0, float("nan"), float("inf"), float("-inf")])
def test_a_hint_that_is_none_moves_nothing(clock: Clock, hint: float) -> None:
    rate = Rate(50, follow=Hints(hint), clock=clock, sleep=clock.sleep)
    assert rate.sleep() == 0
    assert clock.now == pytest.approx(1000.02)


@pytest.mark.parametrize("hz", [0, -1, 1e-4, 1e7, float("inf"), float("nan"), "50", None, True])
def test_a_frequency_that_is_none_is_refused(hz: Any) -> None:
    with pytest.raises(ValueError, match="hz"):
        Rate(hz)


def test_the_async_one_keeps_the_grid_too() -> None:
    async def run() -> tuple[list[int], float]:
        loop = asyncio.get_running_loop()
        rate = AsyncRate(200, clock=loop.time)
        start = loop.time()
        missed = [await rate.sleep() for _ in range(4)]
        return missed, loop.time() - start

    missed, elapsed = asyncio.run(run())
    assert len(missed) == 4
    assert elapsed >= 4 * 0.005


@pytest.mark.parametrize("rate", [Rate, AsyncRate])
def test_what_gives_no_hints_cannot_be_followed(rate: Any) -> None:
    with pytest.raises(ValueError, match="follow is 5; it must be a model handle"):
        rate(50, follow=5)
