"""The simulated sections of docs/benchmarks.md: `make bench-simulate`, or `python bench_simulate.py [PART...] [--out DIR]`.

Runs the scenarios of examples/scenarios and writes DIR/simulated_PART.json; but for `large`, which keeps the time it took, the same
scenario gives the same bytes. One process; on one core some 2 minutes for all but `large`, and 5 to 10 for that.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from bench import ROOT, machine

from inferential.simulate_cli import table
from inferential.simulator import load_scenario, simulate

SCENARIOS = ROOT / "python" / "examples" / "scenarios"
PARTS = {
    "priorities": "priorities",
    "ablation": "ablation",
    "ablation_bursts": "ablation-bursts",
    "large": "fleet-100k",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS) + "; by default all but large")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    args = parser.parse_args()
    parts = args.parts or [part for part in PARTS if part != "large"]
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    for part in parts:
        scenario = load_scenario(SCENARIOS / f"{PARTS[part]}.yaml")
        facts = machine()
        began, began_cpu = time.perf_counter(), time.process_time()
        results = simulate(scenario)
        took_s, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
        print(f"== {part}: {took_s:.0f} s\n{table(results)}", flush=True)
        found: dict[str, Any] = {"command": f"make bench-simulate ARGS={part}", "results": results}
        if part == "large":
            found |= {"machine": facts, "simulated_s": scenario.duration_s, "took_s": took_s, "cpu_s": cpu_s}
        (args.out / f"simulated_{part}.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
