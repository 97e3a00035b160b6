"""Values that all parts of the package share. No I/O, no clock, nothing beyond the standard library and `errors`.

Nothing changes a value once it is made. Those that are made for every message are not frozen, because making a frozen
dataclass takes seven times as long.
"""

from __future__ import annotations

import enum
import math
import numbers
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

from inferential.errors import ObservationError

PROTOCOL_VERSION = 2

MAX_PRIORITY = 1000
"""What SDKs send; the wire may hold more, which counts as this much."""

COMPILED = not __file__.endswith(".py")
"""Whether this is a wheel in which the core is compiled (docs/adr/0005-compiled-core.md)."""
MAX_NAME_BYTES = 256  # of a client's id or type, a model's id, a slot
MAX_TENSORS = 256  # of a message, and its payload frames
MAX_METADATA = 4096  # strings of an observation
COPIED_BYTES = 262_144
"""Frames below this are copied when sent: below some 500 KB that is quicker than having pyzmq told when ZMQ is done with the memory."""

Buffer: TypeAlias = Any  # anything with the buffer protocol: bytes, memoryview, numpy array, zmq.Frame
"""One payload frame."""


def is_number(value: object) -> bool:
    """Whether it is a real number, Python's or numpy's; True and False are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def as_float(number: Any) -> float:
    """A number as a float; infinite where it is an integer beyond all floats."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def by_fields(value: Any) -> tuple[Any, ...]:
    """A frozen dataclass's `__reduce__`: copied and pickled by what it is made of (mypyc would set its attributes, which it refuses)."""
    return type(value), tuple(getattr(value, f.name) for f in fields(value))


class DType(enum.IntEnum):
    """Element types of the wire (docs/protocol.md, section 2)."""

    FLOAT16 = 1
    FLOAT32 = 2
    FLOAT64 = 3
    BFLOAT16 = 4
    UINT8 = 5
    INT32 = 6
    INT64 = 7
    BOOL = 8
    UINT16 = 101
    INT8 = 102
    INT16 = 103
    UINT32 = 104
    UINT64 = 105
    FLOAT8_E4M3FN = 106
    FLOAT8_E5M2 = 107


class Encoding(enum.IntEnum):
    """How a tensor's bytes are to be read."""

    RAW = 1
    JPEG = 2
    PNG = 3


class Kind(enum.IntEnum):
    """What an observation asks for."""

    OBSERVE = 0
    PING = 1
    CANCEL = 2


class _OpenEnum(enum.IntEnum):
    """Numbers of the wire to which a later server may add: one unknown here is a member too, called UNKNOWN_<number>."""

    @classmethod
    def _missing_(cls, value: object) -> _OpenEnum | None:
        if not isinstance(value, int):
            return None
        member = int.__new__(cls, value)
        member._name_ = f"UNKNOWN_{value}"
        member._value_ = value
        return member

    def __str__(self) -> str:
        return self.name


class Status(_OpenEnum):
    """How a request ended. Up to 1000: the server's word; above: known only to the SDK (never on the wire)."""

    OK = 0
    INVALID_OBSERVATION = 1
    UNKNOWN_MODEL = 2
    REJECTED = 3
    EXPIRED = 4
    SUPERSEDED = 5
    MODEL_ERROR = 6
    UNAVAILABLE = 7
    SHUTTING_DOWN = 8
    UNAUTHENTICATED = 9
    CANCELLED = 10
    TIMED_OUT = 1001
    LINK_LOST = 1002
    NOT_SENT = 1003


class Reason(_OpenEnum):
    """Finer than Status."""

    NONE = 0
    QUEUE_FULL = 1
    CANNOT_MEET_DEADLINE = 2
    OVER_SHARE = 3
    TOO_LARGE = 4


@dataclass(slots=True)
class TensorSpec:
    """Where one tensor lies in the payload and how to read it; validated against its frame."""

    key: str
    dtype: DType
    shape: tuple[int, ...]
    byte_offset: int
    byte_length: int
    timestamp_ns: int = 0
    encoding: Encoding = Encoding.RAW
    frame: int = 0


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """Bytes of a JPEG or PNG image and the shape (height, width, channels) it decodes to.

    Attributes:
        data: bytes; made of anything that has a buffer.
        shape: a tuple of three ints; made of any three whole numbers.
        encoding: JPEG or PNG, or its number.

    Raises:
        ObservationError: a field is none of these.
    """

    # Any: what is compiled would else refuse what is converted here
    data: Any
    shape: Any
    encoding: Any

    def __post_init__(self) -> None:
        if type(self.data) is not bytes:
            try:
                object.__setattr__(self, "data", memoryview(self.data).tobytes())
            except (TypeError, ValueError):
                raise ObservationError(f"data of an EncodedImage is a {type(self.data).__name__}, not bytes") from None
        try:
            height, width, channels = self.shape
            shape = operator.index(height), operator.index(width), operator.index(channels)
        except (TypeError, ValueError):
            raise ObservationError(
                f"shape of an EncodedImage is {self.shape!r}; it must be (height, width, channels)"
            ) from None
        object.__setattr__(self, "shape", shape)
        if self.encoding not in (Encoding.JPEG, Encoding.PNG):
            raise ObservationError(f"encoding of an EncodedImage is {self.encoding!r}; it must be JPEG or PNG")
        object.__setattr__(self, "encoding", Encoding(self.encoding))

    def __reduce__(self) -> Any:
        return by_fields(self)


@dataclass(slots=True)
class Observation:
    """A validated observation envelope. Field meanings and units: docs/protocol.md, section 3."""

    client_id: str
    client_type: str
    model_id: str
    request_id: int = 0
    timestamp_ns: int = 0
    urgency: float = 0.0
    priority: int = 0
    steps_remaining: int | None = None
    step_ms: float = 0.0
    latency_budget_ms: float = 0.0
    kind: Kind = Kind.OBSERVE
    latest_only: bool = False
    slot: str = ""
    tensors: tuple[TensorSpec, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_v1(self) -> bool:
        """Whether it comes from a client that knows no request ids (it gets OK replies only)."""
        return self.request_id == 0


@dataclass(slots=True)
class Body:
    """Tensors (and a model's strings) on their way out: the serialised fields of the envelope that tell of them, and the payload
    frames.
    """

    envelope: bytes
    frames: Sequence[Buffer]


@dataclass(slots=True)
class Timing:
    """Where the time went, in ms on the server's clock."""

    queue_ms: float = 0.0
    inference_ms: float = 0.0
    server_ms: float = 0.0
    batch_size: int = 0
    replica: str = ""
