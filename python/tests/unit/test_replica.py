"""The model's end of the direct path against a server's end, without Ray: both talk over loopback."""

from __future__ import annotations

import asyncio
import random
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import numpy as np
import pytest
import zmq
from google.protobuf.message import DecodeError

from inferential import replica as replica_module
from inferential.backends import cluster, direct, link, unix_link
from inferential.backends.direct import DirectPath
from inferential.config.schema import InferentialConfig
from inferential.model_call import ModelCall
from inferential.replica import Identity, ModelThread, ReplicaLinks
from inferential.scheduling.request import CallError, CallResult, ItemError
from tests.integration.eventually import eventually
from tests.integration.ray_driver import Driver, decode


class Store:
    """Stands for Ray's key-value store."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.data: dict[str, bytes] = {}
        monkeypatch.setattr(cluster, "keys", lambda prefix: [k for k in list(self.data) if k.startswith(prefix)])
        monkeypatch.setattr(cluster, "get", self.data.get)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    return Store(monkeypatch)


@asynccontextmanager
async def server(store: Store, config: InferentialConfig | None = None) -> AsyncIterator[Driver]:
    driver = Driver(None)  # type: ignore[arg-type]
    config = config or InferentialConfig()
    # A busy machine may keep libzmq's threads waiting for more than a second.
    config.dispatch.health_timeout_ms = 60_000.0
    path = DirectPath(config, ["m"], driver)
    driver.backend = path  # type: ignore[assignment]
    raised: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
    path.open()
    store.data[link.SERVERS + path.server] = path.endpoint("here").to_json()
    try:
        yield driver
    finally:
        path.close()
        del store.data[link.SERVERS + path.server]
    assert not raised


@asynccontextmanager
async def replica(
    model: Any, name: str = "r", max_ongoing: Callable[[], int] = lambda: 2
) -> AsyncIterator[ReplicaLinks]:
    thread = None
    if hasattr(model, "warm_up"):
        thread = ModelThread("inferential-model-0")
        await asyncio.wrap_future(thread.submit(model.warm_up))
    links = ReplicaLinks(
        ModelCall(model, "m"),
        Identity(name, "m", "here"),
        max_batch_size=4,
        max_ongoing=max_ongoing,
        loop=asyncio.get_running_loop(),
        thread=thread,
    )
    links.start(lambda: True)
    try:
        yield links
    finally:
        await links.drain(5.0)


async def ask(driver: Driver, replica: Any, **tensors: Any) -> Any:
    result = await driver.outcome(driver.start_call(replica, [driver.request("m", **tensors)]))
    assert isinstance(result, CallResult), result
    return result.items[0]


class Where:
    """Says which thread it runs on, and takes as long as it is told to."""

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        if float(obs["s"]):
            time.sleep(float(obs["s"]))
        return {"thread": threading.current_thread().name}


def test_quick_model_and_a_call_that_is_not(store: Store) -> None:
    """A model that was quick so far is run where its calls arrive; a long call then keeps nothing from going on."""

    async def main() -> None:
        async with server(store) as driver, replica(Where()):
            (r,) = await driver.replica("m")
            for _ in range(500):
                where = decode(await ask(driver, r, s=0.0))["thread"]
                if where.startswith("inferential-io"):
                    break
            else:
                pytest.skip("the machine is too busy for any call to be quick")
            slow = driver.start_call(r, [driver.request("m", s=3.0)])
            started = time.monotonic()
            for _ in range(5):
                await ask(driver, r, s=0.0)
            assert time.monotonic() - started < 2.5  # all of them before the long one ended
            assert slow.id not in driver.outcomes
            result = await driver.outcome(slow)
            assert isinstance(result, CallResult)
            assert result.inference_s >= 3.0
            await ask(driver, r, s=0.0)

    asyncio.run(main())


class Warm(Where):
    warmed_up = ""

    def warm_up(self) -> None:
        self.warmed_up = threading.current_thread().name


async def threads(driver: Driver, r: Any, seconds: float) -> set[str]:
    """Where 25 calls ran, one after the other."""
    return {decode(await ask(driver, r, s=seconds))["thread"] for _ in range(25)}


def test_all_calls_come_from_the_thread_that_was_warmed_up(store: Store) -> None:
    """GPU libraries keep plans for each thread: in another one every batch size would be slow once more."""

    model = Warm()

    async def main() -> None:
        async with server(store) as driver, replica(model, max_ongoing=lambda: 1):
            (r,) = await driver.replica("m")
            found = await asyncio.gather(*(threads(driver, r, s) for s in (0.0, 0.001, 0.001, 0.002)))
            assert set().union(*found) == {model.warmed_up}
            assert model.warmed_up == "inferential-model-0"

    asyncio.run(main())


def test_when_fewer_calls_may_run_the_thread_that_was_warmed_up_is_left(store: Store) -> None:
    limit = 3
    model = Warm()

    async def main() -> None:
        async with server(store) as driver, replica(model, max_ongoing=lambda: limit):
            (r,) = await driver.replica("m")
            together = await asyncio.gather(*(threads(driver, r, 0.01) for _ in range(4)))
            assert set().union(*together) == {f"inferential-model-{i}" for i in range(3)}
            set_limit(1)
            await driver.until(lambda: [r.slots for r in driver.of("m")] == [1])
            (r,) = driver.of("m")
            left = await asyncio.gather(*(threads(driver, r, 0.001) for _ in range(3)))
            assert set().union(*left) == {model.warmed_up}

    def set_limit(to: int) -> None:
        nonlocal limit
        limit = to

    asyncio.run(main())


@pytest.mark.parametrize("pads", [[0], [0, 50_000], [0, 0, 0, 1_000_000]], ids=["small", "large too", "a rare giant"])
def test_calls_run_in_the_order_in_which_they_came(store: Store, pads: list[int]) -> None:
    class Ordered:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
            self.seen.append(int(obs["number"]))
            time.sleep(random.Random(self.seen[-1]).choice([0.0005, 0.001, 0.002]))
            return {"number": obs["number"]}

    model = Ordered()

    def request(driver: Driver, number: int) -> Any:
        return driver.request("m", number=np.int64(number), pad=np.zeros(pads[number % len(pads)], np.uint8))

    async def main() -> None:
        async with server(store) as driver, replica(model, max_ongoing=lambda: 1):
            (r,) = await driver.replica("m")
            waiting: deque[Any] = deque()
            for number in range(200):
                if len(waiting) == 3:
                    assert isinstance(await driver.outcome(waiting.popleft()), CallResult)
                waiting.append(driver.start_call(r, [request(driver, number)]))
            for call in waiting:
                await driver.outcome(call)
            assert model.seen == sorted(model.seen)
            assert len(model.seen) == 200

    asyncio.run(main())


class Mirror:
    """Gives back what it got, upside down."""

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        return {"pad": obs["pad"][::-1], "word": obs["word"]}


@pytest.mark.parametrize("kind", [Mirror, type("WarmMirror", (Mirror,), {"warm_up": lambda self: None})])
@pytest.mark.parametrize("seed", range(2))
def test_calls_of_one_round_each_get_their_own_result(store: Store, kind: type[Mirror], seed: int) -> None:
    draw = random.Random(seed)
    sizes = [0, 3, 4_000, 5_000, 100_000]

    async def main() -> None:
        async with server(store) as driver, replica(kind()):
            (r,) = await driver.replica("m")
            sent: list[list[tuple[Any, str]]] = []
            for call in range(50):
                pads = [np.frombuffer(draw.randbytes(draw.choice(sizes)), np.uint8) for _ in range(draw.randint(1, 3))]
                sent.append([(pad, f"{call}-{i}") for i, pad in enumerate(pads)])
            calls = [[driver.request("m", metadata={"word": word}, pad=pad) for pad, word in items] for items in sent]
            for items, call in zip(sent, driver.start_calls(r, calls), strict=True):
                result = await driver.outcome(call)
                assert isinstance(result, CallResult)
                for (pad, word), item in zip(items, result.items, strict=True):
                    assert not isinstance(item, ItemError), item
                    found = decode(item)
                    assert found["word"] == word
                    np.testing.assert_array_equal(found["pad"], pad[::-1])

    asyncio.run(main())


class Long:
    """Gives as many bytes as it is asked for."""

    def infer_batch(self, batch: list[dict[str, Any]]) -> list[Any]:
        return [np.zeros(obs["n"], np.uint8) for obs in batch]


def test_a_result_that_the_server_does_not_take_fails_alone(store: Store) -> None:
    """Sent, it would cost the replica its link, and the calls of others with that."""

    async def main() -> None:
        config = InferentialConfig()
        config.transport.max_message_bytes = 1_000_000
        async with server(store, config) as driver, replica(Long()):
            (r,) = await driver.replica("m")
            sizes = (7, direct.RESULT_BYTES, direct.RESULT_BYTES + 1, 7)
            result = await driver.outcome(driver.start_call(r, [driver.request("m", n=n) for n in sizes]))
            assert isinstance(result, CallResult)
            a, b, too_long, c = result.items
            assert [decode(item)["actions"].nbytes for item in (a, b, c)] == [7, direct.RESULT_BYTES, 7]
            assert isinstance(too_long, ItemError)
            assert f"{direct.RESULT_BYTES + 1} bytes, the server takes {direct.RESULT_BYTES}" in too_long.message
            assert await driver.replica("m") == [r]

    asyncio.run(main())


def test_small_calls_of_one_round_share_messages(store: Store) -> None:
    async def main() -> None:
        async with server(store) as driver:
            (data,) = store.data.values()
            endpoint = link.Endpoint.from_json(data)
            with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
                socket.linger = 0
                socket.connect(endpoint.local)

                async def receive() -> Any:
                    assert await asyncio.to_thread(socket.poll, 20_000)
                    header, *frames = socket.recv_multipart()
                    return link.pb.ToReplica.FromString(header), frames

                mine = link.nonce()
                hello = link.pb.Hello(version=link.VERSION, replica="r", model="m", credits=100, nonce=mine)
                socket.send(link.pb.ToServer(hello=hello).SerializeToString())
                theirs = (await receive())[0].challenge.nonce
                proof = link.pb.Proof(proof=link.proof(endpoint.secret, "replica", theirs, mine, "r", "m"))
                socket.send(link.pb.ToServer(proof=proof).SerializeToString())
                assert (await receive())[0].HasField("welcome")
                (r,) = await driver.replica("m")

                async def shared(sizes: list[int]) -> list[int]:
                    """How many calls each message of a round has."""
                    started = driver.start_calls(r, [[driver.request("m", pad=np.zeros(n, np.uint8))] for n in sizes])
                    counts: list[int] = []
                    ids: list[int] = []
                    while len(ids) < len(sizes):
                        message, frames = await receive()
                        if message.calls:  # else it tells what waits
                            counts.append(len(message.calls))
                            ids += [call.id for call in message.calls]
                            assert len(frames) == sum(item.frames for call in message.calls for item in call.items)
                    assert ids == [call.id for call in started]
                    return counts

                assert await shared([7] * 20) == [8, 8, 4]
                assert await shared([7]) == [1]
                # Frames end a message: what is large goes at once.
                assert await shared([7, 7, 50_000, 50_000, 7]) == [3, 1, 1]

    asyncio.run(main())


def test_results_that_share_a_message_with_one_of_a_call_that_was_given_up(store: Store) -> None:
    async def main() -> None:
        model = Gated()
        async with server(store) as driver, replica(model):
            (r,) = await driver.replica("m")
            path: Any = driver.backend
            (peer,) = path._peers.values()
            call = driver.start_call(r, [driver.request("m", n=1)])
            results = [
                link.pb.Result(id=number, items=[link.pb.ItemResult(frames=1)]) for number in (call.id + 100, call.id)
            ]
            message = link.pb.ToServer(results=results).SerializeToString()
            path._received(peer.routing_id, -1, message, [b"nobody's", b"mine"])
            path._hand_over()
            result = await driver.outcome(call)
            assert isinstance(result, CallResult)
            assert list(result.items[0].frames) == [b"mine"]  # type: ignore[union-attr]
            model.go.release()  # its answer comes too late and is ignored
            model.go.release()
            assert isinstance(await driver.outcome(driver.start_call(r, [driver.request("m", n=2)])), CallResult)
            assert [len(ends) for ends in driver.outcomes.values()] == [1, 1]

    asyncio.run(main())


def test_a_replica_that_goes_in_the_midst_of_a_round(store: Store) -> None:
    def request(driver: Driver) -> Any:
        return [driver.request("m", metadata={"word": ""}, pad=np.zeros(3))]

    async def main() -> None:
        async with server(store) as driver, replica(Mirror(), "goes"), replica(Mirror(), "stays"):
            replicas = {r.id: r for r in await driver.replica("m", count=2)}
            path: Any = driver.backend
            calls = [driver.hand_over(replicas[name], request(driver)) for name in ("goes", "stays", "goes", "stays")]
            path._gone(path._replicas["goes"], "it was pulled out")
            path.flushed()
            assert isinstance(await driver.outcome(driver.start_call(replicas["goes"], request(driver))), CallError)
            ends = [type(await driver.outcome(call)) for call in calls]
            assert ends == [CallError, CallResult, CallError, CallResult]
            assert path._awaited == 0

    asyncio.run(main())


class Gated:
    """Runs until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        assert self.go.acquire(timeout=20.0)
        return {"n": obs["n"]}


