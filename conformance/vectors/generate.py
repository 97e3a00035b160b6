"""Writes the golden vectors: v2/ and the manifest, and the .txt forms of v1/ (README.md beside this file has the formats).

Uses the generated protobuf code alone, so that the vectors do not depend on any of the decoders that they test.

    python conformance/vectors/generate.py           # write
    python conformance/vectors/generate.py --check   # exit 1 where what is committed differs
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import struct
import sys
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "python"))

from inferential._proto.inferential.v1 import inferential_pb2 as pb  # noqa: E402

INVALID_OBSERVATION, MODEL_ERROR = 1, 6
RAW, JPEG, PNG = 1, 2, 3
U8, F16, F32, F64, BF16, I32, I64, BOOL = 5, 1, 2, 3, 4, 6, 7, 8
DTYPES = {
    "f16": (1, 2),
    "f32": (2, 4),
    "f64": (3, 8),
    "bf16": (4, 2),
    "u8": (5, 1),
    "i32": (6, 4),
    "i64": (7, 8),
    "bool": (8, 1),
    "u16": (101, 2),
    "i8": (102, 1),
    "i16": (103, 2),
    "u32": (104, 4),
    "u64": (105, 8),
    "f8e4m3fn": (106, 1),
    "f8e5m2": (107, 1),
}
ITEMSIZE = dict(DTYPES.values())

# A 4 x 8 RGB and a 4 x 8 grey JPEG, kept as bytes: encoders differ between versions.
JPEG_RGB = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNSMj5aYV"
    "pQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT0//wAARCAAE"
    "AAgDASIAAhEBAxEB/8QAFQABAQAAAAAAAAAAAAAAAAAAAAL/xAAZEAEAAgMAAAAAAAAAAAAAAAAABAUGISP/xAAUAQEAAAAAAAAAAAAAAAAAAA"
    "AB/8QAFBEBAAAAAAAAAAAAAAAAAAAAAP/aAAwDAQACEQMRAD8AqHjlZrgAQ//Z"
)
JPEG_GREY = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNSMj5aYV"
    "pQYEpRUk//wAALCAAEAAgBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAAAf/EABkQAAEFAAAAAAAAAAAAAAAAAAAEBQYhI//aAAgBAQAAPwBRxxsr"
    "A//Z"
)


def png(height: int, width: int, channels: int) -> bytes:
    """A PNG of counting bytes, stored uncompressed so that its bytes never depend on a zlib version."""
    row = width * channels
    pixels = b"".join(b"\0" + bytes((r * row + i) % 256 for i in range(row)) for r in range(height))
    stored = b"\x78\x01\x01" + struct.pack("<HH", len(pixels), len(pixels) ^ 0xFFFF) + pixels
    stored += struct.pack(">I", zlib.adler32(pixels))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    colour = {1: 0, 3: 2, 4: 6}[channels]
    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", stored) + chunk(b"IEND", b"")


def data(seed: str, size: int, *, boolean: bool = False) -> bytes:
    """Bytes that look random and are always the same."""
    out = b"".join(hashlib.sha256(f"{seed}/{i}".encode()).digest() for i in range(-(-size // 32)))[:size]
    return bytes(b & 1 for b in out) if boolean else out


@dataclass
class Vector:
    """One message and what a decoder must make of it."""

    name: str
    message: str
    envelope: bytes
    frames: list[bytes]
    fields: dict[str, Any] | None = None  # what it holds; None for malformed ones
    status: int = 0
    request_id: int = 0
    key: str = ""
    field: str = ""
    note: str = ""


@dataclass
class Layout:
    """Places tensors in payload frames."""

    frames: list[bytearray] = field(default_factory=lambda: [bytearray()])

    def add(self, key: str, dtype: int, shape: Iterable[int], content: bytes, **more: Any) -> dict[str, Any]:
        """Appends a tensor to frame `frame` (0) after padding to `align` (8)."""
        frame, align = more.pop("frame", 0), more.pop("align", 8)
        while len(self.frames) <= frame:
            self.frames.append(bytearray())
        target = self.frames[frame]
        target += b"\0" * (-len(target) % align)
        offset = len(target)
        target += content
        return {
            "key": key,
            "dtype": dtype,
            "shape": list(shape),
            "byte_offset": offset,
            "byte_length": len(content),
            "timestamp_ns": 0,
            "encoding": RAW,
            "frame": frame,
            **more,
        }

    def done(self) -> list[bytes]:
        return [bytes(f) for f in self.frames]


OBSERVATION_DEFAULTS: dict[str, Any] = {
    "client": {"id": "agent-01", "type": "franka"},
    "timestamp_ns": 1_700_000_000_123_456_789,
    "urgency": 0.0,
    "tensors": [],
    "model_id": "policy",
    "steps_remaining": None,
    "metadata": {},
    "priority": 1,
    "request_id": 7,
    "latency_budget_ms": 0.0,
    "step_ms": 0.0,
    "kind": 0,
    "latest_only": False,
    "slot": "",
}
RESPONSE_DEFAULTS: dict[str, Any] = {
    "client": {"id": "agent-01", "type": "franka"},
    "response_id": "r-1",
    "timestamp_ns": 1_700_000_000_223_456_789,
    "tensors": [],
    "inference_latency_ms": 0.0,
    "model_id": "policy",
    "metadata": {},
    "request_id": 7,
    "status": 0,
    "error": "",
    "retry_after_ms": 0.0,
    "timing": {"queue_ms": 0.0, "inference_ms": 0.0, "server_ms": 0.0, "batch_size": 0, "replica": ""},
    "observation_timestamp_ns": 1_700_000_000_123_456_789,
    "phase_shift_ms": 0.0,
    "protocol_version": 2,
    "reason": 0,
}
DEFAULTS = {"Observation": OBSERVATION_DEFAULTS, "ModelResponse": RESPONSE_DEFAULTS}


def build(message: str, fields: dict[str, Any]) -> Any:
    """The protobuf message that holds `fields`; what has its default value is left out, as proto3 does."""
    m = getattr(pb, message)()
    for name, value in fields.items():
        if value is None:
            continue
        if name == "client":
            m.client.SetInParent()
            m.client.id, m.client.type = value["id"], value["type"]
        elif name == "timing":
            if value != RESPONSE_DEFAULTS["timing"]:
                for k, v in value.items():
                    setattr(m.timing, k, v)
        elif name == "tensors":
            for t in value:
                m.tensors.add(**t)
        elif name == "metadata":
            m.metadata.update(value)
        else:
            setattr(m, name, value)
    return m


def serialise(m: Any) -> bytes:
    return m.SerializeToString(deterministic=True)


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number % 128 + 128]) + varint(number // 128)


def nested(number: int, content: bytes) -> bytes:
    """A field that is a message."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def of_type(wire_types: dict[int, int]) -> bytes:
    """Fields by their numbers: varint (0), 64 bits (1), bytes (2), group (3), 32 bits (5)."""
    content = {0: b"\1", 1: b"\1" * 8, 2: b"\1x", 5: b"\1" * 4}
    return b"".join(
        varint(n << 3 | t) + (b"\x08\1" + varint(n << 3 | 4) if t == 3 else content[t]) for n, t in wire_types.items()
    )


