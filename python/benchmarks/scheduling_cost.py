"""What a decision costs: microseconds of CPU per request with 0 to 100,000 others queued. `python benchmarks/scheduling_cost.py`."""

from __future__ import annotations

import argparse
import gc
import json
import time
from pathlib import Path

from bench import ROOT, machine

from inferential.config.schema import InferentialConfig
from inferential.engine import Engine
from inferential.scheduling.request import CallResult, Replica, Request
from inferential.simulator import with_settings
from inferential.types import Body, Observation

BODY = Body(b"", ())


class Silent:
    def record(self, name, value, model=None, client=None):
        pass


def cost_us(strategy: str, queued: int, requests: int, priorities: int = 1) -> float:
    """One request's submit, dispatch, answer and outcome, while `queued` others wait, with so many different priorities."""
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
        observation = Observation(
            f"c{number % 1000}",
            "t",
            "m",
            request_id=number,
            priority=number % priorities,
            latency_budget_ms=budget_ms,
        )
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--queued", type=int, nargs="*", default=[0, 100, 10_000, 100_000])
    parser.add_argument("--strategies", nargs="*", default=["deadline_aware", "priority_tiered", "round_robin"])
    parser.add_argument("--rounds", type=int, default=3, help="the least of them counts")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    args = parser.parse_args()
    facts = machine()
    results: dict[str, dict[str, float]] = {}
    variants = [(strategy, strategy, 1) for strategy in args.strategies]
    variants += [(f"{strategy}, 1,000 priorities", strategy, 1000) for strategy in args.strategies[:2]]
    for name, strategy, priorities in variants:
        for queued in args.queued:
            cost = min(cost_us(strategy, queued, args.requests, priorities) for _ in range(args.rounds))
            results.setdefault(name, {})[str(queued)] = round(cost, 2)
            print(f"{name}, {queued:,} queued: {cost:.1f} us per request", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    found = {"command": "make bench-scheduling", "machine": facts, "results": results}
    (args.out / "scheduling.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
