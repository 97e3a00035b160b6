"""Matching, get_result and next_reply against replies in a known order (docs/protocol.md, sections 6.2 to 6.6)."""

from __future__ import annotations

import math
import time

import pytest
from inferential._proto.inferential.v1 import inferential_pb2 as pb

from adapters.base import DTYPES
from suite.client import Client, Connection, Model, f32, some
from suite.standin import Received, StandIn

OK, INVALID, UNKNOWN_MODEL, REJECTED, EXPIRED, SUPERSEDED, MODEL_ERROR, UNAVAILABLE = range(8)
SHUTTING_DOWN, UNAUTHENTICATED, CANCELLED = 8, 9, 10
TIMED_OUT, LINK_LOST, NOT_SENT = 1001, 1002, 1003
AT_ONCE_S = 5.0  # against waits of 60 s


def exchange(model: Model, stand_in: StandIn, count: int, **options: object) -> list[Received]:
    """`count` observations, as the stand-in got them."""
    for i in range(count):
        model.send({"n": f32(i)}, **options)
    return [stand_in.receive() for _ in range(count)]


# --- a reply's contents ----------------------------------------------------------------------------------------------


def test_a_reply_tells_everything(model: Model, stand_in: StandIn) -> None:
    model.send({"x": f32(1)}, step_ms=20.0, slot="left")
    got = stand_in.receive()
    stand_in.answer(
        got,
        {"actions": f32(1, 2, 3)},
        metadata={"plan": "pick, place", "絵": "🦾", "empty": ""},
        timing={"queue_ms": 1.5, "inference_ms": 4.25, "server_ms": 6.5, "batch_size": 8, "replica": "policy#1"},
        phase_shift_ms=2.5,
        inference_latency_ms=4.25,
    )
    r = model.ok()
    assert (r.request_id, r.model_id, r.slot, r.status, r.reason, r.error, r.local) == (
        1,
        "policy",
        "left",
        0,
        0,
        "",
        False,
    )
    assert r.metadata == {"plan": "pick, place", "絵": "🦾", "empty": ""}
    assert (r.queue_ms, r.inference_ms, r.server_ms, r.batch_size, r.replica) == (1.5, 4.25, 6.5, 8, "policy#1")
    assert r.phase_shift_ms == 2.5
    assert r.timestamp_ns == got.observation.timestamp_ns + 1000
    assert r.observation_timestamp_ns == got.observation.timestamp_ns
    assert 0 < r.round_trip_ms <= r.age_ms < 60_000
    assert r.tensors == {"actions": f32(1, 2, 3)}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_shape_is_read(model: Model, stand_in: StandIn, dtype: str) -> None:
    shapes: list[tuple[int, ...]] = [(), (0,), (1,), (2, 0, 3), (3, 5), (1,) * 32]
    tensors = {str(i): some(dtype, shape, i) for i, shape in enumerate(shapes)}
    model.send()
    stand_in.answer(stand_in.receive(), tensors)
    assert model.ok().tensors == tensors


@pytest.mark.parametrize("status", range(1, 11))
def test_every_status_is_told(model: Model, stand_in: StandIn, status: int) -> None:
    model.send()
    stand_in.answer(stand_in.receive(), status=status, reason=2, error="because of ü")
    r = model.reply()
    assert (r.request_id, r.status, r.reason, r.error, r.local) == (1, status, 2, "because of ü", False)
    assert not r.tensors


def test_an_unknown_status_and_reason_keep_their_numbers(model: Model, stand_in: StandIn) -> None:
    model.send()
    stand_in.answer(stand_in.receive(), status=77, reason=4242, error="new")
    r = model.reply()
    assert (r.status, r.reason, r.error) == (77, 4242, "new")
    model.send()
    stand_in.answer(stand_in.receive(), status=77)
    assert model.get_result() is None, "an unknown status counts as not OK"
    assert model.last_status() == 77


# --- next_reply ------------------------------------------------------------------------------------------------------


def test_next_reply_gives_every_reply_in_order_of_arrival(model: Model, stand_in: StandIn) -> None:
    got = exchange(model, stand_in, 4)
    for i, status in ((2, OK), (0, EXPIRED), (3, OK), (1, CANCELLED)):
        stand_in.answer(got[i], status=status)
    replies = [model.reply() for _ in range(4)]
    assert [(r.request_id, r.status) for r in replies] == [(3, OK), (1, EXPIRED), (4, OK), (2, CANCELLED)]


