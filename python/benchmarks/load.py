"""Load on one server, from a process of its own: `python load.py HOW --endpoint ...`; prints one line of JSON.

HOW is `raw` (plain ZMQ), `sdk` (the `inferential` package of the environment it runs in, this project's or the released 1.4.0),
`handle` (a Serve handle, no server in between) or `idle` (connected clients that only answer heartbeats).
Latencies are in ms, from before the send to after the result is there as an array.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

SHAPES = {28: ((7,), np.float32), 150_528: ((224, 224, 3), np.uint8), 6_220_800: ((1080, 1920, 3), np.uint8)}


def tensor(size: int) -> Any:
    """An array of `size` bytes, random, so that nothing can compress or share it."""
    shape, dtype = SHAPES[size]
    return (np.random.default_rng(0).random(shape) * 255).astype(dtype)


class Timer:
    """Runs until `requests` have been answered and `seconds` have passed, and keeps each latency."""

    def __init__(self, seconds: float, warm_up: int) -> None:
        self.latencies_ms: list[float] = []
        self.lost = 0
        self._seconds = seconds
        self._warm_up = warm_up
        self._started = time.perf_counter()
        self._measured_from = self._started
        self._ended = self._started

    def note(self, latency_ms: float) -> bool:
        """One more answer; whether to go on."""
        now = self._ended = time.perf_counter()
        if self._warm_up > 0:
            self._warm_up -= 1
            self._measured_from = now
            return True
        self.latencies_ms.append(latency_ms)
        return now - self._measured_from < self._seconds

    def lose(self) -> bool:
        """A request without an answer; whether to go on."""
        self.lost += 1
        return time.perf_counter() - self._started < 4 * self._seconds

    def report(self) -> dict[str, Any]:
        seconds = max(self._ended - self._measured_from, 1e-9)
        found: dict[str, Any] = {
            "requests": len(self.latencies_ms),
            "lost": self.lost,
            "per_second": len(self.latencies_ms) / seconds,
        }
        if self.latencies_ms:
            values = np.array(self.latencies_ms)
            found |= {f"p{q}_ms": float(np.percentile(values, q)) for q in (50, 95, 99)}
            found["quantiles_ms"] = [round(float(v), 4) for v in np.quantile(values, np.linspace(0, 1, 101))]
        return found


def raw(args: argparse.Namespace) -> dict[str, Any]:
    """DEALER sockets, `in_flight` requests over all of them."""
    import zmq

    payload, envelope = tensor(args.size).tobytes(), b"e" * 100
    copy = args.size < 50_000
    context = zmq.Context.instance()
    poller = zmq.Poller()
    dealers = []
    for _ in range(args.clients):
        dealer = context.socket(zmq.DEALER)
        dealer.set_hwm(100_000)
        dealer.connect(args.endpoint)
        poller.register(dealer, zmq.POLLIN)
        dealers.append(dealer)
    sent: dict[Any, deque[float]] = {dealer: deque() for dealer in dealers}

    def send(dealer: Any) -> None:
        sent[dealer].append(time.perf_counter())
        dealer.send_multipart([b"", envelope, payload], copy=copy)

    def receive(dealer: Any) -> float:
        frames = dealer.recv_multipart(copy=copy)
        np.frombuffer(frames[2] if copy else frames[2].buffer, np.uint8)
        return (time.perf_counter() - sent[dealer].popleft()) * 1e3

    timer = Timer(args.seconds, args.warm_up)
    for i in range(args.in_flight):
        send(dealers[i % args.clients])
    going = True
    while going:
        if args.clients == 1:
            going = timer.note(receive(dealers[0]))
            send(dealers[0])
            continue
        for dealer, _ in poller.poll():
            going = timer.note(receive(dealer)) and going
            send(dealer)
    context.destroy(linger=0)
    return timer.report()


def sdk(args: argparse.Namespace) -> dict[str, Any]:
    """One blocking client: get_result with one request in flight; with more, replies as they come."""
    from inferential import Connection

    observation = tensor(args.size)
    connection = Connection(server=args.endpoint, client_id="bench", client_type="bench")
    model = connection.model(args.model, latency_budget_ms=10_000.0, priority=1)
    pipelined: Callable[..., Any] | None = getattr(model, "next_reply", None)  # 1.4.0 has get_result only
    timer = Timer(args.seconds, args.warm_up)
    sent: deque[float] = deque()

    def send() -> None:
        sent.append(time.perf_counter())
        model.observe(x=observation)

    await_answer(lambda: (model.observe(x=observation), model.get_result(timeout_ms=1000))[1])
    receive = pipelined if pipelined is not None and args.in_flight > 1 else model.get_result
    for _ in range(args.in_flight):
        send()
    going = True
    while going:
        result = receive(timeout_ms=2000)
        if result is None:  # all that is out is lost: begin anew
            going = all(timer.lose() for _ in sent)
            sent.clear()
            for _ in range(args.in_flight):
                send()
            continue
        result["actions"]
        by_order = (time.perf_counter() - sent.popleft()) * 1e3
        going = timer.note(getattr(result, "round_trip_ms", by_order))  # 1.4.0 can't tell which request a reply answers
        send()
    connection.close()
    return timer.report()


async def sdk_async(args: argparse.Namespace) -> dict[str, Any]:
    """Many clients in one loop, each with its share of the requests in flight."""
    from inferential import AsyncConnection

    observation = tensor(args.size)
    timer = Timer(args.seconds, args.warm_up)
    going = True

    async def client(index: int) -> None:
        nonlocal going
        connection = AsyncConnection(server=args.endpoint, client_id=f"bench-{index}", client_type="bench")
        model = connection.model(args.model, latency_budget_ms=10_000.0, priority=1)
        while going:
            started = time.perf_counter()
            await model.observe(x=observation)
            result = await model.get_result(timeout_ms=2000)
            if result is None:
                going = timer.lose() and going
                continue
            result["actions"]
            going = timer.note((time.perf_counter() - started) * 1e3) and going
        await connection.close()

    await asyncio.gather(*(client(i) for i in range(args.clients)))
    return timer.report()


def await_answer(ask: Callable[[], Any], timeout_s: float = 60.0) -> None:
    """Asks until the first answer: models may still be coming up."""
    deadline = time.monotonic() + timeout_s
    while ask() is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no answer within {timeout_s:.0f} s")
        time.sleep(0.05)


async def handle(args: argparse.Namespace) -> dict[str, Any]:
    """A Serve handle in this process, called from its event loop."""
    import ray
    from ray import serve

    ray.init(address=args.address, logging_level="ERROR", log_to_driver=False)
    observation = {"x": tensor(args.size)}
    call = serve.get_app_handle(args.model)
    call = call.options(method_name="infer", **({"_by_reference": False} if args.tuned else {}))
    timer = Timer(args.seconds, args.warm_up)
    going = True

    async def caller() -> None:
        nonlocal going
        while going:
            started = time.perf_counter()
            result = await call.remote(observation)
            result["actions"]
            going = timer.note((time.perf_counter() - started) * 1e3) and going

    await asyncio.gather(*(caller() for _ in range(args.in_flight)))
    return timer.report()


def idle(args: argparse.Namespace) -> None:
    """Connects `clients` sockets with heartbeats, lets each ask once (or at `hz`), says so, and stays."""
    import resource

    import zmq

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, args.clients + 10)
    if args.raw:
        envelope, payload = b"e" * 100, b"x" * 28
    else:
        from inferential._proto.inferential.v1 import inferential_pb2 as pb

        x = tensor(28)
        message = pb.Observation(model_id=args.model, priority=1, request_id=1, latency_budget_ms=5000.0)
        message.tensors.add(key="x", dtype=pb.DTYPE_FLOAT32, shape=x.shape, byte_length=x.nbytes)
        envelope, payload = message.SerializeToString(), x.tobytes()
    poller = zmq.Poller()
    dealers = []
    for _ in range(args.clients):
        dealer = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.HEARTBEAT_IVL, args.heartbeat_ms)
        dealer.setsockopt(zmq.HEARTBEAT_TIMEOUT, 30_000)  # so many sockets in one process may be slow to start
        dealer.setsockopt(zmq.HEARTBEAT_TTL, 30_000)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(args.endpoint)
        poller.register(dealer, zmq.POLLIN)
        dealers.append(dealer)

    def envelope_of(i: int, request_id: int) -> bytes:
        if args.raw:
            return envelope
        more = pb.Observation(request_id=request_id)
        more.client.id, more.client.type = f"idle-{os.getpid()}-{i}", "bench"
        return envelope + more.SerializeToString()

    def ask(i: int, request_id: int) -> None:
        dealers[i].send_multipart([b"", envelope_of(i, request_id), payload])

    for i in range(args.clients):
        ask(i, 1)
    answered = 0
    while answered < args.clients:
        events = poller.poll(30_000)
        if not events:
            raise TimeoutError(f"{answered} of {args.clients} clients were answered")
        for dealer, _ in events:
            dealer.recv_multipart()
            answered += 1
    print(json.dumps({"ready": True, "answered": answered}), flush=True)
    if args.hz <= 0:
        sys.stdin.read()  # until the process that started this one lets go
        return
    # a steady rate, evenly spread
    gap, due, turn = 1 / (args.hz * args.clients), time.perf_counter(), 0
    while True:
        now = time.perf_counter()
        while due <= now:
            ask(turn % args.clients, 2 + turn // args.clients)
            turn += 1
            due += gap
        for dealer, _ in poller.poll(max(0, (due - time.perf_counter()) * 1e3)):
            dealer.recv_multipart()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("how", choices=["raw", "sdk", "handle", "idle"])
    parser.add_argument("--endpoint")
    parser.add_argument("--address")
    parser.add_argument("--model", default="echo")
    parser.add_argument("--size", type=int, default=28, choices=list(SHAPES))
    parser.add_argument("--in-flight", type=int, default=1)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--warm-up", type=int, default=200, help="answers before measuring begins")
    parser.add_argument("--tuned", action="store_true")
    parser.add_argument("--raw", action="store_true", help="idle: the far end is a bare ROUTER")
    parser.add_argument("--heartbeat-ms", type=int, default=1000, help="idle: interval of the heartbeats")
    parser.add_argument("--hz", type=float, default=0.0, help="idle: requests per second of each client")
    args = parser.parse_args()
    if args.how == "idle":
        idle(args)
        return
    if args.how == "raw":
        result = raw(args)
    elif args.how == "handle":
        from stands import TUNED_DRIVER

        if args.tuned:
            os.environ.update(TUNED_DRIVER)
        result = asyncio.run(handle(args))
    elif args.clients > 1:
        result = asyncio.run(sdk_async(args))
    else:
        result = sdk(args)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
