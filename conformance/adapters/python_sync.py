"""The Python SDK's Connection."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping
from typing import Any

import inferential
import numpy as np
from inferential import errors
from inferential.client.watchdog import Decay, Hold, Zero
from inferential.types import DType, EncodedImage, Encoding, Status
from inferential.wire import numpy_dtype, parse_response, tensor_bytes, wire_dtype

from adapters.base import Action, Adapter, CallError, Decoded, Pong, Reply, Sent, Tensor

_CODES: list[tuple[type[BaseException], str]] = [
    (errors.ConnectionClosedError, "closed"),
    (errors.ConcurrentWaitError, "concurrent"),
    (errors.ObservationError, "argument"),
    (errors.ConfigError, "argument"),
]


def call_error(e: BaseException) -> CallError:
    """An SDK's exception as the interface knows it."""
    code = next((code for kind, code in _CODES if isinstance(e, kind)), "other")
    return CallError(code, f"{type(e).__name__}: {e}")


def to_array(tensor: Tensor) -> Any:
    """As a user would have it: a numpy array, or an encoded image."""
    if tensor.encoding != 1:
        height, width, channels = tensor.shape
        return EncodedImage(tensor.data, (height, width, channels), Encoding(tensor.encoding))
    return np.frombuffer(tensor.data, numpy_dtype(DType[tensor.dtype])).reshape(tensor.shape)


def to_tensor(array: Any) -> Tensor:
    """What the SDK handed out."""
    dtype = wire_dtype(array.dtype)
    assert dtype is not None, f"the SDK handed out an array of {array.dtype}, which the wire does not have"
    return Tensor(dtype.name, array.shape, array.tobytes())


def to_sent(found: Any) -> Sent:
    """NOT_SENT is told here; anything else (also a refusal by hold-off) comes as a reply."""
    return Sent(found.request_id, int(found.status) if found.status == Status.NOT_SENT else None, found.error)


def to_reply(found: Any) -> Reply | None:
    """Everything a reply tells."""
    if found is None:
        return None
    t = found.timing
    return Reply(
        model_id=found.model_id,
        request_id=found.request_id,
        slot=found.slot,
        status=int(found.status),
        reason=int(found.reason),
        error=found.error,
        local=found.local,
        retry_after_ms=found.retry_after_ms,
        phase_shift_ms=found.phase_shift_ms,
        age_ms=found.age_ms,
        round_trip_ms=found.round_trip_ms,
        timestamp_ns=found.timestamp_ns,
        observation_timestamp_ns=found.observation_timestamp_ns,
        queue_ms=t.queue_ms,
        inference_ms=t.inference_ms,
        server_ms=t.server_ms,
        batch_size=t.batch_size,
        replica=t.replica,
        metadata=dict(found.metadata),
        tensors={key: to_tensor(found[key]) for key in found},
    )


def to_action(found: Any) -> Action:
    """What act returned."""
    tensors = {key: to_tensor(np.asarray(value)) for key, value in found.tensors.items()}
    request_id = 0 if found.reply is None else found.reply.request_id
    status = None if found.status is None else int(found.status)
    return Action(found.source.value, tensors, found.age_ms, found.steps_late, request_id, status)


def to_pong(found: Any) -> Pong | None:
    """What ping returned."""
    return None if found is None else Pong(found.round_trip_ms, found.server, dict(found.models))


def decode(envelope: bytes, frames: list[bytes]) -> Decoded | None:
    """The SDK's decoder alone."""
    try:
        r = parse_response(envelope, frames)
    except errors.WireError:
        return None
    tensors = {t.key: Tensor(t.dtype.name, t.shape, bytes(tensor_bytes(t, frames))) for t in r.tensors}
    return Decoded(r.request_id, r.status, dict(r.metadata), tensors)


def to_fallback(kind: str, ms: float, template: dict[str, Tensor] | None) -> Any:
    """A declared fallback."""
    arrays = None if template is None else {k: to_array(t) for k, t in template.items()}
    if kind == "hold":
        return Hold(ms, arrays)
    if kind == "decay":
        return Decay(ms, arrays)
    if kind == "zero":
        return Zero(arrays)

    def callback(last: Any, age_ms: float) -> Mapping[str, Any]:
        assert age_ms >= 0
        return {"actions": np.array([0.0 if last is None else 1.0], np.float32)}

    return callback


def model_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of Connection.model."""
    return {k: to_fallback(*v) if k == "fallback" else v for k, v in options.items()}


class PythonSync(Adapter):
    """Calls go straight through."""

    def __init__(self) -> None:
        self._connections: list[inferential.Connection] = []
        self._models: list[Any] = []

    @staticmethod
    def _do(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except errors.InferentialError as e:
            raise call_error(e) from None

    def version(self) -> str:
        return inferential.__version__

    def connect(self, address: str, client_id: str, client_type: str, options: dict[str, Any]) -> int:
        make = inferential.Connection
        self._connections.append(self._do(make, address, client_id=client_id, client_type=client_type, **options))
        return len(self._connections) - 1

    def model(self, connection: int, model_id: str, options: dict[str, Any]) -> int:
        make = self._connections[connection].model
        self._models.append(self._do(lambda: make(model_id, **model_arguments(options))))
        return len(self._models) - 1

    def observe(
        self, model: int, tensors: dict[str, Tensor], metadata: dict[str, str], options: dict[str, Any]
    ) -> Sent:
        arrays = {k: to_array(t) for k, t in tensors.items()}
        return to_sent(self._do(self._models[model].observe, tensors=arrays, metadata=metadata, **options))

    def get_result(self, model: int, timeout_ms: float) -> Reply | None:
        return to_reply(self._do(self._models[model].get_result, timeout_ms))

    def next_reply(self, model: int, timeout_ms: float) -> Reply | None:
        return to_reply(self._do(self._models[model].next_reply, timeout_ms))

    def last_status(self, model: int) -> int | None:
        found = self._models[model].last_status
        return None if found is None else int(found)

    def take_phase_shift_ms(self, model: int) -> float:
        return float(self._models[model].take_phase_shift_ms())

    def pace(self, model: int, hz: float, ticks: int) -> int:
        rate = inferential.Rate(hz, follow=self._models[model])
        return sum(rate.sleep() for _ in range(ticks))

    def decode(self, envelope: bytes, frames: list[bytes]) -> Decoded | None:
        return decode(envelope, frames)

    def act(self, model: int, timeout_ms: float) -> Action:
        return to_action(self._do(self._models[model].act, timeout_ms))

    def cancel(self, model: int, request_id: int) -> bool:
        return bool(self._do(self._models[model].cancel, request_id))

    def ping(self, connection: int, timeout_ms: float) -> Pong | None:
        return to_pong(self._do(self._connections[connection].ping, timeout_ms))

    def link_state(self, connection: int) -> str:
        return str(self._connections[connection].link_state.value)

    def counters(self, connection: int) -> dict[str, int]:
        stats = self._connections[connection].stats
        return dataclasses.asdict(stats)

    def close(self, connection: int) -> None:
        self._do(self._connections[connection].close)

    def two_waiters(self, model: int, timeout_ms: float) -> list[str]:
        found: list[str] = []
        start = threading.Barrier(2)

        def wait() -> None:
            start.wait()
            try:
                found.append("none" if self._models[model].get_result(timeout_ms) is None else "reply")
            except errors.InferentialError as e:
                found.append(call_error(e).code)

        threads = [threading.Thread(target=wait) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sorted(found)
