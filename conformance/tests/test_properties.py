"""Any reply at all through every SDK's decoder: all languages judge it alike, and read the same in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inferential import wire
from inferential._proto.inferential.v1 import inferential_pb2 as pb
from inferential.errors import WireError

from adapters.base import DTYPES, Decoded
from adapters.python_sync import decode as reference
from suite.client import Client

FRAMES = st.lists(st.binary(max_size=64), min_size=1, max_size=3)
SIZES = dict(DTYPES.values())
# Near what is right, so that many are; and far from it.
NUMBERS = st.integers(0, 70) | st.sampled_from([2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1])
SHAPES = st.lists(st.integers(0, 5) | st.sampled_from([-1, 2**31, 2**62, 2**63 - 1, -(2**63)]), max_size=5)
bounded = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@st.composite
def tensors(draw: Any, frames: list[bytes]) -> dict[str, Any]:
    """A tensor that fits, half of the time, or whose fields are any."""
    frame = draw(st.integers(0, len(frames) - 1))
    dtype = draw(st.sampled_from(sorted(SIZES)))
    fields: dict[str, Any] = {
        "key": draw(st.text(max_size=3)),
        "dtype": dtype,
        "encoding": draw(st.sampled_from([0, 1])),
        "frame": frame,
    }
    room = len(frames[frame])
    offset = draw(st.integers(0, room))
    count = draw(st.integers(0, (room - offset) // SIZES[dtype]))
    shape = draw(st.sampled_from([[count], [1, count], [count, 1, 1], [count, 0] if count == 0 else [count]]))
    fields |= {"byte_offset": offset, "byte_length": count * SIZES[dtype], "shape": shape}
    for name, wrong in {
        "dtype": st.integers(-2, 120),
        "encoding": st.integers(-1, 5),
        "frame": st.integers(0, 4) | st.just(2**32 - 1),
        "byte_offset": NUMBERS,
        "byte_length": NUMBERS,
        "shape": SHAPES,
    }.items():
        if draw(st.integers(0, 11)) == 0:
            fields[name] = draw(wrong)
    return fields


@st.composite
def replies(draw: Any) -> tuple[bytes, list[bytes]]:
    """An envelope and payload frames."""
    frames = draw(FRAMES)
    m = pb.ModelResponse(
        request_id=draw(st.integers(0, 2**64 - 1)),
        model_id=draw(st.text(max_size=4)),
        status=draw(st.integers(0, 12) | st.integers(-(2**31), 2**31 - 1)),  # type: ignore[arg-type]
        reason=draw(st.integers(0, 6)),
        error=draw(st.text(max_size=4)),
        retry_after_ms=draw(st.floats(width=32)),
        phase_shift_ms=draw(st.floats(width=32)),
    )
    m.metadata.update(draw(st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3)))
    for fields in draw(st.lists(tensors(frames), max_size=4)):
        m.tensors.add(**fields)
    return m.SerializeToString(), frames


def same(found: Decoded | None) -> Decoded | None:
    """BOOL bytes are handed out as they came or as 0 and 1."""
    if found is None:
        return None
    read = {
        key: replace(t, data=bytes(b != 0 for b in t.data)) if t.dtype == "BOOL" else t
        for key, t in found.tensors.items()
    }
    return replace(found, tensors=read)


@bounded
@given(reply=replies())
def test_every_decoder_judges_and_reads_alike(client: Client, reply: tuple[bytes, list[bytes]]) -> None:
    envelope, frames = reply
    assert same(client.decode(envelope, frames)) == same(reference(envelope, frames))


@bounded
@given(reply=replies(), at=st.integers(0, 10**6), byte=st.integers(0, 255), cut=st.integers(0, 8))
def test_a_damaged_reply_is_read_or_refused(
    client: Client, reply: tuple[bytes, list[bytes]], at: int, byte: int, cut: int
) -> None:
    envelope, frames = bytearray(reply[0]), reply[1]
    if envelope:
        envelope[at % len(envelope)] = byte
    damaged = bytes(envelope[: len(envelope) - cut])
    found = client.decode(damaged, frames)
    try:
        wire.parse_response(damaged, frames)
    except WireError:
        return  # protobuf libraries differ in what they forgive
    assert same(found) in (None, same(reference(damaged, frames)))


@bounded
@given(envelope=st.binary(max_size=80), frames=FRAMES)
def test_any_bytes_are_read_or_refused(client: Client, envelope: bytes, frames: list[bytes]) -> None:
    found = client.decode(envelope, frames)
    for tensor in found.tensors.values() if found else ():
        assert len(tensor.data) <= max(map(len, frames))
