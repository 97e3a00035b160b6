"""A fleet in one process: `clients` real ZMQ clients, each observing at `hz` whatever comes back (open loop), evenly spread in phase.

An answer counts as in time when it is OK and read within the budget of the moment the observation was *due*, so that a generator that falls
behind cannot hide it. Prints one line of JSON. The model must send back the tensor `seq`: 1.4.0 has no request ids.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import random
import select
import time
from collections import Counter, deque
from typing import Any

import numpy as np
import zmq

from inferential._proto.inferential.v1 import inferential_pb2 as pb

# Plain numbers: pyzmq's flags are enums, which are slow to combine.
_EVENTS, _POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)
_SEND, _SEND_MORE = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE)


class Ledger:
    """What became of each request. Only what was due after the warm-up counts."""

    def __init__(self, clients: int, high_clients: int, budget_s: float, counts_from: float) -> None:
        self._high_clients = high_clients
        self.asked = [0] * clients
        self.in_time = [0] * clients
        self.asked_high = self.in_time_high = 0
        self.statuses: Counter[str] = Counter()
        self.missed_high: Counter[str] = Counter()
        """What became of those at priority 0 that were not answered in time."""
        self.words: dict[str, str] = {}
        """What came with each status the first time."""
        self.latencies_ms: list[float] = []
        self.wire_ms: list[float] = []
        """Between a client and the server, one way, on average of both."""
        self._budget_s = budget_s
        self._counts_from = counts_from
        self._due: dict[tuple[int, int], tuple[float, bool]] = {}

    def ask(self, client: int, seq: int, due: float, high: bool) -> None:
        """A request goes out."""
        self._due[client, seq] = (due, high)
        if due >= self._counts_from:
            self.asked[client] += 1
            self.asked_high += high

    def answer(self, client: int, seq: int, status: str, now: float, words: str = "", server_ms: float = 0.0) -> None:
        """Its first answer came; later ones are counted as surplus. `server_ms`: from its arrival there to its answer, where it is told."""
        if words:
            self.words.setdefault(status, words)
        found = self._due.pop((client, seq), None)
        if found is None:
            self.statuses["surplus"] += 1
            return
        due, high = found
        if due < self._counts_from:
            return
        self.statuses[status] += 1
        if status == "OK":
            self.latencies_ms.append((now - due) * 1e3)
            if server_ms:
                self.wire_ms.append(((now - due) * 1e3 - server_ms) / 2)
            if now - due <= self._budget_s:
                self.in_time[client] += 1
                self.in_time_high += high
                return
        if high:
            self.missed_high["late" if status == "OK" else status] += 1

    @property
    def outstanding(self) -> int:
        """Requests without an answer."""
        return len(self._due)

    def report(self, seconds: float) -> dict[str, Any]:
        asked, in_time = sum(self.asked), sum(self.in_time)
        equal = slice(self._high_clients if self._high_clients < len(self.asked) else 0, None)  # of one level
        shares = np.array([i / a for i, a in zip(self.in_time[equal], self.asked[equal], strict=True) if a])
        squares = float((shares**2).sum())
        unanswered = sum(due >= self._counts_from for due, _ in self._due.values())
        found = {
            "requests": asked,
            "in_time_share": in_time / max(asked, 1),
            "goodput_per_second": in_time / seconds,
            "unanswered": unanswered,
            "words": self.words,
            "jain_index": float(shares.sum()) ** 2 / (len(shares) * squares) if squares else 0.0,
            **{f"status_{name}": count for name, count in self.statuses.items()},
        }
        if self.asked_high:
            found["in_time_share_high"] = self.in_time_high / self.asked_high
            found |= {f"missed_high_{name}": count for name, count in self.missed_high.items()}
            low = asked - self.asked_high
            found["in_time_share_low"] = (in_time - self.in_time_high) / max(low, 1)
        if self.latencies_ms:
            if self.wire_ms:
                found["wire_ms"] = float(np.mean(self.wire_ms))
            found |= {f"p{q}_ms": float(np.percentile(self.latencies_ms, q)) for q in (50, 95, 99)}
        return found


class Cycles:
    """The calls behind the answers, told apart by what each reply says of its own: where the time between two ends of calls goes."""

    def __init__(self, call_ms: float, item_ms: float) -> None:
        self._ideal_ms = lambda size: call_ms + item_ms * size
        self._calls: dict[tuple[float, int], tuple[float, float]] = {}
        """(ms in the model, requests) -> (dispatched, answered), ms of the server's clock"""

    def answer(self, reply: pb.ModelResponse) -> None:
        """The first reply of a call stands for it."""
        timing = reply.timing
        answered = reply.timestamp_ns / 1e6
        key = (timing.inference_ms, timing.batch_size)
        self._calls.setdefault(key, (answered - timing.server_ms + timing.queue_ms, answered))

    def report(self) -> dict[str, float]:
        """Means over the calls that were dispatched before the one ahead of them was answered, or within 1 ms of that: the GPU had work."""
        calls = sorted((answered, dispatched, *key) for key, (dispatched, answered) in self._calls.items())
        rows = [
            (size, self._ideal_ms(size), model_ms, answered - before[0], dispatched < before[0])
            for before, (answered, dispatched, model_ms, size) in itertools.pairwise(calls)
            if dispatched < before[0] + 1.0
        ]
        if not rows:
            return {}
        size, ideal, model, cycle, staged = np.array(rows, dtype=np.float64).mean(axis=0).tolist()
        return {
            "calls": len(calls),
            "calls_back_to_back": len(rows),
            "staged_share": staged,
            "batch_size": size,
            "ideal_cycle_ms": ideal,
            "model_ms": model,
            "cycle_ms": cycle,
        }


