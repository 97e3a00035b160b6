"""Messages to bytes and back (docs/protocol.md, sections 2 to 4). The only module that imports the generated code.

Everything that comes from outside is checked here, before anything else sees it. Functions are pure and thread-safe.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from inferential import images
from inferential._proto.inferential.v1 import inferential_pb2 as pb
from inferential.errors import MissingDependencyError, ModelError, ObservationError, WireError, describe
from inferential.types import (
    MAX_NAME_BYTES,
    MAX_TENSORS,
    PROTOCOL_VERSION,
    Body,
    Buffer,
    DType,
    EncodedImage,
    Encoding,
    Kind,
    Observation,
    Reason,
    Status,
    TensorSpec,
    Timing,
)

Array = npt.NDArray[Any]

ALIGNMENT_BYTES = 8
LARGE_TENSOR_BYTES = 65_536  # from here on a tensor travels as a frame of its own, uncopied, where the peer can take it
MAX_DIMENSIONS = 32
MAX_ARRAY_BYTES = 2**63 - 1
MAX_FIELDS = 16_384
"""Of an envelope of more than LONG_ENVELOPE_BYTES, its entries of metadata among them."""
LONG_ENVELOPE_BYTES = 65_536
MAX_IMAGE_SIDE = 16_384

_NUMPY_NAMES = {
    DType.FLOAT16: "float16",
    DType.FLOAT32: "float32",
    DType.FLOAT64: "float64",
    DType.UINT8: "uint8",
    DType.INT32: "int32",
    DType.INT64: "int64",
    DType.BOOL: "bool",
    DType.UINT16: "uint16",
    DType.INT8: "int8",
    DType.INT16: "int16",
    DType.UINT32: "uint32",
    DType.UINT64: "uint64",
}
_ML_NAMES = {DType.BFLOAT16: "bfloat16", DType.FLOAT8_E4M3FN: "float8_e4m3fn", DType.FLOAT8_E5M2: "float8_e5m2"}
_ITEMSIZE: dict[int, int] = {
    **{d: np.dtype(n).itemsize for d, n in _NUMPY_NAMES.items()},
    DType.BFLOAT16: 2,
    DType.FLOAT8_E4M3FN: 1,
    DType.FLOAT8_E5M2: 1,
}
_NUMPY: dict[int, np.dtype[Any]] = {d: np.dtype(n).newbyteorder("<") for d, n in _NUMPY_NAMES.items()}
_BY_NAME = {n: d for d, n in (_NUMPY_NAMES | _ML_NAMES).items()}
_DTYPES: dict[int, DType] = {int(d): d for d in DType}
_ENCODINGS = {0: Encoding.RAW, 1: Encoding.RAW, 2: Encoding.JPEG, 3: Encoding.PNG}
_KINDS = {0: Kind.OBSERVE, 1: Kind.PING, 2: Kind.CANCEL}


def itemsize(dtype: DType) -> int:
    """Bytes of one element."""
    return _ITEMSIZE[dtype]


def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """The numpy type for a wire type.

    Raises:
        MissingDependencyError: bfloat16 and float8 need the package ml-dtypes.
    """
    found = _NUMPY.get(dtype)
    if found is None:
        try:
            import ml_dtypes
        except ImportError:
            raise MissingDependencyError(
                f"{DType(dtype).name} arrays need ml-dtypes: pip install 'inferential[dtypes]'"
            ) from None
        found = _NUMPY[dtype] = np.dtype(getattr(ml_dtypes, _ML_NAMES[dtype]))
    return found


@functools.lru_cache(maxsize=64)
def wire_dtype(dtype: np.dtype[Any]) -> DType | None:
    """The wire type for a numpy type, None where there is none."""
    return _BY_NAME.get(dtype.name)


# --- tensors ---------------------------------------------------------------------------------------------------------


# (serialised Tensor, size of its frame) -> what the checks made of it. Bounded in number, and each entry in bytes.
_checked: dict[tuple[bytes, int], TensorSpec] = {}
_MAX_CHECKED = 1024
_MAX_CHECKED_BYTES = 512


def _bad_tensor(key: str, request_id: int, what: str) -> WireError:
    return WireError(f"tensor {key!r}", what, request_id)


def _is_picture(shape: Sequence[int]) -> bool:
    """Whether it is (height, width, channels) of an image that may be sent."""
    return len(shape) == 3 and shape[2] in (1, 3, 4) and all(1 <= n <= MAX_IMAGE_SIDE for n in shape)


def _check_tensors(tensors: Iterable[Any], frame_sizes: Sequence[int], request_id: int) -> tuple[TensorSpec, ...]:
    """The checks of docs/protocol.md section 2, in its order."""
    specs: list[TensorSpec] = []
    seen: set[str] = set()
    for t in tensors:
        frame = t.frame
        # A client or a model sends the same layout each time: what was found right once need not be checked again.
        layout = (t.SerializeToString(), frame_sizes[frame] if frame < len(frame_sizes) else -1)
        spec = _checked.get(layout)
        if spec is None:
            spec = _check_tensor(t, frame_sizes, seen, request_id)
            if len(layout[0]) <= _MAX_CHECKED_BYTES and not spec.timestamp_ns:  # a timestamp hardly comes again
                if len(_checked) >= _MAX_CHECKED:
                    _checked.clear()
                _checked[layout] = spec
        elif spec.key in seen:
            raise _bad_tensor(spec.key, request_id, "key is used twice")
        seen.add(spec.key)
        specs.append(spec)
    return tuple(specs)


def _check_tensor(t: Any, frame_sizes: Sequence[int], seen: set[str], request_id: int) -> TensorSpec:
    key, number, length, offset, frame = t.key, t.dtype, t.byte_length, t.byte_offset, t.frame
    dimensions = len(t.shape)
    shape = tuple(t.shape) if dimensions <= MAX_DIMENSIONS else ()
    if not key:
        raise _bad_tensor(key, request_id, "has no key")
    if key in seen:
        raise _bad_tensor(key, request_id, "key is used twice")
    dtype = _DTYPES.get(number)
    if dtype is None:
        raise _bad_tensor(key, request_id, f"dtype {number} is unknown")
    encoding = _ENCODINGS.get(t.encoding)
    if encoding is None:
        raise _bad_tensor(key, request_id, f"encoding {t.encoding} is unknown")
    if frame >= len(frame_sizes):
        raise _bad_tensor(key, request_id, f"frame {frame}, but the message has {len(frame_sizes)} payload frames")
    size = frame_sizes[frame]
    # Python integers don't overflow: the sum is exact.
    if offset + length > size:
        raise _bad_tensor(
            key,
            request_id,
            f"byte_offset {offset} + byte_length {length} is past the end of its frame of {size} bytes",
        )
    if dimensions > MAX_DIMENSIONS:
        raise _bad_tensor(key, request_id, f"shape has {dimensions} dimensions, at most {MAX_DIMENSIONS} are allowed")
    if min(shape, default=0) < 0:
        raise _bad_tensor(key, request_id, f"shape {list(shape)} has a negative dimension")
    if 0 in shape and math.prod(n for n in shape if n) * _ITEMSIZE[dtype] > MAX_ARRAY_BYTES:
        raise _bad_tensor(key, request_id, f"shape {list(shape)} is larger than any array can be")
    if encoding is Encoding.RAW:
        need = math.prod(shape) * _ITEMSIZE[dtype]
        if need != length:
            raise _bad_tensor(
                key, request_id, f"shape {list(shape)} of {dtype.name} needs {need} bytes, byte_length is {length}"
            )
    elif dtype is not DType.UINT8:
        raise _bad_tensor(key, request_id, f"dtype of a {encoding.name} image is UINT8, not {dtype.name}")
    elif not _is_picture(shape):
        raise _bad_tensor(
            key,
            request_id,
            f"an image's shape is (height, width, channels) with sides up to {MAX_IMAGE_SIDE} "
            f"and 1, 3 or 4 channels, not {list(shape)}",
        )
    elif length == 0:
        raise _bad_tensor(key, request_id, "byte_length of an image is 0")
    return TensorSpec(key, dtype, shape, offset, length, t.timestamp_ns, encoding, frame)


def check_image(spec: TensorSpec, frames: Sequence[Buffer], request_id: int) -> None:
    """Whether an image's own header says the same as its tensor; nothing is decoded.

    Raises:
        WireError: it does not.
    """
    try:
        images.check_header(spec, frames)
    except WireError as e:
        e.request_id = request_id
        raise


def tensor_bytes(spec: TensorSpec, frames: Sequence[Buffer]) -> memoryview:
    """The tensor's bytes, a view of its frame."""
    return memoryview(frames[spec.frame])[spec.byte_offset : spec.byte_offset + spec.byte_length]


