"""Servable deployments, on the direct path."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import numpy as np
import pytest
import zmq

from inferential.backends import cluster, link
from inferential.backends.link import Endpoint, pb
from inferential.scheduling.request import CallError, CallResult, ItemError

from .ray_driver import decode, driving

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(240)]
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
            self.warmed_up_in = threading.current_thread().name

        def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
            assert self.warmed_up_in == "inferential-model-0"
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
            assert 0 < got["left"] <= 90_000

        # Through the handle they are what they were.
        async with driving(["direct-sync"], direct_path=False) as driver:
            await driver.replica("direct-sync", "handle")
            assert (await driver.infer("direct-sync", x=np.ones(1)))["product"] == 3.0

    try:
        asyncio.run(main())
    finally:
        serve.delete("direct-sync")
        serve.delete("direct-async")


def test_batches(ray_session: None) -> None:
    """One call of infer_batch for several requests; a bad item, and one that does not stack, fail alone."""
    from ray import serve

    from inferential.serving import servable

    @serve.deployment(ray_actor_options=SMALL, max_ongoing_requests=1)
    @servable
    class Batched:
        max_batch_size = 8

        def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
            return {"y": obs["x"] + 1, "size": np.int32(1)}

        def infer_batch(self, batch: list[dict[str, Any]]) -> list[Any]:
            assert all(not o["x"].flags.writeable and not o["x"].flags.owndata for o in batch)  # views of the frames
            stacked = np.stack([o["x"] for o in batch]) + 1
            results: list[Any] = [{"y": y, "size": np.int32(len(batch))} for y in stacked]
            return [ValueError("negative") if o["x"].min() < 0 else r for o, r in zip(batch, results, strict=True)]

    serve.run(Batched.bind(), name="direct-batch", route_prefix=None)

    async def main() -> None:
        async with driving(["direct-batch"]) as driver:
            (replica,) = await driver.replica("direct-batch", "direct")
            assert (replica.slots, replica.max_batch_size) == (1, 8)

            async def call(*values: Any) -> list[Any]:
                requests = [driver.request("direct-batch", x=v) for v in values]
                result = await driver.outcome(driver.start_call(replica, requests))
                assert isinstance(result, CallResult), result
                return [i if isinstance(i, ItemError) else decode(i) for i in result.items]

            got = await call(*(np.full(3, i, np.float32) for i in range(8)))
            assert [float(g["y"][0]) for g in got] == list(range(1, 9))
            assert {int(g["size"]) for g in got} == {8}

            got = await call(np.ones(3), np.full(3, -1.0), np.zeros(3))
            assert [type(g) for g in got] == [dict, ItemError, dict]
            assert got[1] == ItemError("ValueError: negative")

            got = await call(np.ones(3), np.ones(4), np.zeros(3))
            assert [g["y"].shape for g in got] == [(3,), (4,), (3,)]
            assert [int(g["size"]) for g in got] == [2, 1, 2]

    try:
        asyncio.run(main())
    finally:
        serve.delete("direct-batch")


def test_long_inference_that_holds_the_gil(ray_session: None) -> None:
    """Heartbeats go on, nothing is taken for dead, and the calls behind it are answered."""
    from ray import serve

    from inferential.serving import servable

    @serve.deployment(ray_actor_options=SMALL, max_ongoing_requests=2)
    @servable
    class Stubborn:
        def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
            import ctypes

            if float(obs["ms"]):
                ctypes.PyDLL(None).usleep(int(float(obs["ms"]) * 1e3))  # PyDLL keeps the GIL
            return {"y": obs["ms"]}

    serve.run(Stubborn.bind(), name="direct-gil", route_prefix=None)

    async def main() -> None:
        async with driving(["direct-gil"]) as driver:
            assert driver.backend._config.dispatch.health_timeout_ms == 1000
            (replica,) = await driver.replica("direct-gil", "direct")
            slow = driver.start_call(replica, [driver.request("direct-gil", ms=2500.0)])
            quick = driver.start_call(replica, [driver.request("direct-gil", ms=0.0)])
            for call in (slow, quick):
                assert isinstance(await driver.outcome(call), CallResult)
            assert not driver.reasons
            assert driver.of("direct-gil") == [replica]

    try:
        asyncio.run(main())
    finally:
        serve.delete("direct-gil")


def test_no_more_at_a_time_than_allowed_and_nothing_too_late(ray_session: None) -> None:
    """max_ongoing_requests holds whatever servers send; work that is cancelled or past its deadline never reaches the model."""
    from ray import serve

    from inferential.serving import servable

    @serve.deployment(ray_actor_options=SMALL, max_ongoing_requests=2)
    @servable
    class Counting:
        def __init__(self) -> None:
            self.running = self.most = self.ran = 0

        def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
            self.running += 1
            self.most = max(self.most, self.running)
            time.sleep(0.3)
            self.running -= 1
            self.ran += 1
            return {"most": np.int32(self.most), "ran": np.int32(self.ran)}

    serve.run(Counting.bind(), name="direct-count", route_prefix=None)

    async def main() -> None:
        async with driving(["direct-count"]) as driver:
            (replica,) = await driver.replica("direct-count", "direct")
            calls = [driver.start_call(replica, [driver.request("direct-count", x=1.0)]) for _ in range(6)]
            late = driver.start_call(replica, [driver.request("direct-count", x=1.0, deadline_s=0.2)])
            cancelled = driver.start_call(replica, [driver.request("direct-count", x=1.0)])
            driver.backend.abandon(cancelled)
            results = [await driver.outcome(c) for c in (*calls, late, cancelled)]
            assert all(isinstance(r, CallResult) for r in results)
            items = [r.items[0] for r in results if isinstance(r, CallResult)]
            assert isinstance(items[6], ItemError)
            assert "deadline passed" in items[6].message
            assert items[6].expired
            assert isinstance(items[7], ItemError)
            assert "cancelled" in items[7].message
            got = await driver.infer("direct-count", x=1.0)
            assert (int(got["most"]), int(got["ran"])) == (2, 7)

    try:
        asyncio.run(main())
    finally:
        serve.delete("direct-count")


def test_only_who_knows_the_secret_attaches(ray_session: None) -> None:
    async def main() -> None:
        async with driving(["nobody"]) as driver:
            direct = driver.backend._direct
            assert direct is not None
            key = link.SERVERS + direct.server
            data = await driver.until(lambda: cluster.get(key))
            endpoint = Endpoint.from_json(data)
            assert endpoint.local.startswith(("ipc://@", "tcp://127.0.0.1:"))
            assert endpoint.remote == ""  # one node: nothing that another machine could reach

            async def attach(secret: str, version: int = link.VERSION, model: str = "nobody") -> str:
                with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
                    socket.linger = 0
                    socket.connect(endpoint.local)

                    async def ask(message: Any) -> Any:
                        socket.send(message.SerializeToString())
                        assert await asyncio.to_thread(socket.poll, 10_000)
                        return pb.ToReplica.FromString(socket.recv())

                    # Before it is attached, nothing else is listened to.
                    assert (await ask(pb.ToServer(results=[pb.Result(id=1)]))).refused.reason.startswith("not attached")
                    socket.send(b"\xff not protobuf")
                    mine = link.nonce()
                    hello = pb.Hello(version=version, replica="r", model=model, credits=1, nonce=mine)
                    answer = await ask(pb.ToServer(hello=hello))
                    if answer.WhichOneof("kind") == "refused":
                        return str(answer.refused.reason)
                    theirs = answer.challenge.nonce
                    assert link.same(answer.challenge.proof, link.proof(endpoint.secret, "server", mine, theirs))
                    proof = link.proof(secret, "replica", theirs, mine, "r", model)
                    answer = await ask(pb.ToServer(proof=pb.Proof(proof=proof)))
                    kind = answer.WhichOneof("kind")
                    if kind == "welcome":
                        await driver.replica("nobody", "direct")
                    return str(kind)

            assert await attach("00" * 32) == "refused"
            assert not driver.of("nobody")
            assert "version" in await attach(endpoint.secret, version=99)
            assert "does not serve" in await attach(endpoint.secret, model="other")
            assert await attach(endpoint.secret) == "welcome"
            await driver.until(lambda: not driver.of("nobody"))  # its socket is closed
        assert cluster.get(key) is None

    asyncio.run(main())


def test_call_to_a_replica_that_is_gone(ray_session: None) -> None:
    """A call to a replica that is gone fails at once and may be tried elsewhere."""

    async def main() -> None:
        async with driving(["nobody"]) as driver:
            from inferential.scheduling.request import Replica

            gone = Replica("gone", "nobody", 1, 1, "direct")
            outcome = await driver.outcome(driver.start_call(gone, [driver.request("nobody", x=1.0)]))
            assert isinstance(outcome, CallError)
            assert outcome.retryable

    asyncio.run(main())


def test_large_tensors_both_ways(ray_session: None) -> None:
    """Through a whole server: frames of any size pass untouched, one after another and many at a time."""
    from ray import serve

    from inferential import AsyncConnection
    from inferential.serving import servable

    from .ray_load import config, replicas, serving, until

    @serve.deployment(ray_actor_options=SMALL, max_ongoing_requests=8)
    @servable
    class Mirror:
        def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
            return {"flipped": obs["image"][::-1], "state": obs["state"], "word": obs["word"]}

    serve.run(Mirror.bind(), name="direct-large", route_prefix=None)

    async def main() -> None:
        random = np.random.default_rng(1)
        async with serving(config(["direct-large"]), ["direct-large"]) as server:
            await until(lambda: replicas(server, "direct-large"))
            async with AsyncConnection(server.endpoint, "robot") as connection:
                model = connection.model("direct-large", latency_budget_ms=20_000.0)
                for side in (8, 200, 1500):
                    sent = {}
                    for i in range(8):
                        image = random.integers(0, 255, (side, side, 3), np.uint8)
                        state = random.random(7)
                        taken = await model.observe(image=image, state=state, word=f"{side}-{i}")
                        sent[taken.request_id] = (image, state, f"{side}-{i}")
                    for _ in range(8):
                        reply = await model.next_reply(timeout_ms=30_000)
                        assert reply is not None
                        assert reply.ok, reply.error
                        image, state, word = sent.pop(reply.request_id)
                        np.testing.assert_array_equal(reply["flipped"], image[::-1])
                        np.testing.assert_array_equal(reply["state"], state)
                        assert reply.metadata["word"] == word

    try:
        asyncio.run(main())
    finally:
        serve.delete("direct-large")
