"""Strategies by name, changed while running; what people ask the engine."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from inferential.errors import ConfigError
from inferential.scheduling import Order, Scheduler, register_policy, register_scheduler
from inferential.scheduling.journal import describe
from inferential.types import Status
from tests.unit.engine.rig import BODY, ItemError, Replica, Rig

NAMES = ["deadline_aware", "model_deadline", "batch_optimized", "priority_tiered", "round_robin"]


@pytest.mark.parametrize("name", NAMES)
def test_each_serves_everything(name):
    rig = Rig(["a", "b"], scheduling__strategy=name)
    blockers = [rig.block("a"), rig.block("b")]
    sent = [rig.send("ab"[i % 2], client=f"c{i % 5}", priority=i % 3) for i in range(30)]
    for blocker in blockers:
        rig.drain_order(blocker)
    assert {rig.status(r) for r in sent} == {Status.OK}


@pytest.mark.parametrize("after", NAMES)
@pytest.mark.parametrize("before", NAMES)
def test_a_change_loses_nothing(before, after):
    rig = Rig(scheduling__strategy=before)
    blocker = rig.block()
    sent = [rig.send(client=f"c{i % 4}", priority=i % 2) for i in range(20)]
    rig.engine.use_scheduler(after, rig.now)
    sent += [rig.send(client=f"c{i % 4}", priority=i % 2) for i in range(5)]
    order = rig.drain_order(blocker)
    assert sorted(r.sequence for r in order) == [r.sequence for r in sent]
    assert {rig.status(r) for r in sent} == {Status.OK}


def test_a_change_takes_effect():
    rig = Rig()
    blocker = rig.block()
    low = [rig.send(client="low", priority=1, budget=100.0 + i) for i in range(2)]
    high = [rig.send(client="high", priority=0, budget=900.0 + i) for i in range(2)]
    rig.engine.use_scheduler("priority_tiered", rig.now)
    assert rig.drain_order(blocker) == high + low


def test_unknown_names_and_options_say_what_there_is():
    with pytest.raises(ConfigError, match=r"'edf' is unknown; known are .*deadline_aware"):
        Rig(scheduling__strategy="edf")
    with pytest.raises(ConfigError, match=r"batch_optimized has no option 'wait'; known are max_wait_ms"):
        Rig(scheduling__strategy="batch_optimized", scheduling__options={"wait": 1})
    with pytest.raises(ConfigError, match=r"deadline_aware has no option 'x'; it has none"):
        Rig(scheduling__options={"x": 1})
    with pytest.raises(ConfigError, match="max_wait_ms is -1"):
        Rig(scheduling__strategy="batch_optimized", scheduling__options={"max_wait_ms": -1})
    for wrong in ("5", None, True, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=f"max_wait_ms is {wrong!r}; it must be a number >= 0"):
            Rig(scheduling__strategy="batch_optimized", scheduling__options={"max_wait_ms": wrong})
    with pytest.raises(ConfigError, match=r"scheduling.policy: 'lifo' is unknown; known are .*deadline, expiry, fifo"):
        Rig(scheduling__policy="lifo")


def test_a_failed_change_changes_nothing():
    rig = Rig()
    blocker = rig.block()
    r = rig.send()
    with pytest.raises(ConfigError):
        rig.engine.use_scheduler("nonsense", rig.now)
    assert rig.drain_order(blocker) == [r]


def test_a_scheduler_of_ones_own():
    class Lifo(Scheduler):
        """Newest first."""

        def order(self) -> Order:
            return LifoOrder()

    class LifoOrder:
        def __init__(self):
            self.stack = []

        def push(self, request):
            self.stack.append(request)

        def first(self, contended):
            return self.stack[-1] if self.stack else None

        def rivals(self, request):
            return len(self.stack)

        def discard(self, request, served):
            self.stack.remove(request)

    register_scheduler("lifo", Lifo)
    rig = Rig(scheduling__strategy="lifo")
    blocker = rig.block()
    sent = [rig.send(client=f"c{i}") for i in range(4)]
    assert rig.drain_order(blocker) == sent[::-1]


def test_what_an_order_of_ones_own_returns():
    asked = []

    class Fifo:
        def __init__(self):
            self.queue = []

        def push(self, request):
            self.queue.append(request)
            return True

        def first(self, contended):
            return self.queue[0] if self.queue else None

        def rivals(self, request):
            asked.append(request)
            return np.int64(len(self.queue))

        def discard(self, request, served):
            self.queue.remove(request)
            return request

    class Mine(Scheduler):
        def order(self) -> Order:
            return Fifo()

    register_scheduler("mine", Mine)
    rig = Rig(scheduling__strategy="mine", scheduling__early_refusal="predictive", model__call_ms=10.0)
    blocker = rig.block()
    sent = [rig.send(client=f"c{i}", budget=900.0) for i in range(4)]
    assert rig.drain_order(blocker) == sent
    assert asked


@pytest.mark.parametrize("wait", [5, np.int64(5), np.float32(5), Fraction(5)])
def test_a_wait_may_be_any_number(wait):
    rig = Rig(
        scheduling__strategy="batch_optimized",
        scheduling__options={"max_wait_ms": wait},
        replicas=[Replica("r", "m", 1, 4)],
    )
    rig.send()
    assert not rig.wait(4.9)
    assert len(rig.wait(0.2)) == 1


@pytest.mark.parametrize("key", ["3.5", b"3.5", np.float32(3.5), Fraction(7, 2), Decimal("3.5")], ids=repr)
def test_a_policy_may_return_what_becomes_a_number(key, caplog):
    register_policy("mine", lambda request, overdue_s, weights: key)
    rig = Rig(scheduling__policy="mine")
    rig.block()
    assert rig.send().key == 3.5
    assert not caplog.records


@pytest.mark.parametrize(("strategy", "first"), [("deadline_aware", "urgent"), ("model_deadline", "turn")])
def test_who_gets_a_shared_slot(strategy, first):
    rig = Rig(["turn", "urgent"], scheduling__strategy=strategy, scheduling__max_concurrent_dispatch=1)
    blocker = rig.block("urgent")
    urgent, turn = rig.send("urgent", budget=50.0), rig.send("turn", budget=500.0)
    order = rig.drain_order(blocker)
    assert order == ([urgent, turn] if first == "urgent" else [turn, urgent])


def test_explain_tells_why():
    rig = Rig(scheduling__early_refusal="predictive", model__call_ms=10.0)
    blocker = rig.block()
    r = rig.send(client="robot", budget=100.0)
    rig.settle()
    [call] = rig.finish(blocker, 12.0, inference_ms=10.0)
    rig.finish(call, 10.0, inference_ms=10.0)
    dispatch, outcome = rig.engine.explain("robot", r.observation.request_id)
    assert dispatch["decision"] == "dispatch"
    assert dispatch["waited_ms"] == pytest.approx(12.0)
    assert (dispatch["batch_size"], dispatch["replica"], dispatch["contended"]) == (1, "r", False)
    assert dispatch["predicted_ms"] == pytest.approx(call.ends_at * 1e3 - rig.ms + 10.0)
    assert 5.0 < dispatch["predicted_ms"] < 20.0
    assert (outcome["decision"], outcome["status"]) == ("outcome", "OK")
    refused = rig.send(client="robot", budget=5.0)
    rig.settle()
    [told] = rig.engine.explain("robot", refused.observation.request_id)
    assert told["reason"] == "CANNOT_MEET_DEADLINE"
    assert "late" in told["error"]
    assert rig.engine.explain("nobody", 1) == []


def test_what_is_no_strategy_or_policy():
    for wrong in (5, object):
        with pytest.raises(ConfigError, match=r"'mine' is .* must be a subclass of"):
            register_scheduler("mine", wrong)
    with pytest.raises(ConfigError, match="'mine' is 5; it must be a function of"):
        register_policy("mine", 5)
    with pytest.raises(ConfigError, match="a policy's name is None; it must be a string"):
        register_policy(None, lambda request, overdue_s, weights: 0.0)
    with pytest.raises(ConfigError, match="a strategy's name is None; it must be a string"):
        register_scheduler(None, Scheduler)


def test_explain_in_words():
    def words(request):
        rig.settle()
        found = rig.engine.explain(request.observation.client_id, request.observation.request_id)
        return [describe(decision) for decision in found]

    rig = Rig(
        scheduling__early_refusal="predictive",
        scheduling__batch_window="off",
        model__call_ms=10.0,
        dispatch__max_retries=1,
        replicas=[Replica("r", "m", 1, 4)],
    )
    blocker = rig.block()
    older = rig.send(client="a", latest_only=True, budget=500.0)
    newer = rig.send(client="a", latest_only=True, budget=500.0)
    other = rig.send(client="b", budget=500.0)
    hopeless = rig.send(client="c", budget=5.0)
    assert words(older) == ["SUPERSEDED 0.0 ms after its arrival: a newer observation took its place"]
    assert words(hopeless) == ["REJECTED (CANNOT_MEET_DEADLINE) 0.0 ms after its arrival: it would be 16.0 ms late"]
    [call] = rig.finish(blocker, 12.0, inference_ms=10.0)
    [again] = rig.fail(call, "the link broke", retryable=True)[:1]
    rig.finish(again, 10.0, inference_ms=10.0)
    assert words(newer)[0] == (
        "waited 12.0 ms, sent to r together with 1 more, predicted to be over in "
        f"{rig.engine.explain('a', newer.observation.request_id)[0]['predicted_ms']:.1f} ms"
    )
    assert words(newer)[1] == "failed (the link broke), runs again"
    assert words(newer)[-1] == "OK 22.0 ms after its arrival"
    assert words(other)[0].startswith("waited 12.0 ms, sent to r together with 1 more")
    late = Rig()
    late.block()
    expired = late.send(client="d", budget=8.0)
    late.wait(9.0)
    rig = late
    assert words(expired) == ["EXPIRED 8.0 ms after its arrival: its deadline passed while it waited"]


def test_explain_goes_by_time_where_the_journal_has_begun_anew():
    rig = Rig(scheduling__explain_records=5)
    for _ in range(3):  # a dispatch and an outcome each
        request = rig.send(client="robot", request_id=1)
        [call] = rig.settle()
        rig.finish(call, 1.0)
        assert rig.status(request) is Status.OK
    found = rig.engine.explain("robot", 1)
    assert [entry["decision"] for entry in found] == ["outcome", "dispatch", "outcome", "dispatch", "outcome"]
    assert [entry["at"] for entry in found] == sorted(entry["at"] for entry in found)


def test_explain_keeps_so_many():
    rig = Rig(replicas=[], scheduling__explain_records=2)
    three = [rig.send() for _ in range(3)]
    assert [len(rig.engine.explain("c", r.observation.request_id)) for r in three] == [0, 1, 1]
    off = Rig(replicas=[], scheduling__explain_records=0)
    assert off.engine.explain("c", off.send().observation.request_id) == []


def test_health():
    rig = Rig(["m", "gone"], replicas=[Replica("r", "m", 1)])
    for _ in range(3):
        rig.send()
        [call] = rig.settle()
        rig.finish(call, 20.0)
    rig.send()
    [call] = rig.settle()
    rig.fail(call, "CUDA error")
    rig.block()
    rig.send()
    health = rig.engine.health()
    assert not health["gone"]["ready"]
    assert rig.engine.ready("m")
    assert not rig.engine.ready("gone")
    m = health["m"]
    assert (m["ready"], m["queue_depth"], m["in_flight"]) == (True, 1, 1)
    assert (m["calls"], m["errors"], m["last_error"]) == (4, 1, "CUDA error")
    assert m["latency_ms"] == pytest.approx(20.0)
    assert 0 < m["error_rate"] < 1
    assert m["replicas"]["r"]["last_error"] == "CUDA error"


def test_error_rate_is_the_share_of_requests_that_failed():
    rig = Rig(replicas=[Replica("r", "m", 1, max_batch_size=4)], scheduling__batch_window="off")
    for _ in range(60):
        blocker = rig.block()
        for _ in range(4):
            rig.send()
        [call] = rig.finish(blocker, 1.0, items=[ItemError("bad")])
        rig.finish(call, 1.0, items=[BODY, ItemError("bad"), ItemError("worse"), BODY])
    health = rig.engine.health()["m"]
    for h in (health, health["replicas"]["r"]):
        assert h["errors"] == 0, "no call failed as a whole"
        assert h["error_rate"] == pytest.approx(0.75, abs=0.05), "all of one call, half of the next"
        assert h["last_error"] == "worse"


def test_retry_after_of_unavailable():
    rig = Rig(replicas=[], dispatch__retry_after_ms=40.0)
    assert rig.outcome(rig.send()).retry_after_ms == 40.0
