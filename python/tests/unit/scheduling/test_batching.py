"""The arithmetic of batches, with the numbers of docs/scheduling.md."""

import math

import pytest

from inferential.scheduling.batching import batch_limit, enough, fits, reserve_limit, tight_budget, worth_waiting
from inferential.scheduling.levels import _LIVE_S, _MOST_LEVELS, Levels

A, B = 0.010, 0.0005  # the simulated GPU: 10 ms + 0.5 ms per request


@pytest.mark.parametrize(
    ("budget_ms", "most", "expected"),
    [
        (50, 64, 30),
        (50, 16, 16),
        (100, 128, 80),
        (40, 64, 20),
        (20, 64, 20),
        (11, 64, 2),
        (5, 64, 1),
        (math.inf, 64, 64),
    ],
)
def test_batch_limit(budget_ms, most, expected):
    assert batch_limit(A, B, budget_ms / 1e3, 0.0, most) == expected


@pytest.mark.parametrize("rate", [100.0, 1200.0, 1300.0, 2400.0, 10_000.0])
def test_a_larger_batch_is_filled_by_requests_that_are_still_in_time_after_it(rate):
    n = batch_limit(A, B, 0.050, rate, 1000)
    assert n >= 30
    if rate > 1200.0:
        assert n > 30
        assert rate * (0.050 - A - B * n) >= n
        assert rate * (0.050 - A - B * (n + 1)) < n + 1


@pytest.mark.parametrize(("budget_ms", "rate"), [(30.0, 0.0), (50.0, 0.0), (50.0, 240.0), (200.0, 500.0)])
def test_reserve_limit_leaves_whoever_comes_right_after_its_deadline(budget_ms, rate):
    def over(n):
        first = A + B * n
        return first + A + B * (1 + rate * first)

    n = reserve_limit(A, B, budget_ms / 1e3, 0.0, rate, 1.0, 1000)
    assert over(n) <= budget_ms / 1e3 + 1e-9 < over(n + 1) + 1e-9


@pytest.mark.parametrize(("budget_ms", "burst"), [(30.0, 4), (50.0, 10), (50.0, 40), (200.0, 100)])
def test_reserve_limit_leaves_all_who_come_at_once_their_deadline(budget_ms, burst):
    def over(n):
        return A + B * n + A + B * burst

    n = reserve_limit(A, B, budget_ms / 1e3, 0.0, 0.0, float(burst), 1000)
    assert over(n) <= budget_ms / 1e3 + 1e-9 < over(n + 1) + 1e-9


def test_reserve_limit_where_nothing_can_be_reserved():
    assert reserve_limit(A, B, 0.020, 0.0, 0.0, 1.0, 64) == 20
    assert reserve_limit(A, B, 0.009, 0.0, 0.0, 1.0, 64) == 64
    assert reserve_limit(A, 0.0, 0.050, 0.0, 0.0, 1.0, 64) == 64


def test_levels():
    levels = Levels()

    def limit(now):
        return levels.limits(now, A, B, 0.0, 0.0, 1000).get(1, 1000)

    levels.arrived(1, 0.200, 0.0)
    assert limit(0.0) == 1000
    assert not levels.better(1)
    assert levels.better(0)
    levels.arrived(0, 0.030, 1.0)
    assert limit(1.0) < 20
    assert not levels.better(1)
    levels.arrived(1, 0.200, 10.9)
    assert limit(10.9) < 20
    assert limit(11.1) == 1000  # level 0 has not been seen for 10 s


def test_levels_learn_how_many_come_at_once():
    def limit(at_once):
        levels = Levels()
        for period in range(20):
            levels.arrived(1, 0.200, 0.1 * period)
            for _ in range(at_once):
                levels.arrived(0, 0.050, 0.1 * period)
        return levels.limits(2.0, A, B, 0.0, 0.0, 1000)[1]

    assert limit(1) > limit(20) == 40


def test_batch_limit_without_a_time_per_item():
    assert batch_limit(0.010, 0.0, 0.050, 0.0, 64) == 64