def tensor_array(spec: TensorSpec, frames: Sequence[Buffer]) -> Array:
    """A RAW tensor as a read-only array: a view of its frame, a copy only where it lies misaligned for its type.

    Raises:
        MissingDependencyError: see numpy_dtype.
    """
    dtype = numpy_dtype(spec.dtype)
    array: Array
    if not spec.byte_length:
        array = np.empty(spec.shape, dtype)
    elif spec.dtype is DType.BOOL:
        # Any byte but 0 is true; numpy needs exactly 0 or 1. Compared before it is shaped: comparing a scalar gives no array.
        array = np.frombuffer(frames[spec.frame], np.uint8, spec.byte_length, spec.byte_offset) != 0
        array = array.reshape(spec.shape)
    else:
        array = np.ndarray(spec.shape, dtype, frames[spec.frame], spec.byte_offset)
        if not array.flags.aligned:
            array = array.copy()
    array.setflags(write=False)
    return array


def observation_arrays(observation: Observation, frames: Sequence[Buffer]) -> dict[str, Any]:
    """What a model gets: every tensor as a read-only array (images decoded), and the metadata strings.

    Args:
        observation: as parse_observation gave it.
        frames: the payload frames, without the envelope.

    Raises:
        WireError: an image is broken; names the tensor.
        MissingDependencyError: a codec or dtype package is not installed.
    """
    arrays: dict[str, Any] = dict(observation.metadata)
    for spec in observation.tensors:
        if spec.encoding is Encoding.RAW:
            arrays[spec.key] = tensor_array(spec, frames)
        else:
            arrays[spec.key] = images.decode(spec, frames)
    return arrays