def valid(name: str, message: str, fields: dict[str, Any] | None = None, frames: list[bytes] | None = None, *,
          envelope: bytes | None = None, note: str = "") -> Vector:  # fmt: skip
    full = {**DEFAULTS[message], **(fields or {})}
    if envelope is None:
        envelope = serialise(build(message, full))
    # floats as they are after the wire's 32 bits
    for k, v in full.items():
        if isinstance(v, float):
            full[k] = struct.unpack("<f", struct.pack("<f", v))[0]
    if "timing" in full:
        full["timing"] = {k: struct.unpack("<f", struct.pack("<f", v))[0] if isinstance(v, float) else v
                          for k, v in full["timing"].items()}  # fmt: skip
    return Vector(name, message, envelope, frames or [b""], full, request_id=full["request_id"], note=note)


def malformed(name: str, message: str, fields: dict[str, Any] | None, field_name: str, *, key: str = "",
              frames: list[bytes] | None = None, envelope: bytes | None = None, request_id: int | None = None,
              note: str) -> Vector:  # fmt: skip
    full = {**DEFAULTS[message], **(fields or {})}
    if envelope is None:
        envelope = serialise(build(message, full))
    status = INVALID_OBSERVATION if message == "Observation" else MODEL_ERROR
    return Vector(name, message, envelope, [b""] if frames is None else frames, None, status,
                  full["request_id"] if request_id is None else request_id, key, field_name, note)  # fmt: skip


# --- valid -----------------------------------------------------------------------------------------------------------


