"""How many cart-poles one GPU keeps upright: `make bench-closed-loop`.

The demo's robots (gymnasium's CartPole in real time at 50 Hz, pushed now and then), balanced by the demo's regulator on the simulated GPU
behind Ray Serve (10 ms + 0.5 ms per item and call, one call at a time); see closed_loop_load.py. The number of robots goes up until one
falls: this project first, then the released 1.4.0. Writes DIR/closed_loop.json.

Robots of this project play an answer whenever it comes. 1.4.0 has no request ids: what comes late can be taken for another answer. Its
robots give up an answer that is not there within its period, which keeps more of them upright.

At most 11 measurements, each its seconds plus some 8, mostly fewer: with --seconds 30 under 8 minutes, with --seconds 10 some 3.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench import ROOT, machine
from processes import HERE, PEER_PYTHON, PYTHON, Stand, measure

ROBOTS = [10, 20, 30, 40, 60, 80]
PEER_ROBOTS = [1, 2, 3, 4, 8]
SETTINGS: dict[str, Any] = {
    "scheduling": {"early_refusal": "predictive", "pipeline_dispatch": {"enabled": True}},
    "models": {"known": {"balance": {"max_inflight": 1, "latency_budget_ms": 60, "call_ms": 10, "item_ms": 0.5}}},
}

Row = dict[str, Any]


def balance(robots: int, seconds: float, endpoint: str, model: str, *options: str) -> Row:
    """Runs a fleet; what became of it."""
    command = [PYTHON, str(HERE / "closed_loop_load.py"), "--server", endpoint, "--model", model, *options]
    try:
        return measure(*command, "--robots", str(robots), "--seconds", str(seconds), timeout_s=seconds + 90)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return {"error": str(error)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--robots", type=int, nargs="*", default=ROBOTS)
    parser.add_argument("--peer-robots", type=int, nargs="*", default=PEER_ROBOTS)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    args = parser.parse_args()
    facts = machine()
    results: dict[str, dict[str, Row]] = {}
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(Stand("stands", "balancing-gpu"))["address"]
        join = ["--address", address, "--models"]

        def climb(name: str, stand: Stand, model: str, counts: list[int], *options: str) -> None:
            with stand:
                for count in counts:
                    row = balance(count, args.seconds, stand["endpoint"], model, *options)
                    results.setdefault(name, {})[str(count)] = row
                    print(f"{count} robots, {name}: {row}", flush=True)
                    if row.get("upright", 0) < count:
                        break

        mine = Stand("stands", "ours", *join, "balance", "--config", json.dumps(SETTINGS))
        climb("inferential 2.0.0", mine, "balance", args.robots)
        if args.peer_robots:
            model = "balance-one-by-one"
            peer = Stand("stands", "peer", *join, model, "--max-inflight", "5", python=PEER_PYTHON)
            climb("inferential 1.4.0", peer, model, args.peer_robots, "--within-period")
    for name, by_count in results.items():
        held = [int(count) for count, row in by_count.items() if row.get("upright", 0) == int(count)]
        print(f"{name}: {max(held, default=0)} robots upright for {args.seconds:g} s")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "closed_loop.json").write_text(
        json.dumps(
            {
                "command": f"make bench-closed-loop ARGS='--seconds {args.seconds:g}'",
                "machine": facts,
                "settings": SETTINGS,
                "results": results,
            },
            indent=1,
        )
        + "\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