@dataclass(slots=True)
class Packed:
    """Tensors laid out for sending: Tensor fields for the envelope, and the payload frames."""

    tensors: list[dict[str, Any]] = field(default_factory=list)
    frames: list[Buffer] = field(default_factory=list)


def as_wire_array(key: str, value: Any) -> tuple[Array, DType]:
    """`value` as a C-contiguous little-endian array of a wire type.

    Raises:
        ObservationError: it is no array, or its type has no place on the wire.
    """
    array = np.asarray(value)
    dtype = wire_dtype(array.dtype)
    if dtype is None:
        known = ", ".join(sorted(_BY_NAME))
        raise ObservationError(
            f"tensor {key!r} has dtype {array.dtype}, which the wire does not have; use one of {known}"
        )
    if array.ndim > MAX_DIMENSIONS:
        raise ObservationError(f"tensor {key!r} has {array.ndim} dimensions; the wire has at most {MAX_DIMENSIONS}")
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    # ascontiguousarray would make a scalar one-dimensional
    return (array if array.flags.c_contiguous else array.copy(order="C")), dtype


def _check_encoded(key: str, image: EncodedImage) -> None:
    """Whether a peer would take it."""
    if not _is_picture(image.shape):
        raise ObservationError(
            f"tensor {key!r}: an image's shape is (height, width, channels) with sides of 1 to {MAX_IMAGE_SIDE} and 1, 3 or 4 channels, "
            f"not {image.shape}"
        )
    try:
        found = images.shape_in_header(memoryview(image.data), image.encoding)
    except ValueError as e:
        raise ObservationError(f"tensor {key!r}: its encoding is {image.encoding.name}, but it {e}") from None
    if found != image.shape:
        raise ObservationError(
            f"tensor {key!r}: its shape is {image.shape}, but its {image.encoding.name} image is {found} (height, width, channels)"
        )