def tensor_cases() -> Iterable[tuple[str, list[dict[str, Any]], list[bytes], str]]:
    """(name, tensors, frames, note): what observations and responses have in common."""
    for name, (number, size) in DTYPES.items():
        b = Layout()
        yield name, [b.add("x", number, [3, 5], data(name, 15 * size, boolean=name == "bool"))], b.done(), ""
    b = Layout()
    tensors = [b.add(n, number, [3], data(f"all-{n}", 3 * size, boolean=n == "bool"))
               for n, (number, size) in DTYPES.items()]  # fmt: skip
    yield "all-dtypes", tensors, b.done(), "every dtype in one message, each aligned to 8"
    b = Layout()
    yield "scalar", [b.add("x", F64, [], data("scalar", 8))], b.done(), "an empty shape is a scalar"
    b = Layout()
    tensors = [
        b.add(n, number, [], data(f"scalar-{n}", size, boolean=n == "bool")) for n, (number, size) in DTYPES.items()
    ]
    yield "scalars", tensors, b.done(), "a scalar of every dtype"
    b = Layout()
    yield "one-by-one", [b.add("x", F32, [1, 1, 1, 1], data("one", 4))], b.done(), ""
    b = Layout()
    yield "zero-size", [b.add("x", F32, [0], b"")], b.done(), "0 bytes in an empty frame"
    b = Layout()
    tensors = [b.add("a", F32, [4], data("za", 16)), b.add("none", F64, [2, 0, 3], b""), b.add("end", I64, [0], b"")]
    yield "zero-size-at-end", tensors, b.done(), "0 bytes at the very end of the frame: an offset equal to its size"
    b = Layout()
    tensors = [b.add("a", U8, [3], data("ga", 3)), b.add("b", F64, [2], data("gb", 16), align=64)]
    yield "gaps", tensors, b.done(), "a gap before b"
    b = Layout()
    b.frames[0] += b"\xff" * 5
    tensors = [b.add("a", F64, [2], data("ma", 16), align=1), b.add("b", I32, [1], data("mb", 4), align=1),
               b.add("c", 101, [3], data("mc", 6), align=1)]  # fmt: skip
    b.frames[0] += b"\xff" * 3
    yield "misaligned", tensors, b.done(), "odd offsets, bytes before and after"
    b = Layout()
    one = b.add("a", F32, [8], data("shared", 32))
    yield "shared-bytes", [one, {**one, "key": "b", "dtype": I32}, {**one, "key": "c", "dtype": U8, "byte_offset": 3,
                           "byte_length": 5, "shape": [5]}], b.done(), "three tensors over the same bytes"  # fmt: skip
    b = Layout()
    tensors = [b.add("small", F32, [7], data("f0", 28)), b.add("camera", U8, [8, 8, 3], data("f1", 192), frame=1),
               b.add("depth", 101, [8, 8], data("f2", 128), frame=2), b.add("tail", BOOL, [3], b"\1\0\1")]  # fmt: skip
    yield "frames", tensors, b.done(), "three payload frames"
    b = Layout()
    tensors = [b.add("x", F32, [2], data("last", 8), frame=3)]
    yield "frames-some-empty", tensors, b.done(), "frames 0 to 2 are empty, 3 holds the tensor"
    b = Layout()
    tensors = [b.add("d32", U8, [1] * 32, b"\x2a")]
    yield "dimensions-32", tensors, b.done(), "as many dimensions as are allowed"
    b = Layout()
    tensors = [b.add("état/π", F32, [2], data("u1", 8)), b.add("掴む 🤖", U8, [1], b"\7")]
    yield "unicode-keys", tensors, b.done(), ""
    b = Layout()
    tensors = [b.add("bits", BOOL, [4], b"\0\1\2\xff")]
    yield "bool-not-one", tensors, b.done(), "0 is false, every other byte true"
    b = Layout()
    nan = bytes.fromhex("0000807f000080ff0100807f0000c0ffffffffff00000080")
    yield "nan-and-infinity", [b.add("x", F32, [6], nan)], b.done(), "values are not looked at: bits stay as they are"
    b = Layout()
    tensors = [b.add("x", F32, [2], data("enc", 8), encoding=0)]
    yield "encoding-unspecified", tensors, b.done(), "0 is read as RAW"
    b = Layout()
    tensors = [b.add("x", F32, [2], data("ts", 8), timestamp_ns=2**64 - 1)]
    yield "timestamp-max", tensors, b.done(), ""
    b = Layout()
    tensors = [b.add("rgb", U8, [4, 8, 3], JPEG_RGB, encoding=JPEG), b.add("grey", U8, [4, 8, 1], JPEG_GREY, encoding=JPEG),
               b.add("rgba", U8, [2, 3, 4], png(2, 3, 4), encoding=PNG), b.add("rgb-png", U8, [2, 3, 3], png(2, 3, 3), encoding=PNG),
               b.add("grey-png", U8, [5, 4, 1], png(5, 4, 1), encoding=PNG)]  # fmt: skip
    yield "images", tensors, b.done(), "JPEG and PNG; the PNGs' pixels count 0, 1, 2, ..."
    b = Layout()
    tensors = [b.add(f"t{i:03}", U8, [1], bytes([i])) for i in range(256)]
    yield "tensors-256", tensors, b.done(), "as many tensors as are allowed"


ALL_OBSERVATION_FIELDS = {
    "urgency": 0.75,
    "steps_remaining": 50,
    "metadata": {"task": "fold the towel", "empty": "", "操作": "掴む 🤖"},
    "priority": 3,
    "request_id": 2**64 - 1,
    "latency_budget_ms": 33.3,
    "step_ms": 12.5,
    "latest_only": True,
    "slot": "left arm",
}
ALL_RESPONSE_FIELDS = {
    "metadata": {"plan": "pick, place", "empty": "", "絵": "🦾"},
    "inference_latency_ms": 4.25,
    "request_id": 2**64 - 1,
    "status": 3,
    "error": "the queue of 'policy' is full (10000 requests); wait, or send less",
    "retry_after_ms": 12.5,
    "timing": {"queue_ms": 1.5, "inference_ms": 4.25, "server_ms": 6.125, "batch_size": 8, "replica": "policy#1"},
    "phase_shift_ms": 2.5,
    "protocol_version": 2,
    "reason": 1,
}


