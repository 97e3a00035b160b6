"""What observe() takes, and how it says what it doesn't."""

from __future__ import annotations

import array
from typing import Any

import numpy as np
import pytest

from inferential import images
from inferential.client.observation import Defaults, Draft, draft
from inferential.errors import ObservationError
from inferential.types import EncodedImage, Encoding

DEFAULTS = Defaults("policy", 30.0, 0, 20.0, "left", True)
IMAGE = np.zeros((8, 6, 3), np.uint8)
STATE = np.arange(7, dtype=np.float32)


def make(*, encode: Any = None, **values: Any) -> Draft:
    known = {
        "urgency", "steps_remaining", "latency_budget_ms", "priority", "step_ms", "slot", "latest_only",
        "timestamp_ns", "timestamps_ns", "tensors", "metadata",
    }  # fmt: skip
    named = {k: values.pop(k) for k in list(values) if k in known}
    return draft(DEFAULTS, values, encode=encode, **named)


def test_the_handles_defaults_hold_unless_the_observation_says_otherwise() -> None:
    d = make(state=STATE)
    assert (d.latency_budget_ms, d.priority, d.step_ms, d.slot, d.latest_only) == (30.0, 0, 20.0, "left", True)
    assert (d.urgency, d.steps_remaining, d.timestamp_ns) == (0.0, None, None)
    d = make(
        latency_budget_ms=1,
        priority=3,
        step_ms=5,
        slot="right",
        latest_only=False,
        urgency=1,
        steps_remaining=0,
        timestamp_ns=9,
    )
    assert (d.latency_budget_ms, d.priority, d.step_ms, d.slot, d.latest_only) == (1.0, 3, 5.0, "right", False)
    assert (d.urgency, d.steps_remaining, d.timestamp_ns) == (1.0, 0, 9)


def test_the_sdk_default_is_priority_1_and_50_ms() -> None:
    d = Defaults("policy")
    assert (d.latency_budget_ms, d.priority, d.step_ms, d.slot, d.latest_only) == (50.0, 1, 0.0, "", False)


class Torchlike:
    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        return STATE


class Gpulike:
    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        raise TypeError("copy it to the host first")


class Dlpack:
    def __dlpack__(self, **kwargs: Any) -> Any:
        return STATE.__dlpack__()

    def __dlpack_device__(self) -> Any:
        return STATE.__dlpack_device__()


def test_arrays_are_tensors_and_strings_are_metadata() -> None:
    d = make(state=STATE, scalar=np.float32(3), t=Torchlike(), d=Dlpack(), prompt="pick it up")
    assert list(d.tensors) == ["state", "scalar", "t", "d"]
    assert d.tensors["state"] is STATE
    np.testing.assert_array_equal(d.tensors["t"], STATE)
    np.testing.assert_array_equal(d.tensors["d"], STATE)
    assert d.metadata == {"prompt": "pick it up"}


