"""The fault run: `make fault`, or `python fault.py [--seconds S]`.

8 clients with 32 requests in flight each, a model that fails 1 in 20, and one of its two replicas killed with -9 on the way.
Every request must end in exactly one outcome: prints the tally, and exits 1 where one ended in none or in two, or where the killed
replica never came back.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import os
import random
import signal
import sys
import time
from typing import Any

import numpy as np

from inferential import AsyncConnection, Server, Status
from inferential.backends import cluster
from inferential.config.schema import InferentialConfig, RayConfig
from inferential.serving import servable

MODEL = "fails-sometimes"
FAILS = 0.05


@servable
class FailsSometimes:
    """Adds one, or raises."""

    def __init__(self) -> None:
        self._random = random.Random(os.getpid())

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.001)
        if self._random.random() < FAILS:
            raise RuntimeError("fails on purpose")
        return {"y": obs["x"] + 1, "pid": str(os.getpid())}


class Tally:
    """What became of every request."""

    def __init__(self) -> None:
        self.sent = 0
        self.outcomes: dict[tuple[int, int], int] = {}
        self.statuses: collections.Counter[str] = collections.Counter()
        self.replicas: collections.Counter[str] = collections.Counter()
        self.wrong = 0

    @property
    def without(self) -> int:
        """Requests that ended in no outcome."""
        return sum(1 for n in self.outcomes.values() if n == 0)

    @property
    def twice(self) -> int:
        """Requests that ended more than once, and replies to what was never asked."""
        return sum(1 for n in self.outcomes.values() if n > 1)


async def client(endpoint: str, index: int, in_flight: int, until: float, tally: Tally) -> None:
    async with AsyncConnection(endpoint, f"client-{index}", "fault", hold_off=False) as connection:
        model = connection.model(MODEL, latency_budget_ms=5000.0)
        asked: dict[int, float] = {}
        while True:
            going = time.monotonic() < until
            while going and model.outstanding < in_flight:
                value = float(index * 10**9 + tally.sent)
                sent = await model.observe(x=np.float64(value))
                if not sent:  # told here and nowhere else
                    raise RuntimeError(f"not sent: {sent.error}")
                tally.sent += 1
                tally.outcomes[index, sent.request_id] = 0
                asked[sent.request_id] = value
            reply = await model.next_reply(timeout_ms=60_000)
            if reply is None:
                return  # all are answered; or none was in 60 s, and what is outstanding counts as without an outcome
            key = (index, reply.request_id)
            tally.outcomes[key] = tally.outcomes.get(key, 1) + 1
            tally.statuses[Status(reply.status).name] += 1
            if reply.ok:
                tally.replicas[reply.metadata["pid"]] += 1
                tally.wrong += float(reply["y"]) != asked.pop(reply.request_id) + 1


async def load(server: Server, args: argparse.Namespace) -> tuple[Tally, bool]:
    tally = Tally()
    until = time.monotonic() + args.seconds
    clients = [
        asyncio.create_task(client(server.endpoint, i, args.in_flight, until, tally)) for i in range(args.clients)
    ]
    await asyncio.sleep(args.seconds / 3)
    victim = tally.replicas.most_common(1)[0][0] if tally.replicas else ""
    if not victim:
        raise RuntimeError(f"no answer in {args.seconds / 3:.0f} s: {dict(tally.statuses)}")
    os.kill(int(victim), signal.SIGKILL)
    print(f"killed replica process {victim} after {tally.sent} requests", flush=True)
    await asyncio.gather(*clients)
    deadline = time.monotonic() + 30.0
    while len(live(server)) < 2 and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    return tally, len(live(server)) == 2


def live(server: Server) -> list[str]:
    """Replicas that take calls."""
    found = server.health()["models"][MODEL]["replicas"]
    return [name for name, r in found.items() if r["path"] == "direct" and not r["draining"]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--in-flight", type=int, default=32)
    parser.add_argument("--retries", type=int, default=0, help="dispatch.max_retries of the server")
    parser.add_argument(
        "--address", default="local", help="of a running Ray cluster; without it Ray is started for this run"
    )
    args = parser.parse_args()

    cluster.join_or_start(RayConfig(address=args.address, num_cpus=4))
    from ray import serve

    options = {"num_replicas": 2, "max_ongoing_requests": 8, "ray_actor_options": {"num_cpus": 0.1}}
    serve.run(serve.deployment(FailsSometimes, **options).bind(), name=MODEL, route_prefix=None)
    config = InferentialConfig()
    config.transport.bind = "tcp://127.0.0.1:0"
    config.scheduling.pipeline_dispatch.enabled = True
    config.models.default.max_inflight = 16
    config.dispatch.max_retries = args.retries
    server = Server(config, models=[MODEL])
    with server.run_in_thread():
        deadline = time.monotonic() + 60.0
        while len(live(server)) < 2:
            if time.monotonic() > deadline:
                raise RuntimeError("the replicas did not attach within 60 s")
            time.sleep(0.05)
        tally, back = asyncio.run(load(server, args))
    serve.delete(MODEL)
    cluster.leave()

    print(f"{tally.sent} requests: " + ", ".join(f"{n} {s}" for s, n in sorted(tally.statuses.items())))
    print(f"without an outcome: {tally.without}; with two: {tally.twice}; with another's answer: {tally.wrong}")
    print(f"the killed replica is {'back' if back else 'NOT back'}; {len(tally.replicas)} processes answered")
    good = back and not (tally.without or tally.twice or tally.wrong) and tally.sent == len(tally.outcomes)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