@pytest.mark.parametrize(
    ("rate", "expected"), [(0.0, 0.0), (400.0, 5.0), (1000.0, 20.0), (1200.0, 30.0), (2000.0, math.inf)]
)
def test_enough(rate, expected):
    assert enough(A, B, rate) == pytest.approx(expected)


@pytest.mark.parametrize(("slack_ms", "expected"), [(10.4, 0), (10.5, 1), (25.0, 30), (1000.0, 64), (-5.0, 0)])
def test_fits(slack_ms, expected):
    assert fits(7.0 + slack_ms / 1e3, 7.0, A, B, 64) == expected


def test_three_more_2_ms_away_are_worth_it():
    now = 5.0
    wait = worth_waiting(now, 1, 64, A, B, 0.0, now + 1.0, [now + 0.002, now + 0.002, now + 0.002])
    assert wait == now + 0.002


def test_one_more_9_ms_away_is_not():
    assert worth_waiting(5.0, 1, 64, A, B, 0.0, 6.0, [5.009]) == 5.0


def test_many_do_not_wait_for_one():
    # 30 x 1 ms is more than the 24 ms that the one would save
    assert worth_waiting(5.0, 30, 64, A, B, 0.0, 6.0, [5.001]) == 5.0
    assert worth_waiting(5.0, 10, 64, A, B, 0.0, 6.0, [5.001]) == 5.001


def test_who_comes_while_it_runs_is_delayed_too():
    # 10 who are here and 400/s x 15 ms who will come, 1 ms each: more than the 14 ms of one, less than the 28 ms of two
    assert worth_waiting(5.0, 10, 64, A, B, 400.0, 6.0, [5.001]) == 5.0
    assert worth_waiting(5.0, 10, 64, A, B, 400.0, 6.0, [5.001, 5.001]) == 5.001


def test_not_past_a_deadline_and_not_past_the_limit():
    assert worth_waiting(5.0, 1, 64, A, B, 0.0, 5.001, [5.002]) == 5.0
    assert worth_waiting(5.0, 4, 4, A, B, 0.0, 6.0, [5.001]) == 5.0


def test_tight_budget_is_the_tenth_percentile():
    budget = tight_budget()
    assert budget.value == math.inf
    for i in range(64):
        budget.add(0.050 if i % 4 else 0.020)
    assert budget.value == 0.020
    for _ in range(128):
        budget.add(0.100)
    assert budget.value == 0.100


def test_a_single_odd_one_does_not_count():
    budget = tight_budget()
    for i in range(64):
        budget.add(0.001 if i == 40 else 0.050)
    assert budget.value == 0.050


def test_a_level_that_went_silent_limits_nobody() -> None:
    levels, now = Levels(), 0.0
    for number in (0, 1, 2):
        for turn in range(20):
            levels.arrived(number, 0.05, now + turn * 0.1)
    assert set(levels.limits(2.0, 0.01, 0.0005, 0.001, 0.05, 64)) == {1, 2}
    for turn in range(20):
        levels.arrived(0, 0.05, 3 + _LIVE_S + turn * 0.1)
        levels.arrived(2, 0.05, 3 + _LIVE_S + turn * 0.1)
    without = Levels()
    for turn in range(20):
        without.arrived(0, 0.05, 3 + _LIVE_S + turn * 0.1)
        without.arrived(2, 0.05, 3 + _LIVE_S + turn * 0.1)
    found = levels.limits(5 + _LIVE_S, 0.01, 0.0005, 0.001, 0.05, 64)
    assert set(found) == set(without.limits(5 + _LIVE_S, 0.01, 0.0005, 0.001, 0.05, 64)) == {2}


def test_levels_beyond_those_that_are_reckoned_with_have_the_limit_of_the_last() -> None:
    levels = Levels()
    for number in range(_MOST_LEVELS + 10):
        levels.arrived(number, 0.05, 0.0)
    found = levels.limits(0.0, 0.01, 0.0005, 0.001, 0.05, 64)
    assert list(found) == list(range(1, _MOST_LEVELS + 10))
    assert len({found[number] for number in range(_MOST_LEVELS, _MOST_LEVELS + 10)}) == 1
