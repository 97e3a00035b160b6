"""What a decision costs: microseconds of CPU per request with 0 to 100,000 others queued. `python benchmarks/scheduling_cost.py`."""

from __future__ import annotations

import argparse
import gc
import time

from inferential.config.schema import InferentialConfig
from inferential.engine import Engine
from inferential.scheduling.request import CallResult, Replica, Request
from inferential.simulator import with_settings
from inferential.types import Body, Observation

BODY = Body(b"", ())


class Silent:
    def record(self, name, value, model=None, client=None):
        pass


def cost_us(strategy: str, queued: int, requests: int) -> float:
    """One request's submit, dispatch, answer and outcome, while `queued` others wait."""
    changes = {
        "scheduling.strategy": strategy,
        "queue.max_requests_per_model": 1_000_000,
        "queue.max_requests": 1_000_000,
    }
    engine = Engine(with_settings(InferentialConfig(), changes), ["m"], Silent())
    engine.replica_up(Replica("r", "m", 1), 0.0)
    number = 0

    def request(now: float, budget_ms: float) -> Request:
        nonlocal number
        number += 1
        observation = Observation(f"c{number % 1000}", "t", "m", request_id=number, latency_budget_ms=budget_ms)
        return Request(b"%d" % (number % 1000), observation, (b"",), 100, now)

    now = 1.0
    for _ in range(queued + 1):
        engine.submit(request(now, 4_000.0 + number % 997), now)
    prepared = [request(now, 4_000.0 + i % 997) for i in range(requests)]
    [call] = engine.take_calls()
    result = CallResult([BODY], 0.001)
    gc.collect()
    gc.disable()
    begin = time.process_time()
    for r in prepared:
        engine.submit(r, now)
        engine.complete(call.id, result, now)
        [call] = engine.take_calls()
        engine.take_outcomes()
        engine.take_abandoned()
        engine.next_wakeup()
        now += 1e-6
    spent = time.process_time() - begin
    gc.enable()
    return spent / requests * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--strategies", nargs="*", default=["deadline_aware", "priority_tiered", "round_robin"])
    args = parser.parse_args()
    print("| strategy | 0 queued | 100 | 10,000 | 100,000 |\n|---|---|---|---|---|")
    for strategy in args.strategies:
        costs = [
            min(cost_us(strategy, queued, args.requests) for _ in range(3)) for queued in (0, 100, 10_000, 100_000)
        ]
        print(f"| {strategy} | " + " | ".join(f"{c:.1f}" for c in costs) + " |")


if __name__ == "__main__":
    main()
