"""What a caller gets back: replies, what became of a send, the answer to a ping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from inferential.types import Encoding, Reason, Status, TensorSpec, Timing, by_fields
from inferential.wire import Response, parse_response, tensor_array

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of an observe().

    True where the request is on its way or was answered: exactly one reply ends it. False where it never left this
    process, which is told here and nowhere else.

    Attributes:
        request_id: the id the request took.
        status: None when it was sent; NOT_SENT; or REJECTED or UNAVAILABLE, when the server had asked not to be asked again
            yet and the request was therefore answered here (that reply waits in the inbox as any other).
        error: why it was not sent, or the server's words of refusal.
    """

    request_id: int
    status: Status | None = None
    error: str = ""

    def __bool__(self) -> bool:
        return self.status != Status.NOT_SENT

    def __reduce__(self) -> Any:
        return by_fields(self)


@dataclass(frozen=True, slots=True)
class PingResult:
    """A server's answer to a ping.

    Attributes:
        round_trip_ms: from sending to reading the answer.
        server: the server's version.
        models: each model's name and whether it is ready.
        protocol: the version of the protocol that the server speaks.
    """

    round_trip_ms: float
    server: str = ""
    models: Mapping[str, bool] = field(default_factory=dict)
    protocol: int = 0

    def __reduce__(self) -> Any:
        return by_fields(self)


class Reply(Mapping[str, Array]):
    """How one request ended: a mapping of the model's arrays, with the whole story as attributes.

    Arrays are read-only views of the received frame (a copy only where they lie misaligned for their type), made when they are
    first asked for. A reply is always true, also where it holds no array: ask `ok`. Immutable but for that; any thread may
    read it.

    Attributes:
        model_id: the model asked.
        request_id: the request it ends.
        slot: the slot of that request.
        status: how it ended; UNKNOWN_<number> where a later server uses one that is unknown here (it counts as not OK).
        reason: finer than status.
        error: for people: what was wrong, where, what would be right.
        retry_after_ms: with REJECTED and UNAVAILABLE: a hint not to ask this model again before.
        local: whether this process made it and not the server.
        observation_timestamp_ns: the wall clock of this client when it observed.
        step_ms: how long one action lasts, as told with the observation; 0 where it was not told.
        sent_s: when the observation was sent, and received_s when this reply was read (seconds of time.monotonic()).
        age_ms: from sending the observation to handing this reply out.
    """

    __slots__ = (
        "_arrays",
        "_response",
        "_specs",
        "age_ms",
        "error",
        "local",
        "model_id",
        "observation_timestamp_ns",
        "reason",
        "received_s",
        "request_id",
        "retry_after_ms",
        "sent_s",
        "slot",
        "status",
        "step_ms",
    )

    def __init__(
        self,
        model_id: str,
        request_id: int,
        slot: str,
        status: Status,
        *,
        reason: Reason = Reason.NONE,
        error: str = "",
        retry_after_ms: float = 0.0,
        observation_timestamp_ns: int = 0,
        step_ms: float = 0.0,
        sent_s: float = 0.0,
        received_s: float = 0.0,
        response: Response | None = None,
    ) -> None:
        """`response` is the server's message; without one this process made the reply."""
        self.model_id = model_id
        self.request_id = request_id
        self.slot = slot
        self.status = status
        self.reason = reason
        self.error = error
        self.retry_after_ms = retry_after_ms
        self.observation_timestamp_ns = observation_timestamp_ns
        self.step_ms = step_ms
        self.sent_s = sent_s
        self.received_s = received_s
        self.age_ms = (received_s - sent_s) * 1e3
        self.local = response is None
        self._response = response
        self._specs = {} if response is None else {spec.key: spec for spec in response.tensors}
        self._arrays: dict[str, Array] = {}

    @property
    def timing(self) -> Timing:
        """Where the time went on the server, in ms; zeros where it did not say."""
        return Timing() if self._response is None else self._response.timing

    @property
    def metadata(self) -> dict[str, str]:
        """The model's strings, a copy."""
        return {} if self._response is None else self._response.metadata

    @property
    def phase_shift_ms(self) -> float:
        """A hint: delay the next observation by this much, once. Rate can follow it."""
        return 0.0 if self._response is None else self._response.phase_shift_ms

    @property
    def timestamp_ns(self) -> int:
        """The server's wall clock at sending."""
        return 0 if self._response is None else self._response.timestamp_ns

    @property
    def response_id(self) -> str:
        """The server's name for this reply."""
        return "" if self._response is None else self._response.response_id

    @property
    def ok(self) -> bool:
        """Whether the model answered."""
        return self.status == Status.OK

    @property
    def round_trip_ms(self) -> float:
        """From sending the observation to reading this reply; less `timing.server_ms` it is the network's and the client's share."""
        return (self.received_s - self.sent_s) * 1e3

    def __getitem__(self, key: Any) -> Array:
        """The array of that name, read-only.

        Raises:
            KeyError: there is none; the message lists what there is.
            MissingDependencyError: its type needs ml-dtypes (bfloat16, float8) or its encoding needs an image codec.
            WireError: it is an image and its data is broken.
        """
        array = self._arrays.get(key)
        if array is None:
            spec = self._specs.get(key)
            if spec is None:
                raise KeyError(self._missing(key))
            array = self._arrays[key] = self._read(spec)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def __contains__(self, key: object) -> bool:
        return key in self._specs

    def __bool__(self) -> bool:
        return True

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __repr__(self) -> str:
        status = self.status.name if isinstance(self.status, Status) else str(self.status)
        arrays = ", ".join(f"{s.key}: {s.dtype.name}{list(s.shape)}" for s in self._specs.values())
        error = f" {self.error!r}" if self.error else ""
        return f"<Reply {self.request_id} of {self.model_id!r}: {status}{error} {{{arrays}}} {self.age_ms:.1f} ms old>"

    def __reduce__(self) -> Any:
        # Frames of the socket stay here; what a copy or another process gets is their bytes.
        told = {name: getattr(self, name) for name in _TOLD}
        response = self._response
        if response is None:
            return _restored, (told, self.age_ms, None, [])
        frames = [memoryview(frame).tobytes() for frame in response.frames]
        return _restored, (told, self.age_ms, response._message.SerializeToString(), frames)

    def _read(self, spec: TensorSpec) -> Array:
        assert self._response is not None  # it holds the spec
        if spec.encoding is Encoding.RAW:
            return tensor_array(spec, self._response.frames)
        from inferential.images import decode

        return decode(spec, self._response.frames)

    def _missing(self, key: object) -> str:
        if key in self.metadata:
            return f"{key!r} is a string of the reply: read metadata[{key!r}]"
        if not self.ok:
            status = self.status.name if isinstance(self.status, Status) else f"status {self.status}"
            return f"no array {key!r}: the request ended {status}: {self.error}"
        held = ", ".join(map(repr, self._specs)) or "none"
        return f"no array {key!r} in the reply of model {self.model_id!r}; it holds {held}"


_TOLD: tuple[str, ...] = (
    "model_id",
    "request_id",
    "slot",
    "status",
    "reason",
    "error",
    "retry_after_ms",
    "observation_timestamp_ns",
    "step_ms",
    "sent_s",
    "received_s",
)


def _restored(told: dict[str, Any], age_ms: float, envelope: bytes | None, frames: list[bytes]) -> Reply:
    """See Reply.__reduce__."""
    reply = Reply(**told, response=None if envelope is None else parse_response(envelope, frames))
    reply.age_ms = age_ms
    return reply
