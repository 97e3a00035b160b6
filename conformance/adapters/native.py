"""C++ and Rust clients: their binding modules have one interface, so one adapter serves all three.

A binding has `version()` and a class per client (`CppConnection`, `SyncConnection`, `AsyncConnection`) whose methods take and give the
plain values of `base.py`: tensors as (dtype number, shape, bytes), replies and actions as dicts. A refused call raises the
binding's `CallError` with arguments (code, message). Tensors that are given have a fourth entry, the encoding's number.
"""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

from adapters.base import DTYPES, NAMES, Action, Adapter, CallError, Decoded, Pong, Reply, Sent, Tensor


def _give(tensors: dict[str, Tensor] | None) -> dict[str, tuple[int, tuple[int, ...], bytes, int]] | None:
    return (
        None if tensors is None else {k: (DTYPES[t.dtype][0], t.shape, t.data, t.encoding) for k, t in tensors.items()}
    )


def _take(tensors: dict[str, tuple[int, Any, bytes]]) -> dict[str, Tensor]:
    return {k: Tensor(NAMES[dtype], tuple(shape), data) for k, (dtype, shape, data) in tensors.items()}


class Native(Adapter):
    """Over a binding module."""

    module: ClassVar[str]
    connection: ClassVar[str]

    def __init__(self) -> None:
        self._binding = importlib.import_module(self.module)
        self._connections: list[Any] = []
        self._models: list[Any] = []

    def _call(self, function: Any, *args: Any) -> Any:
        try:
            return function(*args)
        except self._binding.CallError as e:
            raise CallError(*e.args) from None

    def version(self) -> str:
        return str(self._binding.version())

    def connect(self, address: str, client_id: str, client_type: str, options: dict[str, Any]) -> int:
        make = getattr(self._binding, self.connection)
        self._connections.append(self._call(make, address, client_id, client_type, options))
        return len(self._connections) - 1

    def model(self, connection: int, model_id: str, options: dict[str, Any]) -> int:
        options = dict(options)
        if "fallback" in options:
            kind, ms, template = options["fallback"]
            options["fallback"] = (kind, float(ms), _give(template))
        self._models.append(self._call(self._connections[connection].model, model_id, options))
        return len(self._models) - 1

    def observe(
        self, model: int, tensors: dict[str, Tensor], metadata: dict[str, str], options: dict[str, Any]
    ) -> Sent:
        return Sent(*self._call(self._models[model].observe, _give(tensors), metadata, options))

    def _reply(self, found: dict[str, Any] | None) -> Reply | None:
        return None if found is None else Reply(**{**found, "tensors": _take(found["tensors"])})

    def get_result(self, model: int, timeout_ms: float) -> Reply | None:
        return self._reply(self._call(self._models[model].get_result, timeout_ms))

    def next_reply(self, model: int, timeout_ms: float) -> Reply | None:
        return self._reply(self._call(self._models[model].next_reply, timeout_ms))

    def last_status(self, model: int) -> int | None:
        found = self._call(self._models[model].last_status)
        return None if found is None else int(found)

    def take_phase_shift_ms(self, model: int) -> float:
        return float(self._call(self._models[model].take_phase_shift_ms))

    def pace(self, model: int, hz: float, ticks: int) -> int:
        return int(self._call(self._models[model].pace, hz, ticks))

    def decode(self, envelope: bytes, frames: list[bytes]) -> Decoded | None:
        found = self._call(self._binding.decode, envelope, frames)
        return None if found is None else Decoded(**{**found, "tensors": _take(found["tensors"])})

    def act(self, model: int, timeout_ms: float) -> Action:
        found = self._call(self._models[model].act, timeout_ms)
        return Action(**{**found, "tensors": _take(found["tensors"])})

    def cancel(self, model: int, request_id: int) -> bool:
        return bool(self._call(self._models[model].cancel, request_id))

    def ping(self, connection: int, timeout_ms: float) -> Pong | None:
        found = self._call(self._connections[connection].ping, timeout_ms)
        return None if found is None else Pong(*found)

    def link_state(self, connection: int) -> str:
        return str(self._call(self._connections[connection].link_state))

    def counters(self, connection: int) -> dict[str, int]:
        return dict(self._call(self._connections[connection].counters))

    def close(self, connection: int) -> None:
        self._call(self._connections[connection].close)

    def two_waiters(self, model: int, timeout_ms: float) -> list[str]:
        return sorted(self._call(self._models[model].two_waiters, timeout_ms))


class Cpp(Native):
    """The C++ SDK."""

    module = "inferential_cpp"
    connection = "Connection"


class RustSync(Native):
    """The Rust SDK's Connection."""

    module = "inferential_rust"
    connection = "SyncConnection"


class RustAsync(Native):
    """The Rust SDK's AsyncConnection."""

    module = "inferential_rust"
    connection = "AsyncConnection"
