"""Every client against a live server that dispatches to live Ray Serve applications over the direct path."""

from __future__ import annotations

import hashlib
import io
import json
import time
from typing import Any

import numpy as np
import PIL.Image
import pytest
from inferential import encode_jpeg, encode_png

from adapters.base import DTYPES, Reply, Tensor
from suite.client import Connection, f32, some
from suite.cluster import ABSENT, Gate
from suite.server import Server

OK, INVALID, UNKNOWN_MODEL, REJECTED, EXPIRED, SUPERSEDED, MODEL_ERROR, UNAVAILABLE = range(8)
CANCELLED, TIMED_OUT = 10, 1001
PATIENT: dict[str, Any] = {"latency_budget_ms": 60_000.0}


def seen(reply: Reply) -> Any:
    """What the inspector saw."""
    assert reply.status == OK, reply.error
    return json.loads(reply.metadata["seen"])


def test_every_field_arrives_as_sent(live: Connection) -> None:
    before = time.time_ns()
    image = some("UINT8", (4, 3, 3))
    sent = live.model("inspector").send(
        {"state": f32(1.5, -2.0), "état/π": image},
        {"task": "fold the towel", "empty": "", "操作": "掴む 🤖"},
        urgency=0.75,
        steps_remaining=50,
        priority=3,
        latency_budget_ms=30_000.0,
        step_ms=12.5,
        slot="left arm",
    )
    r = live.model("inspector").ok()
    s = seen(r)
    assert s["values"] == {
        "state": {
            "dtype": "float32",
            "shape": [2],
            "sha256": hashlib.sha256(f32(1.5, -2.0).data).hexdigest(),
            "read_only": True,
        },
        "état/π": {
            "dtype": "uint8",
            "shape": [4, 3, 3],
            "sha256": hashlib.sha256(image.data).hexdigest(),
            "read_only": True,
        },
        "task": "fold the towel",
        "empty": "",
        "操作": "掴む 🤖",
    }
    assert s["client_id"].startswith(("python", "cpp", "rust"))
    assert s["client_type"] == "robot"
    assert s["model_id"] == "inspector"
    assert s["request_id"] == sent == r.request_id
    assert abs(s["timestamp_ns"] - before) < 60e9
    assert r.observation_timestamp_ns == s["timestamp_ns"]
    assert (s["urgency"], s["steps_remaining"], s["priority"], s["step_ms"]) == (0.75, 50, 3, 12.5)
    assert s["slot"] == "left arm"
    assert 0 < s["remaining_ms"] <= 30_000
    assert r.tensors == {"state": f32(1.5, -2.0), "état/π": image}


def test_a_reply_tells_where_the_time_went(live: Connection) -> None:
    live.model("inspector").send({"x": f32(1)}, **PATIENT)
    r = live.model("inspector").ok()
    assert r.server_ms > 0
    assert r.server_ms >= r.inference_ms > 0
    assert r.queue_ms >= 0
    assert r.batch_size == 1
    assert r.replica
    assert r.round_trip_ms >= r.server_ms * 0.99
    assert abs(r.timestamp_ns - time.time_ns()) < 60e9


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_shape_returns_bit_by_bit(live: Connection, dtype: str) -> None:
    shapes: list[tuple[int, ...]] = [(), (0,), (1,), (2, 0, 3), (3, 5), (7, 1, 11)]
    tensors = {str(i): some(dtype, shape, i) for i, shape in enumerate(shapes)}
    model = live.model("inspector")
    model.send(tensors, **PATIENT)
    r = model.ok()
    assert r.tensors == tensors
    names = {"FLOAT8_E4M3FN": "float8_e4m3fn", "FLOAT8_E5M2": "float8_e5m2"}
    values = seen(r)["values"]
    for key, tensor in tensors.items():
        assert values[key]["dtype"] == names.get(dtype, dtype.lower())
        assert tuple(values[key]["shape"]) == tensor.shape
        assert values[key]["sha256"] == hashlib.sha256(tensor.data).hexdigest()