class Schedule:
    """When each client observes: a fixed grid per client, with a random phase."""

    def __init__(self, args: argparse.Namespace) -> None:
        chance = random.Random(args.seed)
        self.period_s = 1 / args.hz
        phases = sorted((chance.random() * self.period_s, client) for client in range(args.clients))
        self.start = time.perf_counter() + 0.5
        self.counts_from = self.start + args.warm_up
        self.ends = self.counts_from + args.seconds
        self._phases = phases
        self.turn = 0

    def next(self) -> tuple[int, int, float]:
        """Client, sequence number (1 was the first answer) and due time of the next observation."""
        cycle, place = divmod(self.turn, len(self._phases))
        phase, client = self._phases[place]
        return client, cycle + 2, self.start + cycle * self.period_s + phase


class Dealers:
    """One socket for each client, and which of them have something to read.

    A poll of hundreds of sockets asks each of them every time; their descriptors in an epoll cost what happens on them. They signal
    changes: whoever gets a signal, or sends, reads until there is nothing.
    """

    def __init__(self, endpoint: str, identities: list[bytes | None]) -> None:
        context = zmq.Context.instance()
        self._epoll = select.epoll()
        self.sockets: list[Any] = []
        self._sends: list[Any] = []
        self._by_fd: dict[int, int] = {}
        for i, identity in enumerate(identities):
            socket = context.socket(zmq.DEALER)
            socket.setsockopt(zmq.LINGER, 0)
            if identity is not None:
                socket.setsockopt(zmq.IDENTITY, identity)
            socket.connect(endpoint)
            fd = socket.getsockopt(zmq.FD)
            self._by_fd[fd] = i
            self._epoll.register(fd, select.EPOLLIN)
            self.sockets.append(socket)
            # Without what pyzmq puts around it for options that are not used here.
            self._sends.append(super(zmq.Socket, socket).send)

    def send(self, client: int, frames: list[bytes]) -> bool:
        """Sends without waiting; True where there is something to read."""
        send = self._sends[client]
        for frame in frames[:-1]:
            send(frame, _SEND_MORE)
        send(frames[-1], _SEND)
        return bool(self.sockets[client].get(_EVENTS) & _POLLIN)

    def receive(self, client: int) -> list[list[bytes]]:
        """All that came for a client."""
        socket = self.sockets[client]
        messages = []
        # To find out by an exception that there is no more costs more than to ask.
        while socket.get(_EVENTS) & _POLLIN:
            frame = socket.recv(_SEND, False)
            frames = [frame.bytes]  # kept for long, a frame would keep the whole buffer that it came in
            while frame.more:
                frame = socket.recv(_SEND, False)
                frames.append(frame.bytes)
            messages.append(frames)
        return messages

    def wait(self, timeout_s: float) -> list[int]:
        """Clients for which something may have come; a wait to the microsecond, where epoll's own knows milliseconds."""
        select.select([self._epoll.fileno()], [], [], max(0.0, timeout_s))
        return [self._by_fd[fd] for fd, _ in self._epoll.poll(0)]


