"""What clients put on the wire, read by a stand-in (docs/protocol.md, sections 1, 3 and 6.2)."""

from __future__ import annotations

import contextlib
import math
import time
from typing import Any

import pytest

from adapters.base import DTYPES, CallError, Tensor
from suite.client import Client, Connection, Model, f32, some
from suite.standin import StandIn


def test_every_field_is_sent_as_given(model: Model, stand_in: StandIn) -> None:
    before = time.time_ns()
    sent = model.send(
        {"state": f32(1.5, -2.0), "état/π": some("UINT8", (2, 3))},
        {"task": "fold the towel", "empty": "", "操作": "掴む 🤖"},
        urgency=0.75,
        steps_remaining=50,
        priority=3,
        latency_budget_ms=33.5,
        step_ms=12.5,
        latest_only=True,
        slot="left arm",
    )
    got = stand_in.receive()
    o = got.observation
    assert o.request_id == sent
    assert o.model_id == "policy"
    assert o.client.id.startswith(("python", "cpp", "rust"))
    assert o.client.type == "robot"
    assert o.urgency == 0.75
    assert o.HasField("steps_remaining")
    assert o.steps_remaining == 50
    assert o.priority == 3
    assert o.latency_budget_ms == 33.5
    assert o.step_ms == 12.5
    assert o.latest_only
    assert o.slot == "left arm"
    assert o.kind == 0
    assert dict(o.metadata) == {"task": "fold the towel", "empty": "", "操作": "掴む 🤖"}
    assert abs(o.timestamp_ns - before) < 60e9, "timestamp_ns is the wall clock in ns"
    assert got.data("state") == f32(1.5, -2.0).data
    assert got.data("état/π") == some("UINT8", (2, 3)).data


def test_defaults_on_the_wire(model: Model, stand_in: StandIn) -> None:
    model.send({"x": f32(1)})
    o = stand_in.receive().observation
    assert o.priority == 1, "an absent priority would be the highest"
    assert o.latency_budget_ms == 50
    assert o.step_ms == 0
    assert o.urgency == 0
    assert not o.HasField("steps_remaining")
    assert not o.latest_only
    assert o.slot == ""
    assert not o.metadata


def test_steps_remaining_0_is_present(model: Model, stand_in: StandIn) -> None:
    model.send(steps_remaining=0)
    o = stand_in.receive().observation
    assert o.HasField("steps_remaining")
    assert o.steps_remaining == 0


def test_the_handle_s_settings_are_sent(connection: Connection, stand_in: StandIn) -> None:
    model = connection.model("other", latency_budget_ms=30.0, priority=0, step_ms=20.0)
    model.send()
    o = stand_in.receive().observation
    assert (o.model_id, o.latency_budget_ms, o.priority, o.step_ms) == ("other", 30, 0, 20)
    model.send(latency_budget_ms=10.0, priority=5, step_ms=1.0)
    o = stand_in.receive().observation
    assert (o.latency_budget_ms, o.priority, o.step_ms) == (10, 5, 1)


def test_request_ids_count_from_1_over_all_models(connection: Connection, stand_in: StandIn) -> None:
    a, b = connection.model("a"), connection.model("b")
    assert [a.send(), b.send(), a.send(), b.send()] == [1, 2, 3, 4]
    assert [stand_in.receive().request_id for _ in range(4)] == [1, 2, 3, 4]


def test_no_routing_id_is_set(model: Model, stand_in: StandIn) -> None:
    model.send()
    identity = stand_in.receive().identity
    # libzmq gives a peer without one five bytes, the first 0
    assert len(identity) == 5
    assert identity[0] == 0


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0, 3), (2, 3, 4), (1,) * 32], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_shape(model: Model, stand_in: StandIn, dtype: str, shape: tuple[int, ...]) -> None:
    tensor = some(dtype, shape)
    model.send({"x": tensor})
    got = stand_in.receive()
    t = got.observation.tensors[0]
    assert (t.key, t.dtype, tuple(t.shape), t.byte_length) == ("x", DTYPES[dtype][0], shape, len(tensor.data))
    assert t.encoding in (0, 1)
    assert got.data("x") == tensor.data


def test_tensors_are_aligned(model: Model, stand_in: StandIn) -> None:
    tensors = {f"t{i}-{d}": some(d, (i + 1,), i) for i, d in enumerate(DTYPES)}
    model.send(tensors)
    got = stand_in.receive()
    assert len(got.frames) == 1, "one payload frame until the server has echoed a request_id"
    assert all(t.byte_offset % 8 == 0 for t in got.observation.tensors)
    for key, tensor in tensors.items():
        assert got.data(key) == tensor.data


def test_large_tensors_get_frames_of_their_own_once_the_server_is_known(model: Model, stand_in: StandIn) -> None:
    big = {"a": some("UINT8", (200_000,), 1), "small": f32(1, 2), "b": some("FLOAT32", (50_000,), 2)}
    model.send(big)
    got = stand_in.receive()
    assert len(got.frames) == 1
    assert all(t.frame == 0 for t in got.observation.tensors)
    assert all(got.data(k) == t.data for k, t in big.items())
    stand_in.answer(got)
    model.ok()
    model.send(big)
    got = stand_in.receive()
    assert len(got.frames) == 3
    assert all(got.data(k) == t.data for k, t in big.items())


