"""Bounds of what waits."""

import gc
import weakref

import pytest

from inferential.tracking.clients import MAX_SLOTS, Stream
from inferential.types import Observation, Reason, Status
from tests.unit.engine.rig import Replica, Request, Rig


def test_drop_oldest():
    rig = Rig(queue__max_requests_per_model=2)
    rig.block()
    three = [rig.send(client=f"c{i}") for i in range(3)]
    assert [rig.status(r) for r in three] == [Status.REJECTED, None, None]
    outcome = rig.outcome(three[0])
    assert outcome.reason is Reason.QUEUE_FULL
    assert outcome.retry_after_ms > 0
    assert [p for p in rig.numbers.points if p[0] == "queue_full_drops"] == [("queue_full_drops", 1.0, "m", "c0")]


def test_reject_newest():
    rig = Rig(queue__max_requests_per_model=2, queue__overflow="reject_newest")
    rig.block()
    three = [rig.send(client=f"c{i}") for i in range(3)]
    assert [rig.status(r) for r in three] == [None, None, Status.REJECTED]


@pytest.mark.parametrize(
    "bound",
    [
        {"queue__max_requests_per_model": 2},
        {"queue__max_requests": 2},
        {"queue__max_bytes_per_model": 800},
        {"queue__max_bytes": 800},
    ],
)
@pytest.mark.parametrize("overflow", ["drop_oldest", "reject_newest"])
def test_a_burst_overflows_only_when_all_slots_are_taken(bound, overflow):
    """What comes in one burst is decided together: a model that is idle takes its part of it before a queue counts as full."""
    rig = Rig(replicas=[Replica("r", "m", 2)], queue__overflow=overflow, **bound)
    burst = [rig.send(client=f"c{i}", size=400) for i in range(5)]
    calls = rig.settle()
    gone = burst[2] if overflow == "drop_oldest" else burst[4]
    assert [r for r in burst if rig.status(r) is not None] == [gone]
    assert [call.requests for call in calls] == [[burst[0]], [burst[1]]]


@pytest.mark.parametrize("overflow", ["drop_oldest", "reject_newest"])
def test_bytes_of_a_model(overflow):
    rig = Rig(queue__max_bytes_per_model=1000, queue__overflow=overflow)
    rig.block()
    sent = [rig.send(client=f"c{i}", size=400) for i in range(4)]
    gone = sent[:2] if overflow == "drop_oldest" else sent[2:]
    assert [r for r in sent if rig.status(r) is Status.REJECTED] == gone


def test_one_that_never_fits_is_too_large():
    rig = Rig(queue__max_bytes_per_model=1000)
    blocker = rig.block()
    small = rig.send()
    outcome = rig.outcome(rig.send(size=1001))
    assert (outcome.status, outcome.reason) == (Status.REJECTED, Reason.TOO_LARGE)
    assert rig.drain_order(blocker) == [small]


@pytest.mark.parametrize("setting", [{"queue__max_requests": 3}, {"queue__max_bytes": 300}])
def test_all_queues_together_drop_the_oldest_of_all(setting):
    rig = Rig(["a", "b"], **setting)
    rig.block("a")
    rig.block("b")
    oldest = rig.send("a")
    rest = [rig.send("b", client=f"c{i}") for i in range(3)]
    assert rig.status(oldest) is Status.REJECTED
    assert [rig.status(r) for r in rest] == [None] * 3


def test_a_client_that_floods_hurts_itself_alone():
    rig = Rig(queue__max_requests_per_model=20)
    rig.block()
    polite = [rig.send(client=f"polite{i}") for i in range(4)]
    flood = [rig.send(client="flood") for _ in range(100)]
    late = [rig.send(client=f"late{i}") for i in range(4)]
    rig.settle()
    assert [rig.status(r) for r in polite + late] == [None] * 8
    gone = [rig.outcome(r) for r in flood if rig.status(r) is not None]
    assert len(gone) == 100 - 12
    assert {o.reason for o in gone} == {Reason.OVER_SHARE}


def test_nothing_leaks():
    rig = Rig(queue__max_requests_per_model=50)
    blocker = rig.block()
    for i in range(500):
        rig.send(client=f"c{i % 7}", budget=100.0)
    rig.wait(200.0)
    rig.finish(blocker)
    assert rig.engine.pending == 0
    health = rig.engine.health()["m"]
    assert (health["queue_depth"], health["queue_bytes"], health["in_flight"]) == (0, 0, 0)
    rig.wait(301_000.0)
    rig.send(client="new")
    rig.settle()
    assert rig.engine.health()["m"]["clients"] == {"live": 1, "known": 1, "evicted": 8}


def test_forget_after():
    rig = Rig(cadence__forget_after_s=5.0)
    rig.send(client="old")
    [call] = rig.settle()
    rig.finish(call, 1.0)
    rig.wait(6000.0)
    rig.send(client="new")
    rig.settle()
    assert rig.engine.health()["m"]["clients"]["evicted"] == 1


def test_a_newcomer_refused_for_another_models_sake_is_replaced_by_nobody():
    rig = Rig(("a", "b"), queue__overflow="reject_newest", queue__max_requests=2)
    blockers = [rig.block("a"), rig.block("b")]
    for client in "xy":
        rig.send("a", client=client, budget=4000.0)  # these fill the server's queues
    assert rig.outcome(rig.send("b", client="robot", latest_only=True)).reason is Reason.QUEUE_FULL
    rig.drain_order(blockers[0])
    again = [rig.send("b", client="robot", latest_only=True, budget=4000.0) for _ in range(2)]
    assert rig.outcome(again[0]).status is Status.SUPERSEDED
    assert rig.drain_order(blockers[1]) == [again[1]]
    assert rig.outcome(again[1]).status is Status.OK
    assert rig.engine.pending == 0


