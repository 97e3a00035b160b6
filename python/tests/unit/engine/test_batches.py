"""Which requests go together, when a batch leaves, and what is refused."""

import pytest

from inferential.types import Reason, Status
from tests.unit.engine.rig import Replica, Rig

GPU = [Replica("gpu", "m", 1, max_batch_size=64)]
PRIOR = {"model__call_ms": 10.0, "model__item_ms": 0.5}
REFUSE = {"scheduling__early_refusal": "predictive"}


def test_what_waits_goes_together():
    rig = Rig(replicas=GPU, scheduling__batch_window="off")
    blocker = rig.block()
    many = [rig.send(client=f"c{i}", budget=500.0) for i in range(10)]
    [call] = rig.finish(blocker, 1.0)
    assert call.requests == many


@pytest.mark.parametrize(("of_model", "of_replica", "expected"), [(None, 4, 4), (3, 8, 3), (8, 3, 3), (None, 1, 1)])
def test_the_largest_batch(of_model, of_replica, expected):
    rig = Rig(replicas=[Replica("gpu", "m", 1, max_batch_size=of_replica)], model__max_batch_size=of_model)
    blocker = rig.block()
    for i in range(10):
        rig.send(client=f"c{i}")
    [call] = rig.finish(blocker)
    assert len(call.requests) == expected


def cadenced(rig, clients, *, period=40.0, spacing=2.0, rounds=6):
    """Clients that send `spacing` apart, every `period`; all learned. Ends just before the next round."""
    for _ in range(rounds):
        for i in range(clients + 1):
            if i < clients:
                rig.send(client=f"c{i}", budget=100.0)
            for call in rig.wait(spacing if i < clients else period - clients * spacing):
                rig.finish(call)


def test_one_item_does_not_leave_when_three_more_are_2_ms_away():
    rig = Rig(replicas=GPU, scheduling__batch_window="deadline", **PRIOR)
    rig.fix(call_ms=10.0, item_ms=0.5)
    cadenced(rig, 4, spacing=2.0)
    rig.send(client="c0", budget=100.0)
    assert rig.settle() == []
    for i in range(1, 4):
        rig.wait(2.0)
        rig.send(client=f"c{i}", budget=100.0)
        rig.settle()
    calls = rig.calls[-1:]
    assert [len(c.requests) for c in calls] == [4]


def test_off_means_at_once():
    rig = Rig(replicas=GPU, scheduling__batch_window="off", **PRIOR)
    rig.fix(call_ms=10.0, item_ms=0.5)
    cadenced(rig, 4, spacing=2.0)
    rig.send(client="c0", budget=100.0)
    assert [len(c.requests) for c in rig.settle()] == [1]


def test_it_does_not_wait_for_what_is_far_away():
    rig = Rig(replicas=GPU, **PRIOR)
    rig.fix(call_ms=10.0, item_ms=0.5)
    cadenced(rig, 2, period=100.0, spacing=30.0)
    rig.send(client="c0", budget=100.0)
    assert len(rig.settle()) == 1


def test_it_waits_only_while_every_deadline_holds():
    rig = Rig(replicas=GPU, **PRIOR)
    rig.fix(call_ms=10.0, item_ms=0.5)
    cadenced(rig, 4, spacing=2.0)
    rig.send(client="c0", budget=12.5)  # 10.5 ms to run, 1 ms margin, and 0.5 for one more: no time to wait 2 ms
    assert [len(c.requests) for c in rig.settle()] == [1]


def test_light_load_goes_at_once():
    rig = Rig(replicas=GPU, **PRIOR)
    for _ in range(10):
        rig.send(budget=50.0)
        [call] = rig.settle()
        rig.finish(call, 10.5)
        rig.wait(89.5)


