"""A failed call may run again."""

from inferential.types import Status
from tests.unit.engine.rig import BODY, CallResult, ItemError, Replica, Rig

TWO = [Replica("r1", "m", 1), Replica("r2", "m", 1)]


def test_none_by_default():
    rig = Rig(replicas=TWO)
    r = rig.send()
    [call] = rig.settle()
    assert rig.fail(call) == []
    assert rig.status(r) is Status.MODEL_ERROR
    assert rig.outcome(r).error == "boom"
    assert rig.numbers.of("dispatch_errors") == [1.0]
    assert rig.numbers.of("dispatch_retries") == []


def test_on_another_replica():
    rig = Rig(replicas=TWO, dispatch__max_retries=1)
    r = rig.send()
    [first] = rig.settle()
    [second] = rig.fail(first)
    assert second.replica.id != first.replica.id
    rig.finish(second)
    assert rig.status(r) is Status.OK
    assert rig.numbers.of("dispatch_retries") == [1.0]


def test_waits_for_another_replica_that_is_busy():
    rig = Rig(replicas=TWO, dispatch__max_retries=1)
    r = rig.send(client="a")
    busy = rig.send(client="b")
    first, other = rig.settle()
    assert other.requests == [busy]
    assert rig.fail(first) == []
    [again] = rig.finish(other, 1.0)
    assert (again.requests, again.replica.id) == ([r], other.replica.id)


def test_on_the_same_replica_where_there_is_no_other():
    rig = Rig(dispatch__max_retries=2)
    r = rig.send()
    [call] = rig.settle()
    for _ in range(2):
        [call] = rig.fail(call)
    assert rig.fail(call) == []
    assert rig.status(r) is Status.MODEL_ERROR


def test_only_what_is_retryable():
    rig = Rig(replicas=TWO, dispatch__max_retries=3)
    r = rig.send()
    [call] = rig.settle()
    assert rig.fail(call, retryable=False) == []
    assert rig.status(r) is Status.MODEL_ERROR


def test_only_within_its_deadline():
    rig = Rig(replicas=TWO, dispatch__max_retries=3)
    r = rig.send(budget=20.0)
    [call] = rig.settle()
    rig.wait(25.0)
    assert rig.fail(call, unavailable=True) == []
    assert rig.status(r) is Status.UNAVAILABLE


def test_a_killed_replicas_calls_run_elsewhere():
    rig = Rig(replicas=TWO, dispatch__max_retries=1)
    r = rig.send()
    [call] = rig.settle()
    rig.engine.replica_down("m", call.replica.id, "killed", rig.now)
    [again] = rig.settle()
    assert again.requests == [r]
    assert again.replica.id != call.replica.id
    rig.finish(again)
    assert rig.status(r) is Status.OK
    rig.engine.complete(call.id, CallResult([BODY], 0.0), rig.now)  # the dead one's late answer is ignored


def test_a_retryable_item_runs_again():
    rig = Rig(
        replicas=[Replica("r", "m", 1, max_batch_size=2)], dispatch__max_retries=1, scheduling__batch_window="off"
    )
    a, b = rig.send(client="a"), rig.send(client="b")
    [call] = rig.settle()
    [again] = rig.finish(call, items=[BODY, ItemError("out of memory", retryable=True)])
    assert rig.status(a) is Status.OK
    assert again.requests == [b]


def test_a_cancelled_retry_does_not_run():
    rig = Rig(replicas=TWO, dispatch__max_retries=1)
    r = rig.send(client="a")
    rig.send(client="b")
    first, other = rig.settle()
    rig.fail(first)
    rig.engine.cancel(r.connection, r.observation.request_id, rig.now)
    assert rig.finish(other) == []
    assert rig.status(r) is Status.CANCELLED


def test_a_hung_call_runs_again_elsewhere():
    rig = Rig(replicas=TWO, dispatch__max_retries=1, dispatch__call_timeout_ms=100.0)
    r = rig.send(budget=1000.0)
    [call] = rig.settle()
    again = rig.wait(101.0)
    assert [c.requests for c in again] == [[r]]
    assert again[0].replica.id != call.replica.id


def test_a_retry_does_not_revive_in_the_order_that_it_left():
    """Where it did, everything that came later was decided with an exception, and nobody was answered any more."""
    rig = Rig(replicas=TWO, dispatch__max_retries=1)
    first, again = rig.send(budget=1000.0), rig.send(budget=1000.0)
    calls = {call.requests[0]: call for call in rig.settle()}
    late = rig.send(budget=5.0)
    rig.wait(6.0)
    assert rig.status(late) is Status.EXPIRED, "the model is contended from here on"
    assert rig.fail(calls[again], retryable=True) == [], "the replica that it was not tried on is busy"
    others = [rig.send(client=client, budget=1000.0) for client in ("c", "d")]
    pending = [*rig.settle(), calls[first]]
    while pending:
        pending += rig.finish(pending.pop(0), 5.0)
    assert [rig.status(r) for r in (first, again, *others)] == [Status.OK] * 4
    retried = next(call for call in rig.calls if again in call.requests and call is not calls[again])
    assert retried.replica.id != calls[again].replica.id