def test_large_and_small_tensors_together(live: Connection) -> None:
    model = live.model("inspector")
    tensors = {
        "a": some("UINT8", (200_000,), 1),
        "small": f32(1, 2),
        "none": some("FLOAT64", (0,)),
        "b": some("INT16", (300, 500), 2),
    }
    for _ in range(3):  # in one frame first, then in several
        model.send(tensors, **PATIENT)
        assert model.ok().tensors == tensors


def image(encoding: int, shape: tuple[int, int, int]) -> Tensor:
    """A JPEG (2) or PNG (3) file of noise."""
    pixels = np.frombuffer(some("UINT8", shape).data, np.uint8).reshape(shape)
    encoded = encode_jpeg(pixels) if encoding == 2 else encode_png(pixels)
    return Tensor("UINT8", shape, encoded.data, encoding)


def decoded(file: Tensor) -> Tensor:
    """What a model gets to see of it."""
    pixels = np.asarray(PIL.Image.open(io.BytesIO(file.data)))
    return Tensor("UINT8", file.shape, pixels.tobytes())


@pytest.mark.parametrize("shape", [(5, 7, 3), (48, 64, 3), (9, 4, 1)], ids=str)
def test_images_reach_the_model_decoded(live: Connection, shape: tuple[int, int, int]) -> None:
    model = live.model("inspector", **PATIENT)
    png, jpeg = image(3, shape), image(2, shape)
    model.send({"png": png, "state": f32(1), "jpeg": jpeg})
    r = model.ok()
    assert (r.tensors["png"], r.tensors["state"]) == (decoded(png), f32(1))
    # JPEG decoders may differ by a little.
    got = r.tensors["jpeg"]
    assert (got.dtype, got.shape) == ("UINT8", shape)
    seen_by_us = np.frombuffer(decoded(jpeg).data, np.uint8).astype(int)
    assert np.abs(np.frombuffer(got.data, np.uint8) - seen_by_us).max() <= 16


