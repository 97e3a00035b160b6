"""Every request ends once, and how."""

import gc

import pytest

from inferential.engine import Engine
from inferential.metrics.collector import MetricsCollector
from inferential.scheduling.request import CallResult, Request
from inferential.types import Observation, Reason, Status
from tests.unit.engine.rig import BODY, ItemError, Replica, Rig


def test_answered():
    rig = Rig()
    r = rig.send()
    [call] = rig.settle()
    assert call.requests == [r]
    rig.finish(call, 5.0, inference_ms=4.0)
    outcome = rig.outcome(r)
    assert (outcome.status, outcome.body, outcome.replica, outcome.batch_size) == (Status.OK, BODY, "r", 1)
    assert outcome.inference_ms == pytest.approx(4.0)
    assert rig.engine.pending == 0
    assert rig.numbers.of("e2e_latency_ms") == [pytest.approx(5.0)]
    assert rig.numbers.of("inference_latency_ms") == [pytest.approx(4.0)]
    assert rig.numbers.of("scheduling_wait_ms") == [pytest.approx(0.0)]
    assert rig.numbers.of("queue_depth") == [1.0]
    assert rig.numbers.of("batch_size") == [1.0]


def test_nothing_due_means_no_wakeup():
    rig = Rig()
    rig.settle()
    assert rig.engine.next_wakeup() is None


def test_unknown_model_names_the_known_ones():
    rig = Rig(["a", "b"])
    outcome = rig.outcome(rig.send("c"))
    assert outcome.status is Status.UNKNOWN_MODEL
    assert "a, b" in outcome.error


def test_no_live_replica_is_told_at_once():
    rig = Rig(replicas=[])
    outcome = rig.outcome(rig.send())
    assert (outcome.status, outcome.retry_after_ms) == (Status.UNAVAILABLE, 250.0)
    rig.engine.replica_up(Replica("r", "m", 1), rig.now)
    rig.send()
    assert len(rig.settle()) == 1


def test_the_last_replica_takes_the_queue_with_it():
    rig = Rig()
    call = rig.block()
    waiting = rig.send()
    rig.engine.replica_down("m", "r", "killed", rig.now)
    assert rig.status(call.requests[0]) is Status.UNAVAILABLE
    assert rig.status(waiting) is Status.UNAVAILABLE
    assert "killed" in rig.outcome(waiting).error


def test_a_drained_replica_ends_what_it_has():
    rig = Rig(replicas=[Replica("r1", "m", 1), Replica("r2", "m", 1)])
    first = rig.block()
    rig.engine.replica_down("m", first.replica.id, "redeployed", rig.now, drained=True)
    rig.send()
    [second] = rig.settle()
    assert second.replica.id != first.replica.id
    rig.finish(first, 1.0)
    assert rig.status(first.requests[0]) is Status.OK
    assert set(rig.engine.health()["m"]["replicas"]) == {second.replica.id}


def test_queued_expires_on_a_timer():
    rig = Rig()
    rig.block()
    r = rig.send(budget=20.0)
    rig.settle()
    assert rig.engine.next_wakeup() == pytest.approx(rig.now + 0.020)
    rig.wait(19.9)
    assert rig.status(r) is None
    rig.wait(0.2)
    assert rig.status(r) is Status.EXPIRED
    assert rig.numbers.of("requests_expired") == [1.0]


def test_expired_work_never_reaches_a_model():
    rig = Rig()
    blocker = rig.block()
    rig.send(budget=20.0)
    rig.ms += 30.0  # nobody woke the engine in time
    assert rig.finish(blocker) == []


def test_the_ttl_bounds_every_budget():
    rig = Rig(queue__request_ttl_ms=100.0)
    rig.block()
    r = rig.send(budget=5000.0)
    rig.wait(101.0)
    assert rig.status(r) is Status.EXPIRED


def test_a_running_request_may_be_late_for_a_while():
    rig = Rig(scheduling__overrun_ms=50.0)
    r = rig.send(budget=10.0)
    [call] = rig.settle()
    rig.finish(call, 55.0)
    assert rig.status(r) is Status.OK


def test_then_it_expires_and_its_result_is_dropped():
    rig = Rig(scheduling__overrun_ms=50.0)
    r = rig.send(budget=10.0)
    [call] = rig.settle()
    rig.wait(61.0)
    assert rig.status(r) is Status.EXPIRED
    assert rig.abandoned == [call]
    follower = rig.send(budget=1000.0)
    assert rig.settle() == []  # the slot stays taken: a model that hangs gets no more work
    rig.finish(call)
    assert rig.status(r) is Status.EXPIRED
    assert rig.calls[-1].requests == [follower]