def pack_tensors(
    tensors: Mapping[str, Any], *, several_frames: bool, timestamps_ns: Mapping[str, int] | None = None
) -> Packed:
    """Lays tensors out in payload frames.

    A single tensor, and with `several_frames` every tensor of LARGE_TENSOR_BYTES or more, is sent from its own memory;
    the rest is joined in the first frame, each tensor aligned to 8 bytes.

    Args:
        tensors: name -> array (anything np.asarray takes) or EncodedImage.
        several_frames: whether the peer reads more than one payload frame.
        timestamps_ns: when each was measured, wall clock.

    Raises:
        ObservationError: a value that is no tensor.
    """
    packed = Packed()
    small: list[tuple[int, Buffer]] = []
    end = 0
    for key, value in tensors.items():
        if not key:
            raise ObservationError("a tensor's name must not be empty")
        encoding = Encoding.RAW
        data: Buffer
        shape: tuple[int, ...]
        if isinstance(value, EncodedImage):
            _check_encoded(key, value)
            encoding, dtype, shape, data, size = value.encoding, DType.UINT8, value.shape, value.data, len(value.data)
        else:
            array, dtype = as_wire_array(key, value)
            # The flat uint8 view works for types that have no buffer protocol of their own (bfloat16).
            shape, size, data = array.shape, array.nbytes, array.reshape(-1).view(np.uint8) if array.size else b""
        entry: dict[str, Any] = {
            "key": key,
            "dtype": int(dtype),
            "shape": shape,
            "byte_length": size,
            "encoding": int(encoding),
        }
        if timestamps_ns and key in timestamps_ns:
            entry["timestamp_ns"] = timestamps_ns[key]
        if len(tensors) == 1:
            packed.frames.append(data)
        elif several_frames and size >= LARGE_TENSOR_BYTES:
            entry["frame"] = -1  # numbered below: the first frame belongs to the joined ones
            packed.frames.append(data)
        else:
            offset = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
            entry["byte_offset"] = offset
            small.append((offset, data))
            end = offset + size
        packed.tensors.append(entry)
    if len(tensors) == 1:
        return packed
    number = 1 if small else 0
    for entry in packed.tensors:
        if entry.get("frame") == -1:
            entry["frame"] = number
            number += 1
    if small:
        joined = bytearray(end)
        for offset, data in small:
            # a bytearray takes no numpy array as it is
            joined[offset : offset + len(data)] = memoryview(data)
        packed.frames.insert(0, joined)
    elif not packed.frames:
        packed.frames.append(b"")
    return packed


@dataclass(frozen=True, slots=True)
class _Layout:
    """How arrays of given names, types and shapes lie on the wire."""

    encoded: bytes
    """Their Tensor fields."""
    places: tuple[int, ...]
    """Of each array the bytes that go before it in the first frame, to align it; _OWN_FRAME: it has one of its own."""


_OWN_FRAME = -1
# ((key, type, shape) of each array) -> their layout. Bounded in number, and each entry in bytes.
_layouts: dict[tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...], _Layout] = {}
_MAX_LAYOUT_BYTES = 4096


def pack(tensors: Mapping[str, Any], *, several_frames: bool, timestamps_ns: Mapping[str, int] | None = None) -> Body:
    """Lays tensors out as `pack_tensors` does, and encodes them; frames below LARGE_TENSOR_BYTES are copies. Same errors.

    Tensors have one field number in Observation and ModelResponse: the bytes are right for both.
    """
    tensors = dict(tensors)  # read once: what is in a caller's mapping may change meanwhile
    # Arrays of the same names and shapes each time are what robots send and models return.
    names: list[tuple[str, np.dtype[Any], tuple[int, ...]]] = []
    if not timestamps_ns and (several_frames or len(tensors) == 1):
        for key, value in tensors.items():
            if type(value) is not np.ndarray:
                break
            names.append((key, value.dtype, value.shape))
    plain = len(names) == len(tensors) > 0
    layout = tuple(names)
    if plain:
        found = _layouts.get(layout)
        if found is not None:
            return Body(found.encoded, _lay_out(tensors.values(), found.places))
    packed = pack_tensors(tensors, several_frames=several_frames, timestamps_ns=timestamps_ns)
    encoded = pb.ModelResponse(tensors=packed.tensors).SerializeToString()
    if plain and len(encoded) <= _MAX_LAYOUT_BYTES and not any(dtype.byteorder == ">" for _, dtype, _ in names):
        if len(_layouts) >= _MAX_CHECKED:
            _layouts.clear()
        places: list[int] = []
        end = 0
        for entry in packed.tensors:
            if "byte_offset" in entry:
                places.append(entry["byte_offset"] - end)
                end = entry["byte_offset"] + entry["byte_length"]
            else:
                places.append(_OWN_FRAME)
        _layouts[layout] = _Layout(encoded, tuple(places))
    return Body(encoded, [f if len(f) >= LARGE_TENSOR_BYTES else bytes(f) for f in packed.frames])