def test_a_broken_image_is_told(live: Connection) -> None:
    model = live.model("inspector", **PATIENT)
    png = image(3, (48, 64, 3))
    cut = Tensor(png.dtype, png.shape, png.data[: len(png.data) // 2], 3)  # its header is whole
    model.send({"camera": cut})
    r = model.reply()
    assert r.status in (INVALID, MODEL_ERROR)
    assert "camera" in r.error
    model.send({"camera": png})
    assert model.ok().tensors == {"camera": decoded(png)}


def test_64_mb(live: Connection) -> None:
    model = live.model("inspector")
    big = np.random.default_rng(7).integers(0, 256, 64_000_000, np.uint8).tobytes()
    tensor = type(f32(1))("UINT8", (8000, 8000), big)
    sent = model.send({"big": tensor}, **PATIENT)
    r = model.next_reply(60_000)
    assert r is not None
    assert (r.request_id, r.status, r.error) == (sent, OK, "")
    assert r.tensors["big"] == tensor


def test_strings_only_and_nothing_at_all(live: Connection) -> None:
    model = live.model("inspector")
    model.send({}, {"question": "ready?"}, **PATIENT)
    assert seen(model.ok())["values"] == {"question": "ready?"}
    model.send(**PATIENT)
    assert seen(model.ok())["values"] == {}


def test_results_that_models_may_return(live: Connection) -> None:
    model = live.model("odd")

    def ask(how: str) -> Reply:
        model.send({}, {"how": how}, **PATIENT)
        return model.ok()

    assert ask("bare").tensors == {"actions": type(f32(1))("FLOAT32", (2, 3), f32(*range(6)).data)}
    r = ask("list")
    assert r.tensors["actions"].dtype == "FLOAT64"
    assert r.metadata == {"note": "from a list"}
    r = ask("strings")
    assert (r.tensors, r.metadata) == ({}, {"plan": "pick, place", "絵": "🦾"})
    r = ask("empty")
    assert (r.tensors, r.metadata) == ({}, {})


def test_get_result_in_a_control_loop(live: Connection) -> None:
    model = live.model("inspector", latency_budget_ms=60_000.0)
    for i in range(100):
        sent = model.send({"n": f32(i)})
        r = model.get_result()
        assert r is not None
        assert (r.request_id, r.tensors["n"]) == (sent, f32(i))


def test_two_models_on_one_connection(live: Connection) -> None:
    a, b = live.model("inspector", **PATIENT), live.model("policy-v2", **PATIENT)
    ids: dict[str, list[int]] = {"inspector": [], "policy-v2": []}
    for i in range(20):
        ids["inspector"].append(a.send({"n": f32(i)}))
        ids["policy-v2"].append(b.send({"n": f32(-i)}))
    for model, name, sign in ((b, "policy-v2", -1), (a, "inspector", 1)):
        replies = [model.ok() for _ in range(20)]
        assert sorted(r.request_id for r in replies) == ids[name]
        for r in replies:
            assert seen(r)["model_id"] == r.model_id == name
            assert r.tensors["n"] == f32(sign * ids[name].index(r.request_id))


def test_ping_lists_the_models(live: Connection) -> None:
    pong = live.ping()
    assert pong is not None
    assert pong.server == "2.0.0"
    assert pong.models == {
        "inspector": True,
        "gate": True,
        "odd": True,
        "policy-v2": True,
        "plain": True,
        ABSENT: False,
    }
    assert 0 < pong.round_trip_ms < 20_000


# --- how requests end ------------------------------------------------------------------------------------------------


def test_unknown_model(live: Connection) -> None:
    model = live.model("nobody")
    model.send(**PATIENT)
    r = model.reply()
    assert (r.status, r.local) == (UNKNOWN_MODEL, False)
    assert "nobody" in r.error


def test_unavailable(live: Connection) -> None:
    model = live.model(ABSENT)
    model.send(**PATIENT)
    r = model.reply()
    assert (r.status, r.local) == (UNAVAILABLE, False)
    assert ABSENT in r.error
    assert r.retry_after_ms > 0
    for _ in range(100):  # the pause is a short one, and the machine may be busy for longer
        model.observe(**PATIENT)
        if model.reply().local:
            break
    else:
        pytest.fail("never held off")


@pytest.mark.parametrize("how", ["raise", "nothing", "object", "complex"])
def test_model_error(live: Connection, how: str) -> None:
    model = live.model("odd")
    model.send({}, {"how": how}, **PATIENT)
    r = model.reply()
    assert (r.status, r.local) == (MODEL_ERROR, False)
    named = {"raise": "the arm is on fire", "nothing": "returned None", "object": "thing", "complex": "complex64"}
    assert named[how] in r.error
    model.send({}, {"how": "bare"}, **PATIENT)
    assert model.ok().tensors, "the next request is answered as if nothing had been"


def test_expired_while_queued(live: Connection, gate: Gate) -> None:
    model = live.model("gate", **PATIENT)
    model.send({}, {"label": "blocker"}, urgency=1.0)
    gate.entered(1)
    sent = model.send({}, {"label": "late"}, latency_budget_ms=200.0)
    r = model.reply()
    assert (r.request_id, r.status, r.local) == (sent, EXPIRED, False)
    assert 150 < r.round_trip_ms < 20_000
    gate.open()
    assert model.ok().metadata["label"] == "blocker"
    assert gate.entered(1) == ["blocker"], "expired work never reaches a model"


def test_superseded(live: Connection, gate: Gate) -> None:
    model = live.model("gate", **PATIENT)
    blocker = model.send({}, {"label": "blocker"}, urgency=1.0)
    gate.entered(1)
    ids = [model.send({}, {"label": str(i)}, latest_only=True) for i in range(3)]
    other_slot = model.send({}, {"label": "slot"}, latest_only=True, slot="right")
    for expected in ids[:2]:
        r = model.reply()
        assert (r.request_id, r.status, r.local) == (expected, SUPERSEDED, False)
    gate.open()
    rest = {r.request_id: r.status for r in (model.reply(), model.reply(), model.reply())}
    assert rest == {blocker: OK, ids[2]: OK, other_slot: OK}
    assert sorted(gate.entered(3)) == ["2", "blocker", "slot"]


def test_cancelled_while_queued(live: Connection, gate: Gate) -> None:
    assert live.ping() is not None  # the server is known to speak v2 from here on
    model = live.model("gate", **PATIENT)
    model.send({}, {"label": "blocker"}, urgency=1.0)
    gate.entered(1)
    sent = model.send({}, {"label": "unwanted"})
    assert model.cancel(sent)
    r = model.reply()
    assert (r.request_id, r.status, r.local) == (sent, CANCELLED, False)
    assert not model.cancel(sent), "it has ended"
    gate.open()
    assert model.ok().metadata["label"] == "blocker"
    assert gate.entered(1) == ["blocker"], "cancelled work never reaches a model"


def test_cancelled_while_running(live: Connection, gate: Gate) -> None:
    assert live.ping() is not None
    model = live.model("gate", **PATIENT)
    sent = model.send({}, {"label": "runs"})
    gate.entered(1)
    assert model.cancel(sent)
    r = model.reply()
    assert (r.request_id, r.status) == (sent, CANCELLED)
    gate.open()
    after = model.send({}, {"label": "after"})
    r = model.ok()
    assert (r.request_id, r.metadata["label"]) == (after, "after")
    assert live.counters()["late_replies"] == 0, "its result is dropped by the server"


def test_get_result_on_a_stalled_model(live: Connection, gate: Gate) -> None:
    model = live.model("gate", **PATIENT)
    model.send({}, {"label": "stalled"})
    gate.entered(1)
    assert model.get_result(100) is None
    assert model.last_status() == TIMED_OUT
    gate.open()
    live.wait_for_counter("late_replies", 1)
    sent = model.send({}, {"label": "next"})
    r = model.get_result()
    assert r is not None
    assert (r.request_id, r.metadata["label"]) == (sent, "next"), "a late reply is never taken for a newer one"


def test_act_on_a_stalled_model(live: Connection, gate: Gate) -> None:
    model = live.model("gate", step_ms=10.0, fallback=("hold", 600_000.0, {"actions": f32(0, 0)}), **PATIENT)
    model.send({}, {"label": "stalled"})
    gate.entered(1)
    begin = time.monotonic()
    a = model.act(50)
    assert time.monotonic() - begin < 10
    assert (a.source, a.tensors) == ("zero", {"actions": f32(0, 0)})
    gate.open()
    live.wait_for_counter("late_replies", 1)
    model.send({}, {"label": "next"})
    assert model.act(20_000).source == "fresh"


# --- order -----------------------------------------------------------------------------------------------------------

FAVOURS: dict[str, dict[str, Any]] = {
    "priority": {"priority": 0},
    "urgency": {"urgency": 1.0},
    "latency_budget_ms": {"latency_budget_ms": 20_000.0},
    "steps_remaining": {"steps_remaining": 50},
    "steps_remaining and step_ms": {"steps_remaining": 1000, "step_ms": 10.0},
}


@pytest.mark.parametrize("favour", FAVOURS)
def test_each_of_these_changes_the_order(live: Connection, gate: Gate, favour: str) -> None:
    model = live.model("gate", latency_budget_ms=50_000.0, priority=1)
    for i in range(2):  # one runs, and one may be staged behind it
        model.send({}, {"label": f"blocker {i}"}, priority=0, urgency=1.0, latency_budget_ms=10_000.0)
    gate.entered(1)
    for label in ("first", "second", "third"):
        model.send({}, {"label": label})
    model.send({}, {"label": "favoured"}, **FAVOURS[favour])
    pong = live.ping()  # an answer tells that the server has read all of them
    assert pong is not None
    gate.open()
    order = gate.entered(6)
    assert order == ["blocker 0", "blocker 1", "favoured", "first", "second", "third"]
    assert all(model.reply().status == OK for _ in range(6))


def test_10000_small_requests_pipelined(live: Connection) -> None:
    model = live.model("inspector")
    model.begin_pipeline(10_000, 200, limit_s=120)
    assert model.end() == {"answered": 10_000, "wrong": 0, "statuses": {OK: 10_000}}
    counters = live.counters()
    assert (counters["sent"], counters["ok"]) == (10_000, 10_000)
    assert counters["late_replies"] == counters["not_sent"] == counters["timed_out"] == 0


def test_the_server_is_still_well(server: Server) -> None:
    begin = time.monotonic()
    while (health := server.ask("health"))["pending"]:  # of the last case's connection, which was just closed
        assert time.monotonic() - begin < 20, health
        time.sleep(0.02)
    assert health["state"] == "running"
