"""The Python SDK's AsyncConnection: its event loop runs beside the calls."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Awaitable
from typing import Any

import inferential
from inferential import errors

from adapters.base import Action, Adapter, Decoded, Pong, Reply, Sent, Tensor
from adapters.python_sync import call_error, decode, model_arguments, to_action, to_array, to_pong, to_reply, to_sent


class PythonAsync(Adapter):
    """The loop runs in a thread of its own, all the time: as in a program, tasks of the SDK go on between calls."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._connections: list[inferential.AsyncConnection] = []
        self._models: list[Any] = []

    def _do(self, call: Awaitable[Any]) -> Any:
        async def run() -> Any:
            return await call

        try:
            return asyncio.run_coroutine_threadsafe(run(), self._loop).result()
        except errors.InferentialError as e:
            raise call_error(e) from None

    def version(self) -> str:
        return inferential.__version__

    def connect(self, address: str, client_id: str, client_type: str, options: dict[str, Any]) -> int:
        async def make() -> inferential.AsyncConnection:
            return inferential.AsyncConnection(address, client_id=client_id, client_type=client_type, **options)

        self._connections.append(self._do(make()))
        return len(self._connections) - 1

    def model(self, connection: int, model_id: str, options: dict[str, Any]) -> int:
        async def make() -> Any:
            return self._connections[connection].model(model_id, **model_arguments(options))

        self._models.append(self._do(make()))
        return len(self._models) - 1

    def observe(
        self, model: int, tensors: dict[str, Tensor], metadata: dict[str, str], options: dict[str, Any]
    ) -> Sent:
        arrays = {k: to_array(t) for k, t in tensors.items()}
        return to_sent(self._do(self._models[model].observe(tensors=arrays, metadata=metadata, **options)))

    def get_result(self, model: int, timeout_ms: float) -> Reply | None:
        return to_reply(self._do(self._models[model].get_result(timeout_ms)))

    def next_reply(self, model: int, timeout_ms: float) -> Reply | None:
        return to_reply(self._do(self._models[model].next_reply(timeout_ms)))

    def last_status(self, model: int) -> int | None:
        found = self._models[model].last_status
        return None if found is None else int(found)

    def take_phase_shift_ms(self, model: int) -> float:
        return float(self._models[model].take_phase_shift_ms())

    def pace(self, model: int, hz: float, ticks: int) -> int:
        async def run() -> int:
            rate = inferential.AsyncRate(hz, follow=self._models[model])
            return sum([await rate.sleep() for _ in range(ticks)])

        return int(self._do(run()))

    def decode(self, envelope: bytes, frames: list[bytes]) -> Decoded | None:
        return decode(envelope, frames)

    def act(self, model: int, timeout_ms: float) -> Action:
        return to_action(self._do(self._models[model].act(timeout_ms)))

    def cancel(self, model: int, request_id: int) -> bool:
        return bool(self._do(self._models[model].cancel(request_id)))

    def ping(self, connection: int, timeout_ms: float) -> Pong | None:
        return to_pong(self._do(self._connections[connection].ping(timeout_ms)))

    def link_state(self, connection: int) -> str:
        async def read() -> str:
            return str(self._connections[connection].link_state.value)

        return str(self._do(read()))

    def counters(self, connection: int) -> dict[str, int]:
        async def read() -> dict[str, int]:
            stats = self._connections[connection].stats
            return dataclasses.asdict(stats)

        found: dict[str, int] = self._do(read())
        return found

    def close(self, connection: int) -> None:
        self._do(self._connections[connection].close())

    def two_waiters(self, model: int, timeout_ms: float) -> list[str]:
        async def wait() -> str:
            try:
                return "none" if await self._models[model].get_result(timeout_ms) is None else "reply"
            except errors.InferentialError as e:
                return call_error(e).code

        async def both() -> list[str]:
            return sorted(await asyncio.gather(wait(), wait()))

        found: list[str] = self._do(both())
        return found
