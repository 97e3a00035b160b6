"""Servable deployments, on the direct path."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from inferential.scheduling.request import CallResult, ItemError

from .ray_driver import decode, driving

pytestmark = pytest.mark.usefixtures("ray_session")
SMALL = {"num_cpus": 0.1}


def test_servable_models(ray_session: None) -> None:
    from ray import serve

    from inferential.serving import servable

    @serve.deployment(ray_actor_options=SMALL, num_replicas=2, max_ongoing_requests=3)
    @servable
    class Sync:
        def __init__(self, factor: float) -> None:
            self.factor = factor
            self.warm = False

        def warm_up(self) -> None:
            self.warm = True

        def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
            if "fail" in obs:
                raise ValueError("no such pose")
            return {"product": obs["x"] * self.factor, "warm": str(self.warm)}

    @serve.deployment(ray_actor_options=SMALL)
    @servable
    class Async:
        async def warm_up(self) -> None:
            await asyncio.sleep(0)
            self.loop = asyncio.get_running_loop()

        async def infer(self, obs: dict[str, Any], context: Any) -> dict[str, Any]:
            await asyncio.sleep(0)
            assert self.loop is asyncio.get_running_loop()
            return {"who": context.client_id, "left": context.remaining_ms}

    serve.run(Sync.bind(3.0), name="direct-sync", route_prefix=None)
    handle = serve.run(Async.bind(), name="direct-async", route_prefix=None)
    del handle

    async def main() -> None:
        async with driving(["direct-sync", "direct-async"]) as driver:
            replicas = await driver.replica("direct-sync", "direct", 2)
            assert [(r.slots, r.max_batch_size) for r in replicas] == [(3, 1), (3, 1)]
            for replica in replicas:
                call = driver.start_call(replica, [driver.request("direct-sync", x=np.arange(4, dtype=np.float32))])
                result = await driver.outcome(call)
                assert isinstance(result, CallResult), result
                got = decode(result.items[0])  # type: ignore[arg-type]
                np.testing.assert_array_equal(got["product"], np.float32([0, 3, 6, 9]))
                assert got["warm"] == "True"
                assert result.inference_s > 0
            assert await driver.infer("direct-sync", metadata={"fail": "yes"}) == ItemError("ValueError: no such pose")
            big = np.random.default_rng(0).integers(0, 80, (6_000_000,), np.uint8)
            got = await driver.infer("direct-sync", x=big)
            np.testing.assert_array_equal(got["product"], big * 3.0)
            await driver.replica("direct-async", "direct")
            got = await driver.infer("direct-async", x=1.0)
            assert got["who"] == "robot"
            assert 0 < got["left"] <= 40_000

        # Through the handle they are what they were.
        async with driving(["direct-sync"], direct_path=False) as driver:
            await driver.replica("direct-sync", "handle")
            assert (await driver.infer("direct-sync", x=np.ones(1)))["product"] == 3.0

    try:
        asyncio.run(main())
    finally:
        serve.delete("direct-sync")
        serve.delete("direct-async")