def test_next_reply_with_nothing_outstanding_returns_at_once(model: Model) -> None:
    begin = time.monotonic()
    assert model.next_reply(60_000) is None
    assert time.monotonic() - begin < AT_ONCE_S


def test_next_reply_abandons_nothing(model: Model, stand_in: StandIn) -> None:
    got = exchange(model, stand_in, 2)
    assert model.next_reply(50) is None
    assert model.next_reply(0) is None
    for g in got:
        stand_in.answer(g)
    assert [model.ok().request_id for _ in range(2)] == [1, 2]


def test_a_request_without_a_reply_times_out(client: Client, stand_in: StandIn) -> None:
    connection = client.connect(stand_in.address, request_timeout_ms=300)
    connection.wait_for_link("up")
    model = connection.model("policy")
    model.send()
    got = stand_in.receive()
    r = model.reply()
    assert (r.request_id, r.status, r.local) == (1, TIMED_OUT, True)
    stand_in.answer(got)
    connection.wait_for_counter("late_replies", 1)
    assert connection.counters()["timed_out"] == 1
    assert model.next_reply(0) is None


@pytest.mark.parametrize("taken_in", [False, True])
def test_a_reply_that_came_is_not_overdue_for_being_read_late(
    client: Client, stand_in: StandIn, taken_in: bool
) -> None:
    """Whether it still lies in the socket or a call for another model has taken it in: first what is there, then what is overdue."""
    connection = client.connect(stand_in.address, request_timeout_ms=300)
    connection.wait_for_link("up")
    model, other = connection.model("policy"), connection.model("other")
    model.send()
    stand_in.answer(stand_in.receive())
    if taken_in:
        other.send()
        stand_in.answer(stand_in.receive())
        assert other.reply().status == OK  # it came after the first one, on the same connection
    time.sleep(1.0)  # what is tested is that this time passes
    r = model.next_reply(0)
    assert r is not None
    assert (r.request_id, r.status, r.local) == (1, OK, False)
    assert connection.counters()["timed_out"] == 0


def test_replies_that_came_are_not_overdue_however_many(client: Client, stand_in: StandIn) -> None:
    count = 1100
    connection = client.connect(stand_in.address, request_timeout_ms=6000)
    model = connection.model("policy")
    for _ in range(count):
        model.send()
    for _ in range(count):
        stand_in.answer(stand_in.receive())
    time.sleep(6.2)  # what is tested is that this time passes
    assert [model.reply().status for _ in range(count)] == [OK] * count


def test_closing_keeps_what_has_arrived(client: Client, stand_in: StandIn) -> None:
    connection = client.connect(stand_in.address)
    model, other = connection.model("policy"), connection.model("other")
    model.send()
    other.send()
    stand_in.answer(stand_in.receive())
    stand_in.answer(stand_in.receive())
    assert other.ok().request_id == 2
    connection.close()
    assert model.ok().request_id == 1


def test_a_reply_of_another_name_is_still_that_of_its_request(model: Model, stand_in: StandIn) -> None:
    model.send()
    received = stand_in.receive()
    stand_in.answer(received, model_id="another", observation_timestamp_ns=42)
    r = model.ok()
    assert (r.model_id, r.observation_timestamp_ns) == ("policy", received.observation.timestamp_ns)


# --- get_result ------------------------------------------------------------------------------------------------------


def test_get_result_gives_the_reply(model: Model, stand_in: StandIn) -> None:
    model.send()
    stand_in.answer(stand_in.receive(), {"actions": f32(7)})
    r = model.get_result()
    assert r is not None
    assert r.tensors == {"actions": f32(7)}
    assert model.last_status() == OK


def test_get_result_never_gives_an_older_reply(connection: Connection, model: Model, stand_in: StandIn) -> None:
    got = exchange(model, stand_in, 3)
    for i in (2, 0, 1):
        stand_in.answer(got[i])
    r = model.get_result()
    assert r is not None
    assert r.request_id == 3
    assert model.get_result() is None, "1 and 2 are older than what was delivered"
    connection.wait_for_counter("late_replies", 2)