def test_tensors_and_metadata_for_names_that_collide() -> None:
    d = make(urgency=0.5, tensors={"urgency": STATE, "self": STATE}, metadata={"slot": "x"})
    assert d.urgency == 0.5
    assert set(d.tensors) == {"urgency", "self"}
    assert d.metadata == {"slot": "x"}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"state": [1.0, 2.0]}, ["'state'", "list", "np.asarray"]),
        ({"state": 3}, ["'state'", "int", "np.int32(state)", "str(state)"]),
        ({"state": 3.5}, ["'state'", "float"]),
        ({"state": None}, ["'state'", "leave it out"]),
        ({"state": b"xy"}, ["'state'", "bytes", "frombuffer"]),
        ({"state": {"a": STATE}}, ["'state'", "dict"]),
        ({"state": array.array("f", [1])}, ["'state'", "array"]),
        ({"state": Gpulike()}, ["'state'", "Gpulike", "copy it to the host"]),
        ({"tensors": {"state": [1]}}, ["'state'", "list"]),
        ({"tensors": {"state": "x"}}, ["'state'", "str"]),
        ({"tensors": {"": STATE}}, ["non-empty"]),
        ({"tensors": {3: STATE}}, ["3", "non-empty strings"]),
        ({"tensors": [STATE]}, ["tensors", "list"]),
        ({"metadata": {"a": 1}}, ["'a'", "1"]),
        ({"metadata": "a"}, ["metadata", "str"]),
        ({"state": STATE, "tensors": {"state": STATE}}, ["'state'", "twice"]),
        ({"p": "x", "metadata": {"p": "y"}}, ["'p'", "twice"]),
        ({"state": STATE, "metadata": {"state": "x"}}, ["'state'", "tensor", "metadata"]),
        ({"tensors": {f"t{i}": STATE for i in range(257)}}, ["257", "256"]),
        ({"metadata": {f"m{i}": "" for i in range(4097)}}, ["4097", "4096", "metadata"]),
        ({"urgency": 1.5}, ["urgency", "1.5", "0..1"]),
        ({"urgency": -0.1}, ["urgency"]),
        ({"urgency": 10**400}, ["urgency", "0..1"]),
        ({"urgency": -(10**400)}, ["urgency", "0..1"]),
        ({"timestamps_ns": [1]}, ["timestamps_ns", "list", "must map names"]),
        ({"urgency": float("nan")}, ["urgency"]),
        ({"urgency": "high"}, ["urgency", "'high'", "number"]),
        ({"urgency": STATE}, ["urgency", "tensors={'urgency'"]),
        ({"urgency": True}, ["urgency", "True"]),
        ({"steps_remaining": -1}, ["steps_remaining", "-1"]),
        ({"steps_remaining": 2.5}, ["steps_remaining", "2.5"]),
        ({"steps_remaining": 2**32}, ["steps_remaining"]),
        ({"latency_budget_ms": float("inf")}, ["latency_budget_ms", "inf"]),
        ({"latency_budget_ms": 1e39}, ["latency_budget_ms"]),
        ({"latency_budget_ms": -1}, ["latency_budget_ms"]),
        ({"priority": -1}, ["priority", "0..1000"]),
        ({"priority": 1001}, ["priority", "1001"]),
        ({"step_ms": float("nan")}, ["step_ms"]),
        ({"latest_only": "yes"}, ["latest_only", "'yes'"]),
        ({"latest_only": STATE}, ["latest_only"]),
        ({"slot": 3}, ["slot", "string"]),
        ({"slot": "é" * 129}, ["slot", "258 bytes", "256"]),
        ({"slot": "\ud800"}, ["slot", "Unicode"]),
        ({"timestamp_ns": -1}, ["timestamp_ns"]),
        ({"timestamps_ns": {"camera": 1}, "state": STATE}, ["timestamps_ns", "'camera'", "'state'"]),
        ({"timestamps_ns": {"state": -1}, "state": STATE}, ["timestamps_ns['state']"]),
    ],
    ids=str,
)
def test_a_wrong_argument_is_named(values: dict[str, Any], says: list[str]) -> None:
    with pytest.raises(ObservationError) as e:
        make(**values)
    assert isinstance(e.value, ValueError)
    for words in says:
        assert words in str(e.value)


@pytest.mark.parametrize(
    "values",
    [{"model_id": ""}, {"model_id": "é" * 129}, {"model_id": "m", "priority": 1001}, {"model_id": "m", "slot": None}],
)
def test_a_model_handle_is_checked_when_it_is_made(values: dict[str, Any]) -> None:
    with pytest.raises(ObservationError):
        Defaults(**values)


