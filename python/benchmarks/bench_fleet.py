"""How many robots one GPU carries: `make bench-fleet`.

One simulated GPU behind Ray Serve (10 ms + 0.5 ms per item and call, one call at a time); robots observe 28 bytes at 10 Hz, open loop, with
50 ms to be answered. This project, with the settings of examples/scenarios/gpu.yaml, against the released 1.4.0 and against @serve.batch
behind a plain handle, one after the other in one run; then the simulator with the same settings and robots. Writes DIR/fleet.json.

17 measurements by default, each its seconds plus about 8: with --seconds 30 some 12 minutes, with --seconds 10 some 6.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from bench import ROOT, machine
from processes import HERE, PEER_PYTHON, PYTHON, Stand, measure
from report import GOAL, robots_carried, surroundings

from inferential.config.schema import InferentialConfig
from inferential.simulator import Scenario, Variant, load_scenario, simulate

SCENARIO = ROOT / "python" / "examples" / "scenarios" / "gpu.yaml"
ROBOTS = [8, 40, 80, 95, 105, 120, 160, 240]
PEERS_ROBOTS = [8, 16, 40, 95]
OVERLOAD = 240
"""Robots at twice what the GPU can do, a tenth of them at priority 0."""

OURS = "inferential 2.0.0"
OURS_LEVELS = "inferential 2.0.0, a tenth at priority 0"
PEER = "inferential 1.4.0"
SERVE_BATCH = "@serve.batch, plain handle"

Row = dict[str, Any]


def beside(scenario: Scenario, count: int, found: Row) -> Row:
    """The simulator with as many robots, and those surroundings."""
    told = {key: max(0.0, found[key]) for key in ("noise_ms", "handover_ms")}
    update = {
        "machines": [m.model_copy(update=told) for m in scenario.machines],
        "loop": scenario.loop.model_copy(update={"wire_ms": found["wire_ms"]}),
        "loads": [float(count)],
        "variants": [Variant(name="simulated")],
    }
    return simulate(scenario.model_copy(update=update))[0]


def main() -> int:
    scenario = load_scenario(SCENARIO)
    settings = yaml.safe_load(SCENARIO.read_text())["config"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--robots", type=int, nargs="*", default=ROBOTS, help="how many this project is asked to carry")
    parser.add_argument("--peers-robots", type=int, nargs="*", default=PEERS_ROBOTS, help="the same for the others")
    parser.add_argument("--overload", type=int, nargs="*", default=[OVERLOAD], help="robots, a tenth at priority 0")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--config", type=json.loads, default=settings, help="settings of this project's server, JSON")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    args = parser.parse_args()
    facts = machine()
    results: dict[str, dict[str, list[Row]]] = {}
    with contextlib.ExitStack() as stack:
        start = stack.enter_context
        address = start(Stand("stands", "gpu"))["address"]
        endpoint = start(
            Stand("stands", "ours", "--address", address, "--models", "gpu", "--config", json.dumps(args.config))
        )["endpoint"]

        def fleet(*more: str) -> Row:
            return measure(PYTHON, str(HERE / "fleet_load.py"), "--seconds", str(args.seconds), *more, timeout_s=600)

        def ours(*more: str) -> Row:
            return fleet("--endpoint", endpoint, "--model", "gpu", *more)

        def compete(name: str, counts: list[int], run: Callable[..., Row]) -> None:
            for turn in range(args.rounds):
                for count in sorted(set(counts)):
                    try:
                        row = run("--clients", str(count), "--seed", str(turn))
                    except (RuntimeError, TimeoutError, subprocess.TimeoutExpired) as error:
                        row = {"error": str(error)}
                    results.setdefault(name, {}).setdefault(str(count), []).append(row)
                    brief = {k: round(v, 4) for k, v in row.items() if isinstance(v, (int, float))} or row
                    print(f"{count} robots, {name}: {brief}", flush=True)

        # One after the other: what has collapsed goes on for minutes with what nobody waits for any more.
        compete(OURS, args.robots, ours)
        compete(OURS_LEVELS, args.overload, lambda *o: ours("--high-share", "0.1", *o))
        if args.peers_robots:
            behind_batch = ["--address", address, "--model", "gpu-serve-batch"]
            compete(SERVE_BATCH, args.peers_robots, lambda *o: fleet(*behind_batch, *o))
            model = "gpu-one-by-one"
            options = ["peer", "--address", address, "--models", model, "--max-inflight", "5"]
            peer = start(Stand("stands", *options, python=PEER_PYTHON))["endpoint"]
            to_peer = ["--endpoint", peer, "--protocol", "1", "--model", model]
            compete(PEER, args.peers_robots, lambda *o: fleet(*to_peer, *o))
    for name, by_count in results.items():
        print(f"{name}: {robots_carried(by_count)} robots with at least {GOAL:.0%} in time")
    config = InferentialConfig.model_validate(args.config)
    scenario = scenario.model_copy(update={"config": config, "duration_s": scenario.warm_up_s + args.seconds})
    found = {count: surroundings(rows) for count, rows in results.get(OURS, {}).items()}
    args.out.mkdir(parents=True, exist_ok=True)
    command = f"make bench-fleet ARGS='--seconds {args.seconds:g} --rounds {args.rounds}'"
    (args.out / "fleet.json").write_text(
        json.dumps(
            {
                "command": command,
                "machine": facts,
                "settings": args.config,
                "results": results,
                "surroundings": found,
                "simulated": {count: beside(scenario, int(count), around) for count, around in found.items() if around},
            },
            indent=1,
        )
        + "\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