def picture(side: int) -> np.ndarray[Any, Any]:
    """What a camera sees: noise, side x side x 3 bytes."""
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)


def over_zmq(args: argparse.Namespace) -> dict[str, Any]:
    """Against a server, in the protocol's version 1 or 2."""
    x = np.arange(7, dtype=np.float32).tobytes()
    image = picture(args.image)
    pixels = image.tobytes()
    high_clients = round(args.clients * args.high_share)
    dealers = Dealers(
        args.endpoint, [f"robot-{i}".encode() if args.protocol == 1 else None for i in range(args.clients)]
    )
    bases = []
    for i in range(args.clients):
        message = pb.Observation(model_id=args.model, priority=0 if i < high_clients else 1)
        message.client.id, message.client.type = f"robot-{i}", "bench"
        message.tensors.add(key="x", dtype=pb.DTYPE_FLOAT32, shape=[7], byte_length=28)
        message.tensors.add(key="seq", dtype=pb.DTYPE_INT64, shape=[1], byte_offset=32, byte_length=8)
        if pixels:
            message.tensors.add(
                key="image", dtype=pb.DTYPE_UINT8, shape=image.shape, byte_offset=64, byte_length=len(pixels)
            )
        if args.protocol == 2:
            message.latency_budget_ms = args.budget_ms
            message.latest_only = args.latest_only
        bases.append(message.SerializeToString())

    behind = (b"\0" * 24, pixels) if pixels else ()

    def send(client: int, seq: int) -> bool:
        more = pb.Observation(timestamp_ns=time.time_ns(), request_id=seq if args.protocol == 2 else 0)
        # Fields of two serialised messages, one after the other, are one message.
        envelope = bases[client] + more.SerializeToString()
        return dealers.send(client, [b"", envelope, b"".join((x, b"\0" * 4, seq.to_bytes(8, "little"), *behind))])

    # One answer for each client before the start: connections are up, the model is there.
    for client in range(args.clients):
        send(client, 1)
        if not dealers.sockets[client].poll(60_000):
            raise TimeoutError(f"client {client} got no first answer")
        dealers.sockets[client].recv_multipart()
    gc.freeze()
    gc.disable()  # a look through all that is in the ledger would be counted as the server's delay
    schedule = Schedule(args)
    ledger = Ledger(args.clients, high_clients, args.budget_ms / 1e3, schedule.counts_from)
    cycles = Cycles(args.call_ms, args.item_ms)

    arrived: deque[tuple[int, float, list[bytes]]] = deque()

    def read(client: int) -> None:
        for frames in dealers.receive(client):
            arrived.append((client, time.perf_counter(), frames))

    def look() -> None:
        # Into one answer, when all are asked and there is nothing to receive: it would be counted as the server's delay of the next ones,
        # and the server may be on the same two cores.
        client, now, frames = arrived.popleft()
        reply = pb.ModelResponse.FromString(frames[1])
        if args.protocol == 2:
            status = pb.Status.Name(reply.status)[len("STATUS_") :]
            ledger.answer(client, reply.request_id, status, now, reply.error, reply.timing.server_ms)
            if status == "OK" and now >= schedule.counts_from:
                cycles.answer(reply)
            return
        place = next(t.byte_offset for t in reply.tensors if t.key == "seq")
        ledger.answer(client, int.from_bytes(frames[2][place : place + 8], "little"), "OK", now)

    client, seq, due = schedule.next()
    linger_until = schedule.ends + 3.0
    worst_lag_s = 0.0
    cpu_before_s = time.process_time()
    cpu_s = 0.0  # until all are asked
    while True:
        now = time.perf_counter()
        while due <= now and due < schedule.ends:
            worst_lag_s = max(worst_lag_s, now - due)
            ledger.ask(client, seq, due, high=client < high_clients)
            if send(client, seq):
                read(client)
            schedule.turn += 1
            client, seq, due = schedule.next()
            now = time.perf_counter()
        if due >= schedule.ends and not cpu_s:
            cpu_s = time.process_time() - cpu_before_s
        if due >= schedule.ends and (not ledger.outstanding or now > linger_until):
            break
        wait_until = due if due < schedule.ends else linger_until
        looks = arrived and due >= schedule.ends
        ready = dealers.wait(0.0 if looks else wait_until - time.perf_counter())
        for other in ready:
            read(other)
        if looks and not ready:
            for _ in range(min(4, len(arrived))):
                look()
    while arrived:
        look()
    return ledger.report(args.seconds) | {
        "generator_worst_lag_ms": worst_lag_s * 1e3,
        "generator_cpu_percent_of_a_core": 100 * cpu_s / (schedule.ends - schedule.start),
        "cycle": cycles.report(),
    }