def valid_vectors() -> Iterable[Vector]:
    for name, tensors, frames, note in tensor_cases():
        yield valid(f"obs-{name}", "Observation", {"tensors": tensors}, frames, note=note)
        yield valid(f"resp-{name}", "ModelResponse", {"tensors": tensors}, frames, note=note)

    def obs(name: str, note: str = "", **fields: Any) -> Vector:
        return valid(f"obs-{name}", "Observation", fields, note=note)

    yield obs("v2-minimal", "no tensors, no optional field")
    b = Layout()
    tensors = [b.add("state", F32, [7], data("all", 28), timestamp_ns=1_700_000_000_111_222_333)]
    yield valid("obs-all-fields", "Observation", {**ALL_OBSERVATION_FIELDS, "tensors": tensors}, b.done(),
                note="every field present")  # fmt: skip
    yield obs("steps-zero", "present and 0 is not absent", steps_remaining=0)
    yield obs("steps-max", steps_remaining=2**32 - 1)
    yield obs("urgency-one", urgency=1.0)
    yield obs("urgency-tiny", "a subnormal number", urgency=1e-40)
    yield obs("priority-zero", "0 is the highest, and what is absent on the wire", priority=0)
    yield obs("priority-max", "any value; those over 1000 count as 1000", priority=2**32 - 1)
    yield obs("budget-tiny", latency_budget_ms=1e-30)
    yield obs("no-client-type", client={"id": "agent-01", "type": ""})
    yield obs("names-256-bytes", "as long as names may be", client={"id": "i" * 256, "type": "t" * 256},
              model_id="é" * 128, slot="s" * 256)  # fmt: skip
    yield obs("timestamp-zero", timestamp_ns=0)
    yield obs("ping", kind=1, model_id="")
    yield obs("cancel", kind=2, model_id="", timestamp_ns=0, priority=0)
    yield obs("v1-no-request-id", "what a v1 client sends", request_id=0)
    plain = serialise(build("Observation", OBSERVATION_DEFAULTS))
    unknown = bytes.fromhex("ba3e03616263") + bytes.fromhex(
        "c03e96 01".replace(" ", "")
    )  # fields 999 (bytes), 1000 (varint)
    yield valid(
        "obs-unknown-fields", "Observation", envelope=plain + unknown, note="fields of a later version are skipped"
    )
    head = {**OBSERVATION_DEFAULTS, "client": {"id": "agent-01", "type": ""}, "model_id": "other"}
    tail = pb.Observation(model_id="policy")
    tail.client.type = "franka"
    yield valid("obs-merged", "Observation", envelope=serialise(build("Observation", head)) + serialise(tail),
                note="a repeated message field merges, a repeated scalar's last value counts")  # fmt: skip
    yield valid("obs-unpacked-shape", "Observation", {"tensors": [{"key": "x", "dtype": U8, "shape": [2, 3], "byte_offset": 0,
                "byte_length": 6, "timestamp_ns": 0, "encoding": RAW, "frame": 0}]}, [b"\0\1\2\3\4\5"],
                envelope=plain + bytes.fromhex("220d") + b"\x0a\x01x\x10\x05" + b"\x18\x02\x18\x03" + b"\x28\x06" + b"\x38\x01",
                note="a repeated number that is not packed")  # fmt: skip

    def resp(name: str, note: str = "", **fields: Any) -> Vector:
        return valid(f"resp-{name}", "ModelResponse", fields, note=note)

    yield resp("v2-minimal")
    yield valid(
        "resp-all-fields",
        "ModelResponse",
        {**ALL_RESPONSE_FIELDS, "tensors": tensors},
        b.done(),
        note="every field present",
    )
    for number, name in enumerate(("ok", "invalid-observation", "unknown-model", "rejected", "expired", "superseded",
                                   "model-error", "unavailable", "shutting-down", "unauthenticated", "cancelled")):  # fmt: skip
        yield resp(f"status-{name}", status=number, error=f"because of {name}" if number else "")
    for number, name in enumerate(("none", "queue-full", "cannot-meet-deadline", "over-share", "too-large")):
        yield resp(f"reason-{name}", status=3, reason=number)
    yield resp("unknown-status", "kept as its number; not OK", status=77, error="a status of a later version")
    yield resp("unknown-reason", "kept as its number", status=3, reason=4242)
    yield resp("request-id-max", request_id=2**64 - 1)
    yield resp("later-version", protocol_version=3)
    yield resp("v1-no-ids", "what a v1 server answers", request_id=0, protocol_version=0, observation_timestamp_ns=0,
               inference_latency_ms=3.5)  # fmt: skip
    yield valid("resp-empty-envelope", "ModelResponse", {**dict.fromkeys(("response_id", "model_id"), ""), "timestamp_ns": 0,
                "client": {"id": "", "type": ""}, "request_id": 0, "observation_timestamp_ns": 0, "protocol_version": 0},
                envelope=b"", note="0 bytes are a message of defaults")  # fmt: skip
    body = pb.ModelResponse(metadata={"note": "ok"})
    b = Layout()
    tensor = b.add("actions", F32, [2, 2], data("body", 16))
    body.tensors.add(**tensor)
    yield valid("resp-concatenated", "ModelResponse", {"tensors": [tensor], "metadata": {"note": "ok"}}, b.done(),
                envelope=serialise(build("ModelResponse", RESPONSE_DEFAULTS)) + serialise(body),
                note="a header and a body, one after the other, are one message")  # fmt: skip
    plain = serialise(build("ModelResponse", RESPONSE_DEFAULTS))
    yield valid(
        "resp-unknown-fields", "ModelResponse", envelope=plain + unknown, note="fields of a later version are skipped"
    )
    b = Layout()
    tensor = b.add("actions", F32, [2, 2], data("body", 16))
    timing = {**RESPONSE_DEFAULTS["timing"], "queue_ms": 1.5}
    yield valid("resp-other-wire-types", "ModelResponse", {"tensors": [tensor], "timing": timing}, b.done(),
                envelope=of_type({1: 0, 2: 5, 3: 2, 4: 1, 5: 2, 6: 0, 7: 3}) + plain
                + nested(1, of_type({1: 1, 2: 3}))
                + nested(4, serialise(pb.Tensor(**tensor)) + of_type({1: 0, 2: 2, 3: 5, 4: 2, 5: 1, 6: 5, 7: 3, 101: 1}))
                + nested(105, serialise(pb.Timing(**timing)) + of_type({1: 0, 2: 2, 3: 1, 4: 2, 5: 0}))
                + of_type({101: 2, 102: 5, 103: 0, 104: 2, 105: 0, 106: 1, 107: 3, 108: 2, 109: 5}),
                note="a field of another wire type than its own is an unknown one")  # fmt: skip


