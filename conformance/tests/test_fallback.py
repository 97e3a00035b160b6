"""act: a fresh answer or the declared fallback, in time (docs/protocol.md, section 6.7)."""

from __future__ import annotations

import math
import struct
import time
from typing import Any

import pytest

from adapters.base import CallError
from suite.client import Connection, Model, f32, some
from suite.standin import StandIn

OK, REJECTED, MODEL_ERROR = 0, 3, 6
TIMED_OUT, LINK_LOST, NOT_SENT = 1001, 1002, 1003

INT = some("INT32", (2,))
TEMPLATE = {"actions": f32(9, 9), "grip": INT}
ZEROS = {"actions": f32(0, 0), "grip": type(INT)("INT32", (2,), bytes(8))}
LAST = {"actions": f32(8, -4), "grip": INT}


def fresh(model: Model, stand_in: StandIn, **options: Any) -> None:
    """One answer that is in time."""
    model.send({"x": f32(1)}, **options)
    stand_in.answer(stand_in.receive(), LAST)
    a = model.act(20_000)
    assert (a.source, a.tensors) == ("fresh", LAST)
    assert a.age_ms > 0
    assert a.request_id > 0


def stalled(model: Model, stand_in: StandIn, timeout_ms: float = 50) -> Any:
    """act on a server that does not answer."""
    model.send({"x": f32(1)})
    stand_in.receive()
    begin = time.monotonic()
    a = model.act(timeout_ms)
    assert time.monotonic() - begin < 10, "an action comes in time"
    return a


def floats(a: Any) -> tuple[float, ...]:
    data = a.tensors["actions"].data
    return struct.unpack(f"<{len(data) // 4}f", data)


def test_none_without_an_answer_ever_and_no_template(model: Model, stand_in: StandIn) -> None:
    a = stalled(model, stand_in)
    assert (a.source, a.tensors, a.age_ms, a.steps_late, a.request_id) == ("none", {}, 0, 0, 0)


def test_zero_like_the_template_before_the_first_answer(connection: Connection, stand_in: StandIn) -> None:
    for kind in ("zero", "hold", "decay"):
        model = connection.model("policy", fallback=(kind, 1000.0, TEMPLATE))
        a = stalled(model, stand_in)
        assert (a.source, a.tensors, a.age_ms, a.request_id) == ("zero", ZEROS, 0, 0), kind


def test_zero_like_the_last_answer(connection: Connection, stand_in: StandIn) -> None:
    model = connection.model("policy", fallback=("zero", 0.0, None))
    fresh(model, stand_in)
    a = stalled(model, stand_in)
    assert (a.source, a.tensors, a.request_id) == ("zero", ZEROS, 1)


def test_hold_keeps_the_last_answer(connection: Connection, stand_in: StandIn) -> None:
    model = connection.model("policy", fallback=("hold", 600_000.0, None))
    fresh(model, stand_in)
    a = stalled(model, stand_in)
    assert (a.source, a.tensors, a.request_id) == ("hold", LAST, 1)
    assert a.age_ms >= 50


def test_each_handle_keeps_one_last_answer_of_whatever_slot(connection: Connection, stand_in: StandIn) -> None:
    one, other = (connection.model("policy", fallback=("hold", 600_000.0, None)) for _ in range(2))
    fresh(one, stand_in, slot="left")
    fresh(one, stand_in, slot="right")
    a = stalled(one, stand_in)
    assert (a.source, a.request_id) == ("hold", 2)
    a = stalled(other, stand_in)
    assert (a.source, a.request_id) == ("none", 0)


def test_hold_ends_in_zeros(connection: Connection, stand_in: StandIn) -> None:
    model = connection.model("policy", fallback=("hold", 1.0, None))
    fresh(model, stand_in)
    a = stalled(model, stand_in, 50)
    assert (a.source, a.tensors) == ("zero", ZEROS)


def test_decay_halves_floats_and_holds_the_rest(connection: Connection, stand_in: StandIn) -> None:
    model = connection.model("policy", fallback=("decay", 100.0, None))
    fresh(model, stand_in)
    a = stalled(model, stand_in, 100)
    assert (a.source, a.request_id) == ("decay", 1)
    assert a.tensors["grip"] == INT
    x, y = floats(a)
    assert 0 <= x <= 4.01, "after at least a half-life"
    assert y == -x / 2