async def over_handle(args: argparse.Namespace) -> dict[str, Any]:
    """Against a Serve handle in this process: no server, no network of its own."""
    import ray
    from ray import serve

    ray.init(address=args.address, logging_level="ERROR", log_to_driver=False)
    call = serve.get_app_handle(args.model).options(method_name="infer")
    observation: dict[str, Any] = {"x": np.arange(7, dtype=np.float32)}
    if args.image:
        observation["image"] = picture(args.image)
    await call.remote({**observation, "seq": np.array([0])})
    schedule = Schedule(args)
    ledger = Ledger(args.clients, 0, args.budget_ms / 1e3, schedule.counts_from)
    tasks: set[asyncio.Task[None]] = set()

    async def ask(client: int, seq: int) -> None:
        try:
            await call.remote({**observation, "seq": np.array([seq])})
            status = "OK"
        except Exception as error:
            status = type(error).__name__
        ledger.answer(client, seq, status, time.perf_counter())

    while True:
        client, seq, due = schedule.next()
        if due >= schedule.ends:
            break
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        ledger.ask(client, seq, due, high=False)
        task = asyncio.create_task(ask(client, seq))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        schedule.turn += 1
    if tasks:
        await asyncio.wait(tasks, timeout=3.0)
    return ledger.report(args.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint")
    parser.add_argument("--address", help="of a cluster: use the Serve handle")
    parser.add_argument("--protocol", type=int, choices=[1, 2], default=2)
    parser.add_argument("--model", default="gpu")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--hz", type=float, default=10.0)
    parser.add_argument("--budget-ms", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--warm-up", type=float, default=3.0, help="seconds before measuring begins")
    parser.add_argument("--high-share", type=float, default=0.0, help="share of the clients at priority 0")
    parser.add_argument(
        "--call-ms", type=float, default=10.0, help="what the model's call ideally takes, for the cycle's overhead"
    )
    parser.add_argument("--item-ms", type=float, default=0.5, help="the same for each request of it")
    parser.add_argument("--image", type=int, default=0, help="each observation has one of so many pixels a side")
    parser.add_argument("--latest-only", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    result = asyncio.run(over_handle(args)) if args.address else over_zmq(args)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