class GatedAsync(Gated):
    async def infer(self, obs: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        return await asyncio.to_thread(Gated.infer, self, obs)


@pytest.mark.parametrize("kind", [Gated, GatedAsync])
def test_a_call_says_how_long_before_its_turn_it_was_ready(store: Store, kind: type[Gated]) -> None:
    model = kind()

    async def main() -> None:
        async with server(store) as driver, replica(model, max_ongoing=lambda: 1) as links:
            (r,) = await driver.replica("m")
            first, second = (driver.start_call(r, [driver.request("m", n=n)]) for n in (1, 2))
            await driver.until(lambda: links.ongoing() == 2)
            await asyncio.sleep(0.3)  # what is measured
            model.go.release(2)
            results = [await driver.outcome(call) for call in (first, second)]
            await asyncio.sleep(0.3)
            model.go.release()
            results.append(await driver.outcome(driver.start_call(r, [driver.request("m", n=3)])))
            none, before, after = (result.ahead_s for result in results)  # type: ignore[union-attr]
            assert none is None
            assert 0.05 < before < 20.0  # type: ignore[operator]
            assert -20.0 < after < -0.05  # type: ignore[operator]

    asyncio.run(main())


class Dallying:
    """An array of the model's own, that takes until it is let go to become one of numpy's."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.thread = ""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        self.thread = threading.current_thread().name
        assert self.go.wait(20.0)
        return np.ones(3, np.float32)


def test_a_result_that_takes_long_to_encode_keeps_neither_the_model_nor_the_links(store: Store) -> None:
    dallying = Dallying()

    class Model(Warm):
        def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
            return {"slow": dallying} if float(obs["s"]) else super().infer(obs)

    async def main() -> None:
        async with server(store) as driver, replica(Model(), max_ongoing=lambda: 2):
            (r,) = await driver.replica("m")
            await threads(driver, r, 0.0)
            slow = driver.start_call(r, [driver.request("m", s=1.0)])
            await driver.until(lambda: bool(dallying.thread))
            assert dallying.thread.startswith("inferential-codec")
            assert await threads(driver, r, 0.0) <= {"inferential-model-0", "inferential-model-1"}
            assert slow.id not in driver.outcomes
            dallying.go.set()
            result = await driver.outcome(slow)
            assert isinstance(result, CallResult)
            assert decode(result.items[0])["slow"].tolist() == [1.0, 1.0, 1.0]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("results", "copied"),
    [
        ([{"a": np.zeros(7, np.float32), "b": "text"}] * 60, True),
        ([np.zeros(7), ItemError("no")], True),
        ([{"a": np.zeros(40_000, np.uint8)}], False),
        ([{"a": np.zeros(1_000, np.uint8)}] * 64, False),
        ([{str(i): np.zeros(0) for i in range(1_000)}], False),
        ([{str(i): "" for i in range(1_000)}], False),
        ([{"a" * 40_000: np.zeros(3)}], False),
        ([{1: np.zeros(3)}], False),
        ([np.array([object()], object)], False),
        ([{"a": "x" * 40_000}], False),
        ([{"a": np.zeros(1)}, {"a": [1.0]}], False),
        ([{"a": Dallying()}], False),
        ([np.ma.zeros(3)], False),
        ([None], False),
    ],
)
def test_of_which_results_there_are_copies(results: list[Any], copied: bool) -> None:
    copies = replica_module._copies(results)
    assert (copies is not None) is copied
    for copy, result in zip(copies or [], results, strict=False):
        if isinstance(result, dict):
            assert copy is not result
            assert list(copy) == list(result)
        if isinstance(result, np.ndarray):
            assert not np.shares_memory(copy, result)


def test_a_model_may_write_to_its_small_results_in_the_next_call(store: Store) -> None:
    class Reuses(Warm):
        out: dict[str, Any]

        def warm_up(self) -> None:
            super().warm_up()
            self.out = {"n": np.zeros(3)}

        def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
            self.out["n"][:] = obs["n"]
            return self.out

    async def main() -> None:
        async with server(store) as driver, replica(Reuses(), max_ongoing=lambda: 1):
            (r,) = await driver.replica("m")
            waiting: deque[tuple[int, Any]] = deque()
            for number in range(1000):
                waiting.append((number, driver.start_call(r, [driver.request("m", n=number)])))
                while len(waiting) > (2 if number < 999 else 0):
                    expected, call = waiting.popleft()
                    result = await driver.outcome(call)
                    assert isinstance(result, CallResult)
                    assert decode(result.items[0])["n"].tolist() == [expected] * 3

    asyncio.run(main())


def test_async_model_runs_on_the_loop(store: Store) -> None:
    class Async:
        async def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
            await asyncio.sleep(0)
            return {"thread": threading.current_thread().name}

    async def main() -> None:
        async with server(store) as driver, replica(Async()):
            (r,) = await driver.replica("m")
            assert decode(await ask(driver, r, s=0.0))["thread"] == threading.main_thread().name

    asyncio.run(main())


def test_draining_finishes_what_is_in_hand(store: Store) -> None:
    async def main() -> None:
        async with server(store) as driver:
            async with replica(Where()) as links:
                (r,) = await driver.replica("m")
                calls = [driver.start_call(r, [driver.request("m", s=0.3)]) for _ in range(5)]
                await driver.until(lambda: links.ongoing() == 5)
            # It has left, and answered before that.
            assert all(len(driver.outcomes[c.id]) == 1 for c in calls)
            assert all(isinstance(driver.outcomes[c.id][0], CallResult) for c in calls)
            assert not driver.of("m")
            assert driver.reasons[0] == "it drains"

    asyncio.run(main())


def test_credits_are_divided_and_follow_the_deployment(store: Store) -> None:
    limit = 5

    async def main() -> None:
        nonlocal limit
        async with server(store) as first, replica(Where(), max_ongoing=lambda: limit):
            await first.until(lambda: [r.slots for r in first.of("m")] == [5])
            async with server(store) as second:
                await first.until(lambda: sorted(r.slots for d in (first, second) for r in d.of("m")) == [2, 3])
            await first.until(lambda: [r.slots for r in first.of("m")] == [5])
            limit = 7
            await first.until(lambda: [r.slots for r in first.of("m")] == [7])

    asyncio.run(main())


class Counted:
    """Knows how many of its calls ran at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = self.most = self.ran = 0

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self._running += 1
            self.most = max(self.most, self._running)
            self.ran += 1
        if float(obs["s"]):
            time.sleep(float(obs["s"]))
        with self._lock:
            self._running -= 1
        return {"number": obs["number"]}


@pytest.mark.parametrize("limit", [1, 3])
def test_two_servers_lose_nothing_and_keep_the_limit(store: Store, limit: int) -> None:
    """Each keeps its credits busy and one call staged, with calls that are quick, slow, or as long as it takes for another thread to
    take the sockets over: every call is answered once, by its own result, and no more run at a time than may."""
    model = Counted()
    lane_calls = 120

    async def lane(driver: Driver, r: Any, number: int) -> None:
        draw = random.Random(number)
        for i in range(lane_calls):
            seconds = draw.choice([0.003, 0.005, 0.0055, 0.006, 0.012]) if draw.random() < 0.1 else 0.0
            asked = float(number * lane_calls + i)
            assert float(decode(await ask(driver, r, s=seconds, number=asked))["number"]) == asked

    async def main() -> None:
        async with server(store) as first, server(store) as second, replica(model, max_ongoing=lambda: limit):
            drivers = (first, second)
            shares = sorted(max(1, share) for share in ((limit + 1) // 2, limit // 2))
            await first.until(lambda: sorted(r.slots for d in drivers for r in d.of("m")) == shares)
            lanes = [(d, r) for d in drivers for r in d.of("m") for _ in range(r.slots + 1)]
            await asyncio.gather(*(lane(d, r, number) for number, (d, r) in enumerate(lanes)))
            assert all(len(outcomes) == 1 for d in drivers for outcomes in d.outcomes.values())
            assert model.ran == len(lanes) * lane_calls == sum(len(d.outcomes) for d in drivers)
            assert model.most <= limit

    asyncio.run(main())


class Brief:
    """Is no quick model, so its calls run in threads of their own; these send their answers themselves while the leader sleeps."""

    def warm_up(self) -> None:
        pass

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.0005 * random.random())
        return {"n": obs["n"]}


class BriefAsync:
    async def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0.0005 * random.random())
        return {"n": obs["n"]}


@pytest.mark.parametrize("kind", [Brief, BriefAsync])
def test_an_answer_sent_while_the_leader_sleeps_hides_no_call_from_it(store: Store, kind: type) -> None:
    """A send can use up the signal that a call has come. Each one that the leader missed so would wait for a second: some 20 of 1600."""
    waited: list[float] = []

    async def main() -> None:
        async with server(store) as driver, replica(kind(), max_ongoing=lambda: 4) as links:
            (r,) = await driver.replica("m")

            async def client(first: int) -> None:
                for n in range(first, first + 400):
                    asked = time.monotonic()
                    assert decode(await ask(driver, r, n=float(n)))["n"] == n
                    waited.append(time.monotonic() - asked)

            await asyncio.wait_for(asyncio.gather(*(client(1000 * i) for i in range(4))), 60.0)
            assert links.ongoing() == 0

    asyncio.run(main())
    assert sum(s > 0.5 for s in waited) < 5


def test_load_for_autoscaling(store: Store) -> None:
    """What a replica reports: what it holds, and its part of what waits at all servers."""

    async def main() -> None:
        async with server(store) as driver, replica(Where(), "a") as a, replica(Where(), "b") as b:
            await driver.replica("m", count=2)
            driver.load["m"] = 10
            await driver.until(lambda: a.ongoing() == b.ongoing() == 5.0)
            driver.load["m"] = 0
            await driver.until(lambda: a.ongoing() == b.ongoing() == 0.0)
        assert a.ongoing() is None

    asyncio.run(main())


def test_model_that_breaks_everything_still_answers(store: Store) -> None:
    class Exits:
        def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
            raise SystemExit("enough")

    async def main() -> None:
        async with server(store) as driver, replica(Exits()):
            (r,) = await driver.replica("m")
            for _ in range(3):
                assert await ask(driver, r, s=np.float64(0)) == ItemError("SystemExit: enough")

    asyncio.run(main())


def test_lost_link_is_made_anew(store: Store) -> None:
    """The server closes the connection; the replica attaches again, and what was under way does not come back twice."""

    async def main() -> None:
        async with server(store) as driver, replica(Where()):
            (r,) = await driver.replica("m")
            under_way = driver.start_call(r, [driver.request("m", s=0.5)])
            path: Any = driver.backend
            peer = path._replicas["r"]
            path._gone(peer, "a test says so")  # as if the monitor had said it
            assert not driver.of("m")
            outcome = await driver.outcome(under_way)
            assert "a test says so" in outcome.message  # type: ignore[union-attr]
            # The connection itself still stands: its next message, that result, is from nobody who is attached.
            (again,) = await driver.replica("m")
            assert len(driver.outcomes[under_way.id]) == 1
            assert "thread" in decode(await ask(driver, again, s=0.0))

    asyncio.run(main())


class Tap:
    """Stands between a server and its end of a Unix socket; counts calls and results, and is full when told to be."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.sent = self.received = 0
        self.full = False
        self.fileno, self.close = connection.fileno, connection.close

    def send(self, message: bytes) -> int:
        if self.full:
            raise BlockingIOError
        self.sent += len(link.pb.ToReplica.FromString(message).calls)
        return int(self._connection.send(message))

    def recv(self, size: int) -> bytes:
        data: bytes = self._connection.recv(size)
        with suppress(DecodeError):
            self.received += len(link.pb.ToServer.FromString(data).results)
        return data


async def tapped(driver: Driver) -> tuple[Any, Tap]:
    """A replica and a tap on the Unix socket to it."""
    (r,) = await driver.replica("m")
    path: Any = driver.backend
    peer = path._replicas[r.id]
    await driver.until(lambda: peer.unix)
    tap = peer.unix._connection = Tap(peer.unix._connection)
    return r, tap


linux = pytest.mark.skipif(sys.platform != "linux", reason="the abstract namespace is Linux's")


@linux
@pytest.mark.parametrize("kind", [Mirror, type("WarmMirror", (Mirror,), {"warm_up": lambda self: None})])
def test_what_fits_goes_through_the_unix_socket(store: Store, kind: type[Mirror]) -> None:
    async def main() -> None:
        async with server(store) as driver, replica(kind()):
            r, tap = await tapped(driver)

            async def mirrored(word: str, size: int) -> None:
                values = np.arange(size, dtype=np.uint8)
                call = driver.start_call(r, [driver.request("m", metadata={"word": word}, pad=values)])
                result = await driver.outcome(call)
                assert isinstance(result, CallResult), result
                answer = decode(result.items[0])
                assert answer["word"] == word
                np.testing.assert_array_equal(answer["pad"], values[::-1])

            sizes = [7, 50_000, 0, unix_link.SHARED_BYTES // 2, 4097, 150_528, 7, 5000]
            for n, size in enumerate(sizes, 1):
                await mirrored("fits", size)
                assert (tap.sent, tap.received) == (n, n)
            n = len(sizes)
            await mirrored("large", unix_link.SHARED_BYTES + 1)
            assert (tap.sent, tap.received) == (n, n)
            await mirrored("long" * 30_000, 7)  # no frame, but more than such a socket takes
            assert (tap.sent, tap.received) == (n, n)
            tap.full = True
            await mirrored("full", 7)
            await mirrored("full", 50_000)
            assert (tap.sent, tap.received) == (n, n + 2)
            tap.full = False
            await mirrored("fits again", 50_000)
            assert (tap.sent, tap.received) == (n + 1, n + 3)

    asyncio.run(main())


@linux
@pytest.mark.parametrize("how", ["by the server", "by the replica", "after nonsense from the replica"])
def test_a_unix_socket_that_is_closed_ends_the_link(store: Store, how: str) -> None:
    """And a new one is made. The call under way has one outcome."""

    async def main() -> None:
        async with server(store) as driver, replica(Where()) as links:
            r, _ = await tapped(driver)
            path: Any = driver.backend
            under_way = driver.start_call(r, [driver.request("m", s=1.5)])
            peer = path._replicas["r"]
            if how == "by the server":
                path._close_unix(peer)
            else:
                (theirs,) = links._servers.values()
                await driver.until(lambda: theirs.jobs)  # it has come
                if how == "by the replica":
                    links._command(lambda: links._close_unix(theirs))
                else:
                    links._command(lambda: theirs.unix.send(b"\xff\xff", []))
            outcome = await driver.outcome(under_way)
            assert isinstance(outcome, CallError), outcome
            again, tap = await tapped(driver)
            assert path._replicas["r"] is not peer
            assert "thread" in decode(await ask(driver, again, s=0.0))
            assert tap.sent == 1
            assert len(driver.outcomes[under_way.id]) == 1
            assert path._awaited == 0

    asyncio.run(main())


def test_a_welcome_to_an_earlier_hello_is_ignored(store: Store) -> None:
    """The server has dropped that session: whoever took it for its own would attach with a key that is out of date, and again."""

    async def main() -> None:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
            router.linger = 0
            router.bind("tcp://127.0.0.1:*")
            address = router.getsockopt_string(zmq.LAST_ENDPOINT)
            endpoint = link.Endpoint("s", "here", address, "", ["m"], "ab" * 32, 1)
            store.data[link.SERVERS + "s"] = endpoint.to_json()

            async def receive(kind: str) -> Any:
                """The next message of this kind, and who sent it."""
                while True:
                    assert await asyncio.to_thread(router.poll, 20_000)
                    sender, header = router.recv_multipart()
                    message = link.pb.ToServer.FromString(header)
                    if message.HasField(kind):
                        return sender, getattr(message, kind)

            def say(to: bytes, **what: Any) -> None:
                router.send_multipart([to, link.pb.ToReplica(**what).SerializeToString()])

            def challenge(to: bytes, hello: Any) -> None:
                proof = link.proof(endpoint.secret, "server", hello.nonce, b"n")
                say(to, challenge=link.pb.Challenge(version=link.VERSION, server="s", nonce=b"n", proof=proof))

            async with replica(Where()) as links:
                sender, first = await receive("hello")
                challenge(sender, first)
                await receive("proof")
                (theirs,) = links._servers.values()
                links._command(lambda: links._greet(theirs))
                _, second = await receive("hello")
                say(sender, welcome=link.pb.Welcome())
                challenge(sender, second)  # read after the welcome
                await receive("proof")
                assert not theirs.attached
                say(sender, welcome=link.pb.Welcome())
                await asyncio.to_thread(eventually, lambda: theirs.attached)

                leaving = asyncio.create_task(links.drain(20.0))
                await receive("drain")
                say(sender, drained=link.pb.Drained())
                await receive("goodbye")
                say(sender, farewell=link.pb.Farewell())
                await leaving
            del store.data[link.SERVERS + "s"]

    asyncio.run(main())


@linux
def test_a_replica_that_greets_anew_attaches_no_more_often_than_it_greeted(store: Store) -> None:

    async def main() -> None:
        async with server(store) as driver:
            path: Any = driver.backend
            hellos: list[Any] = []
            real = path._unix_keys

            class Keys(dict[bytes, Any]):
                """Tells of each replica that the server has welcomed."""

                def __setitem__(self, key: bytes, peer: Any) -> None:
                    hellos.append(peer)
                    super().__setitem__(key, peer)

            path._unix_keys = Keys(real)
            async with replica(Where()) as links:
                await tapped(driver)
                (theirs,) = links._servers.values()
                before = len(hellos)
                for _ in range(3):  # as when a connection is lost and made again while the leader is busy
                    links._command(lambda: links._greet(theirs))
                await driver.until(lambda: len(hellos) > before)
                await driver.until(lambda: not links._commands)
                await driver.until(lambda: (p := path._replicas.get("r")) and p.unix and p.hello.nonce == theirs.nonce)
                again, tap = await tapped(driver)
                assert "thread" in decode(await ask(driver, again, s=0.0))
                assert tap.sent == 1
                assert len(hellos) - before <= 3, "attached more often than it greeted"

    asyncio.run(main())


@linux
def test_strangers_at_the_unix_socket_hurt_nobody(store: Store) -> None:
    async def main() -> None:
        async with server(store) as driver, AsyncExitStack() as stack:
            path: Any = driver.backend
            strangers = []
            for i in range(4 * direct.MAX_STRANGERS):
                stranger = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                stranger.settimeout(20.0)
                stranger.connect("\0" + path._unix_name)
                if i % 3 < 2:  # the others say nothing
                    stranger.send((b"no key of anybody's", b"")[i % 3])
                strangers.append(stranger)
                await asyncio.sleep(0)
            await stack.enter_async_context(replica(Where()))
            r, tap = await tapped(driver)
            assert "thread" in decode(await ask(driver, r, s=0.0))
            assert tap.sent == 1
            await driver.until(lambda: len(path._strangers) <= direct.MAX_STRANGERS)
            for stranger in strangers[:3]:  # one of each kind
                assert await asyncio.to_thread(stranger.recv, 1) == b""  # closed
        assert not path._strangers

    asyncio.run(main())


def test_leaving_right_after_attaching_loses_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server sends calls as soon as it has the proof: perhaps before the replica knows that it is attached."""
    monkeypatch.setattr(direct, "LAST_REPLICA_S", 0.0)

    async def main() -> None:
        async with server(store) as driver:
            for i in range(30):
                async with replica(Where(), f"r{i}"):
                    (r,) = await driver.replica("m")
                    call = driver.start_call(r, [driver.request("m", s=0.0)])
                assert isinstance(await driver.outcome(call), CallResult)
                await driver.until(lambda: not driver.of("m"))

    asyncio.run(main())


def test_the_last_replica_stays_until_another_attaches(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "LAST_REPLICA_S", 60.0)

    async def main() -> None:
        async with server(store) as driver, AsyncExitStack() as stack:
            old = await stack.enter_async_context(replica(Where(), "old"))
            (first,) = await driver.replica("m")
            leaving = asyncio.create_task(old.drain(120.0))
            await driver.until(lambda: [p for p in driver.backend._replicas.values() if p.leaving])  # type: ignore[attr-defined]
            assert "thread" in decode(await ask(driver, first, s=0.0))  # still there
            await stack.enter_async_context(replica(Where(), "new"))
            await driver.until(lambda: [r.id for r in driver.of("m")] == ["new"])
            await leaving

    asyncio.run(main())


def test_a_load_told_before_the_link_broke_is_forgotten(store: Store) -> None:
    async def main() -> None:
        async with server(store) as driver, replica(Where()) as links:
            await driver.replica("m")
            driver.load["m"] = 100
            await driver.until(lambda: links.ongoing() == 100.0)
            driver.load["m"] = 0
            path: Any = driver.backend
            peer = path._replicas["r"]
            path._gone(peer, "its heartbeats failed")
            path._say(peer, link.pb.ToReplica(refused=link.pb.Refused(reason="not attached: say hello first")))
            await driver.replica("m")
            await driver.until(lambda: links.ongoing() == 0.0)

    asyncio.run(main())


def test_what_waits_is_divided_between_replicas_that_take_calls(store: Store) -> None:
    async def main() -> None:
        async with server(store) as driver, replica(Where(), "stays") as stays, replica(Where(), "goes") as goes:
            replicas = {r.id: r for r in await driver.replica("m", count=2)}
            driver.load["m"] = 10
            await driver.until(lambda: stays.ongoing() == 5.0)
            driver.start_call(replicas["goes"], [driver.request("m", s=2.0)])  # which keeps it for a while
            await driver.until(lambda: (goes.ongoing() or 0.0) >= 6.0)
            leaving = asyncio.create_task(goes.drain(60.0))
            await driver.until(lambda: stays.ongoing() == 10.0)
            driver.load["m"] = 0
            await leaving

    asyncio.run(main())


def test_hundreds_of_links_that_are_made_anew_while_the_server_is_busy(store: Store) -> None:
    count = 300

    async def main() -> None:
        async with server(store) as driver:
            path: Any = driver.backend
            errors: list[Any] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
            (data,) = store.data.values()
            endpoint = link.Endpoint.from_json(data)

            def hello(i: int) -> Any:
                socket = context.socket(zmq.DEALER)
                socket.linger = 0
                socket.connect(endpoint.local)
                said = link.pb.Hello(version=link.VERSION, replica=f"r{i}", model="m", credits=1, nonce=link.nonce())
                socket.send(link.pb.ToServer(hello=said).SerializeToString())
                return socket

            with zmq.Context() as context:
                context.max_sockets = 4 * count
                before = [hello(i) for i in range(count)]
                await driver.until(lambda: len(path._peers) == count)
                for socket in before:
                    socket.close()
                after = [hello(i) for i in range(count)]
                time.sleep(1.0)  # the server's loop is held up: all that comes waits for it
                waiting = set(after)

                def challenged() -> bool:
                    waiting.difference_update([s for s in waiting if s.poll(0)])
                    return not waiting

                try:
                    await driver.until(challenged)
                    await driver.until(lambda: len(path._peers) == count)
                finally:
                    for socket in after:
                        socket.close()
            assert not errors

    asyncio.run(main())
