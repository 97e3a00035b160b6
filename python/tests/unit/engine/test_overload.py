"""Who gives way when not all can be in time."""

import itertools

import pytest

from inferential.simulator import jain
from inferential.types import Status
from tests.unit.engine.rig import Rig


def serve(rig, senders, *, ms, call_ms=10.0):
    """Each sender is (client, period_ms, fields); calls take `call_ms`. How many of each client's were answered OK."""
    due = [
        [rig.ms + i * period * 0.618 % period, client, period, fields]
        for i, (client, period, fields) in enumerate(senders)
    ]
    served: dict[str, int] = {client: 0 for client, _, _ in senders}
    until = rig.ms + ms
    running = []
    while rig.ms < until:
        due.sort(key=lambda d: (d[0], d[1]))
        next_send = due[0][0]
        next_end = min((end for end, _ in running), default=float("inf"))
        at = min(next_send, next_end)
        made = rig.wait(max(0.0, at - rig.ms))
        running += [(rig.ms + call_ms, call) for call in made]
        if next_end <= next_send:
            running.sort(key=lambda r: (r[0], r[1].id))
            _, call = running.pop(0)
            for request in call.requests:
                if not request.done:
                    served[request.observation.client_id] += 1
            made = rig.finish(call, inference_ms=call_ms)
        else:
            _, client, period, fields = due[0]
            due[0][0] += period
            rig.send(client=client, **fields)
            made = rig.settle()
        running += [(rig.ms + call_ms, call) for call in made]
    return served


STRATEGIES = ["deadline_aware", "model_deadline", "batch_optimized", "priority_tiered", "round_robin"]
REFUSAL = ["off", "predictive"]


@pytest.mark.parametrize("refusal", REFUSAL)
def test_priority_0_keeps_its_deadlines_and_the_others_get_the_rest(refusal):
    rig = Rig(scheduling__early_refusal=refusal)
    high = [(f"high{i}", 100.0, {"priority": 0, "budget": 60.0}) for i in range(3)]
    low = [(f"low{i}", 100.0, {"priority": 1, "budget": 60.0}) for i in range(17)]
    served = serve(rig, high + low, ms=5000.0)
    assert sum(served[c] for c, _, _ in high) >= 0.97 * 150
    # the model does 500 calls in this time, the high ones take 150
    assert sum(served[c] for c, _, _ in low) >= 200


@pytest.mark.parametrize("strategy", ["deadline_aware", "model_deadline", "priority_tiered", "batch_optimized"])
def test_lower_levels_are_never_starved(strategy):
    rig = Rig(scheduling__min_share=0.1, scheduling__strategy=strategy)
    high = [(f"high{i}", 20.0, {"priority": 0, "budget": 200.0}) for i in range(4)]  # twice what it can do
    low = [("low", 20.0, {"priority": 5, "budget": 200.0})]
    served = serve(rig, high + low, ms=5000.0)
    assert served["low"] >= 0.07 * 500


def test_no_share_means_strict():
    rig = Rig(scheduling__min_share=0.0, scheduling__strategy="priority_tiered")
    high = [(f"high{i}", 20.0, {"priority": 0, "budget": 200.0}) for i in range(4)]
    served = serve(rig, [*high, ("low", 20.0, {"priority": 5, "budget": 200.0})], ms=3000.0)
    assert served["low"] <= 2


def test_every_level_below_gets_some():
    rig = Rig(scheduling__min_share=0.2)
    senders = [(f"l{level}{i}", 20.0, {"priority": level, "budget": 200.0}) for level in range(3) for i in range(2)]
    served = serve(rig, senders, ms=5000.0)
    by_level = [sum(served[f"l{level}{i}"] for i in range(2)) for level in range(3)]
    assert by_level[0] > by_level[1] > 20
    assert by_level[2] > 20


@pytest.mark.parametrize("refusal", REFUSAL)
@pytest.mark.parametrize("strategy", ["deadline_aware", "round_robin"])
def test_equal_clients_share_alike(strategy, refusal):
    rig = Rig(scheduling__strategy=strategy, scheduling__early_refusal=refusal)
    senders = [(f"c{i}", 100.0, {"budget": 70.0}) for i in range(16)]
    served = serve(rig, senders, ms=8000.0)
    assert sum(served.values()) > 500
    assert jain(served.values()) >= 0.95


@pytest.mark.parametrize("strategy", ["deadline_aware", "round_robin"])
def test_a_client_that_sends_more_gets_no_more(strategy):
    rig = Rig(scheduling__strategy=strategy, scheduling__early_refusal="predictive")
    polite = [(f"polite{i}", 100.0, {"budget": 90.0}) for i in range(5)]
    served = serve(rig, [*polite, ("flood", 5.0, {"budget": 90.0})], ms=5000.0)
    assert min(served[c] for c, _, _ in polite) >= 0.9 * 50
    assert served["flood"] >= 150  # what is left over