def test_get_result_gives_newer_ones_one_after_another(model: Model, stand_in: StandIn) -> None:
    got = exchange(model, stand_in, 3)
    for g in got:
        stand_in.answer(g)
    found = [model.get_result() for _ in range(3)]
    assert [r.request_id for r in found if r is not None] == [1, 2, 3]


def test_get_result_tells_slots_apart(model: Model, stand_in: StandIn) -> None:
    left = exchange(model, stand_in, 1, slot="left")[0]
    right = exchange(model, stand_in, 1, slot="right")[0]
    stand_in.answer(right)
    stand_in.answer(left)
    found = [model.get_result(), model.get_result()]
    assert [(r.request_id, r.slot) for r in found if r is not None] == [(2, "right"), (1, "left")]


def test_get_result_with_nothing_outstanding_returns_at_once(model: Model) -> None:
    begin = time.monotonic()
    assert model.get_result(60_000) is None
    assert time.monotonic() - begin < AT_ONCE_S


def test_get_result_abandons_what_is_outstanding(connection: Connection, model: Model, stand_in: StandIn) -> None:
    got = exchange(model, stand_in, 2)
    assert model.get_result(50) is None
    assert model.last_status() == TIMED_OUT
    assert connection.counters()["timed_out"] == 2
    begin = time.monotonic()
    assert model.get_result(60_000) is None, "nothing is outstanding any more"
    assert time.monotonic() - begin < AT_ONCE_S
    for g in got:
        stand_in.answer(g)
    connection.wait_for_counter("late_replies", 2)
    assert model.next_reply(0) is None
    stand_in.answer(exchange(model, stand_in, 1)[0])
    r = model.get_result()
    assert r is not None
    assert r.request_id == 3


def test_get_result_with_timeout_0_only_polls(connection: Connection, model: Model, stand_in: StandIn) -> None:
    got = exchange(model, stand_in, 1)
    assert model.get_result(0) is None
    stand_in.answer(got[0])
    r = model.get_result()
    assert r is not None
    assert r.request_id == 1
    assert connection.counters()["timed_out"] == 0


def test_get_result_abandons_only_its_own_model(connection: Connection, stand_in: StandIn) -> None:
    a, b = connection.model("a"), connection.model("b")
    a.send()
    b.send()
    got = [stand_in.receive(), stand_in.receive()]
    assert a.get_result(50) is None
    for g in got:
        stand_in.answer(g)
    r = b.get_result()
    assert r is not None
    assert r.request_id == 2


def test_get_result_ends_at_a_refusal_of_the_newest(model: Model, stand_in: StandIn) -> None:
    got = exchange(model, stand_in, 1)
    stand_in.answer(got[0], status=MODEL_ERROR, error="the model raised")
    begin = time.monotonic()
    assert model.get_result(60_000) is None
    assert time.monotonic() - begin < AT_ONCE_S
    assert model.last_status() == MODEL_ERROR


def test_get_result_passes_over_a_refusal_of_an_older_one(model: Model, stand_in: StandIn) -> None:
    got = exchange(model, stand_in, 2)
    stand_in.answer(got[0], status=EXPIRED)
    stand_in.answer(got[1])
    r = model.get_result()
    assert r is not None
    assert r.request_id == 2


def test_get_result_passes_over_a_refusal_while_a_newer_one_is_outstanding(model: Model, stand_in: StandIn) -> None:
    got = exchange(model, stand_in, 2)
    stand_in.answer(got[0], status=SUPERSEDED)
    begin = time.monotonic()
    assert model.get_result(300) is None
    assert time.monotonic() - begin >= 0.29, "it waits for the newer one"
    assert model.last_status() == TIMED_OUT


def test_get_result_ends_at_a_refusal_with_only_older_ones_outstanding(model: Model, stand_in: StandIn) -> None:
    got = exchange(model, stand_in, 2)
    stand_in.answer(got[1], status=REJECTED)
    begin = time.monotonic()
    assert model.get_result(60_000) is None
    assert time.monotonic() - begin < AT_ONCE_S
    assert model.last_status() == REJECTED
    stand_in.answer(got[0])
    r = model.get_result()
    assert r is not None, "the older one was not abandoned, and nothing newer was delivered"
    assert r.request_id == 1