def _lay_out(arrays: Iterable[Array], places: tuple[int, ...]) -> list[Buffer]:
    """The payload frames of arrays whose layout is known."""
    frames: list[Buffer] = []
    joined: list[bytes] = []
    for array, place in zip(arrays, places, strict=True):
        if place != _OWN_FRAME:
            if place:
                joined.append(bytes(place))
            joined.append(array.tobytes())
        elif array.nbytes < LARGE_TENSOR_BYTES:
            frames.append(array.tobytes())
        else:
            contiguous = array if array.flags.c_contiguous else array.copy(order="C")
            frames.append(contiguous.reshape(-1).view(np.uint8))
    if joined:
        frames.insert(0, b"".join(joined))
    return frames


# --- observations ----------------------------------------------------------------------------------------------------


def _too_long(name: str) -> bool:
    # UTF-8 has at most 4 bytes for a character, so most names need no encoding to be sure
    return len(name) * 4 > MAX_NAME_BYTES and len(name.encode()) > MAX_NAME_BYTES


def _check_fields(envelope: Buffer) -> None:
    """Refuses what would take seconds to parse: millions of small fields. What is no protobuf at all is not for here to say."""
    data = bytes(envelope)
    at, end = 0, len(data)
    request_id = 0

    def varint() -> int:
        nonlocal at
        value = 0
        for shift in range(0, 70, 7):
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise IndexError

    try:
        for _ in range(MAX_FIELDS):
            if at >= end:
                return
            tag = varint()
            kind = tag & 7
            if kind == 0:
                value = varint()
                if tag >> 3 == pb.Observation.REQUEST_ID_FIELD_NUMBER:
                    request_id = value
            elif kind == 2:
                length = varint()
                at += length
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
            else:
                return
    except IndexError:
        return
    if at < end:
        raise WireError("envelope", f"has more than {MAX_FIELDS} fields", request_id)


def parse_observation(envelope: Buffer, frame_sizes: Sequence[int]) -> Observation:
    """Decodes and checks an observation envelope.

    Args:
        envelope: the second frame of the message.
        frame_sizes: size of each payload frame in bytes.

    Raises:
        WireError: it does not parse, or a field is wrong; `request_id` is set where it could be read.
    """
    if len(envelope) > LONG_ENVELOPE_BYTES:
        _check_fields(envelope)
    try:
        m = pb.Observation.FromString(envelope)
    except DecodeError:
        raise WireError("envelope", "is not a protobuf Observation") from None
    # Every attribute of a message costs a tenth of a microsecond or more: each is read once.
    request_id, client, model_id, slot = m.request_id, m.client, m.model_id, m.slot
    client_id, client_type = client.id, client.type
    kind = _KINDS.get(m.kind)
    if kind is None:
        raise WireError("kind", f"{m.kind} is unknown", request_id)
    if kind is not Kind.OBSERVE and not request_id:
        raise WireError("request_id", f"must be given with {kind.name}", request_id)
    if not client_id:
        raise WireError("client", "id is missing", request_id)
    if _too_long(client_id) or _too_long(client_type):
        raise WireError("client", f"id and type may have {MAX_NAME_BYTES} bytes each", request_id)
    if kind is Kind.OBSERVE and not model_id:
        raise WireError("model_id", "is missing", request_id)
    if _too_long(model_id):
        raise WireError("model_id", f"has more than {MAX_NAME_BYTES} bytes", request_id)
    if _too_long(slot):
        raise WireError("slot", f"has more than {MAX_NAME_BYTES} bytes", request_id)
    urgency = m.urgency
    if not 0.0 <= urgency <= 1.0:  # NaN too
        raise WireError("urgency", f"is {urgency}, must be 0..1", request_id)
    budget, step = m.latency_budget_ms, m.step_ms
    if not 0.0 <= budget < math.inf:
        raise WireError("latency_budget_ms", f"is {budget}, must be 0 or a positive number of milliseconds", request_id)
    if not 0.0 <= step < math.inf:
        raise WireError("step_ms", f"is {step}, must be 0 or a positive number of milliseconds", request_id)
    entries = m.tensors
    if len(entries) > MAX_TENSORS:
        raise WireError("tensors", f"{len(entries)} of them, at most {MAX_TENSORS} are allowed", request_id)
    tensors = _check_tensors(entries, frame_sizes, request_id)
    metadata: dict[str, str] = {}
    if len(m.metadata):
        metadata.update(m.metadata)
        for spec in tensors:
            if spec.key in metadata:
                raise WireError(f"metadata {spec.key!r}", "has the name of a tensor", request_id)
    return Observation(
        client_id,
        client_type,
        model_id,
        request_id,
        m.timestamp_ns,
        urgency,
        m.priority,
        m.steps_remaining if m.HasField("steps_remaining") else None,
        step,
        budget,
        kind,
        m.latest_only,
        slot,
        tensors,
        metadata,
    )


