"""How many robots one GPU carries: `make bench-fleet`.

One simulated GPU behind Ray Serve (10 ms + 0.5 ms per item and call, one call at a time); robots observe 28 bytes at 10 Hz, open loop, with
50 ms to be answered. This project, with the settings of examples/scenarios/gpu.yaml, against the released 1.4.0 and against @serve.batch
behind a plain handle, one after the other in one run; then the simulator with the same settings and robots. Writes DIR/fleet.json (with
--device, DIR/fleet_DEVICE.json).

With --device cuda the GPU is a real one with a policy on it (gpu_policy.py), and robots send a camera's image (150,528 bytes) besides.

17 measurements by default, each its seconds plus about 8: with --seconds 30 some 13 minutes, with --seconds 10 some 7.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
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
HZ, BUDGET_MS, BATCH = 10, 50.0, 64
LOADS = [1 / 15, 1 / 3, 2 / 3, 95 / 120, 7 / 8, 1.0, 4 / 3, 2.0]
"""Robots, of those that the GPU could carry at best: of 120 simulated ones 8, 40, 80, 95, 105, 120, 160 and 240."""
OVERLOAD = 2.0
"""The load with a tenth of the robots at priority 0."""
PEERS_ROBOTS = [8, 16, 40]
PEERS_LOAD = 95 / 120
"""What the others are asked to carry besides."""

OURS = "inferential 2.0.0"
OURS_LEVELS = "inferential 2.0.0, a tenth at priority 0"
PEER = "inferential 1.4.0"
SERVE_BATCH = "@serve.batch, plain handle"

Row = dict[str, Any]


def ideal_robots(call_ms: float, item_ms: float) -> float:
    """Robots that a GPU of `call_ms + item_ms * requests` per call carries where nothing else takes time: each observation waits for the
    call that is running and is answered by the next, so both together may take the budget."""
    cycle_ms = BUDGET_MS / 2
    batch = min(BATCH, (cycle_ms - call_ms) / item_ms)
    if batch < 1:
        raise ValueError(
            f"a call with one observation takes {call_ms + item_ms:.1f} ms: two are not done in {BUDGET_MS:g} ms"
        )
    return batch * 1e3 / cycle_ms / HZ


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
    parser.add_argument("--device", choices=["simulated", "cuda"], default="simulated")
    parser.add_argument("--robots", type=int, nargs="*", help="how many this project is asked to carry")
    parser.add_argument("--peers-robots", type=int, nargs="*", help="the same for the others")
    parser.add_argument("--overload", type=int, nargs="*", help="robots, a tenth at priority 0")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--config", type=json.loads, default=settings, help="settings of this project's server, JSON")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    args = parser.parse_args()
    if args.device == "cuda" and importlib.util.find_spec("torch") is None:
        parser.error(
            "--device cuda needs torch, with CUDA, in the environment that `make setup-python` made, and an NVIDIA GPU"
        )
    section = "fleet" if args.device == "simulated" else f"fleet_{args.device}"
    words = [word for word, before in zip(sys.argv[1:], sys.argv, strict=False) if "--out" not in (word, before)]
    asked = shlex.quote(shlex.join(word for word in words if not word.startswith("--out=")))
    record: Row = {"command": f"make bench-fleet ARGS={asked}" if words else "make bench-fleet", "machine": machine()}
    results: dict[str, dict[str, list[Row]]] = {}
    args.out.mkdir(parents=True, exist_ok=True)

    def write(**more: Any) -> None:
        record.update(more)
        (args.out / f"{section}.json").write_text(json.dumps(record, indent=1) + "\n")

    def compete(name: str, counts: list[int], run: Callable[..., Row]) -> None:
        for turn in range(args.rounds):
            for count in sorted(set(counts)):
                try:
                    row = run("--clients", str(count), "--seed", str(turn))
                except (RuntimeError, TimeoutError, subprocess.TimeoutExpired) as error:
                    row = {"error": str(error)}
                results.setdefault(name, {}).setdefault(str(count), []).append(row)
                write(results=results)  # what was measured stands, should the rest be interrupted
                brief = {k: round(v, 4) for k, v in row.items() if isinstance(v, (int, float))} or row
                print(f"{count} robots, {name}: {brief}", flush=True)

    def gpu_with(model: str) -> Stand:
        # A cluster for each: what has collapsed goes on for minutes with what nobody waits for any more.
        return Stand("stands", f"{args.device}-gpu", "--models", model)

    image = 224 if args.device == "cuda" else 0
    told = ["--seconds", str(args.seconds), "--hz", str(HZ), "--budget-ms", str(BUDGET_MS), "--image", str(image)]

    def fleet(*more: str) -> Row:
        return measure(PYTHON, str(HERE / "fleet_load.py"), *told, *more, timeout_s=600)

    with gpu_with("gpu") as stand:
        gpu = {key: value for key, value in stand.facts.items() if key not in ("ready", "address")}
        print(f"GPU: {gpu}", flush=True)
        line = {key: gpu[key] for key in ("call_ms", "item_ms")}
        told += ["--call-ms", str(line["call_ms"]), "--item-ms", str(line["item_ms"])]
        ideal = ideal_robots(**line)
        robots = [round(share * ideal) for share in LOADS] if args.robots is None else args.robots
        overload = [round(OVERLOAD * ideal)] if args.overload is None else args.overload
        peers_robots = [*PEERS_ROBOTS, round(PEERS_LOAD * ideal)] if args.peers_robots is None else args.peers_robots
        known = args.config.setdefault("models", {}).setdefault("known", {})
        known["gpu"] = known.get("gpu", {}) | line
        write(gpu=gpu, settings=args.config)
        options = ["ours", "--address", stand["address"], "--models", "gpu", "--config", json.dumps(args.config)]
        with Stand("stands", *options) as server:
            to_ours = ["--endpoint", server["endpoint"], "--model", "gpu"]
            compete(OURS, robots, lambda *o: fleet(*to_ours, *o))
            compete(OURS_LEVELS, overload, lambda *o: fleet(*to_ours, "--high-share", "0.1", *o))
    if peers_robots:
        with gpu_with("gpu-serve-batch") as stand:
            behind_batch = ["--address", stand["address"], "--model", "gpu-serve-batch"]
            compete(SERVE_BATCH, peers_robots, lambda *o: fleet(*behind_batch, *o))
        model = "gpu-one-by-one"
        with gpu_with(model) as stand:
            options = ["peer", "--address", stand["address"], "--models", model, "--max-inflight", "5"]
            with Stand("stands", *options, python=PEER_PYTHON) as peer:
                to_peer = ["--endpoint", peer["endpoint"], "--protocol", "1", "--model", model]
                compete(PEER, peers_robots, lambda *o: fleet(*to_peer, *o))
    for name, by_count in results.items():
        print(f"{name}: {robots_carried(by_count)} robots with at least {GOAL:.0%} in time")
    update = {
        "config": InferentialConfig.model_validate(args.config),
        "duration_s": scenario.warm_up_s + args.seconds,
        "machines": [m.model_copy(update=line) for m in scenario.machines],
    }
    scenario = scenario.model_copy(update=update)
    found = {count: surroundings(rows) for count, rows in results.get(OURS, {}).items()}
    simulated = {count: beside(scenario, int(count), around) for count, around in found.items() if around}
    write(surroundings=found, simulated=simulated)
    return 0


if __name__ == "__main__":
    sys.exit(main())
