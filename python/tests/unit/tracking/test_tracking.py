"""Cadence, forecast, clients."""

import pytest

from inferential.tracking.cadence import UNKNOWN, Cadence
from inferential.tracking.clients import Streams
from inferential.tracking.forecast import ArrivalRate, Forecast


def test_overdue_is_judged_by_what_was_learned_before():
    cadence = Cadence()
    assert cadence.arrived(0.0, 0.2) == 0.0
    assert cadence.due_at == UNKNOWN
    assert cadence.arrived(0.1, 0.2) == 0.0
    assert cadence.interval_s == pytest.approx(0.1)
    assert cadence.arrived(0.25, 0.2) == pytest.approx(0.05)
    assert cadence.interval_s == pytest.approx(0.11)
    assert cadence.arrived(0.30, 0.2) == 0.0


@pytest.mark.parametrize(("alpha", "expected"), [(1.0, 0.2), (0.5, 0.15)])
def test_alpha_weighs_the_newest_interval(alpha, expected):
    cadence = Cadence()
    for at in (0.0, 0.1, 0.3):
        cadence.arrived(at, alpha)
    assert cadence.interval_s == pytest.approx(expected)


def test_forecast_is_in_order_and_ahead():
    forecast = Forecast()
    cadences = [Cadence() for _ in range(3)]
    for i, cadence in enumerate(cadences):
        for at in (0.0, 0.1 * (3 - i)):
            cadence.arrived(at, 0.2)
        forecast.arrived(cadence)
    assert forecast.next(0.1) == pytest.approx([0.2, 0.4, 0.6], abs=0.001)
    assert forecast.next(0.5) == pytest.approx([0.6], abs=0.001)


def test_forecast_forgets_what_has_come_and_stays_bounded():
    forecast = Forecast()
    cadences = [Cadence() for _ in range(10)]
    for i in range(2000):
        cadence = cadences[i % 10]
        cadence.arrived(i * 0.01, 0.2)
        forecast.arrived(cadence)
    assert len(forecast._due) <= 64 + 4 * 64 + 1
    assert len(forecast.next(19.99)) == 4


def test_rate():
    rate = ArrivalRate()
    assert rate.at(0.0) == 0.0
    for i in range(2000):
        rate.arrived(i * 0.001)
    assert rate.at(2.0) == pytest.approx(1000.0, rel=0.05)
    assert rate.at(3.0) == pytest.approx(1000.0 * 0.135, rel=0.1)


def test_rate_is_not_low_when_young():
    rate = ArrivalRate()
    for i in range(100):
        rate.arrived(i * 0.001)
    assert rate.at(0.1) == pytest.approx(1000.0, rel=0.2)


def test_clients_live_idle_evicted():
    streams = Streams()
    streams.seen("a", 1.0, {})
    streams.seen("b", 2.0, {"b": 3.0})
    streams.seen("a", 5.0, {})
    assert streams.live(since=3.0) == 1
    assert len(streams) == 2
    busy = streams.seen("busy", 0.5, {})
    assert [s.client_id for s in streams.evict(before=3.0)] == ["b"]
    busy.queued = 0
    assert len(streams) == 2
    assert streams.evicted == 1


def test_one_with_something_waiting_is_not_evicted():
    streams = Streams()
    streams.seen("waiting", 1.0, {}).queued = 1
    assert streams.evict(before=9.0) == []


def test_slots_have_a_cadence_each():
    stream = Streams().seen("a", 0.0, {})
    left, right = stream.cadence_of("left"), stream.cadence_of("right")
    assert left is not right
    assert stream.cadence_of("left") is left
    assert stream.cadence_of("") is stream.cadence


def test_a_phase_shift_that_is_followed_is_not_held_against_the_cadence():
    followed, late = Cadence(), Cadence()
    for i in range(5):
        for cadence in (followed, late):
            cadence.arrived(i * 0.1, 0.2)
    followed.ask(0.06)
    assert followed.due_at == UNKNOWN
    assert followed.arrived(0.5, 0.2) == pytest.approx(0.0)  # it was on its way
    assert followed.arrived(0.66, 0.2) == pytest.approx(0.0)
    assert followed.interval_s == pytest.approx(0.1)
    assert followed.due_at == pytest.approx(0.76, abs=0.01)
    assert followed.arrived(0.82, 0.2) == pytest.approx(0.06), "once"
    assert late.arrived(0.56, 0.2) == pytest.approx(0.06)


def test_more_clients_than_may_be_are_forgotten_least_recently_seen_first():
    streams = Streams()
    for name in "abcd":
        streams.seen(name, 1.0, {})
    streams.seen("a", 2.0, {}).queued = 1
    assert streams.excess(4) == []
    assert [s.client_id for s in streams.excess(3)] == ["b"]
    streams.seen("c", 3.0, {}).queued = 1
    assert [s.client_id for s in streams.excess(0)] == ["d"]
    assert streams.excess(0) == [], "of the others something waits"
    assert (len(streams), streams.evicted) == (2, 2)
