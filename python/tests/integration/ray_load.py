"""Load on a live server, with every request's outcomes counted."""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from inferential import AsyncConnection, Server, Status
from inferential.config.schema import InferentialConfig

WAIT_S = 90.0


def config(models: list[str], **dispatch: Any) -> InferentialConfig:
    made = InferentialConfig()
    made.transport.bind = "tcp://127.0.0.1:0"
    made.ray.poll_s = 0.2
    made.queue.request_ttl_ms = 60_000.0  # replicas of a busy machine take their time to start
    made.scheduling.pipeline_dispatch.enabled = True
    made.models.default.max_inflight = 16
    for name, value in dispatch.items():
        setattr(made.dispatch, name, value)
    return made


@asynccontextmanager
async def serving(settings: InferentialConfig, models: list[str]) -> AsyncIterator[Server]:
    async with Server(settings, models=models) as server:
        yield server


async def until(condition: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
    end = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {timeout_s} s"
        await asyncio.sleep(0.02)
    return value


def replicas(server: Server, model: str, path: str = "direct") -> list[str]:
    """Replicas that take calls now."""
    known = server.health()["models"][model]["replicas"]
    return [name for name, r in known.items() if r["path"] == path and not r["draining"]]


class Load:
    """Clients that keep some requests in flight each. The model returns `x + 1`, and strings that say who answered."""

    def __init__(self, server: Server, model: str, clients: int = 4, in_flight: int = 4, name: str = "robot") -> None:
        self._server = server
        self._model = model
        self._clients = clients
        self._in_flight = in_flight
        self._name = name
        self._stopping = False
        self.sent = 0
        self.replies: dict[tuple[int, int], list[Status | int]] = collections.defaultdict(list)
        self.statuses: collections.Counter[str] = collections.Counter()
        self.errors: collections.Counter[str] = collections.Counter()
        self.answered_by: collections.Counter[str] = collections.Counter()
        self.by_client: dict[int, set[str]] = collections.defaultdict(set)
        self.last_by: str = ""

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._client(i)) for i in range(self._clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        await asyncio.wait_for(asyncio.gather(*self._tasks), WAIT_S)
        wrong = {k: v for k, v in self.replies.items() if len(v) != 1}
        assert not wrong, f"requests without exactly one outcome: {wrong}"
        assert len(self.replies) == self.sent

    async def answers(self, number: int, status: Status = Status.OK) -> None:
        """Waits for so many more replies of that kind."""
        target = self.statuses[status.name] + number
        await until(lambda: self.statuses[status.name] >= target)

    async def _client(self, index: int) -> None:
        connection = AsyncConnection(
            self._server.endpoint, f"{self._name}-{index}", "test", hold_off=False, request_timeout_ms=90_000.0
        )
        async with connection:
            model = connection.model(self._model, latency_budget_ms=50_000.0)
            expected: dict[int, float] = {}
            while True:
                while not self._stopping and model.outstanding < self._in_flight:
                    value = np.float64(index * 1_000_000 + self.sent)
                    sent = await model.observe(x=value)
                    assert sent, sent.error
                    self.sent += 1
                    expected[sent.request_id] = float(value)
                reply = await model.next_reply(timeout_ms=60_000)
                if reply is None and self._stopping and not model.outstanding:
                    return  # none outstanding, none in the inbox
                assert reply is not None, f"no outcome in 60 s for {list(expected)[:5]}"
                status = Status(reply.status)
                self.replies[index, reply.request_id].append(status)
                self.statuses[status.name] += 1
                if status is Status.OK:
                    assert float(reply["y"]) == expected.pop(reply.request_id) + 1
                    who = self.last_by = reply.metadata["who"]
                    self.answered_by[who] += 1
                    self.by_client[index].add(reply.timing.replica)
                else:
                    self.errors[reply.error] += 1
                    await asyncio.sleep(0.002)  # answered at once, as when no replica lives: not a storm