class TestBatchOptimized:
    def rig(self):
        return Rig(
            replicas=[Replica("gpu", "m", 1, max_batch_size=4)],
            scheduling__strategy="batch_optimized",
            scheduling__options={"max_wait_ms": 10.0},
        )

    def test_leaves_when_full(self):
        rig = self.rig()
        for i in range(3):
            rig.send(client=f"c{i}")
            assert rig.wait(1.0) == []
        rig.send(client="c3")
        assert [len(c.requests) for c in rig.settle()] == [4]

    def test_leaves_when_its_wait_is_over_not_later(self):
        rig = self.rig()
        rig.send(client="a")
        rig.wait(5.0)
        rig.send(client="b")
        assert rig.wait(4.99) == []
        assert [len(c.requests) for c in rig.wait(0.02)] == [2]

    def test_single_calls_never_wait(self):
        rig = Rig(scheduling__strategy="batch_optimized")
        rig.send()
        assert len(rig.settle()) == 1


def test_a_request_that_cannot_be_in_time_is_refused_at_once():
    rig = Rig(model__call_ms=20.0, **REFUSE)
    outcome = rig.outcome(rig.send(budget=15.0))
    assert (outcome.status, outcome.reason) == (Status.REJECTED, Reason.CANNOT_MEET_DEADLINE)
    assert outcome.retry_after_ms == pytest.approx(6.0)
    assert "6.0 ms late" in outcome.error
    assert rig.calls == []


def test_off_means_it_is_tried():
    rig = Rig(model__call_ms=20.0)
    rig.send(budget=15.0)
    assert len(rig.settle()) == 1


def test_it_is_refused_as_soon_as_it_is_known_behind_a_running_call():
    rig = Rig(model__call_ms=20.0, **REFUSE)
    rig.block()
    rig.wait(5.0)
    hopeless = rig.send(budget=35.0)  # 15 ms until the running call ends, 20 to run, 1 margin
    hopeful = rig.send(budget=40.0)
    assert rig.status(hopeless) is Status.REJECTED
    assert rig.status(hopeful) is None


def test_and_when_the_running_call_takes_longer_than_predicted():
    rig = Rig(model__call_ms=20.0, **REFUSE)
    rig.block()
    r = rig.send(budget=45.0)
    assert rig.status(r) is None
    rig.wait(23.9)
    assert rig.status(r) is None
    rig.wait(0.2)
    assert rig.status(r) is Status.REJECTED


def test_refused_work_never_takes_the_models_time():
    rig = Rig(replicas=GPU, **PRIOR, **REFUSE)
    blocker = rig.block()
    sent = [rig.send(client=f"c{i}", budget=30.0 + i) for i in range(60)]
    rig.fix(call_ms=10.0, item_ms=0.5)
    calls = rig.finish(blocker, 10.5)
    started = []
    while calls:
        [call] = calls
        started += call.requests
        runs = 10.0 + 0.5 * len(call.requests)
        assert all(call.begins_at + runs / 1e3 <= r.expiry for r in call.requests)
        calls = rig.finish(call, runs)
    refused = [r for r in sent if rig.status(r) is Status.REJECTED]
    assert refused
    assert not set(map(id, refused)) & set(map(id, started))


def test_nothing_is_refused_without_a_prediction():
    rig = Rig(**REFUSE)
    rig.send(budget=0.5)
    assert len(rig.settle()) == 1


def test_the_margin_for_the_reply():
    for margin, refused in ((0.0, False), (3.0, True)):
        rig = Rig(model__call_ms=20.0, scheduling__deadline_margin_ms=margin, **REFUSE)
        assert (rig.status(rig.send(budget=22.0)) is Status.REJECTED) is refused


def test_a_wrong_prediction_does_not_refuse_for_ever():
    rig = Rig(model__call_ms=200.0, **REFUSE)  # the truth is 5 ms
    for _ in range(60):
        rig.send(budget=50.0)
        for call in rig.settle():
            rig.finish(call, 5.0, inference_ms=5.0)
        rig.wait(95.0)
    late = [rig.outcome(o.request).status for o in rig.outcomes[-20:]]
    assert set(late) == {Status.OK}


def test_a_stall_does_not_refuse_for_long():
    rig = Rig(replicas=GPU, **PRIOR, **REFUSE)
    for i in range(100):
        rig.send(budget=50.0)
        for call in rig.settle():
            took = 600.0 if i in (20, 40) else 10.5
            rig.finish(call, took, inference_ms=took)
        rig.wait(89.5)
    statuses = [o.status for o in rig.outcomes]
    assert statuses.count(Status.REJECTED) <= 8
    assert set(statuses[-40:]) == {Status.OK}
