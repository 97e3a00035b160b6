"""The arithmetic of batches, with the numbers of docs/scheduling.md."""

import math

import pytest

from inferential.scheduling.batching import TightBudget, batch_limit, enough, fits, worth_waiting

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
    assert batch_limit(A, B, budget_ms / 1e3, most) == expected


def test_batch_limit_without_a_time_per_item():
    assert batch_limit(0.010, 0.0, 0.050, 64) == 64


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
    wait = worth_waiting(now, 1, 64, A, B, now + 1.0, [now + 0.002, now + 0.002, now + 0.002])
    assert wait == now + 0.002


def test_one_more_9_ms_away_is_not():
    assert worth_waiting(5.0, 1, 64, A, B, 6.0, [5.009]) == 5.0


def test_many_do_not_wait_for_one():
    # 30 x 1 ms is more than the 24 ms that the one would save
    assert worth_waiting(5.0, 30, 64, A, B, 6.0, [5.001]) == 5.0
    assert worth_waiting(5.0, 10, 64, A, B, 6.0, [5.001]) == 5.001


def test_not_past_a_deadline_and_not_past_the_limit():
    assert worth_waiting(5.0, 1, 64, A, B, 5.001, [5.002]) == 5.0
    assert worth_waiting(5.0, 4, 4, A, B, 6.0, [5.001]) == 5.0


def test_tight_budget_is_the_tenth_percentile():
    budget = TightBudget()
    assert budget.value == math.inf
    for i in range(64):
        budget.add(0.050 if i % 4 else 0.020)
    assert budget.value == 0.020
    for _ in range(128):
        budget.add(0.100)
    assert budget.value == 0.100


def test_a_single_odd_one_does_not_count():
    budget = TightBudget()
    for i in range(64):
        budget.add(0.001 if i == 40 else 0.050)
    assert budget.value == 0.050