def test_a_second_waiter_is_refused(model: Model, stand_in: StandIn) -> None:
    model.send()
    stand_in.receive()
    assert model.two_waiters(5000) == ["concurrent", "none"]


# --- matching --------------------------------------------------------------------------------------------------------


def test_each_reply_goes_to_its_model(connection: Connection, stand_in: StandIn) -> None:
    models = {name: connection.model(name) for name in "abc"}
    ids = {name: m.send({"x": f32(1)}) for name, m in models.items()}
    got = [stand_in.receive() for _ in range(3)]
    for g in reversed(got):
        stand_in.answer(g, metadata={"for": g.observation.model_id})
    for name, m in models.items():
        r = m.ok()
        assert (r.request_id, r.model_id, r.metadata["for"]) == (ids[name], name, name)


def test_handles_of_one_model_share_an_inbox(connection: Connection, stand_in: StandIn) -> None:
    one, two = connection.model("policy", priority=0), connection.model("policy", priority=5)
    one.send()
    stand_in.answer(stand_in.receive())
    assert two.ok().request_id == 1


def test_a_second_reply_to_one_request_is_dropped(connection: Connection, model: Model, stand_in: StandIn) -> None:
    got = exchange(model, stand_in, 1)[0]
    stand_in.answer(got, {"actions": f32(1)})
    stand_in.answer(got, {"actions": f32(2)})
    assert model.ok().tensors == {"actions": f32(1)}
    connection.wait_for_counter("late_replies", 1)
    assert model.next_reply(0) is None


def test_counters(connection: Connection, model: Model, stand_in: StandIn) -> None:
    got = exchange(model, stand_in, 3)
    stand_in.answer(got[0])
    stand_in.answer(got[1], status=EXPIRED)
    assert model.get_result() is not None
    connection.wait_for_counter("not_ok", 1)
    assert model.get_result(100) is None
    counters = connection.counters()
    expected = dict.fromkeys(("not_sent", "late_replies", "bad_replies", "link_lost", "held_off", "replies_dropped",
                              "reconnects"), 0)  # fmt: skip
    assert counters == {**expected, "sent": 3, "ok": 1, "not_ok": 1, "timed_out": 1}


# --- ping and cancel -------------------------------------------------------------------------------------------------


def test_cancel_is_sent_for_an_outstanding_request_only(model: Model, stand_in: StandIn) -> None:
    first = exchange(model, stand_in, 1)[0]
    assert not model.cancel(first.request_id), "the server is not known to speak v2 yet"
    stand_in.answer(first)
    model.ok()
    got = exchange(model, stand_in, 2)
    assert not model.cancel(1), "answered already"
    assert not model.cancel(99), "never sent"
    assert model.cancel(2)
    c = stand_in.receive()
    assert (c.observation.kind, c.request_id) == (2, 2)
    assert c.observation.client.id
    stand_in.answer(got[0], status=CANCELLED)
    r = model.reply()
    assert (r.request_id, r.status) == (2, CANCELLED)


def test_ping_s_reply_goes_to_ping_alone(connection: Connection, model: Model, stand_in: StandIn) -> None:
    model.send()
    first = stand_in.receive()
    connection.begin_ping()
    p = stand_in.receive()
    assert (p.observation.kind, p.request_id) == (1, 2)
    stand_in.answer(
        p, metadata={"model:policy": "ready", "model:other": "not ready", "server": "2.0.0", "protocol": "2"}
    )
    pong = connection.end_ping()
    assert pong is not None
    assert (pong.server, pong.models) == ("2.0.0", {"policy": True, "other": False})
    assert pong.round_trip_ms > 0
    stand_in.answer(first)
    assert model.ok().request_id == 1
    assert model.next_reply(0) is None


def test_ping_without_an_answer_is_none(connection: Connection, stand_in: StandIn) -> None:
    assert connection.ping(100) is None
    stand_in.receive()


# --- hold-off --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [REJECTED, UNAVAILABLE])
def test_hold_off_answers_here(connection: Connection, model: Model, stand_in: StandIn, status: int) -> None:
    got = exchange(model, stand_in, 1)[0]
    stand_in.answer(got, status=status, reason=1, error="full", retry_after_ms=60_000)
    assert model.reply().retry_after_ms == 60_000
    assert model.observe().request_id == 2
    r = model.reply()
    assert (r.request_id, r.status, r.reason, r.local) == (2, status, 1, True)
    assert 0 < r.retry_after_ms <= 60_000
    other = connection.model("other")
    other.send()
    assert stand_in.receive().observation.model_id == "other", "other models are asked, and the held one was not"
    assert connection.counters()["held_off"] == 1