def test_an_observation_without_tensors_has_an_empty_payload(model: Model, stand_in: StandIn) -> None:
    model.send({}, {"only": "strings"})
    got = stand_in.receive()
    assert got.frames == [b""]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "urgency above 1": ({"options": {"urgency": 1.5}}, "urgency"),
    "urgency below 0": ({"options": {"urgency": -0.1}}, "urgency"),
    "urgency NaN": ({"options": {"urgency": math.nan}}, "urgency"),
    "budget NaN": ({"options": {"latency_budget_ms": math.nan}}, "latency_budget_ms"),
    "budget infinite": ({"options": {"latency_budget_ms": math.inf}}, "latency_budget_ms"),
    "budget negative": ({"options": {"latency_budget_ms": -1.0}}, "latency_budget_ms"),
    "budget beyond FLOAT32": ({"options": {"latency_budget_ms": 1e39}}, "latency_budget_ms"),
    "priority above 1000": ({"options": {"priority": 1001}}, "priority"),
    "step negative": ({"options": {"step_ms": -1.0}}, "step_ms"),
    "step NaN": ({"options": {"step_ms": math.nan}}, "step_ms"),
    "slot too long": ({"options": {"slot": "s" * 257}}, "slot"),
    "slot too long in bytes": ({"options": {"slot": "é" * 129}}, "slot"),
    "metadata with a tensor's key": ({"tensors": {"x": f32(1)}, "metadata": {"x": "y"}}, "x"),
    "tensor without a key": ({"tensors": {"": f32(1)}}, ""),
    "257 tensors": ({"tensors": {f"t{i}": f32(1) for i in range(257)}}, "257"),
    "33 dimensions": ({"tensors": {"x": Tensor("UINT8", (1,) * 33, b"a")}}, "dimensions"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_refused_here_and_uses_no_id(model: Model, stand_in: StandIn, mistake: str) -> None:
    arguments, named = WRONG[mistake]
    assert model.send() == 1
    with pytest.raises(CallError) as caught:
        model.observe(arguments.get("tensors"), arguments.get("metadata"), **arguments.get("options", {}))
    assert caught.value.code == "argument", caught.value
    assert named in caught.value.message
    assert model.send() == 2
    assert [stand_in.receive().request_id for _ in range(2)] == [1, 2]


def test_an_empty_model_id_is_refused(connection: Connection) -> None:
    with pytest.raises(CallError) as caught:
        connection.model("").observe()
    assert caught.value.code == "argument"


def test_a_model_id_that_is_too_long_is_refused(connection: Connection) -> None:
    with pytest.raises(CallError) as caught:
        connection.model("é" * 129).observe()
    assert caught.value.code == "argument"
    assert "model" in caught.value.message


@pytest.mark.parametrize(
    "names", [("x" * 257, "robot"), ("é" * 129, "robot"), ("x", "r" * 257)], ids=lambda n: n[0][:1]
)
def test_a_client_s_name_that_is_too_long_is_refused(client: Client, stand_in: StandIn, names: tuple[str, str]) -> None:
    with pytest.raises(CallError) as caught:
        client.connect(stand_in.address, *names)
    assert caught.value.code == "argument"
    assert "client_" in caught.value.message


def test_names_may_have_256_bytes_and_metadata_an_empty_key(client: Client, stand_in: StandIn) -> None:
    connection = client.connect(stand_in.address, "é" * 128, "t" * 256)
    connection.wait_for_link("up")
    model = connection.model("m" * 256)
    model.send({}, {"": "an empty key"}, slot="s" * 256)
    o = stand_in.receive().observation
    assert (o.client.id, o.client.type, o.model_id, o.slot) == ("é" * 128, "t" * 256, "m" * 256, "s" * 256)
    assert dict(o.metadata) == {"": "an empty key"}


def test_a_bad_address_is_told(client: Client) -> None:
    with pytest.raises(CallError) as caught:
        client.connect("tcp://localhost").model("policy").observe()
    assert caught.value.code == "argument", caught.value


def test_after_close_calls_are_refused(connection: Connection, model: Model) -> None:
    connection.close()
    with pytest.raises(CallError) as caught:
        model.observe()
    assert caught.value.code == "closed"
    with pytest.raises(CallError) as caught:
        connection.ping()
    assert caught.value.code == "closed"
    assert not model.cancel(1)
    assert connection.link_state() == "closed"


def test_after_close_what_has_ended_can_still_be_taken(connection: Connection, model: Model, stand_in: StandIn) -> None:
    for _ in range(2):
        model.send({"x": f32(1)})
        stand_in.receive()
    connection.close()
    assert [(r.request_id, r.status) for r in (model.reply(), model.reply())] == [(1, 1002), (2, 1002)]
    for look in (model.next_reply, model.get_result):  # none, or the words that there will be none
        with contextlib.suppress(CallError):
            assert look() is None
    a = model.act(60_000)
    assert (a.source, a.status) == ("none", None)