# --- malformed -------------------------------------------------------------------------------------------------------

GOOD = {"key": "x", "dtype": F32, "shape": [4], "byte_offset": 0, "byte_length": 16, "encoding": RAW}


def malformed_tensor_cases() -> Iterable[tuple[str, list[dict[str, Any]], str, str, list[bytes], str]]:
    """(name, tensors, key, field, frames, note)."""
    frame = data("malformed", 16)

    def case(name: str, field_name: str, note: str, frames: list[bytes] | None = None, **change: Any) -> Any:
        t = {**GOOD, **change}
        return name, [t], t["key"], field_name, [frame] if frames is None else frames, note

    yield case("key-empty", "key", "a tensor without a name", key="")
    yield "key-twice", [GOOD, GOOD], "x", "key", [frame], "the same key twice"
    yield case("dtype-unspecified", "dtype", "dtype 0", dtype=0)
    yield case("dtype-unknown", "dtype", "dtype 9 is not in the table", dtype=9)
    yield case("dtype-unknown-v2", "dtype", "dtype 108 is not in the table", dtype=108)
    yield case("dtype-negative", "dtype", "dtype -1", dtype=-1)
    yield case("encoding-unknown", "encoding", "encoding 4 is not in the table", encoding=4)
    yield case("encoding-negative", "encoding", "encoding -1", encoding=-1)
    yield case("frame-out-of-range", "frame", "frame 1 of 1", frame=1)
    yield case("frame-huge", "frame", "frame 2^32-1", frame=2**32 - 1)
    yield case("frame-none", "frame", "a tensor, and no payload frame at all", frames=[])
    yield case(
        "offset-past-end", "byte_offset", "offset 17 in 16 bytes, of 0 bytes", byte_offset=17, byte_length=0, shape=[0]
    )
    yield case("offset-2-63", "byte_offset", "offset 2^63", byte_offset=2**63)
    yield case(
        "offset-max", "byte_offset", "offset 2^64-1, of 0 bytes", byte_offset=2**64 - 1, byte_length=0, shape=[0]
    )
    yield case("offset-length-wrap", "byte_offset", "offset + length is 0 in 64 bits", byte_offset=2**64 - 16)
    yield case("offset-length-wrap-32", "byte_offset", "offset + length is 16 in 32 bits", byte_offset=2**32)
    yield case("length-past-end", "byte_length", "17 bytes of 16", byte_length=17, dtype=U8, shape=[17])
    yield case("length-past-end-with-offset", "byte_length", "16 bytes from 8 on, of 16", byte_offset=8)
    yield case("length-2-63", "byte_length", "length 2^63", byte_length=2**63, dtype=F64, shape=[2**60])
    yield case("length-max", "byte_length", "length 2^64-1", byte_length=2**64 - 1, dtype=U8, shape=[2**62])
    yield case("length-wrap", "byte_length", "1 + (2^64-1) is 0 in 64 bits", byte_offset=1, byte_length=2**64 - 1)
    yield case("empty-payload", "byte_length", "16 bytes of an empty frame", frames=[b""])
    yield case("other-frame-too-small", "byte_length", "fits frame 0, is in frame 1", frames=[frame, b"1234"], frame=1)
    yield case("dimensions-33", "shape", "33 dimensions", shape=[1] * 33, dtype=U8, byte_length=1)
    yield case("dimensions-1000", "shape", "1000 dimensions", shape=[1] * 1000, dtype=U8, byte_length=1)
    yield case("dimension-negative", "shape", "-1", shape=[-1])
    yield case("dimensions-negative-product", "shape", "-2 x -2 is 4", shape=[-2, -2])
    yield case("dimension-min", "shape", "-2^63", shape=[-(2**63)])
    yield case("dimension-negative-and-zero", "shape", "-1 x 0", shape=[-1, 0], byte_length=0)
    yield case("shape-overflow-to-0", "shape", "2^32 x 2^32 is 0 in 64 bits", shape=[2**32, 2**32], byte_length=0)
    yield case("shape-overflow-to-fit", "shape", "4 + 2^62 floats are 16 bytes in 64 bits", shape=[4 + 2**62])
    yield case("shape-overflow-by-itemsize", "shape", "2^62 x 4 is 0 in 64 bits", shape=[2**62], byte_length=0)
    yield case("shape-overflow-many", "shape", "2 x 2 x ..., 64 bits", shape=[4] * 32, byte_length=0)
    yield case("shape-overflow-max", "shape", "(2^63-1)^2", shape=[2**63 - 1, 2**63 - 1])
    yield case("shape-overflow-with-zero", "shape", "2^62 x 2^62 x 0: no bytes, but no array can have it",
               shape=[2**62, 2**62, 0], byte_length=0)  # fmt: skip
    yield case("shape-too-big", "shape", "5 floats in 16 bytes", shape=[5])
    yield case("shape-too-small", "shape", "3 floats in 16 bytes", shape=[3])
    yield case("shape-not-divisible", "shape", "3 floats in 15 bytes", shape=[3], byte_length=15)
    yield case("shape-scalar", "shape", "a scalar of 16 bytes", shape=[])
    yield case("shape-zero", "shape", "0 floats in 16 bytes", shape=[0])
    yield case("shape-one-no-bytes", "shape", "1 float in 0 bytes", shape=[1], byte_length=0)
    image = {"key": "camera", "dtype": U8, "encoding": JPEG, "shape": [4, 8, 3], "byte_length": len(JPEG_RGB)}

    def picture(name: str, field_name: str, note: str, **change: Any) -> Any:
        return case(f"image-{name}", field_name, note, [JPEG_RGB], **{**image, **change})

    yield picture("dtype", "dtype", "a JPEG of FLOAT32", dtype=F32)
    yield picture("two-dimensions", "shape", "a JPEG of two dimensions", shape=[4, 8])
    yield picture("channels", "shape", "2 channels", shape=[4, 8, 2])
    yield picture("zero-side", "shape", "0 pixels high", shape=[0, 8, 3])
    yield picture("huge", "shape", "16385 pixels wide", shape=[4, 16385, 3])
    yield picture("no-bytes", "byte_length", "a JPEG of 0 bytes", byte_length=0)
    yield (
        "second-tensor",
        [GOOD, {**GOOD, "key": "bad", "shape": [5]}],
        "bad",
        "shape",
        [frame],
        "the first is right, the second not",
    )
    yield (
        "first-failure",
        [{**GOOD, "key": "a", "dtype": 0, "shape": [-1]}, {**GOOD, "key": ""}],
        "a",
        "dtype",
        [frame],
        "the first failure is told",
    )


