"""Drives a RayServeBackend without a server: what a backend is told and tells, nothing of scheduling."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from inferential import wire
from inferential.backends.ray_serve import RayServeBackend
from inferential.config.schema import InferentialConfig
from inferential.scheduling.request import Call, CallError, CallResult, ItemError, Replica, Request
from inferential.types import Body, Observation

WAIT_S = 90.0


def decode(body: Body) -> dict[str, Any]:
    """A result as the client will read it."""
    response = wire.parse_response(body.envelope, [memoryview(f) for f in body.frames])
    arrays: dict[str, Any] = {t.key: wire.tensor_array(t, response.frames) for t in response.tensors}
    return arrays | dict(response.metadata)


class Driver:
    """BackendEvents, and a caller."""

    def __init__(self, backend: RayServeBackend) -> None:
        self.backend = backend
        self.replicas: dict[tuple[str, str], Replica] = {}
        self.draining: set[tuple[str, str]] = set()
        self.reasons: list[str] = []
        self.troubles: dict[str, str] = {}
        self.outcomes: dict[int, list[CallResult | CallError]] = {}
        self.calls: dict[int, Call] = {}
        self.load: dict[str, int] = {}
        self._waiters: dict[int, asyncio.Future[CallResult | CallError]] = {}
        self._ids = itertools.count(1)
        self._changed = asyncio.Event()

    def replica_up(self, replica: Replica) -> None:
        self.replicas[replica.model, replica.id] = replica
        self.draining.discard((replica.model, replica.id))
        self._changed.set()

    def replica_down(self, model: str, replica_id: str, reason: str, *, drained: bool = False) -> None:
        self.replicas.pop((model, replica_id), None)
        self.reasons.append(reason)
        if drained:
            self.draining.add((model, replica_id))
        else:
            self.draining.discard((model, replica_id))
            for call in list(self.calls.values()):
                if call.id in self._waiters and call.replica.id == replica_id:
                    self._end(call.id, CallError(f"replica lost: {reason}"))
        self._changed.set()

    def completed(self, call_id: int, result: CallResult) -> None:
        self._end(call_id, result)

    def completed_all(self, results: Sequence[tuple[int, CallResult]]) -> None:
        for call_id, result in results:
            self._end(call_id, result)

    def failed(self, call_id: int, error: CallError) -> None:
        self._end(call_id, error)

    def trouble(self, model: str, why: str) -> None:
        self.troubles[model] = why

    def waiting(self, model: str) -> int:
        return self.load.get(model, 0)

    def _end(self, call_id: int, what: CallResult | CallError) -> None:
        self.outcomes.setdefault(call_id, []).append(what)
        waiter = self._waiters.pop(call_id, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(what)

    def of(self, model: str) -> list[Replica]:
        return [r for (m, _), r in self.replicas.items() if m == model]

    async def until(self, condition: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
        """Waits until the condition holds, looking whenever a replica comes or goes (and now and then)."""
        end = time.monotonic() + timeout_s
        while not (value := condition()):
            assert time.monotonic() < end, f"not in {timeout_s} s; replicas {list(self.replicas)}"
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), 0.2)
            except asyncio.TimeoutError:
                continue
        return value

    async def replica(self, model: str, path: str | None = None, count: int = 1) -> list[Replica]:
        return await self.until(
            lambda: (f := [r for r in self.of(model) if path in (None, r.path)]) and len(f) >= count and f
        )

    def request(
        self, model: str, *, deadline_s: float = WAIT_S, metadata: dict[str, str] | None = None, **tensors: Any
    ) -> Request:
        packed = wire.pack_tensors({k: np.asarray(v) for k, v in tensors.items()}, several_frames=True)
        observation = Observation(
            "robot", "test", model, request_id=next(self._ids), metadata=metadata or {}, priority=2
        )
        envelope = wire.encode_observation(observation, packed)
        frames = packed.frames or [b""]
        parsed = wire.parse_observation(envelope, [memoryview(f).nbytes for f in frames])
        now = time.monotonic()
        size = sum(memoryview(f).nbytes for f in frames)
        return Request(b"c", parsed, [envelope, *frames], size, now, expiry=now + deadline_s)

    def start_call(self, replica: Replica, requests: list[Request], timeout_s: float = WAIT_S) -> Call:
        (call,) = self.start_calls(replica, [requests], timeout_s)
        return call

    def start_calls(self, replica: Replica, calls: Sequence[list[Request]], timeout_s: float = WAIT_S) -> list[Call]:
        """Several in one round."""
        started = [self.hand_over(replica, requests, timeout_s) for requests in calls]
        self.backend.flushed()
        return started

    def hand_over(self, replica: Replica, requests: list[Request], timeout_s: float = WAIT_S) -> Call:
        """A call whose round is not over."""
        now = time.monotonic()
        call = Call(next(self._ids), replica.model, replica, requests, now, now + timeout_s)
        self.calls[call.id] = call
        self._waiters[call.id] = asyncio.get_running_loop().create_future()
        self.backend.dispatch(call)
        return call

    async def outcome(self, call: Call, timeout_s: float = WAIT_S) -> CallResult | CallError:
        waiter = self._waiters.get(call.id)
        if waiter is not None:
            await asyncio.wait_for(waiter, timeout_s)
        return self.outcomes[call.id][0]

    async def infer(self, model: str, *, metadata: dict[str, str] | None = None, **tensors: Any) -> Any:
        """One request through any replica: the decoded result, an ItemError or a CallError."""
        replicas = self.of(model) or await self.replica(model)
        call = self.start_call(replicas[0], [self.request(model, metadata=metadata, **tensors)])
        result = await self.outcome(call)
        if isinstance(result, CallError):
            return result
        (item,) = result.items
        return item if isinstance(item, ItemError) else decode(item)


@asynccontextmanager
async def driving(models: list[str], **ray: Any) -> AsyncIterator[Driver]:
    config = InferentialConfig()
    for name, value in ({"poll_s": 0.2} | ray).items():
        setattr(config.ray, name, value)
    backend = RayServeBackend(config, dict.fromkeys(models))
    driver = Driver(backend)
    await backend.start(driver)
    try:
        yield driver
    finally:
        await backend.stop(5.0)