def test_round_robin_is_fair_between_rates():
    rig = Rig(scheduling__strategy="round_robin")
    served = serve(rig, [("fast", 5.0, {"budget": 500.0}), ("slow", 15.0, {"budget": 500.0})], ms=3000.0)
    assert served["fast"] == pytest.approx(served["slow"], rel=0.1)


def test_shares_weigh():
    rig = Rig(scheduling__strategy="round_robin", clients={"double": {"share": 2.0}})
    served = serve(rig, [("double", 5.0, {"budget": 500.0}), ("single", 5.0, {"budget": 500.0})], ms=3000.0)
    assert served["double"] == pytest.approx(2 * served["single"], rel=0.1)


def test_shares_weigh_in_deadline_order_too():
    rig = Rig(clients={"double": {"share": 2.0}}, scheduling__early_refusal="predictive")
    served = serve(rig, [("double", 5.0, {"budget": 100.0}), ("single", 5.0, {"budget": 100.0})], ms=5000.0)
    assert served["double"] == pytest.approx(2 * served["single"], rel=0.15)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("plain", "ahead"),
    [
        ({"budget": 500.0}, {"budget": 500.0, "urgency": 1.0}),
        ({"budget": 500.0}, {"budget": 400.0}),
        ({"steps_remaining": 50}, {"steps_remaining": 5}),
    ],
)
def test_a_clients_own_requests_go_by_urgency_when_contended_too(strategy, plain, ahead):
    rig = Rig(scheduling__strategy=strategy)
    blocker = rig.block()
    rig.send(client="x", budget=10.0)
    rig.wait(11.0)
    assert rig.engine.health()["m"]["contended"]
    sent = [rig.send(client=c, **fields) for fields in (plain, plain, ahead) for c in ("a", "b")]
    went = rig.drain_order(blocker)
    assert went[:2] == sent[4:]
    assert went[2:] == sent[:4]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("affinity", ["none", "client"])
def test_a_change_of_strategy_holds_no_past_turns_against_anybody(strategy, affinity):
    rig = Rig(scheduling__strategy=strategy, scheduling__contention_hold_ms=1e6, model__affinity=affinity)
    blocker = rig.block()
    rig.send(client="x", budget=10.0)
    rig.wait(11.0)
    old = [rig.send(client="old") for _ in range(100)]
    assert rig.drain_order(blocker) == old
    rig.engine.use_scheduler(strategy, rig.now)
    blocker = rig.block()
    for _ in range(10):
        rig.send(client="new")
        rig.send(client="old")
    went = [r.observation.client_id for r in rig.drain_order(blocker)]
    assert went[:6].count("old") >= 2


def test_contention_is_forgotten():
    rig = Rig(scheduling__contention_hold_ms=300.0)
    blocker = rig.block()
    rig.send(budget=10.0)
    rig.wait(11.0)
    assert rig.engine.health()["m"]["contended"]
    rig.finish(blocker)
    rig.wait(301.0)
    assert not rig.engine.health()["m"]["contended"]


def test_levels_compete_across_models_on_a_device():
    rig = Rig(
        ["a", "b"],
        models__known={"a": {"device": "gpu"}, "b": {"device": "gpu"}},
        scheduling__pipeline_dispatch__enabled=True,
    )
    senders = [(f"low{i}", 20.0, {"priority": 1, "budget": 100.0, "model": "a"}) for i in range(4)]
    senders += [("high", 50.0, {"priority": 0, "budget": 60.0, "model": "b"})]
    served = serve(rig, senders, ms=4000.0)
    assert served["high"] >= 0.95 * 80
    assert sum(served[c] for c, _, _ in senders[:4]) > 0


def test_the_same_inputs_give_the_same_decisions():
    def run():
        rig = Rig(scheduling__early_refusal="predictive")
        senders = [(f"c{i}", 30.0 + i, {"budget": 50.0, "priority": i % 3}) for i in range(9)]
        serve(rig, senders, ms=1500.0)
        return [(c.id, [r.sequence for r in c.requests]) for c in rig.calls], [
            (o.request.sequence, o.status, o.error, o.retry_after_ms) for o in rig.outcomes
        ]

    first, *others = itertools.starmap(run, [()] * 3)
    assert all(other == first for other in others)


def test_statuses_under_overload():
    rig = Rig(scheduling__early_refusal="predictive", model__call_ms=10.0)
    serve(rig, [(f"c{i}", 50.0, {"budget": 40.0}) for i in range(15)], ms=2000.0)
    assert {o.status for o in rig.outcomes} <= {Status.OK, Status.REJECTED}