def malformed_vectors() -> Iterable[Vector]:
    for name, tensors, key, field_name, frames, note in malformed_tensor_cases():
        for message, prefix in (("Observation", "obs"), ("ModelResponse", "resp")):
            yield malformed(
                f"{prefix}-bad-{name}", message, {"tensors": tensors}, field_name, key=key, frames=frames, note=note
            )

    for message, prefix in (("Observation", "obs"), ("ModelResponse", "resp")):
        whole = serialise(build(message, {**DEFAULTS[message], "tensors": [GOOD], "metadata": {"a": "b"}}))
        frames = [data("malformed", 16)]

        def broken(name: str, envelope: bytes, note: str, message: str = message, prefix: str = prefix,
                   frames: list[bytes] = frames) -> Vector:  # fmt: skip
            return malformed(f"{prefix}-bad-{name}", message, None, "envelope", frames=frames, envelope=envelope,
                             request_id=0, note=note)  # fmt: skip

        yield broken("truncated", whole[:-1], "the last byte is missing")
        yield broken("truncated-early", whole[:5], "cut inside the client")
        yield broken("garbage", b"\xff" * 40, "no protobuf")
        yield broken("length-beyond", b"\x0a\xff\xff\xff\xff\x0f" + whole, "a field longer than 2 GiB")
        yield broken("varint-unending", b"\x10" + b"\xff" * 11 + whole, "a number of more than 10 bytes")
        yield broken("wire-type", b"\x0e\x00" + whole, "wire type 6 does not exist")
        yield broken("field-zero", b"\x00\x00" + whole, "field number 0 does not exist")
        yield broken("not-utf8", b"\x2a\x02\xc3\x28" + whole if message == "Observation" else b"\x12\x02\xc3\x28" + whole,
                     "a string that is not UTF-8")  # fmt: skip
        yield broken("text", b'{"client": {"id": "agent-01"}}', "JSON")

    def obs(name: str, field_name: str, note: str, **fields: Any) -> Vector:
        return malformed(f"obs-bad-{name}", "Observation", fields, field_name, note=note)

    yield malformed(
        "obs-bad-empty-envelope",
        "Observation",
        None,
        "client",
        envelope=b"",
        request_id=0,
        note="0 bytes are a message of defaults",
    )
    yield obs("client-absent", "client", "no client", client=None)
    yield obs("client-id-empty", "client", "a client without id", client={"id": "", "type": "franka"})
    yield obs("client-id-long", "client", "an id of 257 bytes", client={"id": "i" * 257, "type": ""})
    yield obs(
        "client-id-long-unicode", "client", "an id of 129 characters in 258 bytes", client={"id": "é" * 129, "type": ""}
    )
    yield obs("client-type-long", "client", "a type of 257 bytes", client={"id": "a", "type": "t" * 257})
    yield obs("model-empty", "model_id", "no model", model_id="")
    yield obs("model-long", "model_id", "a name of 257 bytes", model_id="m" * 257)
    yield obs("slot-long", "slot", "a slot of 257 bytes", slot="s" * 257)
    for field_name in ("urgency", "latency_budget_ms", "step_ms"):
        short = field_name.split("_")[0] if field_name != "latency_budget_ms" else "budget"
        yield obs(f"{short}-nan", field_name, "NaN", **{field_name: float("nan")})
        yield obs(f"{short}-infinite", field_name, "infinite", **{field_name: float("inf")})
        yield obs(f"{short}-negative", field_name, "below 0", **{field_name: -0.5})
        yield obs(f"{short}-minus-infinite", field_name, "minus infinity", **{field_name: float("-inf")})
    yield obs("urgency-over-one", "urgency", "just over 1", urgency=1.0000001192092896)
    yield obs("kind-unknown", "kind", "kind 3", kind=3)
    yield obs("kind-negative", "kind", "kind -1", kind=-1)
    yield malformed(
        "obs-bad-ping-without-request-id",
        "Observation",
        {"kind": 1, "request_id": 0},
        "request_id",
        note="a PING that cannot be answered",
    )
    yield malformed(
        "obs-bad-cancel-without-request-id",
        "Observation",
        {"kind": 2, "request_id": 0},
        "request_id",
        note="a CANCEL of nothing",
    )
    yield malformed(
        "obs-bad-v1-urgency",
        "Observation",
        {"urgency": 2.0, "request_id": 0},
        "urgency",
        note="from a v1 client: counted, not answered",
    )
    b = Layout()
    tensors = [b.add(f"t{i:03}", U8, [1], b"\1") for i in range(257)]
    yield malformed(
        "obs-bad-tensors-257", "Observation", {"tensors": tensors}, "tensors", frames=b.done(), note="257 tensors"
    )
    yield malformed("obs-bad-metadata-collides", "Observation", {"tensors": [GOOD], "metadata": {"x": "y"}}, "metadata", key="x",
                    frames=[data("malformed", 16)], note="a metadata key that is a tensor's")  # fmt: skip
    # Right on the wire; only who reads image headers (the server, before decoding) can tell.
    for name, content, shape, encoding, note in (
        ("header-shape", JPEG_RGB, [400, 800, 3], JPEG, "the JPEG is 4 x 8"),
        ("header-channels", JPEG_GREY, [4, 8, 3], JPEG, "the JPEG is grey"),
        ("header-shape-png", png(2, 3, 3), [3, 2, 3], PNG, "the PNG is 2 x 3"),
    ):
        yield image_vector(name, content, shape, encoding, "shape", note)
    for name, content, shape, encoding, note in (
        ("not-jpeg", png(2, 3, 3), [2, 3, 3], JPEG, "a PNG that says JPEG"),
        ("not-png", JPEG_RGB, [4, 8, 3], PNG, "a JPEG that says PNG"),
        ("no-header", b"\0" * 64, [4, 8, 3], JPEG, "zeros"),
        ("cut-header", JPEG_RGB[:12], [4, 8, 3], JPEG, "a JPEG cut before its size"),
    ):
        yield image_vector(name, content, shape, encoding, "encoding", note)


