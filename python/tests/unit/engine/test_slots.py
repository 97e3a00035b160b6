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


def of_two_models_with_clients_of_their_own(**settings):
    """Two models with two replicas each, whose clients 1 and 2 keep to one; both run a call of each, that of client 1 ends first."""
    replicas = [Replica(f"{m}{i}", m, 1, 1, "direct") for m in "ab" for i in (1, 2)]
    settings = {"model.affinity": "client", "model.max_inflight": 4} | settings
    rig = Rig(("z", "a", "b"), replicas=[Replica("z1", "z", 1, 1, "direct"), *replicas], **settings)
    for m in "ab":
        rig.fix(m, call_ms=20.0)
        service = rig.engine._models[m].service
        service.samples = 20
        service.overhead_s = 0.002
    for client in ("1", "2"):
        for m in "ab":
            rig.send(m, client=client, budget=4000.0)
        assert sorted(call.replica.id for call in rig.settle()) == [f"a{client}", f"b{client}"]
        rig.ms += 1.0
    return rig


def test_nothing_is_staged_where_only_clients_of_another_replica_wait():
    rig = of_two_models_with_clients_of_their_own()
    gone = [rig.send(m, client="1", budget=4000.0) for m in "ab"]
    rig.settle()
    for request in gone:
        rig.engine.cancel(request.connection, request.observation.request_id, rig.now)
    for m in "ab":
        rig.send(m, client="2", budget=4000.0)
    rig.settle()
    rig.ms += 17.5  # the calls of client 1 are about to end
    other = rig.send("z", budget=50.0)
    assert [call.requests for call in rig.settle()] == [[other]]
    assert not any(call.staged for call in rig.calls)


def test_a_client_whose_request_is_refused_holds_up_no_other_replicas():
    replicas = [Replica("r1", "m", 1, 1), Replica("r2", "m", 1, 1)]
    settings = {"model.affinity": "client", "model.max_inflight": 2}
    rig = Rig(replicas=replicas, scheduling__early_refusal="predictive", **settings)
    rig.fix(call_ms=20.0)
    for client in "xy":
        rig.send(client=client, budget=1000.0)
    for call in rig.settle():
        rig.finish(call, 20.0)
    refused, goes = rig.send(client="x", budget=15.0), rig.send(client="y", budget=200.0)
    [call] = rig.settle()
    assert call.requests == [goes]
    assert rig.status(refused) is Status.REJECTED


def test_refusal_looks_at_all_calls_that_share_the_slots():
    replicas = [Replica("a", "a", 2, 1), Replica("b", "b", 8, 1)]
    rig = Rig(
        ("a", "b"),
        replicas=replicas,
        scheduling__early_refusal="predictive",
        scheduling__max_concurrent_dispatch=2,
    )
    rig.fix("a", call_ms=500.0)
    rig.fix("b", call_ms=5.0)
    for model in "ab":
        rig.send(model, client=model, budget=4000.0)
    [_, quick] = rig.settle()
    waits = rig.send("a", client="c", budget=600.0)  # b's call ends in 5 ms
    hopeless = rig.send("a", client="d", budget=504.0)
    assert rig.status(hopeless) is Status.REJECTED
    assert rig.status(waits) is None
    [call] = rig.finish(quick, 5.0, inference_ms=5.0)
    assert call.requests == [waits]


def test_nothing_is_left_of_replicas_that_come_and_go():
    rig = Rig(replicas=[], **{"model.affinity": "client"})
    for i in range(10):
        rig.engine.replica_up(Replica(f"r{i}", "m", 1, 1), rig.now)
        rig.send(client=f"c{i}", budget=4000.0)
        [call] = rig.settle()
        rig.finish(call, 1.0)
        rig.engine.replica_down("m", f"r{i}", "gone", rig.now)
        rig.settle()
    assert not rig.engine._models["m"].orders
