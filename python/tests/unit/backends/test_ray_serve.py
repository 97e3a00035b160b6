"""The Ray Serve backend's dealings with threads; what it does with Ray itself is in the integration tests."""

from __future__ import annotations

import asyncio
import threading

from inferential.backends.ray_serve import RayServeBackend
from inferential.config.schema import InferentialConfig


def test_stopping_waits_for_calls_whose_waiters_were_cancelled() -> None:
    async def scenario() -> None:
        backend = RayServeBackend(InferentialConfig(), {})
        let_go = threading.Event()
        caller = asyncio.create_task(backend._in_thread(let_go.wait, 30.0))
        await asyncio.sleep(0)
        caller.cancel()
        stopping = asyncio.create_task(backend.stop(30.0))
        for _ in range(100):
            await asyncio.sleep(0)
        assert caller.cancelled()
        assert not stopping.done()
        let_go.set()
        await asyncio.wait_for(stopping, 10.0)

    asyncio.run(scenario())