def image_vector(name: str, content: bytes, shape: list[int], encoding: int, field_name: str, note: str) -> Vector:
    b = Layout()
    tensors = [b.add("camera", U8, shape, content, encoding=encoding)]
    return malformed(
        f"img-bad-{name}", "Observation", {"tensors": tensors}, field_name, key="camera", frames=b.done(), note=note
    )


# --- files -----------------------------------------------------------------------------------------------------------


def bits(value: float) -> str:
    """A float's 32 bits as 8 hex digits, and the number for people."""
    return f"{struct.unpack('<I', struct.pack('<f', value))[0]:08x}\t{value!r}"


def text_form(v: Vector) -> bytes:
    """What a valid message holds, line by line. Nothing is quoted: no field may hold a tab or a line end."""
    assert v.fields is not None
    lines: list[str] = []
    for name, value in v.fields.items():
        if name in ("tensors", "metadata") or value is None:
            continue
        if isinstance(value, dict):
            lines += [f"{name}.{k}\t{bits(x) if isinstance(x, float) else x}" for k, x in value.items()]
        elif isinstance(value, float):
            lines.append(f"{name}\t{bits(value)}")
        else:
            lines.append(f"{name}\t{int(value) if isinstance(value, bool) else value}")
    lines += [f"metadata\t{k}\t{x}" for k, x in sorted(v.fields["metadata"].items())]
    for t in v.fields["tensors"]:
        begin, length = int(t["byte_offset"]), int(t["byte_length"])
        content = v.frames[t["frame"]][begin : begin + length]
        shape = ",".join(map(str, t["shape"]))
        columns = (
            t["key"],
            t["dtype"],
            t["encoding"],
            t["frame"],
            begin,
            length,
            t["timestamp_ns"],
            shape,
            content[:64].hex(),
        )
        lines.append("\t".join(["tensor", *map(str, columns)]))
    assert not any("\n" in line or "\r" in line for line in lines)
    return ("\n".join(lines) + "\n").encode()