def encode_observation_again(
    constant: bytes,
    *,
    request_id: int,
    timestamp_ns: int,
    urgency: float,
    steps_remaining: int | None,
    metadata: Mapping[str, str],
    tensors: bytes,
) -> bytes:
    """The envelope of an observation that differs from an encoded one (without tensors and metadata) in these fields only.

    Concatenated protobuf messages of one type read as one message, so what stays the same is encoded once; `tensors` are as `pack`
    encoded them.
    """
    m = pb.Observation(request_id=request_id, timestamp_ns=timestamp_ns, urgency=urgency)
    if steps_remaining is not None:
        m.steps_remaining = steps_remaining
    if metadata:
        m.metadata.update(metadata)
    return constant + m.SerializeToString() + tensors


def encode_observation(observation: Observation, packed: Packed | None = None) -> bytes:
    """The envelope. Tensors are those of `packed`; `observation.tensors` is not read."""
    o = observation
    m = pb.Observation(
        timestamp_ns=o.timestamp_ns,
        urgency=o.urgency,
        model_id=o.model_id,
        priority=o.priority,
        request_id=o.request_id,
        latency_budget_ms=o.latency_budget_ms,
        step_ms=o.step_ms,
        kind=int(o.kind),  # type: ignore[arg-type]
        latest_only=o.latest_only,
        slot=o.slot,
    )
    m.client.id = o.client_id
    m.client.type = o.client_type
    if o.steps_remaining is not None:
        m.steps_remaining = o.steps_remaining
    if o.metadata:
        m.metadata.update(o.metadata)
    if packed is not None:
        add = m.tensors.add
        for entry in packed.tensors:
            add(**entry)
    return m.SerializeToString()


# --- responses -------------------------------------------------------------------------------------------------------


class Response:
    """A validated ModelResponse with its payload frames. `status` and `reason` are plain numbers.

    Attributes:
        model_id, request_id, status: as in docs/protocol.md, section 4, as all the properties.
        tensors: where each tensor lies in `frames`.
    """

    __slots__ = ("_message", "frames", "model_id", "request_id", "status", "tensors")

    def __init__(self, message: pb.ModelResponse, tensors: tuple[TensorSpec, ...], frames: Sequence[Buffer]) -> None:
        self._message = message
        self.model_id: str = message.model_id
        self.request_id: int = message.request_id
        self.status: int = message.status
        self.tensors = tensors
        self.frames = frames

    @property
    def reason(self) -> int:
        """Finer than status."""
        return self._message.reason

    @property
    def error(self) -> str:
        """For people."""
        return self._message.error

    @property
    def retry_after_ms(self) -> float:
        """With REJECTED and UNAVAILABLE."""
        return self._message.retry_after_ms

    @property
    def timing(self) -> Timing:
        """Where the time went."""
        t = self._message.timing
        inference_ms = t.inference_ms or self._message.inference_latency_ms
        return Timing(t.queue_ms, inference_ms, t.server_ms, t.batch_size, t.replica)

    @property
    def timestamp_ns(self) -> int:
        """The server's wall clock at sending."""
        return self._message.timestamp_ns

    @property
    def observation_timestamp_ns(self) -> int:
        """Echoed; 0 from a v1 server."""
        return self._message.observation_timestamp_ns

    @property
    def phase_shift_ms(self) -> float:
        """A hint: delay the next observation by this, once."""
        return self._message.phase_shift_ms

    @property
    def protocol_version(self) -> int:
        """2; 0 from a v1 server."""
        return self._message.protocol_version

    @property
    def response_id(self) -> str:
        """The server's name for it."""
        return self._message.response_id

    @property
    def metadata(self) -> dict[str, str]:
        """The model's strings, a copy."""
        return dict(self._message.metadata)


