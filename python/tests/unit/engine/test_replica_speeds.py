"""Replicas of one model that are not equally quick."""

import pytest

from inferential.types import Reason, Status
from tests.unit.engine.rig import Replica, Rig

FAST_MS, SLOW_MS = 10.0, 50.0


def two_replicas(early_refusal):
    """One idle replica that is known to take 10 ms and one that is known to take 50."""
    rig = Rig(replicas=[Replica("slow", "m", 1), Replica("fast", "m", 1)], scheduling__early_refusal=early_refusal)
    for _ in range(40):
        for _ in range(2):
            rig.send(client="teacher", budget=4000.0)
        calls = {call.replica.id: call for call in rig.settle()}
        rig.finish(calls["fast"], FAST_MS, inference_ms=FAST_MS)
        rig.finish(calls["slow"], SLOW_MS - FAST_MS, inference_ms=SLOW_MS)
    rig.wait(1000.0)
    return rig


@pytest.fixture(params=["off", "predictive"])
def rig(request):
    return two_replicas(request.param)


def busy(rig, *, fast_for_ms):
    """The fast replica runs a call that will be over in so many ms."""
    rig.send(client="before", budget=4000.0)
    [call] = rig.settle()
    assert call.replica.id == "fast"
    rig.wait(FAST_MS - fast_for_ms)
    return call


def test_a_request_waits_for_the_replica_that_does_it_in_time(rig):
    before = busy(rig, fast_for_ms=5.0)
    request = rig.send(budget=35.0)
    assert rig.settle() == []
    [call] = rig.finish(before, 5.0, inference_ms=FAST_MS)
    assert call.requests == [request]
    assert call.replica.id == "fast"


def test_one_that_has_the_time_goes_to_the_slow_replica_at_once(rig):
    busy(rig, fast_for_ms=5.0)
    rig.send(budget=100.0)
    [call] = rig.settle()
    assert call.replica.id == "slow"


def test_nothing_waits_for_a_replica_whose_call_takes_longer_than_predicted():
    rig = two_replicas("off")
    busy(rig, fast_for_ms=5.0)
    rig.wait(5.0 + FAST_MS)
    rig.send(budget=45.0)
    [call] = rig.settle()
    assert call.replica.id == "slow"


def test_who_waits_for_a_fast_replica_in_vain_is_told_as_soon_as_that_is_known():
    rig = two_replicas("predictive")
    busy(rig, fast_for_ms=5.0)
    request = rig.send(budget=35.0)
    assert rig.wait(5.0) == []
    assert rig.status(request) is None
    rig.wait(35.0 - 5.0 - FAST_MS)  # from here on nobody could do it any more
    outcome = rig.outcome(request)
    assert (outcome.status, outcome.reason) == (Status.REJECTED, Reason.CANNOT_MEET_DEADLINE)


def test_what_only_an_idle_fast_replica_can_do_is_not_refused():
    rig = two_replicas("predictive")
    rig.send(budget=15.0)
    [call] = rig.settle()
    assert call.replica.id == "fast"


def test_nothing_waits_for_a_replica_that_has_room():
    """Several calls share a replica: one that would be done sooner elsewhere is not held back for it."""
    replicas = [Replica("slow", "m", 1), Replica("fast", "m", 2)]
    rig = Rig(replicas=replicas, scheduling__early_refusal="off")
    for state, speed in zip(rig.engine._models["m"].replicas, (1.2, 0.8), strict=True):
        state.speed = speed
        rig.engine._models["m"].replicas.changed(state)
    rig.fix(call_ms=20.0)
    busy(rig, fast_for_ms=5.0)
    rig.send(budget=20.0)  # 24 ms there, 16 ms here if it were alone
    [call] = rig.settle()
    assert call.replica.id == "slow"
