"""The golden vectors against the Python decoder and encoder (the C++ and Rust unit tests read the same files)."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from inferential import images, wire
from inferential.errors import WireError
from inferential.types import DType, EncodedImage, Encoding, TensorSpec

from suite.vectors import VECTORS, Vector, load

ENTRIES = load()


def pick(verdict: str, message: str) -> Any:
    return pytest.mark.parametrize(
        "entry", [pytest.param(e, id=e.name) for e in ENTRIES if (e.verdict, e.message) == (verdict, message)]
    )


def contents(entry: Vector) -> tuple[dict[str, Any], dict[str, str], list[TensorSpec]]:
    """With the tensors as the decoder has them."""
    fields, metadata, lines = entry.contents()
    tensors = [
        TensorSpec(
            t.key, DType(t.dtype), t.shape, t.byte_offset, t.byte_length, t.timestamp_ns, Encoding(t.encoding), t.frame
        )
        for t in lines
    ]
    return fields, metadata, tensors


def observation_fields(o: Any) -> dict[str, Any]:
    out = {
        "client.id": o.client_id,
        "client.type": o.client_type,
        "urgency": o.urgency,
        "latency_budget_ms": o.latency_budget_ms,
        "step_ms": o.step_ms,
        "model_id": o.model_id,
        "slot": o.slot,
        "timestamp_ns": str(o.timestamp_ns),
        "priority": str(o.priority),
        "request_id": str(o.request_id),
        "kind": str(int(o.kind)),
        "latest_only": str(int(o.latest_only)),
    }
    if o.steps_remaining is not None:
        out["steps_remaining"] = str(o.steps_remaining)
    return out


@pick("valid", "Observation")
def test_valid_observation(entry: Vector) -> None:
    fields, metadata, tensors = contents(entry)
    frames = entry.payload
    o = wire.parse_observation(entry.envelope, [len(f) for f in frames])
    assert observation_fields(o) == fields
    assert dict(o.metadata) == metadata
    assert list(o.tensors) == tensors
    arrays = wire.observation_arrays(o, frames)
    for spec in tensors:
        content = frames[spec.frame][spec.byte_offset : spec.byte_offset + spec.byte_length]
        array = arrays[spec.key]
        assert array.shape == spec.shape
        if spec.encoding is Encoding.RAW and spec.dtype.name != "BOOL":
            assert array.tobytes() == content
        elif spec.dtype.name == "BOOL":
            assert array.tobytes() == bytes(bool(b) for b in content)
    assert o.request_id == entry.request_id


@pick("valid", "Observation")
@pytest.mark.parametrize("several_frames", [False, True], ids=["one-frame", "several-frames"])
def test_observation_encodes_to_the_same(entry: Vector, several_frames: bool) -> None:
    frames = entry.payload
    first = wire.parse_observation(entry.envelope, [len(f) for f in frames])
    values: dict[str, Any] = {}
    for spec in first.tensors:
        if spec.encoding is Encoding.RAW:
            values[spec.key] = wire.tensor_array(spec, frames)
        else:
            values[spec.key] = EncodedImage(bytes(wire.tensor_bytes(spec, frames)), spec.shape, spec.encoding)
    stamps = {t.key: t.timestamp_ns for t in first.tensors}
    packed = wire.pack_tensors(values, several_frames=several_frames, timestamps_ns=stamps)
    assert all(t.get("byte_offset", 0) % 8 == 0 for t in packed.tensors)
    out = [bytes(f) for f in packed.frames]
    second = wire.parse_observation(wire.encode_observation(first, packed), [len(f) for f in out])
    assert observation_fields(second) == observation_fields(first)
    assert second.metadata == first.metadata
    for a, b in zip(first.tensors, second.tensors, strict=True):
        assert (a.key, a.dtype, a.shape, a.timestamp_ns, a.encoding) == (
            b.key,
            b.dtype,
            b.shape,
            b.timestamp_ns,
            b.encoding,
        )
        if a.dtype.name == "BOOL":
            assert wire.tensor_array(a, frames).tobytes() == wire.tensor_array(b, out).tobytes()
        else:
            assert bytes(wire.tensor_bytes(a, frames)) == bytes(wire.tensor_bytes(b, out))


@pick("valid", "ModelResponse")
def test_valid_response(entry: Vector) -> None:
    fields, metadata, tensors = contents(entry)
    frames = entry.payload
    r = wire.parse_response(entry.envelope, frames)
    read = {
        "response_id": r.response_id,
        "model_id": r.model_id,
        "error": r.error,
        "retry_after_ms": r.retry_after_ms,
        "phase_shift_ms": r.phase_shift_ms,
        "timing.queue_ms": r.timing.queue_ms,
        "timing.server_ms": r.timing.server_ms,
        "timing.replica": r.timing.replica,
        "timing.batch_size": str(r.timing.batch_size),
        "timestamp_ns": str(r.timestamp_ns),
        "request_id": str(r.request_id),
        "status": str(int(r.status)),
        "reason": str(int(r.reason)),
        "observation_timestamp_ns": str(r.observation_timestamp_ns),
        "protocol_version": str(r.protocol_version),
    }
    assert read == {k: v for k, v in fields.items() if k in read}
    # A v1 reply has its inference time in a field of its own.
    assert r.timing.inference_ms == (fields["timing.inference_ms"] or fields["inference_latency_ms"])
    assert dict(r.metadata) == metadata
    assert list(r.tensors) == tensors
    for spec in tensors:
        content = frames[spec.frame][spec.byte_offset : spec.byte_offset + spec.byte_length]
        assert bytes(wire.tensor_bytes(spec, frames)) == content
        if spec.encoding is Encoding.RAW:
            assert wire.tensor_array(spec, frames).shape == spec.shape


@pytest.mark.parametrize("entry", [pytest.param(e, id=e.name) for e in ENTRIES if e.verdict == "malformed"])
def test_malformed(entry: Vector) -> None:
    frames = entry.payload

    def decode() -> None:
        if entry.message == "Observation":
            o = wire.parse_observation(entry.envelope, [len(f) for f in frames])
            wire.observation_arrays(o, frames)  # where image headers are read
        else:
            wire.parse_response(entry.envelope, frames)

    with pytest.raises(WireError) as caught:
        decode()
    if not entry.name.startswith("v2/img-"):
        assert caught.value.request_id == entry.request_id
    assert entry.key in str(caught.value)
    if entry.field != "envelope":
        assert entry.field in str(caught.value)


@pytest.mark.parametrize("key", ["rgba", "rgb-png", "grey-png"])
def test_png_pixels(key: str) -> None:
    entry = next(e for e in ENTRIES if e.name == "v2/obs-images")
    frames = entry.payload
    o = wire.parse_observation(entry.envelope, [len(f) for f in frames])
    spec = next(t for t in o.tensors if t.key == key)
    pixels = images.decode(spec, frames)
    assert (np.asarray(pixels).reshape(-1) == np.arange(pixels.size)).all()


def test_every_dtype_has_a_vector() -> None:
    seen = {t.dtype for e in ENTRIES if e.verdict == "valid" for t in contents(e)[2]}
    assert seen == set(DType)


def test_vectors_are_what_generate_makes() -> None:
    done = subprocess.run(
        [sys.executable, str(VECTORS / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
