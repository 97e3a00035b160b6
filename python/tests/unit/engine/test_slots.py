"""Which calls run at the same time, and where."""

import pytest

from inferential.types import Status
from tests.unit.engine.rig import BODY, CallResult, Replica, Rig


def test_shared_slots_let_a_blocked_model_delay_another():
    rig = Rig(["slow", "fast"], scheduling__max_concurrent_dispatch=1)
    blocker = rig.block("slow")
    fast = rig.send("fast")
    assert rig.settle() == []
    assert [c.requests for c in rig.finish(blocker)] == [[fast]]


def test_slots_of_its_own_do_not():
    rig = Rig(["slow", "fast"], scheduling__max_concurrent_dispatch=1, scheduling__pipeline_dispatch__enabled=True)
    rig.block("slow")
    fast = rig.send("fast")
    assert [c.requests for c in rig.settle()] == [[fast]]


def test_max_inflight_counts_calls_of_a_model_over_all_replicas():
    replicas = [Replica(f"r{i}", "m", 4) for i in range(3)]
    rig = Rig(replicas=replicas, scheduling__pipeline_dispatch__enabled=True, model__max_inflight=2)
    for i in range(5):
        rig.send(client=f"c{i}")
    calls = rig.settle()
    assert len(calls) == 2
    assert len(rig.finish(calls[0])) == 1


def test_max_concurrent_dispatch_counts_calls_of_all_models():
    rig = Rig(
        ["a", "b"], replicas=[Replica("ra", "a", 9), Replica("rb", "b", 9)], scheduling__max_concurrent_dispatch=3
    )
    for i in range(5):
        rig.send("ab"[i % 2], client=f"c{i}")
    assert len(rig.settle()) == 3


def test_a_replica_grants_credits():
    rig = Rig(replicas=[Replica("r", "m", 2)])
    for i in range(5):
        rig.send(client=f"c{i}")
    assert len(rig.settle()) == 2
    rig.engine.replica_up(Replica("r", "m", 4), rig.now)
    assert len(rig.settle()) == 2


def test_a_failing_model_never_delays_another():
    rig = Rig(["bad", "good"], scheduling__pipeline_dispatch__enabled=True)
    for i in range(20):
        rig.send("bad", client=f"b{i}")
        good = rig.send("good", client=f"g{i}")
        for call in rig.settle():
            if call.model == "bad":
                rig.fail(call)
            else:
                assert call.requests == [good]
                rig.finish(call)
        assert rig.status(good) is Status.OK


def test_models_on_one_device_take_turns_there():
    rig = Rig(
        ["a", "b", "c"],
        models__known={"a": {"device": "gpu0"}, "b": {"device": "gpu0"}},
        scheduling__pipeline_dispatch__enabled=True,
    )
    a, b, c = rig.send("a", budget=500.0), rig.send("b", budget=400.0), rig.send("c")
    calls = rig.settle()
    assert [call.requests for call in calls] == [[b], [c]]
    [after] = rig.finish(calls[0], 1.0)
    assert after.requests == [a]


def test_the_replica_that_will_be_done_first():
    rig = Rig(replicas=[Replica("slow", "m", 1), Replica("fast", "m", 1)])
    for _ in range(20):  # both learn
        for client in ("a", "b"):
            rig.send(client=client)
        slow, fast = sorted(rig.settle(), key=lambda call: call.replica.id == "fast")
        rig.finish(fast, 5.0)
        rig.finish(slow, 15.0)
        rig.wait(10.0)
    rig.send()
    [call] = rig.settle()
    assert call.replica.id == "fast"


def test_affinity_keeps_a_client_on_its_replica_while_that_lives():
    rig = Rig(replicas=[Replica("r1", "m", 1), Replica("r2", "m", 1)], model__affinity="client")
    homes = {}
    for _ in range(5):
        for client in ("a", "b"):
            rig.send(client=client)
        for call in rig.settle():
            [request] = call.requests
            assert homes.setdefault(request.observation.client_id, call.replica.id) == call.replica.id
            rig.finish(call, 1.0)
    assert set(homes.values()) == {"r1", "r2"}
    [call] = [rig.send(client="a") and rig.settle()][0]
    waiting = rig.send(client="a")
    assert rig.settle() == []  # its replica is busy, the other one is not its own
    rig.engine.replica_down("m", homes["a"], "gone", rig.now)
    [moved] = rig.settle()
    assert (moved.requests, moved.replica.id) == ([waiting], homes["b"])
    assert rig.status(call.requests[0]) is Status.UNAVAILABLE


@pytest.mark.parametrize("staging", [True, False])
def test_one_call_is_staged_just_in_time(staging):
    rig = Rig(replicas=[Replica("r", "m", 1, path="direct")], dispatch__staging=staging)
    rig.learn(call_ms=20.0)
    running = rig.block()
    waiting = [rig.send(client=f"c{i}", budget=500.0) for i in range(2)]
    assert rig.wait(18.0) == []  # not a whole cycle early
    staged = rig.wait(1.9)
    if not staging:
        assert staged == []
        return
    assert [c.requests for c in staged] == [waiting[:1]]  # and one only
    assert rig.finish(running, 0.1, inference_ms=20.0) == []
    assert rig.wait(18.0) == []
    [last] = rig.wait(1.9)
    assert last.requests == waiting[1:]
    rig.finish(staged[0], 0.1, inference_ms=20.0)
    rig.finish(last, 20.0)
    assert rig.engine.health()["m"]["in_flight"] == 0


def test_nothing_is_staged_behind_a_call_that_overruns():
    rig = Rig(replicas=[Replica("r", "m", 1, path="direct")])
    rig.learn(call_ms=20.0)
    rig.block()
    rig.wait(30.0)
    rig.send(budget=500.0)
    assert rig.wait(200.0) == []


@pytest.mark.parametrize("path", ["handle", "local"])
def test_only_direct_replicas_are_staged_at(path):
    rig = Rig(replicas=[Replica("r", "m", 1, path=path)])
    rig.learn(call_ms=20.0)
    rig.block()
    rig.send(budget=500.0)
    assert rig.wait(40.0) == []


def test_a_staged_call_fails_with_its_replica():
    rig = Rig(replicas=[Replica("r", "m", 1, path="direct")])
    rig.learn(call_ms=20.0)
    running = rig.block()
    waiting = rig.send(budget=500.0)
    [staged] = rig.wait(19.9)
    rig.engine.replica_down("m", "r", "killed", rig.now)
    assert rig.status(running.requests[0]) is Status.UNAVAILABLE
    assert rig.status(waiting) is Status.UNAVAILABLE
    rig.engine.replica_up(Replica("r", "m", 1, path="direct"), rig.now)
    rig.engine.complete(staged.id, CallResult([BODY], 0.0), rig.now)
    rig.send()
    assert len(rig.settle()) == 1