def files(v: Vector) -> dict[str, bytes]:
    out = {f"v2/{v.name}.envelope": v.envelope}
    if v.fields is not None:
        out[f"v2/{v.name}.txt"] = text_form(v)
    for i, frame in enumerate(v.frames):
        out[f"v2/{v.name}.payload" + (f".{i}" if i else "")] = frame
    return out


def read_v1(path: Path) -> Vector:
    """A given v1 message, for its .txt form and its line in the manifest."""
    j = json.loads(path.read_text())
    message = j["message"]
    zero = {k: (type(v)() if v is not None else None) for k, v in DEFAULTS[message].items()}
    if message == "ModelResponse":
        zero["timing"] = RESPONSE_DEFAULTS["timing"]
    fields = {k: j.get(k, v) for k, v in zero.items()}
    fields["timestamp_ns"] = int(fields["timestamp_ns"])
    fields["tensors"] = [{**t, "timestamp_ns": int(t["timestamp_ns"]), "frame": 0} for t in j["tensors"]]
    return Vector(path.stem, message, path.with_suffix(".envelope").read_bytes(), [path.with_suffix(".payload").read_bytes()],
                  fields, note="serialised by the released 1.4.0 package")  # fmt: skip


def everything() -> dict[str, bytes]:
    out: dict[str, bytes] = {}
    manifest: list[str] = []

    def line(folder: str, v: Vector) -> None:
        verdict = "valid" if v.fields is not None else "malformed"
        status = 0 if verdict == "valid" else v.status
        columns = (
            f"{folder}/{v.name}",
            v.message,
            verdict,
            len(v.frames),
            status,
            v.request_id,
            v.key,
            v.field,
            v.note,
        )
        manifest.append("\t".join(map(str, columns)))

    for path in sorted((HERE / "v1").glob("*.json")):
        v = read_v1(path)
        out[f"v1/{v.name}.txt"] = text_form(v)
        line("v1", v)
    build_all: tuple[Callable[[], Iterable[Vector]], ...] = (valid_vectors, malformed_vectors)
    for make in build_all:
        for v in make():
            new = files(v)
            assert not out.keys() & new.keys(), f"the name {v.name} is used twice"
            out |= new
            line("v2", v)
    out["manifest.tsv"] = ("\n".join(manifest) + "\n").encode()
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with what is there and write nothing")
    check = parser.parse_args().check
    new = everything()
    there = {str(p.relative_to(HERE)) for p in (HERE / "v2").glob("*") if p.is_file()}
    stale = sorted(there - new.keys())
    changed = sorted(
        name for name, content in new.items() if not (HERE / name).is_file() or (HERE / name).read_bytes() != content
    )
    if check:
        for name in stale + changed:
            print(f"differs from what generate.py makes: {name}")
        return 1 if stale or changed else 0
    (HERE / "v2").mkdir(exist_ok=True)
    for name in stale:
        (HERE / name).unlink()
    for name in changed:
        (HERE / name).write_bytes(new[name])
    print(f"{len(new)} files, {len(changed)} written, {len(stale)} removed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
