"""How many robots one GPU carries: `make bench-fleet`.

One simulated GPU behind Ray Serve (10 ms + 0.5 ms per item and call, one call at a time); robots observe 28 bytes at 10 Hz, open loop, with
50 ms to be answered. This project against the released 1.4.0 and against @serve.batch behind a plain handle, in turns within one run.
Writes DIR/fleet.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import ROOT, machine
from processes import HERE, PEER_PYTHON, PYTHON, Stand, measure

ROBOTS = [8, 16, 32, 64, 80, 95, 105, 120, 160, 240]
GOAL = 0.99

CONFIG = json.dumps(
    {
        "scheduling": {"pipeline_dispatch": {"enabled": True}, "early_refusal": "predictive"},
        "models": {"known": {"gpu": {"max_inflight": 1, "latency_budget_ms": 50, "call_ms": 10, "item_ms": 0.5}}},
    }
)

Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--robots", type=int, nargs="*", default=ROBOTS)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="competitors whose name contains one of these")
    parser.add_argument("--peers-up-to", type=int, default=64, help="how many robots the others are asked to carry")
    parser.add_argument("--config", default=CONFIG, help="settings of this project's server, JSON")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    args = parser.parse_args()
    facts = machine()
    results: dict[str, dict[str, list[Row]]] = {}
    with contextlib.ExitStack() as stack:
        start = stack.enter_context
        address = start(Stand("stands", "gpu"))["address"]
        ours = start(Stand("stands", "ours", "--address", address, "--models", "gpu", "--config", args.config))
        peer = start(
            Stand(
                *("stands", "peer", "--address", address, "--models", "gpu-one-by-one", "--max-inflight", "5"),
                python=PEER_PYTHON,
            )
        )

        def fleet(*more: str) -> Row:
            return measure(PYTHON, str(HERE / "fleet_load.py"), "--seconds", str(args.seconds), *more, timeout_s=600)

        mine = ["--endpoint", ours["endpoint"], "--model", "gpu"]
        runs: dict[str, Callable[[list[str]], Row]] = {
            "inferential 2.0.0": lambda o: fleet(*mine, *o),
            "inferential 2.0.0, a tenth at priority 0": lambda o: fleet(*mine, "--high-share", "0.1", *o),
            "inferential 1.4.0": lambda o: fleet(
                "--endpoint", peer["endpoint"], "--protocol", "1", "--model", "gpu-one-by-one", *o
            ),
            "@serve.batch, plain handle": lambda o: fleet("--address", address, "--model", "gpu-serve-batch", *o),
        }
        for turn in range(args.rounds):
            for count in args.robots:
                for name, run in runs.items():
                    if args.only and not any(part in name for part in args.only):
                        continue
                    if not name.startswith("inferential 2") and count > args.peers_up_to:
                        continue
                    try:
                        row = run(["--clients", str(count), "--seed", str(turn)])
                    except (RuntimeError, TimeoutError) as error:
                        row = {"error": str(error)}
                    results.setdefault(name, {}).setdefault(str(count), []).append(row)
                    brief = {k: round(v, 4) for k, v in row.items() if isinstance(v, (int, float))} or row
                    print(f"{count} robots, {name}: {brief}", flush=True)
    for name, by_count in results.items():
        held = [
            int(count)
            for count, rows in by_count.items()
            if all(row.get("in_time_share", 0) >= GOAL and not row.get("unanswered") for row in rows)
        ]
        print(f"{name}: {max(held, default=0)} robots with at least {GOAL:.0%} in time")
    args.out.mkdir(parents=True, exist_ok=True)
    command = f"make bench-fleet ARGS='--seconds {args.seconds:g} --rounds {args.rounds}'"
    (args.out / "fleet.json").write_text(
        json.dumps(
            {"command": command, "machine": facts, "settings": json.loads(args.config), "results": results}, indent=1
        )
        + "\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
