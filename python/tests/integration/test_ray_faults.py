"""What may happen to replicas and servers under load: every request has exactly one outcome, counted one by one."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from inferential import AsyncConnection, Server, Status
from inferential.config.schema import ModelConfig

from .ray_load import Load, config, replicas, serving, until

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(240)]
SMALL = {"num_cpus": 0.1}


def deployment(version: str = "1", **options: Any) -> Any:
    """A model that adds one, and says which process of which version did it."""
    from ray import serve

    from inferential.serving import servable

    @servable
    class AddOne:
        def __init__(self, version: str) -> None:
            self.who = f"{os.getpid()}:{version}"

        def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
            time.sleep(0.002)
            return {"y": obs["x"] + 1, "who": self.who}

    settings = {"num_replicas": 2, "graceful_shutdown_wait_loop_s": 0.1, "ray_actor_options": SMALL} | options
    return serve.deployment(name="AddOne", **settings)(AddOne).bind(version)


@pytest.fixture
def model(request: pytest.FixtureRequest) -> Iterator[str]:
    """An application name of its own for each test; deleted afterwards."""
    from ray import serve

    name = request.node.name.removeprefix("test_").replace("_", "-")
    yield name
    serve.delete(name)


def run(app: Any, name: str) -> None:
    from ray import serve

    serve.run(app, name=name, route_prefix=None)


def pids(load: Load) -> set[int]:
    return {int(who.split(":")[0]) for who in load.answered_by}


def test_killed_replica(model: str) -> None:
    run(deployment(), model)

    async def main() -> None:
        async with serving(config([model], max_retries=2), [model]) as server:
            before = set(await until(lambda: (r := replicas(server, model)) and len(r) == 2 and r))
            async with Load(server, model) as load:
                await until(lambda: len(pids(load)) == 2)
                killed = sorted(pids(load))[0]
                os.kill(killed, signal.SIGKILL)
                at = time.monotonic()
                await until(lambda: len(replicas(server, model)) == 1)
                noticed_s = time.monotonic() - at
                await load.answers(200)
                # Serve makes another one, and it attaches by itself.
                await until(lambda: len(replicas(server, model)) == 2)
                await until(lambda: len(pids(load)) == 3)
            assert set(load.statuses) == {"OK"}, (load.statuses, load.errors)
            assert noticed_s < 5
            assert set(replicas(server, model)) - before

    asyncio.run(main())


def test_killed_replica_without_retries(model: str) -> None:
    run(deployment(), model)

    async def main() -> None:
        async with serving(config([model]), [model]) as server:
            await until(lambda: len(replicas(server, model)) == 2)
            async with Load(server, model) as load:
                await until(lambda: len(pids(load)) == 2)
                os.kill(sorted(pids(load))[0], signal.SIGKILL)
                await load.answers(1, Status.UNAVAILABLE)
                await load.answers(100)
            assert set(load.statuses) == {"OK", "UNAVAILABLE"}
            assert all("gone" in e for e in load.errors), load.errors

    asyncio.run(main())


def test_hung_replica(model: str) -> None:
    """A process that stops altogether fails its heartbeats; when it goes on, it is taken back."""
    run(deployment(health_check_timeout_s=120), model)

    async def main() -> None:
        async with serving(config([model], max_retries=2), [model]) as server:
            await until(lambda: len(replicas(server, model)) == 2)
            async with Load(server, model) as load:
                await until(lambda: len(pids(load)) == 2)
                hung = sorted(pids(load))[0]
                os.kill(hung, signal.SIGSTOP)
                try:
                    await until(lambda: len(replicas(server, model)) == 1, 20)
                    await load.answers(100)
                finally:
                    os.kill(hung, signal.SIGCONT)
                await until(lambda: len(replicas(server, model)) == 2)
                count = load.answered_by[f"{hung}:1"]
                await until(lambda: load.answered_by[f"{hung}:1"] > count)
            assert set(load.statuses) == {"OK"}, (load.statuses, load.errors)

    asyncio.run(main())


def test_redeploy_under_load(model: str) -> None:
    """Replicas drain before they exit: nothing fails, with no retries at all."""
    run(deployment("1"), model)

    async def main() -> None:
        async with serving(config([model]), [model]) as server:
            await until(lambda: len(replicas(server, model)) == 2)
            async with Load(server, model) as load:
                await load.answers(100)
                await asyncio.to_thread(run, deployment("2"), model)
                await until(lambda: load.last_by.endswith(":2"))
                await until(lambda: len(replicas(server, model)) == 2)
                await load.answers(100)
                assert load.last_by.endswith(":2")
            assert set(load.statuses) == {"OK"}, (load.statuses, load.errors)

    asyncio.run(main())


def test_deleted_application(model: str) -> None:
    from ray import serve

    run(deployment(), model)

    async def main() -> None:
        async with serving(config([model]), [model]) as server:
            await until(lambda: len(replicas(server, model)) == 2)
            async with Load(server, model) as load:
                await load.answers(100)
                await asyncio.to_thread(serve.delete, model)
                await load.answers(20, Status.UNAVAILABLE)
                await asyncio.to_thread(run, deployment("2"), model)
                await until(lambda: load.last_by.endswith(":2"))
            assert set(load.statuses) == {"OK", "UNAVAILABLE"}, (load.statuses, load.errors)

    asyncio.run(main())


def test_server_restart(model: str) -> None:
    """Ray outlives the server: the next one has the replicas within moments, and they forget the first."""
    run(deployment(), model)

    async def main() -> None:
        for _ in range(2):
            async with serving(config([model]), [model]) as server:
                await until(lambda s=server: len(replicas(s, model)) == 2)
                async with Load(server, model) as load:
                    await load.answers(50)
                assert set(load.statuses) == {"OK"}

    asyncio.run(main())


def test_two_servers_share_replicas(model: str) -> None:
    run(deployment(max_ongoing_requests=5), model)

    def slots(server: Server) -> list[int]:
        return [r["slots"] for r in server.health()["models"][model]["replicas"].values()]

    async def main() -> None:
        async with serving(config([model]), [model]) as first:
            await until(lambda: slots(first) == [5, 5])
            async with serving(config([model]), [model]) as second:
                await until(lambda: len(slots(second)) == 2 and sum(slots(first)) + sum(slots(second)) == 10)
                async with Load(first, model, name="a") as a, Load(second, model, name="b") as b:
                    await a.answers(100)
                    await b.answers(100)
                assert set(a.statuses) == set(b.statuses) == {"OK"}
                assert pids(a) == pids(b)
            await until(lambda: slots(first) == [5, 5])

    asyncio.run(main())


def test_client_affinity(model: str) -> None:
    run(deployment(), model)

    async def main() -> None:
        settings = config([model], max_retries=2)
        settings.models.known[model] = ModelConfig(max_inflight=16, affinity="client")
        async with serving(settings, [model]) as server:
            await until(lambda: len(replicas(server, model)) == 2)
            async with Load(server, model, clients=6, in_flight=2) as load:
                await load.answers(300)
                homes = {client: set(where) for client, where in load.by_client.items()}
                assert all(len(where) == 1 for where in homes.values()), homes
                assert len({next(iter(w)) for w in homes.values()}) == 2
                os.kill(sorted(pids(load))[0], signal.SIGKILL)
                await until(lambda: len(replicas(server, model)) == 1)
                await load.answers(100)  # those whose home is gone have another
            assert set(load.statuses) == {"OK"}, (load.statuses, load.errors)

    asyncio.run(main())


def test_model_that_hangs(model: str) -> None:
    """Only the call that hangs is given up, by its own deadline; nobody else notices."""
    from ray import serve

    from inferential.serving import servable

    @servable
    class Hangs:
        def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
            if "hang" in obs:
                time.sleep(20)
            return {"y": obs["x"] + 1, "who": "1"}

    options = {"ray_actor_options": SMALL, "graceful_shutdown_timeout_s": 0.5, "max_ongoing_requests": 4}
    run(serve.deployment(Hangs, **options).bind(), model)

    async def main() -> None:
        async with serving(config([model], call_timeout_ms=1500.0), [model]) as server:
            await until(lambda: replicas(server, model))
            async with Load(server, model, clients=2, in_flight=2) as load:
                await load.answers(20)
                async with AsyncConnection(server.endpoint, "poison") as connection:
                    poison = connection.model(model, latency_budget_ms=60_000.0)
                    await poison.observe(x=np.float64(1), hang="yes")
                    reply = await poison.next_reply(timeout_ms=30_000)
                    assert reply is not None
                    assert reply.status is Status.MODEL_ERROR
                    assert "no answer within" in reply.error
                await load.answers(20)
            assert set(load.statuses) == {"OK"}, (load.statuses, load.errors)

    asyncio.run(main())


def test_control_plane_restarts_under_load(model: str) -> None:
    """Serve's controller dies and comes back: no request hears of it."""
    import ray

    run(deployment(), model)

    async def main() -> None:
        async with serving(config([model]), [model]) as server:
            await until(lambda: len(replicas(server, model)) == 2)
            async with Load(server, model) as load:
                await load.answers(50)
                controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
                before = ray.get(controller.get_pid.remote())
                os.kill(before, signal.SIGKILL)

                def restarted() -> bool:
                    try:
                        return bool(ray.get(controller.get_pid.remote(), timeout=1.0) != before)
                    except ray.exceptions.RayError:
                        return False

                while not await asyncio.to_thread(restarted):
                    await load.answers(10)
                await load.answers(50)
                assert len(replicas(server, model)) == 2
            assert set(load.statuses) == {"OK"}, (load.statuses, load.errors)

    asyncio.run(main())
