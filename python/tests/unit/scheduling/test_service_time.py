"""Learned service times."""

import random

import pytest

from inferential.scheduling.service_time import ServiceTime


def feed(service, sizes, time_of, *, from_idle=False, inference=0.0):
    for n in sizes:
        service.learn(n, time_of(n), from_idle=from_idle, inference_s=inference)


def test_the_prior_stands_until_something_was_seen():
    service = ServiceTime(0.010, 0.0005)
    assert service.known
    assert service.mean(30) == pytest.approx(0.025)
    assert not ServiceTime().known


def test_it_learns_the_line():
    service = ServiceTime()
    rng = random.Random(1)
    feed(service, [rng.randint(1, 40) for _ in range(100)], lambda n: 0.010 + 0.0005 * n)
    assert service.mean(1) == pytest.approx(0.0105, rel=0.01)
    assert service.mean(40) == pytest.approx(0.030, rel=0.01)


def test_a_wrong_prior_is_forgotten():
    service = ServiceTime(0.100, 0.010)
    rng = random.Random(1)
    feed(service, [rng.randint(1, 40) for _ in range(300)], lambda n: 0.010 + 0.0005 * n)
    assert service.mean(20) == pytest.approx(0.020, rel=0.02)


def test_it_follows_drift_within_a_second_of_25_ms_calls():
    service = ServiceTime()
    feed(service, [20] * 200, lambda n: 0.010 + 0.0005 * n)
    feed(service, [20] * 80, lambda n: 2 * (0.010 + 0.0005 * n))  # it throttles
    assert service.mean(20) == pytest.approx(0.040, rel=0.1)


def test_one_size_moves_the_line_up_and_down():
    service = ServiceTime(0.010, 0.0005)
    feed(service, [10] * 300, lambda n: 0.018)
    assert service.mean(10) == pytest.approx(0.018, rel=0.02)
    assert service.item_s == pytest.approx(0.0005, rel=0.2)


def test_quantiles():
    service = ServiceTime()
    rng = random.Random(2)
    feed(service, [1] * 500, lambda n: 0.010 + rng.random() * 0.004)
    assert service.quantile(1, 0.5) == pytest.approx(0.012, abs=0.0006)
    assert service.quantile(1, 0.9) == pytest.approx(0.0136, abs=0.0006)
    assert service.mean(1) + service.margin_s == pytest.approx(service.quantile(1, 0.9))
    assert service.tail_s >= service.margin_s


def test_the_way_to_an_idle_replica_is_told_apart():
    service = ServiceTime()
    for _ in range(100):
        service.learn(1, 0.012, from_idle=True, inference_s=0.010)
    assert service.overhead_s == pytest.approx(0.002, rel=0.01)
    assert service.mean(1) == pytest.approx(0.010, rel=0.01)
    feed(service, [1] * 50, lambda n: 0.010)
    assert service.mean(1) == pytest.approx(0.010, rel=0.01)


def test_one_slow_way_to_an_idle_replica_says_nothing():
    service = ServiceTime(0.010, 0.0)
    for i in range(40):
        service.learn(1, 0.011 if i % 4 else 0.025, from_idle=True, inference_s=0.010)
    assert service.overhead_s == pytest.approx(0.001)


def test_the_lead_has_three_of_four_staged_calls_ready_in_time():
    service = ServiceTime(0.010, 0.0)
    for _ in range(20):
        service.learn(1, 0.011, from_idle=True, inference_s=0.010)
    overhead = service.overhead_s
    assert service.lead_s == pytest.approx(overhead + 0.0005)
    in_time = 0
    for i in range(400):  # it takes 1.0 to 1.9 ms to be ready
        lead = service.lead_s
        ahead = lead - 0.001 - 0.0001 * (i * 7 % 10)
        in_time += i >= 200 and ahead >= 0.0
        service.learn_lead(lead - ahead)
    assert 0.7 <= in_time / 200 <= 0.85
    for _ in range(100):  # always long before its turn: as late as it goes
        service.learn_lead(service.lead_s - 0.005)
    assert service.lead_s == 0.5 * overhead
    for _ in range(100):  # always far too late: a bound keeps what waits in the queue
        service.learn_lead(service.lead_s + 0.020)
    assert service.lead_s == pytest.approx(overhead + 0.15 * 0.010, rel=0.02)


def test_never_negative():
    service = ServiceTime()
    feed(service, [1, 2, 3, 4] * 20, lambda n: 0.010 / n)
    assert service.item_s >= 0.0
    assert service.call_s >= 0.0


def test_a_stall_says_little_about_the_next_call():
    service = ServiceTime(0.010, 0.0005)
    feed(service, [20] * 50, lambda n: 0.020)
    service.learn(20, 0.800, from_idle=False, inference_s=0.020)
    service.learn(20, 0.700, from_idle=True, inference_s=0.020)
    assert service.mean(20) < 0.023
    assert service.overhead_s < 0.001
    assert service.margin_s <= 0.25 * 0.023


def test_a_cold_start_is_soon_forgotten():
    service = ServiceTime()
    service.learn(1, 3.0, from_idle=True, inference_s=2.9)
    feed(service, [1] * 12, lambda n: 0.010)
    assert service.mean(1) < 0.012


def test_relaxed():
    service = ServiceTime(0.010, 0.001)
    feed(service, [1, 10] * 20, lambda n: 0.100 + 0.010 * n)
    before = service.mean(10)
    service.relax()
    assert service.mean(10) == pytest.approx(0.7 * before)
    assert service.margin_s == 0.0
    feed(service, [1, 10] * 20, lambda n: 0.010 + 0.001 * n)
    assert service.mean(10) == pytest.approx(0.020, rel=0.1)
