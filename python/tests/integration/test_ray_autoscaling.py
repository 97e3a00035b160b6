"""Serve scales the replicas of a servable deployment, although it sees none of the requests."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from .ray_load import Load, config, replicas, serving, until

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(240)]


@pytest.mark.parametrize("fewest", [1, 0])
def test_load_grows_the_replicas_and_idling_shrinks_them(ray_session: None, fewest: int) -> None:
    from ray import serve

    from inferential.serving import servable

    name = f"scaled-from-{fewest}"

    @serve.deployment(
        max_ongoing_requests=2,
        graceful_shutdown_wait_loop_s=0.1,
        ray_actor_options={"num_cpus": 0.1},
        autoscaling_config={
            "min_replicas": fewest,
            "max_replicas": 3,
            "target_ongoing_requests": 2,
            "upscale_delay_s": 0.5,
            "downscale_delay_s": 1.0,
            "downscale_to_zero_delay_s": 1.0,
            "look_back_period_s": 1.0,
            "metrics_interval_s": 0.2,
        },
    )
    @servable
    class Slow:
        def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
            time.sleep(0.02)
            return {"y": obs["x"] + 1, "who": "slow"}

    async def main() -> None:
        async with serving(config([name], max_retries=2), [name]) as server:

            def count() -> int:
                return len(replicas(server, name))

            if fewest:
                await until(lambda: count() == 1)
            else:
                await until(lambda: replicas(server, name, "handle"))
            async with Load(server, name, clients=2, in_flight=20) as load:
                await until(lambda: count() == 3)
                await load.answers(100)
            assert set(load.statuses) == {"OK"}, (load.statuses, load.errors)
            await until(lambda: count() == fewest)

    serve.run(Slow.bind(), name=name, route_prefix=None)
    try:
        asyncio.run(main())
    finally:
        serve.delete(name)