def test_hold_off_ends(connection: Connection, model: Model, stand_in: StandIn) -> None:
    got = exchange(model, stand_in, 1)[0]
    begin = time.monotonic()
    stand_in.answer(got, status=REJECTED, retry_after_ms=200)
    model.reply()
    while True:  # as a loop of observe and reply would
        held = connection.counters()["held_off"]
        sent = model.send()
        if connection.counters()["held_off"] == held:
            break
        assert model.reply().local
        assert time.monotonic() - begin < 20
    assert time.monotonic() - begin >= 0.199
    got = stand_in.receive()
    assert got.request_id == sent
    stand_in.answer(got)
    assert not model.ok().local


@pytest.mark.parametrize("hint", [math.inf, 3.0e38, 86_400_001.0])
def test_a_hold_off_lasts_a_day_at_most(model: Model, stand_in: StandIn, hint: float) -> None:
    got = exchange(model, stand_in, 1)[0]
    stand_in.answer(got, status=REJECTED, error="full", retry_after_ms=hint)
    assert model.reply().retry_after_ms >= 86_400_000
    model.observe()
    r = model.reply()
    assert (r.local, r.status, r.error) == (True, REJECTED, "full")
    assert 86_000_000 < r.retry_after_ms <= 86_400_000


@pytest.mark.parametrize("hint", [math.nan, -math.inf, -5.0, 0.0])
def test_a_hint_that_is_none_holds_nothing_off(model: Model, stand_in: StandIn, hint: float) -> None:
    got = exchange(model, stand_in, 1)[0]
    stand_in.answer(got, status=REJECTED, retry_after_ms=hint)
    model.reply()
    sent = model.send()
    assert stand_in.receive().request_id == sent


@pytest.mark.parametrize("hint", [math.nan, math.inf, -math.inf, -5.0])
def test_a_phase_shift_that_is_none_is_not_given_out(model: Model, stand_in: StandIn, hint: float) -> None:
    stand_in.answer(exchange(model, stand_in, 1)[0], phase_shift_ms=hint)
    model.ok()
    assert model.take_phase_shift_ms() == 0


@pytest.mark.parametrize("hint", [7.5, 1.0e9, 3.0e38])
def test_a_rate_takes_a_phase_shift_once_and_none_holds_it_up(model: Model, stand_in: StandIn, hint: float) -> None:
    for _ in range(2):
        stand_in.answer(exchange(model, stand_in, 1)[0], phase_shift_ms=hint)
        model.ok()
    assert model.take_phase_shift_ms() == pytest.approx(hint)
    assert model.take_phase_shift_ms() == 0
    stand_in.answer(exchange(model, stand_in, 1)[0], phase_shift_ms=hint)
    model.ok()
    begin = time.monotonic()
    model.pace(100.0, 3)
    assert time.monotonic() - begin < 10, "three ticks of 10 ms, and less than one more"
    assert model.take_phase_shift_ms() == 0


def test_hold_off_can_be_turned_off(client: Client, stand_in: StandIn) -> None:
    connection = client.connect(stand_in.address, hold_off=False)
    connection.wait_for_link("up")
    model = connection.model("policy")
    got = exchange(model, stand_in, 1)[0]
    stand_in.answer(got, status=REJECTED, retry_after_ms=60_000)
    model.reply()
    model.send()
    assert stand_in.receive().request_id == 2


# --- a v1 server -----------------------------------------------------------------------------------------------------


def test_replies_of_a_v1_server_are_matched_in_order(connection: Connection, model: Model, stand_in: StandIn) -> None:
    other = connection.model("other")
    exchange(model, stand_in, 2)
    other.send()
    third = stand_in.receive()
    first = Received(third.identity, type(third.observation)(model_id="policy"), [b""])
    stand_in.answer_v1(first, {"actions": f32(1)})
    stand_in.answer_v1(third, {"actions": f32(3)})
    stand_in.answer_v1(first, {"actions": f32(2)})
    found = [model.ok(), model.ok()]
    assert [(r.request_id, r.tensors["actions"]) for r in found] == [(1, f32(1)), (2, f32(2))]
    r = other.ok()
    assert (r.request_id, r.tensors["actions"]) == (3, f32(3))
    stand_in.answer_v1(first, {"actions": f32(4)})
    connection.wait_for_counter("late_replies", 1)


