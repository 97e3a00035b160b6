"""Every check of docs/protocol.md, sections 2 and 3, and both directions of the encoding."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from inferential import wire
from inferential._proto.inferential.v1 import inferential_pb2 as pb
from inferential.errors import ModelError, ObservationError, WireError
from inferential.types import Body, DType, Kind, Observation, Reason, Status, TensorSpec, Timing

PAYLOAD = 64


def message(**fields: Any) -> pb.Observation:
    m = pb.Observation(model_id="policy", request_id=7)
    m.client.id = "c"
    for name, value in fields.items():
        if name in ("client_id", "client_type"):
            setattr(m.client, name.removeprefix("client_"), value)
        else:
            setattr(m, name, value)
    return m


def with_tensor(**fields: Any) -> pb.Observation:
    m = message()
    tensor: dict[str, Any] = {"key": "state", "dtype": 2, "shape": [4], "byte_length": 16}
    m.tensors.add(**(tensor | fields))
    return m


def refused(m: pb.Observation, sizes: tuple[int, ...] = (PAYLOAD,)) -> WireError:
    with pytest.raises(WireError) as caught:
        wire.parse_observation(m.SerializeToString(), sizes)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"client_id": ""}, "client"),
        ({"client_id": "x" * 257}, "client"),
        ({"client_id": "é" * 129}, "client"),  # 258 bytes, 129 characters
        ({"client_type": "x" * 257}, "client"),
        ({"model_id": ""}, "model_id"),
        ({"model_id": "é" * 129}, "model_id"),
        ({"slot": "x" * 257}, "slot"),
        ({"urgency": math.nan}, "urgency"),
        ({"urgency": math.inf}, "urgency"),
        ({"urgency": -0.1}, "urgency"),
        ({"urgency": 1.01}, "urgency"),
        ({"latency_budget_ms": math.nan}, "latency_budget_ms"),
        ({"latency_budget_ms": math.inf}, "latency_budget_ms"),
        ({"latency_budget_ms": -1.0}, "latency_budget_ms"),
        ({"step_ms": math.nan}, "step_ms"),
        ({"step_ms": -1.0}, "step_ms"),
        ({"kind": 9}, "kind"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], field: str) -> None:
    error = refused(message(**fields))
    assert error.field == field
    assert error.request_id == 7


@pytest.mark.parametrize("name", ["x" * 256, "é" * 128, "掴" * 85])
def test_names_may_have_256_bytes(name: str) -> None:
    assert wire.parse_observation(message(client_id=name).SerializeToString(), (0,)).client_id == name


@pytest.mark.parametrize("kind", [1, 2])
def test_ping_and_cancel_need_a_request_id(kind: int) -> None:
    assert refused(message(kind=kind, request_id=0)).field == "request_id"
    assert wire.parse_observation(message(kind=kind, model_id="").SerializeToString(), (0,)).kind is Kind(kind)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"key": ""}, "key"),
        ({"dtype": 0}, "dtype"),
        ({"dtype": 9}, "dtype"),
        ({"dtype": 5000}, "dtype"),
        ({"encoding": 4}, "encoding"),
        ({"frame": 1}, "frame"),
        ({"frame": 2**32 - 1}, "frame"),
        ({"byte_offset": 49}, "byte_offset"),
        ({"byte_offset": 2**64 - 16}, "byte_offset"),
        ({"byte_length": 2**63}, "byte_length"),
        ({"byte_offset": 2**63, "byte_length": 2**63}, "byte_offset"),
        ({"shape": [-4]}, "negative"),
        ({"shape": [2, -2, -1]}, "negative"),
        ({"shape": [5]}, "byte_length"),
        ({"shape": []}, "byte_length"),
        ({"shape": [2**62, 2**62]}, "byte_length"),
        ({"shape": [2**32, 2**32], "byte_length": 0}, "byte_length"),  # 2^64 wraps to 0 in 64 bits
        ({"shape": [1] * 33}, "dimensions"),
        ({"shape": [0, 2**62, 2**62], "byte_length": 0}, "larger"),
        ({"encoding": 2}, "dtype"),
        ({"encoding": 3, "dtype": 5, "shape": [4, 4]}, "shape"),
        ({"encoding": 3, "dtype": 5, "shape": [4, 4, 2]}, "shape"),
        ({"encoding": 2, "dtype": 5, "shape": [0, 4, 3]}, "shape"),
        ({"encoding": 2, "dtype": 5, "shape": [16385, 1, 3]}, "shape"),
        ({"encoding": 2, "dtype": 5, "shape": [4, 4, 3], "byte_length": 0}, "byte_length"),
    ],
)
def test_a_wrong_tensor_is_named(fields: dict[str, Any], word: str) -> None:
    error = refused(with_tensor(**fields))
    assert error.field == f"tensor {fields.get('key', 'state')!r}"
    assert word in str(error)
    assert error.request_id == 7


def test_keys_are_unique() -> None:
    m = with_tensor()
    m.tensors.add(key="state", dtype=2, shape=[1], byte_length=4)
    assert "twice" in str(refused(m))
    m = with_tensor()
    m.metadata["state"] = "x"
    assert "name of a tensor" in str(refused(m))


def test_at_most_256_tensors() -> None:
    m = message()
    for i in range(257):
        m.tensors.add(key=str(i), dtype=5, shape=[0])
    assert refused(m).field == "tensors"


def test_a_long_envelope_has_few_fields() -> None:
    m = message()
    others = len(m.ListFields())
    for i in range(wire.MAX_FIELDS - others):
        m.metadata[f"key {i}"] = "word"
    assert len(wire.parse_observation(m.SerializeToString(), [PAYLOAD]).metadata) == wire.MAX_FIELDS - others
    m.metadata["one more"] = ""
    assert "has more than 16384 fields" in str(refused(m))
    assert len(wire.parse_observation(long_message(), [PAYLOAD]).metadata["a"]) == wire.LONG_ENVELOPE_BYTES


def long_message() -> bytes:
    m = message()
    m.metadata["a"] = "x" * wire.LONG_ENVELOPE_BYTES
    return m.SerializeToString()


def test_a_tensor_of_very_many_dimensions() -> None:
    assert "shape has 1000000 dimensions, at most 32" in str(refused(with_tensor(shape=[1] * 1_000_000)))


@given(st.binary(), st.binary(max_size=20), st.integers(0, 3))
def test_whatever_is_long_is_parsed_or_refused(data: bytes, end: bytes, cut: int) -> None:
    whole = long_message()
    for envelope in (data + whole, whole + end, (whole + data)[: len(whole) + cut], whole[cut:]):
        with contextlib.suppress(WireError):
            wire.parse_observation(envelope, [PAYLOAD])


def test_what_is_no_protobuf() -> None:
    with pytest.raises(WireError, match="envelope"):
        wire.parse_observation(b"\xff" * 20, (0,))
    with pytest.raises(WireError, match="envelope"):
        wire.parse_response(b"\xff" * 20, [b""])


@given(st.binary(max_size=200), st.lists(st.integers(0, 2**40), min_size=1, max_size=3))
def test_whatever_comes_is_parsed_or_refused(data: bytes, sizes: list[int]) -> None:
    try:
        observation = wire.parse_observation(data, sizes)
    except WireError:
        return
    for t in observation.tensors:
        assert t.byte_offset + t.byte_length <= sizes[t.frame]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid message with a few bytes changed: gets further than random bytes do."""
    m = with_tensor(timestamp_ns=12)
    m.metadata["task"] = "x"
    m.steps_remaining = 3
    data = bytearray(m.SerializeToString())
    for _ in range(draw(st.integers(1, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


@given(mutated())
def test_a_damaged_message_is_parsed_or_refused(data: bytes) -> None:
    frames = [bytes(PAYLOAD)]
    try:
        observation = wire.parse_observation(data, [PAYLOAD])
    except WireError:
        return
    for t in observation.tensors:
        if t.encoding.name == "RAW":
            assert wire.tensor_array(t, frames).shape == t.shape


WIRE_ARRAYS = st.sampled_from(
    [np.dtype(n) for n in ("f2", "f4", "f8", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "?", ">f4", ">i8")]
).flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, min_side=0, max_side=5)))