def test_an_empty_template_is_none(connection: Connection, stand_in: StandIn) -> None:
    for kind in ("zero", "hold", "decay"):
        a = stalled(connection.model("policy", fallback=(kind, 1000.0, {})), stand_in)
        assert (a.source, a.tensors) == ("none", {}), kind


WRONG = [
    ("hold", math.nan),
    ("hold", -1.0),
    ("decay", 0.0),
    ("decay", -1.0),
    ("decay", math.nan),
    ("decay", math.inf),
]


@pytest.mark.parametrize("fallback", WRONG, ids=lambda f: f"{f[0]} {f[1]}")
def test_a_time_that_is_none_is_refused(connection: Connection, fallback: tuple[str, float]) -> None:
    with pytest.raises(CallError) as caught:
        connection.model("policy", fallback=(*fallback, None)).observe()
    assert caught.value.code == "argument", caught.value


def test_status_is_what_this_act_waited_for(connection: Connection, stand_in: StandIn) -> None:
    model = connection.model("policy", fallback=("hold", 600_000.0, None))
    assert (model.act(60_000).status, model.last_status()) == (None, None), "nothing was outstanding"
    for status in (REJECTED, MODEL_ERROR, 77):
        model.send()
        stand_in.answer(stand_in.receive(), status=status)
        a = model.act(60_000)
        assert (a.status, model.last_status()) == (status, status)
        a = model.act(60_000)
        assert (a.status, model.last_status()) == (None, None), "nothing is outstanding; the refusal was of another act"
    model.send()
    stand_in.answer(stand_in.receive(), LAST)
    a = model.act(60_000)
    assert (a.source, a.status, model.last_status()) == ("fresh", OK, OK)
    a = model.act(60_000)
    assert (a.source, a.status, model.last_status()) == ("hold", None, None)
    a = stalled(model, stand_in)
    assert (a.source, a.status, model.last_status()) == ("hold", TIMED_OUT, TIMED_OUT)
    assert model.act(60_000).status is None, "what timed out is not outstanding any more"
    model.send()
    stand_in.receive()
    assert model.act(0).status is None, "it only looked"
    stand_in.close()
    assert model.act(60_000).status == LINK_LOST
    assert model.observe().status == NOT_SENT
    assert model.act(60_000).status is None, "nothing is outstanding; the send told why"


def test_callback_gets_the_last_answer(connection: Connection, stand_in: StandIn) -> None:
    model = connection.model("policy", fallback=("callback", 0.0, None))
    a = stalled(model, stand_in)
    assert (a.source, a.tensors, a.age_ms, a.request_id) == ("callback", {"actions": f32(0)}, 0, 0)
    fresh(model, stand_in)
    a = stalled(model, stand_in)
    assert (a.source, a.tensors, a.age_ms, a.request_id) == ("callback", {"actions": f32(1)}, 0, 2)


def test_steps_late_counts_steps_gone_by(connection: Connection, stand_in: StandIn) -> None:
    model = connection.model("policy", step_ms=10.0, fallback=("hold", 600_000.0, None))
    fresh(model, stand_in)
    a = stalled(model, stand_in, 100)
    assert a.source == "hold"
    assert a.steps_late >= 10
    assert a.steps_late == int(a.age_ms // 10)


def test_a_refusal_falls_back_at_once(connection: Connection, stand_in: StandIn) -> None:
    model = connection.model("policy", fallback=("hold", 600_000.0, None))
    fresh(model, stand_in)
    model.send()
    stand_in.answer(stand_in.receive(), status=3)
    begin = time.monotonic()
    assert model.act(60_000).source == "hold"
    assert time.monotonic() - begin < 10


def test_a_lost_link_falls_back_at_once(connection: Connection, stand_in: StandIn) -> None:
    model = connection.model("policy", fallback=("hold", 600_000.0, None))
    fresh(model, stand_in)
    model.send()
    stand_in.receive()
    stand_in.close()
    begin = time.monotonic()
    assert model.act(60_000).source == "hold"
    assert model.act(60_000).source == "hold", "nothing is outstanding"
    assert time.monotonic() - begin < 10