def test_a_v1_server_gets_one_frame_no_cancel_and_no_ping(
    connection: Connection, model: Model, stand_in: StandIn
) -> None:
    got = exchange(model, stand_in, 1)[0]
    stand_in.answer_v1(got, {"actions": f32(1)})
    model.ok()
    big = {"a": some("UINT8", (200_000,), 1), "b": some("UINT8", (200_000,), 2)}
    sent = model.send(big)
    got = stand_in.receive()
    assert len(got.frames) == 1
    assert all(got.data(k) == t.data for k, t in big.items())
    assert not model.cancel(sent)
    assert connection.ping(200) is None
    assert stand_in.receive_nothing(0.1)


# --- what does not decode --------------------------------------------------------------------------------------------


def test_a_bad_reply_is_counted(connection: Connection, model: Model, stand_in: StandIn) -> None:
    got = exchange(model, stand_in, 1)[0]
    stand_in.send(got, b"\xff" * 40, [b""])
    connection.wait_for_counter("bad_replies", 1)
    stand_in.answer(got)
    assert model.ok().request_id == 1


def bad_reply(request_id: int) -> bytes:
    """An envelope whose tensor lies outside the payload."""
    response = pb.ModelResponse(request_id=request_id, model_id="policy")
    response.tensors.add(key="actions", dtype=2, shape=[4], byte_length=16)
    return bytes(response.SerializeToString())


def test_a_bad_reply_that_nobody_waits_for_is_bad_and_not_late(
    connection: Connection, model: Model, stand_in: StandIn
) -> None:
    got = exchange(model, stand_in, 1)[0]
    stand_in.send(got, bad_reply(77), [b""])
    connection.wait_for_counter("bad_replies", 1)
    stand_in.answer(got)
    assert model.ok().request_id == 1
    stand_in.send(got, bad_reply(1), [b""])
    connection.wait_for_counter("bad_replies", 2)
    counters = connection.counters()
    assert (counters["late_replies"], counters["not_ok"], counters["ok"]) == (0, 0, 1)


def test_a_bad_reply_without_an_id_says_nothing_of_the_server(
    connection: Connection, model: Model, stand_in: StandIn
) -> None:
    got = exchange(model, stand_in, 1)[0]
    stand_in.send(got, bad_reply(0), [b""])
    connection.wait_for_counter("bad_replies", 1)
    connection.begin_ping()
    p = stand_in.receive()  # a server taken for v1 is sent none
    stand_in.answer(p, metadata={"server": "2.0.0"})
    assert connection.end_ping() is not None
    stand_in.answer(got)
    assert model.ok().request_id == 1


def test_a_bad_reply_to_a_ping_ends_it_without_an_answer(connection: Connection, stand_in: StandIn) -> None:
    connection.begin_ping(60_000)
    begin = time.monotonic()
    p = stand_in.receive()
    stand_in.send(p, bad_reply(p.request_id), [b""])
    assert connection.end_ping() is None
    assert time.monotonic() - begin < AT_ONCE_S
    counters = connection.counters()
    assert (counters["bad_replies"], counters["late_replies"]) == (1, 0)


def test_a_reply_without_a_payload_frame_ends_its_request(
    connection: Connection, model: Model, stand_in: StandIn
) -> None:
    got = exchange(model, stand_in, 1)[0]
    reply = pb.ModelResponse(request_id=1, model_id="policy", protocol_version=2)
    stand_in.send(got, reply.SerializeToString(), [])
    ended = model.reply()
    assert (ended.request_id, ended.status) == (1, MODEL_ERROR)
    counters = connection.counters()
    assert (counters["not_ok"], counters["bad_replies"]) == (1, 0)


def test_a_message_that_is_none_is_counted(connection: Connection, model: Model, stand_in: StandIn) -> None:
    got = exchange(model, stand_in, 1)[0]
    stand_in.send(got, b"", [])
    connection.wait_for_counter("bad_replies", 1)
    stand_in.answer(got)
    assert model.ok().request_id == 1