def parse_response(envelope: Buffer, frames: Sequence[Buffer]) -> Response:
    """Decodes and checks a reply.

    Raises:
        WireError: it does not parse or a tensor is wrong; `request_id` is set where it could be read.
    """
    try:
        m = pb.ModelResponse.FromString(envelope)
    except DecodeError:
        raise WireError("envelope", "is not a protobuf ModelResponse") from None
    tensors = _check_tensors(m.tensors, [memoryview(f).nbytes for f in frames], m.request_id) if m.tensors else ()
    for spec in tensors:
        if spec.encoding is not Encoding.RAW:
            check_image(spec, frames, m.request_id)
    return Response(m, tensors, frames)


def encode_body(result: Any, *, several_frames: bool) -> Body:
    """A model's result (docs/protocol.md, section 4): a mapping of arrays and strings, or a bare array.

    Raises:
        ModelError: it is neither, or holds what has no place on the wire; the message names the entry.
    """
    if type(result) is not dict and not isinstance(result, Mapping):
        if result is None:
            raise ModelError("the model returned None; return a dict of arrays and strings, or an array")
        result = {"actions": result}
    arrays: dict[str, Any] = {}
    strings: dict[str, str] = {}
    try:
        for key, value in result.items():
            if not isinstance(key, str) or not key:
                raise ModelError(f"the model returned the key {key!r}; keys are non-empty strings")
            if isinstance(value, str):
                strings[key] = value
            else:
                arrays[key] = value
        # Small arrays are copied: a model may write to its own again before they are sent.
        body = pack(arrays, several_frames=several_frames)
        if strings:
            body.envelope += pb.ModelResponse(metadata=strings).SerializeToString()
    except ModelError:
        raise
    except Exception as e:  # asked for an array, an object of the model's own may raise anything
        raise ModelError(f"the model returned what is no result: {describe(e)}") from None
    return body


def encode_response(
    *,
    client_id: str,
    client_type: str,
    model_id: str,
    response_id: str,
    timestamp_ns: int,
    request_id: int,
    observation_timestamp_ns: int,
    body: Body | None = None,
    status: int = Status.OK,
    reason: int = Reason.NONE,
    error: str = "",
    retry_after_ms: float = 0.0,
    phase_shift_ms: float = 0.0,
    timing: Timing | None = None,
    metadata: Mapping[str, str] | None = None,
) -> list[Buffer]:
    """The frames of a reply, from the empty one on; without request_id (a v1 client) nothing of v2 is written.

    What a client's replies have in common is encoded once, and the body's bytes are appended to the header's: concatenated protobuf
    messages of one type read as one message.
    """
    m = pb.ModelResponse(response_id=response_id, timestamp_ns=timestamp_ns)
    if timing is not None:
        m.inference_latency_ms = timing.inference_ms
    if metadata:
        m.metadata.update(metadata)
    if request_id:
        m.request_id = request_id
        m.observation_timestamp_ns = observation_timestamp_ns
        if status:
            m.status = int(status)  # type: ignore[assignment]
            m.reason = int(reason)  # type: ignore[assignment]
            m.error = error
        if retry_after_ms:
            m.retry_after_ms = retry_after_ms
        if phase_shift_ms:
            m.phase_shift_ms = phase_shift_ms
        if timing is not None:
            t = m.timing
            t.queue_ms, t.inference_ms, t.server_ms = timing.queue_ms, timing.inference_ms, timing.server_ms
            t.batch_size, t.replica = timing.batch_size, timing.replica
    header = _response_constant(client_id, client_type, model_id, request_id != 0) + m.SerializeToString()
    if body is None:
        return [b"", header, b""]
    return [b"", header + body.envelope, *(body.frames or (b"",))]


@functools.lru_cache(maxsize=4096)
def _response_constant(client_id: str, client_type: str, model_id: str, v2: bool) -> bytes:
    """The fields that all replies of one model to one client have in common."""
    m = pb.ModelResponse(model_id=model_id, protocol_version=PROTOCOL_VERSION if v2 else 0)
    m.client.id = client_id
    m.client.type = client_type
    return m.SerializeToString()
