"""What goes first behind a busy model. Each of urgency, steps, budget, priority and cadence changes the order by itself."""

import pytest

from tests.unit.engine.rig import Rig


def first_of(rig, blocker, *requests):
    order = rig.drain_order(blocker)
    assert sorted(map(id, order)) == sorted(map(id, requests))
    return order


@pytest.mark.parametrize(
    ("plain", "ahead"),
    [
        ({}, {"urgency": 1.0}),
        ({"budget": 500.0}, {"budget": 400.0}),
        ({"steps_remaining": 50, "step_ms": 10.0}, {"steps_remaining": 5, "step_ms": 10.0}),
        ({"steps_remaining": 10, "step_ms": 50.0}, {"steps_remaining": 10, "step_ms": 5.0}),
        ({"priority": 1}, {"priority": 0}),
    ],
)
@pytest.mark.parametrize("strategy", ["deadline_aware", "model_deadline", "batch_optimized", "priority_tiered"])
def test_each_field_changes_the_order_by_itself(strategy, plain, ahead):
    rig = Rig(scheduling__strategy=strategy)
    blocker = rig.block()
    plain_first = rig.send(client="a", **plain)
    rig.wait(3.0)
    urgent = rig.send(client="b", **ahead)
    assert first_of(rig, blocker, plain_first, urgent) == [urgent, plain_first]


@pytest.mark.parametrize("strategy", ["deadline_aware", "model_deadline", "batch_optimized", "priority_tiered"])
def test_equal_ones_go_as_they_came(strategy):
    rig = Rig(scheduling__strategy=strategy)
    blocker = rig.block()
    three = []
    for i in range(3):
        three.append(rig.send(client=f"c{i}"))
        rig.wait(0.1)
    assert first_of(rig, blocker, *three) == three


@pytest.mark.parametrize("strategy", ["deadline_aware", "priority_tiered"])
def test_priorities_over_1000_count_as_1000(strategy):
    rig = Rig(scheduling__strategy=strategy)
    blocker = rig.block()
    beyond = rig.send(client="a", priority=2**32 - 1)
    rig.wait(0.1)
    last = rig.send(client="b", priority=1000)
    rig.wait(0.1)
    better = rig.send(client="c", priority=999)
    assert first_of(rig, blocker, beyond, last, better) == [better, beyond, last]


def test_an_overdue_client_goes_before_an_equal_one_that_is_not():
    rig = Rig()
    for _ in range(10):  # both learn 10 ms
        for client in ("punctual", "late"):
            rig.send(client=client)
        for call in rig.settle():
            while call:
                following = rig.finish(call)
                call = following[0] if following else None
        rig.wait(10.0)
    blocker = rig.block()
    punctual = rig.send(client="punctual")
    rig.wait(10.0)
    again = rig.send(client="punctual")
    late = rig.send(client="late")
    assert late.expiry == again.expiry
    assert late.key == pytest.approx(again.key - 0.010)
    assert first_of(rig, blocker, punctual, again, late) in ([late, punctual, again], [punctual, late, again])


def test_overdue_is_capped():
    rig = Rig(scheduling__overdue_cap_ms=7.0, scheduling__overdue_weight=2.0)
    for _ in range(3):
        rig.send()
        rig.wait(10.0)
    rig.wait(1000.0)
    late = rig.send()
    assert late.key == pytest.approx(late.expiry - 0.007)


def test_urgency_has_a_weight():
    rig = Rig(scheduling__urgency_weight_ms=30.0)
    r = rig.send(urgency=0.5)
    assert r.key == pytest.approx(r.expiry - 0.015)


def test_a_full_buffer_yields_and_is_refused_only_at_its_expiry():
    rig = Rig()
    blocker = rig.block()
    full = rig.send(client="full", steps_remaining=100, step_ms=20.0, budget=50.0)
    rig.wait(10.0)
    dry = rig.send(client="dry", steps_remaining=0, step_ms=20.0, budget=500.0)
    assert full.dry_at == pytest.approx(full.arrival + 2.0)
    assert first_of(rig, blocker, full, dry) == [dry, full]


