"""Plain Serve deployments, through Serve's own handles."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import numpy as np
import pytest

from inferential import AsyncConnection, Status
from inferential.backends import cluster
from inferential.scheduling.request import CallError, ItemError

from .ray_driver import WAIT_S, driving
from .ray_load import config, replicas, serving, until

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(240)]
SMALL = {"num_cpus": 0.1}


def test_plain_deployments(ray_session: None) -> None:
    """Sync, async and callable models, with and without context; strings, bare arrays, large arrays and failures."""
    from ray import serve

    @serve.deployment(ray_actor_options=SMALL, num_replicas=2, max_ongoing_requests=3)
    class Sync:
        def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
            if "fail" in obs:
                raise ValueError("no such pose")
            return {"double": obs["x"] * 2, "word": obs["word"], "list": [1.0, 2.0]}

    @serve.deployment(ray_actor_options=SMALL)
    class Async:
        async def infer(self, obs: dict[str, Any], context: Any = None) -> dict[str, Any]:
            await asyncio.sleep(0)
            return {"who": context.client_id, "priority": np.int32(context.priority), "left": context.remaining_ms}

    @serve.deployment(ray_actor_options=SMALL)
    class Callable:
        def __call__(self, obs: dict[str, Any]) -> Any:
            return obs["x"][::-1]

    apps = {"plain-sync": Sync, "plain-async": Async, "plain-call": Callable}
    for name, deployment in apps.items():
        serve.run(deployment.bind(), name=name, route_prefix=None)

    async def main() -> None:
        async with driving(list(apps)) as driver:
            (replica,) = await driver.replica("plain-sync")
            assert (replica.path, replica.max_batch_size) == ("handle", 1)
            await driver.until(lambda: driver.of("plain-sync")[0].slots == 6)
            got = await driver.infer("plain-sync", x=np.arange(4, dtype=np.float32), metadata={"word": "hej"})
            np.testing.assert_array_equal(got["double"], np.float32([0, 2, 4, 6]))
            assert got["double"].dtype == np.float32
            assert (got["word"], list(got["list"])) == ("hej", [1.0, 2.0])

            failed = await driver.infer("plain-sync", metadata={"fail": "yes"})
            assert failed == ItemError("ValueError: no such pose")

            big = np.random.default_rng(0).integers(0, 255, (3_000_000,), np.uint8)
            got = await driver.infer("plain-sync", x=big, metadata={"word": ""})
            np.testing.assert_array_equal(got["double"], big * 2)

            got = await driver.infer("plain-async", x=np.zeros(1))
            assert got["who"] == "robot"
            assert got["priority"] == 2
            assert 0 < got["left"] <= 90_000

            got = await driver.infer("plain-call", x=np.arange(3))
            np.testing.assert_array_equal(got["actions"], [2, 1, 0])

    try:
        asyncio.run(main())
    finally:
        for name in apps:
            serve.delete(name)


def test_model_that_is_not_there_yet_and_goes_again(ray_session: None) -> None:
    from ray import serve

    @serve.deployment(ray_actor_options=SMALL)
    class Late:
        def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
            return {"y": obs["x"]}

    async def main() -> None:
        async with driving(["late"]) as driver:
            assert not driver.of("late")
            await asyncio.to_thread(serve.run, Late.bind(), name="late", route_prefix=None)
            await driver.replica("late")
            assert (await driver.infer("late", x=np.ones(2)))["y"].shape == (2,)
            await asyncio.to_thread(serve.delete, "late")
            await driver.until(lambda: not driver.of("late"))

    asyncio.run(main())


def test_no_call_goes_before_it_is_known_what_the_class_takes(
    ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking at the class takes as long as it takes; one that can do without a context gets it from its first call on."""
    from ray import serve

    @serve.deployment(ray_actor_options=SMALL)
    class Asks:
        def infer(self, obs: dict[str, Any], context: Any = None) -> dict[str, Any]:
            return {"who": "nobody" if context is None else context.client_id}

    looking, go_on, lists = threading.Event(), threading.Event(), 0
    signature, applications = cluster.signature, cluster.applications

    def slow_signature(*arguments: Any) -> Any:
        looking.set()
        assert go_on.wait(WAIT_S)
        return signature(*arguments)

    def counted_applications(*arguments: Any) -> Any:
        nonlocal lists
        lists += looking.is_set()
        return applications(*arguments)

    monkeypatch.setattr(cluster, "signature", slow_signature)
    monkeypatch.setattr(cluster, "applications", counted_applications)
    serve.run(Asks.bind(), name="asks", route_prefix=None)

    async def looked_five_times() -> None:
        while lists < 5:
            await asyncio.sleep(0.01)

    async def main() -> None:
        async with driving(["asks"], poll_s=0.05) as driver:
            await asyncio.wait_for(looked_five_times(), WAIT_S)
            assert not driver.of("asks")
            go_on.set()
            await driver.replica("asks")
            assert (await driver.infer("asks", x=np.ones(1)))["who"] == "robot"

    try:
        asyncio.run(main())
    finally:
        go_on.set()
        serve.delete("asks")


def test_every_call_is_bounded(ray_session: None) -> None:
    """A model that hangs costs its callers their deadline, not more."""
    from ray import serve

    @serve.deployment(ray_actor_options=SMALL, graceful_shutdown_timeout_s=0.5)
    class Hung:
        async def infer(self, obs: dict[str, Any]) -> None:
            await asyncio.sleep(3600)

    serve.run(Hung.bind(), name="hung-plain", route_prefix=None)

    async def main() -> None:
        async with driving(["hung-plain"]) as driver:
            (replica,) = await driver.replica("hung-plain")
            call = driver.start_call(replica, [driver.request("hung-plain", x=1.0)], timeout_s=0.3)
            outcome = await driver.outcome(call)
            assert isinstance(outcome, CallError)
            assert "no answer in time" in outcome.message

    try:
        asyncio.run(main())
    finally:
        serve.delete("hung-plain")


@pytest.mark.parametrize("is_async", [False, True])
def test_a_cancelled_call_of_an_async_model_ends_at_once_and_of_a_sync_one_with_the_model(is_async: bool) -> None:
    from ray import serve

    @serve.deployment(ray_actor_options=SMALL)
    class Sync:
        def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
            time.sleep(8.0)
            return {"actions": obs["x"]}

    @serve.deployment(ray_actor_options=SMALL)
    class Async:
        async def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
            await asyncio.sleep(3600.0)
            return {"actions": obs["x"]}

    name = f"cancelled-{'async' if is_async else 'sync'}"
    serve.run((Async if is_async else Sync).bind(), name=name, route_prefix=None)

    async def main() -> None:
        async with serving(config([name]), [name]) as server:

            def in_flight() -> Any:
                return server.health()["models"][name]["in_flight"]

            await until(lambda: replicas(server, name, "handle"))
            async with AsyncConnection(server.endpoint, "robot") as connection:
                model = connection.model(name, latency_budget_ms=3600_000.0)
                sent = await model.observe(x=np.ones(1))
                await until(lambda: in_flight() == 1)
                assert await connection.ping(WAIT_S * 1e3) is not None
                assert await model.cancel(sent.request_id)
                reply = await model.next_reply(WAIT_S * 1e3)
                assert reply is not None
                assert reply.status is Status.CANCELLED
                if not is_async:
                    assert in_flight() == 1
                await until(lambda: in_flight() == 0)

    try:
        asyncio.run(main())
    finally:
        serve.delete(name)