@given(st.dictionaries(st.text(min_size=1, max_size=8), WIRE_ARRAYS, max_size=5), st.booleans())
def test_arrays_come_back_bit_for_bit(arrays: dict[str, Any], several: bool) -> None:
    packed = wire.pack_tensors(arrays, several_frames=several)
    envelope = wire.encode_observation(Observation("c", "t", "m", 1), packed)
    frames = [bytes(f) for f in packed.frames] or [b""]
    observation = wire.parse_observation(envelope, [len(f) for f in frames])
    found = wire.observation_arrays(observation, frames)
    assert list(found) == list(arrays)
    for key, array in arrays.items():
        assert found[key].dtype == array.dtype.newbyteorder("<")
        assert found[key].shape == array.shape
        assert found[key].tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes()
        assert not found[key].flags.writeable
    if not several:
        assert len(packed.frames) <= 1


LARGE_ARRAYS = st.sampled_from(
    [np.arange(wire.LARGE_TENSOR_BYTES, dtype=np.uint8), np.ones((wire.LARGE_TENSOR_BYTES // 4, 2), np.float32).T]
)


@given(st.dictionaries(st.text(min_size=1, max_size=8), WIRE_ARRAYS | LARGE_ARRAYS, max_size=5), st.booleans())
def test_a_layout_seen_before_packs_the_same(arrays: dict[str, Any], several: bool) -> None:
    packed = wire.pack_tensors(arrays, several_frames=several)
    expected = wire.encode_observation(Observation("c", "t", "m", 1), packed)
    for turn in range(2):
        others = {key: array.copy() for key, array in arrays.items()} if turn else arrays
        body = wire.pack(others, several_frames=several)
        again = wire.encode_observation(Observation("c", "t", "m", 1)) + body.envelope
        sizes = [len(f) for f in packed.frames] or [0]
        assert wire.parse_observation(again, sizes) == wire.parse_observation(expected, sizes)
        assert [bytes(f) for f in body.frames] == [bytes(f) for f in packed.frames]


def test_kept_layouts_take_bounded_memory() -> None:
    for i in range(3000):
        wire.pack({f"k{i}": np.arange(3.0), "l": np.arange(2)}, several_frames=True)
    wire.pack({"k" * 100_000: np.arange(3.0)}, several_frames=True)
    assert 0 < len(wire._layouts) <= wire._MAX_CHECKED
    assert max(len(layout.encoded) for layout in wire._layouts.values()) <= wire._MAX_LAYOUT_BYTES


@pytest.mark.parametrize("dtype", list(DType))
def test_every_dtype_at_every_alignment(dtype: DType) -> None:
    numpy_dtype = wire.numpy_dtype(dtype)
    values = np.arange(6).reshape(2, 3).astype(numpy_dtype)
    data = values.tobytes()
    for gap in range(9):
        spec = TensorSpec("x", dtype, (2, 3), gap, len(data))
        found = wire.tensor_array(spec, [bytes(gap) + data])
        assert found.dtype == numpy_dtype
        assert found.flags.aligned
        assert found.tobytes() == data


def test_bool_bytes_other_than_one_are_true() -> None:
    found = wire.tensor_array(TensorSpec("x", DType.BOOL, (3,), 0, 3), [b"\x00\x02\xff"])
    assert found.tolist() == [False, True, True]


def test_bfloat16_travels() -> None:
    values = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    packed = wire.pack_tensors({"x": values}, several_frames=False)
    assert packed.tensors[0]["dtype"] == DType.BFLOAT16
    spec = TensorSpec("x", DType.BFLOAT16, (2,), 0, 4)
    assert wire.tensor_array(spec, [bytes(packed.frames[0])]).tolist() == [1.5, -2.0]


def test_large_tensors_travel_in_frames_of_their_own_uncopied() -> None:
    large = np.zeros(wire.LARGE_TENSOR_BYTES, np.uint8)
    packed = wire.pack_tensors({"a": np.ones(3, np.float32), "big": large, "b": np.ones(1)}, several_frames=True)
    assert [t.get("frame", 0) for t in packed.tensors] == [0, 1, 0]
    assert np.shares_memory(packed.frames[1], large)
    assert packed.tensors[2]["byte_offset"] == 16  # aligned to 8
    one = wire.pack_tensors({"a": np.ones(3, np.float32), "big": large}, several_frames=False)
    assert len(one.frames) == 1


def test_what_is_no_tensor_is_named() -> None:
    with pytest.raises(ObservationError, match="'x' has dtype complex128"):
        wire.pack_tensors({"x": np.ones(2, complex)}, several_frames=False)
    with pytest.raises(ObservationError, match="empty"):
        wire.pack_tensors({"": np.ones(2)}, several_frames=False)


def test_an_observation_comes_back_whole() -> None:
    sent = Observation(
        "agent", "franka", "policy", 3, 99, 0.5, 4, 0, 12.5, 30.0, Kind.OBSERVE, True, "arm", (), {"a": "é", "b": ""}
    )
    assert wire.parse_observation(wire.encode_observation(sent), (0,)) == sent
    without = wire.parse_observation(wire.encode_observation(Observation("c", "", "m")), (0,))
    assert without.steps_remaining is None
    assert without.is_v1


def respond(**changes: Any) -> list[Any]:
    fields: dict[str, Any] = {
        "client_id": "c",
        "client_type": "t",
        "model_id": "m",
        "response_id": "r-1",
        "timestamp_ns": 5,
        "request_id": 7,
        "observation_timestamp_ns": 4,
    }
    return wire.encode_response(**(fields | changes))


def test_a_response_comes_back_whole() -> None:
    body = wire.encode_body({"actions": np.arange(3.0), "note": "hi"}, several_frames=True)
    frames = respond(body=body, timing=Timing(1.0, 2.0, 4.0, 3, "m/0"), phase_shift_ms=2.5)
    assert frames[0] == b""
    r = wire.parse_response(frames[1], frames[2:])
    assert (r.model_id, r.request_id, r.status, r.protocol_version, r.response_id) == ("m", 7, 0, 2, "r-1")
    assert r.timing == Timing(1.0, 2.0, 4.0, 3, "m/0")
    assert r.phase_shift_ms == 2.5
    assert r.metadata == {"note": "hi"}
    assert wire.tensor_array(r.tensors[0], r.frames).tolist() == [0.0, 1.0, 2.0]


def test_a_layout_seen_before_is_still_checked() -> None:
    """Against the frames of its own message, and for keys used twice."""
    body = wire.encode_body({"actions": np.arange(3.0)}, several_frames=True)
    frames = respond(body=body)
    assert wire.parse_response(frames[1], frames[2:]).tensors == wire.parse_response(frames[1], frames[2:]).tensors
    for payload in ([frames[2][:-1]], [b""]):
        with pytest.raises(WireError, match="past the end"):
            wire.parse_response(frames[1], payload)
    with pytest.raises(WireError, match="used twice"):
        wire.parse_response(frames[1] + body.envelope, frames[2:])


def test_checked_layouts_take_bounded_memory() -> None:
    for i in range(3000):
        frames = respond(body=wire.encode_body({f"k{i}": np.arange(3.0)}, several_frames=True))
        wire.parse_response(frames[1], frames[2:])
    frames = respond(body=wire.encode_body({"k" * 100_000: np.arange(3.0)}, several_frames=True))
    wire.parse_response(frames[1], frames[2:])
    assert len(wire._checked) <= wire._MAX_CHECKED
    assert max(len(layout) for layout, _ in wire._checked) <= wire._MAX_CHECKED_BYTES


def test_an_error_response_says_all() -> None:
    frames = respond(status=Status.REJECTED, reason=Reason.QUEUE_FULL, error="full", retry_after_ms=12.0)
    r = wire.parse_response(frames[1], frames[2:])
    assert (r.status, r.reason, r.error, r.retry_after_ms) == (3, 1, "full", 12.0)
    assert len(frames) == 3  # there is always a payload frame


def test_a_v1_client_is_written_nothing_of_v2() -> None:
    body = wire.encode_body(np.arange(3.0), several_frames=False)
    frames = respond(request_id=0, body=body, timing=Timing(1.0, 2.0, 4.0, 3, "m/0"))
    m = pb.ModelResponse.FromString(frames[1])
    assert all(f.number < 101 for f, _ in m.ListFields())
    assert all(f.number < 101 for t in m.tensors for f, _ in t.ListFields())
    assert m.inference_latency_ms == 2.0
    assert m.tensors[0].key == "actions"
    assert len(frames) == 3


class Stubborn:
    """Will not be an array, as a tensor that requires grad."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("detach me first")


@pytest.mark.parametrize(
    ("result", "word"),
    [
        ({1: np.ones(2)}, "key 1"),
        ({"": np.ones(2)}, "key ''"),
        ({"x": object()}, "'x'"),
        ({"x": None}, "'x'"),
        (None, "returned None"),
        ({"x": [[1, 2], [3]]}, "no result"),
        ({"x": "\ud800"}, "no result"),
        ({"x": Stubborn()}, "no result: RuntimeError: detach me first"),
        ({"\ud800": "x"}, "no result"),
    ],
)
def test_what_is_no_result_is_named(result: Any, word: str) -> None:
    with pytest.raises(ModelError, match=word):
        wire.encode_body(result, several_frames=True)


def test_a_model_may_reuse_its_small_arrays_once_it_has_returned() -> None:
    actions = np.zeros(4, np.float32)
    body = wire.encode_body({"actions": actions}, several_frames=True)
    actions[:] = 9
    assert bytes(body.frames[0]) == bytes(16)


def test_a_body_in_a_response_is_the_same_message() -> None:
    assert wire.parse_response(*_split(respond(body=Body(b"", ())))).tensors == ()


def _split(frames: list[Any]) -> tuple[Any, list[Any]]:
    return frames[1], frames[2:]