def test_a_call_without_an_answer_is_given_up():
    rig = Rig(dispatch__call_timeout_ms=200.0)
    r = rig.send(budget=1000.0)
    [call] = rig.settle()
    rig.wait(201.0)
    assert rig.status(r) is Status.MODEL_ERROR
    assert "200 ms" in rig.outcome(r).error
    assert rig.abandoned == [call]
    rig.send()
    assert len(rig.settle()) == 1
    assert rig.numbers.of("late_replies") == []
    assert rig.finish(call) == []  # far too late: counted and dropped
    assert rig.numbers.of("late_replies") == [1.0]


def test_a_given_up_call_that_fails_later_is_no_late_reply():
    rig = Rig(dispatch__call_timeout_ms=200.0)
    call = rig.block()
    rig.wait(201.0)
    rig.finish(call, items=[ItemError("cancelled")])
    assert rig.numbers.of("late_replies") == []


def test_of_calls_that_never_answer_not_all_are_remembered():
    rig = Rig(
        replicas=[Replica("r", "m", 1200)], dispatch__call_timeout_ms=200.0, scheduling__max_concurrent_dispatch=1200
    )
    for _ in range(1001):
        rig.send()
    calls = rig.settle()
    assert len(calls) == 1001
    rig.wait(201.0)
    rig.finish(calls[0])
    rig.finish(calls[1])
    assert rig.numbers.of("late_replies") == [1.0]


def test_cancel_queued_and_running():
    rig = Rig()
    call = rig.block()
    waiting = rig.send()
    running = call.requests[0]
    assert rig.engine.cancel(waiting.connection, waiting.observation.request_id, rig.now)
    assert rig.status(waiting) is Status.CANCELLED
    assert rig.engine.cancel(running.connection, running.observation.request_id, rig.now)
    assert rig.status(running) is Status.CANCELLED
    assert rig.abandoned == [call]
    assert not rig.engine.cancel(b"nobody", 1, rig.now)
    assert rig.finish(call) == []
    assert rig.engine.pending == 0
    assert rig.numbers.of("late_replies") == [1.0]


def test_a_late_error_is_no_late_reply():
    rig = Rig()
    call = rig.block()
    rig.engine.cancel(call.requests[0].connection, call.requests[0].observation.request_id, rig.now)
    rig.finish(call, items=[ItemError("cancelled before the model began with it")])
    assert rig.numbers.of("late_replies") == []


def test_what_a_lost_connection_left_never_reaches_a_model():
    rig = Rig()
    call = rig.block()
    mine = [rig.send(connection=b"gone", v1=bool(i % 2)) for i in range(4)]
    other = rig.send(connection=b"here")
    rig.engine.disconnect(b"gone", rig.now)
    assert [rig.status(r) for r in mine] == [Status.CANCELLED] * 4
    [after] = rig.finish(call)
    assert after.requests == [other]


def test_a_duplicate_outstanding_id_is_counted_and_ignored():
    rig = Rig()
    first = rig.send(request_id=7)
    again = rig.send(request_id=7)
    [call] = rig.settle()
    rig.finish(call)
    assert rig.status(first) is Status.OK
    assert rig.status(again) is None
    assert rig.numbers.of("observation_errors") == [1.0]
    assert rig.engine.pending == 0
    assert rig.send(request_id=7) in rig.settle()[0].requests


def test_v1_requests_without_ids_end_too():
    rig = Rig()
    two = [rig.send(v1=True), rig.send(v1=True)]
    [call] = rig.settle()
    [call2] = rig.finish(call)
    rig.finish(call2)
    assert [rig.status(r) for r in two] == [Status.OK] * 2


def test_a_bad_item_fails_alone():
    rig = Rig(replicas=[Replica("r", "m", 1, max_batch_size=3)], scheduling__batch_window="off")
    three = [rig.send(client=f"c{i}") for i in range(3)]
    [call] = rig.settle()
    assert call.requests == three
    rig.finish(call, items=[BODY, ItemError("shapes differ"), BODY])
    assert [rig.status(r) for r in three] == [Status.OK, Status.MODEL_ERROR, Status.OK]
    assert rig.outcome(three[1]).error == "shapes differ"