def test_numbers_of_numpy_are_kept_as_pythons() -> None:
    given = Defaults("m", np.float32(30), np.int64(3), np.int64(20), latest_only=np.bool_(True))  # type: ignore[arg-type]
    kept = (given.latency_budget_ms, given.priority, given.step_ms, given.latest_only)
    assert kept == (30.0, 3, 20.0, True)
    assert [type(value) for value in kept] == [float, int, float, bool]
    assert type(Defaults("m", 30).latency_budget_ms) is float
    measured = make(state=STATE, timestamps_ns={"state": np.int64(5)}).timestamps_ns
    assert measured == {"state": 5}
    assert type(measured["state"]) is int


# --- images


@pytest.mark.parametrize("data", [bytearray(b"xyz"), memoryview(b"xyz"), np.frombuffer(b"xyz", np.uint8)], ids=type)
def test_an_image_made_by_hand_holds_plain_values(data: Any) -> None:
    image = EncodedImage(data, [np.int64(8), 6, np.uint8(3)], 2)
    assert image == EncodedImage(b"xyz", (8, 6, 3), Encoding.JPEG)
    assert (type(image.data), type(image.shape), type(image.shape[0])) == (bytes, tuple, int)
    assert image.encoding is Encoding.JPEG


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (("xyz", (8, 6, 3), Encoding.PNG), "data .* is a str, not bytes"),
        ((5, (8, 6, 3), Encoding.PNG), "data .* is a int, not bytes"),
        ((b"xyz", (8, 6), Encoding.PNG), r"shape .* is \(8, 6\)"),
        ((b"xyz", (8, 6, 3.0), Encoding.PNG), "shape"),
        ((b"xyz", None, Encoding.PNG), "shape .* is None"),
        ((b"xyz", (8, 6, 3), "png"), "encoding .* is 'png'; it must be JPEG or PNG"),
        ((b"xyz", (8, 6, 3), Encoding.RAW), "encoding"),
    ],
    ids=str,
)
def test_what_is_no_image(values: tuple[Any, Any, Any], says: str) -> None:
    with pytest.raises(ObservationError, match=says):
        EncodedImage(*values)


def test_one_argument_encodes_every_image() -> None:
    d = make(camera=IMAGE, depth=np.zeros((8, 6), np.float32), state=STATE, encode="jpeg")
    camera = d.tensors["camera"]
    assert isinstance(camera, EncodedImage)
    assert (camera.shape, camera.encoding) == ((8, 6, 3), Encoding.JPEG)
    assert d.tensors["state"] is STATE


def test_formats_by_name() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    d = make(a=noise, b=noise, c=noise, d=noise, encode={"a": "png", "b": ("jpeg", 10), "c": ("jpeg", 95)})
    assert d.tensors["a"].encoding is Encoding.PNG
    assert len(d.tensors["b"].data) < len(d.tensors["c"].data)
    assert d.tensors["d"] is noise


def test_an_image_encoded_before_is_sent_as_it_is() -> None:
    encoded = images.encode_png(IMAGE)
    assert make(camera=encoded).tensors["camera"] is encoded
    with pytest.raises(ObservationError, match="encoded already"):
        make(camera=encoded, encode={"camera": "png"})


@pytest.mark.parametrize(
    ("values", "encode", "says"),
    [
        ({"state": STATE}, "jpeg", ["no", "'state'", "image"]),
        ({"state": STATE}, {"camera": "jpeg"}, ["'camera'", "'state'"]),
        ({"state": STATE}, {"state": "jpeg"}, ["'state'", "uint8"]),
        ({"camera": IMAGE}, "gif", ["'camera'", "gif", "jpeg"]),
        ({"camera": IMAGE}, {"camera": ("jpeg", 101)}, ["'camera'", "101"]),
        ({"camera": IMAGE}, {"camera": 3}, ["'camera'", "3"]),
        ({"camera": IMAGE}, {"camera": ("jpeg", "best")}, ["'camera'"]),
    ],
    ids=str,
)
def test_what_cannot_be_encoded_is_named(values: dict[str, Any], encode: Any, says: list[str]) -> None:
    with pytest.raises(ObservationError) as e:
        make(**values, encode=encode)
    for words in says:
        assert words in str(e.value)