@pytest.mark.parametrize("path", ["local", "direct"])
def test_payloads_go_with_their_answers(path):
    """A client that sends no more keeps nothing of what it has sent."""
    rig = Rig(replicas=[Replica("r", "m", 1, 8, path)])
    payloads: list[weakref.ref[Payload]] = []
    for client in range(50):
        for _ in range(20):
            payload = Payload()
            payloads.append(weakref.ref(payload))
            rig.next_id += 1
            observation = Observation(f"c{client}", "test", "m", request_id=rig.next_id, latency_budget_ms=4000.0)
            rig.engine.submit(Request(b"c%d" % client, observation, (payload,), 100, rig.now), rig.now)
            del payload
        calls = rig.settle()
        while calls:
            calls = rig.finish(calls.pop(), 1.0)
        rig.engine.disconnect(b"c%d" % client, rig.now)
        rig.settle()
        rig.calls.clear()
        rig.outcomes.clear()
    gc.collect()
    assert sum(payload() is not None for payload in payloads) <= 8  # of the last call


@pytest.mark.parametrize("strategy", ["deadline_aware", "round_robin"])
@pytest.mark.parametrize("end", ["answered", "failed", "cancelled", "expired"])
def test_no_heap_keeps_a_payload_whose_request_has_ended(end, strategy):
    """Each on a level of its own, which nobody asks for again; behind others, so that no heap is asked or rebuilt."""
    rig = Rig(scheduling__strategy=strategy, queue__max_requests_per_model=1000)
    payloads: list[weakref.ref[Payload]] = []
    blocker = None if end in ("answered", "failed") else rig.block()
    for i in range(100):
        payload = Payload()
        payloads.append(weakref.ref(payload))
        budget = 5.0 if end == "expired" else 4000.0
        observation = Observation("c", "test", "m", request_id=10_000 + i, priority=i, latency_budget_ms=budget)
        rig.engine.submit(Request(b"c", observation, (payload,), 100, rig.now), rig.now)
        del payload
        if blocker is not None:
            rig.send(client="patient", priority=i, budget=4000.0)
        for call in rig.settle():
            rig.finish(call, 1.0) if end == "answered" else rig.fail(call)
    if end == "cancelled":
        for i in range(100):
            assert rig.engine.cancel(b"c", 10_000 + i, rig.now)
    rig.wait(10.0)
    rig.settle()
    assert rig.engine.pending == (0 if blocker is None else 101)
    rig.calls.clear()
    rig.outcomes.clear()
    gc.collect()
    assert sum(payload() is not None for payload in payloads) <= 1


def test_what_is_cancelled_before_its_call_has_left_reaches_no_model():
    rig = Rig(replicas=[Replica("r", "m", 2, 1)], queue__max_requests_per_model=1)
    first, second, third = [rig.send() for _ in range(3)]  # more than wait: calls are made for them at once
    assert rig.engine.cancel(b"c", first.observation.request_id, rig.now)
    calls = rig.settle()
    assert rig.status(first) is Status.CANCELLED
    assert [call.requests for call in calls] == [[second], [third]]
    assert rig.abandoned == []
    for call in calls:
        rig.finish(call, 1.0)
    assert rig.engine.pending == 0


def test_what_is_cancelled_before_its_batch_has_left_is_taken_out_of_it():
    rig = Rig(replicas=[Replica("r", "m", 1, 2)], queue__max_requests_per_model=2)
    requests = [rig.send() for _ in range(3)]
    assert rig.engine.cancel(b"c", requests[0].observation.request_id, rig.now)
    [call] = rig.settle()
    assert call.requests == [requests[1]]
    [call] = rig.finish(call, 1.0)
    assert call.requests == [requests[2]]


def test_one_that_does_not_fit_takes_nobodys_place():
    rig = Rig(queue__max_bytes_per_model=100, queue__overflow="reject_newest")
    blocker = rig.block()
    other, older = rig.send(size=40), rig.send(size=40, latest_only=True)
    newer = rig.send(size=70, latest_only=True)
    assert rig.outcome(newer).reason is Reason.QUEUE_FULL
    assert rig.status(older) is None
    newest = rig.send(size=60, latest_only=True)
    assert rig.status(older) is Status.SUPERSEDED
    assert rig.drain_order(blocker) == [other, newest]


class Payload:
    """What can be referred to weakly."""


def test_a_client_has_a_bounded_number_of_slots():
    stream = Stream("c", 1, 1.0)
    first, *_ = [stream.cadence_of(f"{i}") for i in range(MAX_SLOTS)]
    assert stream.cadence_of("0") is first  # it counts as seen
    second = stream.cadence_of("1")
    for i in range(MAX_SLOTS - 2):
        stream.cadence_of(f"new-{i}")
    assert stream.cadence_of("0") is first
    assert stream.cadence_of("1") is second
    stream.cadence_of("one more")
    stream.cadence_of("and one")
    assert stream.cadence_of("new-0") is not None
    assert len(stream._slots) == MAX_SLOTS