def test_the_default_step():
    rig = Rig(scheduling__default_step_ms=5.0)
    r = rig.send(steps_remaining=4)
    assert r.dry_at == pytest.approx(r.arrival + 0.020)


def test_waiting_raises_a_request_until_it_goes():
    rig = Rig()
    blocker = rig.block()
    old = rig.send(client="old", budget=1000.0)
    call = blocker
    for i in range(200):  # a stream of more urgent ones that never leaves a gap
        rig.send(client=f"new{i}", budget=500.0)
        [call] = rig.finish(call, 10.0)
        if call.requests == [old]:
            break
    else:
        pytest.fail("starved")
    assert rig.now - old.arrival < 1.0


@pytest.mark.parametrize(
    ("settings", "clients", "expected_ms"),
    [
        ({}, {}, 1000.0),
        ({"scheduling__default_latency_budget_ms": 70.0}, {}, 70.0),
        ({"scheduling__default_latency_budget_ms": 70.0, "model__latency_budget_ms": 60.0}, {}, 60.0),
        ({"model__latency_budget_ms": 60.0}, {"c": {"latency_budget_ms": 55.0}}, 55.0),
    ],
)
def test_whose_budget_counts(settings, clients, expected_ms):
    rig = Rig(**settings, clients=clients)
    r = rig.send()
    assert r.expiry - r.arrival == pytest.approx(expected_ms / 1e3)
    own = rig.send(budget=33.0)
    assert own.expiry - own.arrival == pytest.approx(0.033)


@pytest.mark.parametrize("policy", ["fifo", "expiry"])
def test_other_policies(policy):
    rig = Rig(scheduling__policy=policy)
    blocker = rig.block()
    a = rig.send(client="a", budget=400.0)
    rig.wait(1.0)
    b = rig.send(client="b", budget=500.0, urgency=1.0)
    rig.wait(1.0)
    c = rig.send(client="c", budget=300.0)
    assert first_of(rig, blocker, a, b, c) == ([a, b, c] if policy == "fifo" else [c, a, b])


def test_a_policy_of_ones_own():
    from inferential.scheduling import register_policy

    register_policy("by-name", lambda request, overdue_s, weights: float(ord(request.observation.client_id[0])))
    rig = Rig(scheduling__policy="by-name")
    blocker = rig.block()
    z, a = rig.send(client="z"), rig.send(client="a")
    assert first_of(rig, blocker, z, a) == [a, z]


@pytest.mark.parametrize("key", [lambda: 1 / 0, lambda: float("nan"), lambda: "soon", lambda: None])
def test_a_policy_that_fails_leaves_the_deadlines(key, caplog):
    from inferential.scheduling import register_policy

    register_policy("broken", lambda request, overdue_s, weights: key())
    rig = Rig(scheduling__policy="broken")
    blocker = rig.block()
    late, soon = rig.send(client="late", budget=900.0), rig.send(client="soon", budget=500.0)
    assert first_of(rig, blocker, late, soon) == [soon, late]
    assert [r.message for r in caplog.records if "'broken' failed" in r.message] == [
        "policy 'broken' failed (shown once); requests go by their deadlines"
    ]


def test_deadline_order_stands_between_levels_while_all_can_be_in_time():
    rig = Rig()
    blocker = rig.block()
    low = rig.send(client="low", priority=3, budget=100.0)
    high = rig.send(client="high", priority=0, budget=900.0)
    assert first_of(rig, blocker, low, high) == [low, high]


def test_how_far_a_level_goes_ahead():
    rig = Rig(scheduling__priority_window_ms=10.0)
    blocker = rig.block()
    low = rig.send(client="low", priority=1, budget=100.0)
    near = rig.send(client="near", priority=0, budget=109.0)
    far = rig.send(client="far", priority=0, budget=115.0)
    assert first_of(rig, blocker, low, near, far) == [near, low, far]