def test_too_few_items_are_errors():
    rig = Rig(replicas=[Replica("r", "m", 1, max_batch_size=3)], scheduling__batch_window="off")
    three = [rig.send(client=f"c{i}") for i in range(3)]
    [call] = rig.settle()
    rig.finish(call, items=[BODY])
    assert [rig.status(r) for r in three] == [Status.OK, Status.MODEL_ERROR, Status.MODEL_ERROR]


def test_draining_answers_new_ones_and_finishes_old_ones():
    rig = Rig()
    call = rig.block()
    old = rig.send()
    rig.engine.drain(rig.now)
    new = rig.send()
    assert rig.status(new) is Status.SHUTTING_DOWN
    [after] = rig.finish(call)
    rig.finish(after)
    assert rig.status(old) is Status.OK
    assert rig.engine.pending == 0


def test_abort_ends_everything():
    rig = Rig()
    call = rig.block()
    waiting = rig.send()
    rig.engine.abort(rig.now)
    assert rig.status(waiting) is Status.SHUTTING_DOWN
    assert rig.status(call.requests[0]) is Status.SHUTTING_DOWN
    assert rig.engine.pending == 0
    assert rig.abandoned == [call]


@pytest.mark.parametrize("per_model", [True, False])
def test_newest_wins(per_model):
    rig = Rig(model__latest_only=per_model)
    call = rig.block()
    flag = not per_model
    older = rig.send(latest_only=flag)
    rig.wait(0.5)
    other_slot = rig.send(latest_only=flag, slot="left")
    rig.wait(1.0)
    newer = rig.send(latest_only=flag)
    assert rig.status(older) is Status.SUPERSEDED
    assert rig.status(other_slot) is None
    assert newer.key == older.key  # it takes the older one's place
    assert newer.expiry > older.expiry
    went = rig.drain_order(call)
    assert went == [newer, other_slot]


def test_it_is_the_older_one_that_says_whether_it_may_be_replaced():
    rig = Rig()
    blocker = rig.block()
    stays, older = rig.send(), rig.send(latest_only=True)
    newer, last = rig.send(), rig.send()
    assert [rig.status(r) for r in (stays, older, newer, last)] == [None, Status.SUPERSEDED, None, None]
    assert set(rig.drain_order(blocker)) == {stays, newer, last}


def test_newest_wins_is_not_for_v1_clients():
    rig = Rig(model__latest_only=True)
    rig.block()
    older = rig.send(v1=True)
    rig.send(v1=True)
    assert rig.status(older) is None


def test_without_the_flag_nothing_is_replaced():
    rig = Rig()
    rig.block()
    older = rig.send()
    rig.send()
    assert rig.status(older) is None


def test_reason_none_for_plain_outcomes():
    rig = Rig(replicas=[])
    assert rig.outcome(rig.send()).reason is Reason.NONE


def test_too_late_for_the_model_is_expired():
    """A replica keeps staged work from the model once its deadline has passed; that is no error of the model."""
    rig = Rig()
    r = rig.send()
    [call] = rig.settle()
    rig.finish(call, 5.0, items=[ItemError("its deadline passed", expired=True)])
    assert rig.status(r) is Status.EXPIRED
    assert rig.numbers.of("requests_expired") == [1.0]


def test_nothing_that_garbage_collection_looks_at_stays_of_a_request():
    """Else collections grow with what the server remembers of past requests, and stop it for milliseconds (ADR 6)."""
    rig = Rig(queue__max_requests=10, queue__overflow="reject_newest")
    engine = Engine(rig.config, ["m"], MetricsCollector())
    engine.replica_up(Replica("r", "m", 1), 1.0)

    def serve(numbers):
        """Half is answered, half refused."""
        for number in numbers:
            now = 1.0 + number * 1e-3
            for i in range(20):
                observation = Observation("c", "test", "m", request_id=20 * number + i + 1, latency_budget_ms=500.0)
                engine.submit(Request(b"c", observation, (b"",), 100, now), now)
            while calls := engine.take_calls():
                for call in calls:
                    engine.complete(call.id, CallResult([BODY] * len(call.requests), 0.0), now)
            assert len(engine.take_outcomes()) == 20
        assert engine.pending == 0

    serve(range(20))
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        serve(range(20, 120))
        stayed = len(gc.get_objects()) - before
    finally:
        gc.enable()
    assert stayed < 100, "of 2,000 requests"
