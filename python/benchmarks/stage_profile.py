"""What each stage of the server costs: `make bench-stages`.

The server runs in this process with timers around its stages (each without the stages it calls), real clients in another one, over TCP on
loopback; the models echo 28 bytes, inline and on Ray Serve over the direct path. The rest is asyncio, ZMQ's own thread, the model's, and
the timers. Writes DIR/stages.json. A minute.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from bench import OUR_CONFIG, ROOT, machine
from processes import Stand, load

import inferential.driver
from inferential import Server, wire
from inferential.backends.direct import DirectPath
from inferential.backends.local import LocalBackend
from inferential.config.schema import InferentialConfig
from inferential.driver import Driver
from inferential.engine import Engine
from inferential.model_call import ModelCall
from inferential.transport import Transport

STAGES: dict[str, list[tuple[Any, list[str]]]] = {
    "receive": [(Transport, ["_readable"])],
    "parse, assemble": [(inferential.driver, ["assemble"])],
    "engine": [
        (Engine, ["submit", "complete", "advance", "take_calls", "take_outcomes", "take_abandoned", "next_wakeup"])
    ],
    "dispatch": [(DirectPath, ["dispatch"]), (LocalBackend, ["dispatch"])],
    "result": [(DirectPath, ["_readable", "_unix_readable"])],
    "model (inline)": [(ModelCall, ["run"])],
    "encode": [(wire, ["encode_response"])],
    "send": [(Transport, ["send", "check_readable"])],
    "metrics, bookkeeping": [(Driver, ["received", "completed", "completed_all", "flush", "_answer"])],
}


class Profile:
    """Timers around functions, each without the time of timed ones inside it. One thread counts: the server's."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inner: list[float] = []
        self._thread = 0
        for stage, places in STAGES.items():
            for owner, names in places:
                for name in names:
                    setattr(owner, name, self._timed(stage, getattr(owner, name)))

    def start(self) -> None:
        """To be called on the server's thread: counts from now."""
        self._thread = threading.get_ident()
        self.seconds.clear()

    def _timed(self, stage: str, function: Any) -> Any:
        inner, clock = self._inner, time.thread_time  # a busy machine must not count

        def timed(*args: Any, **options: Any) -> Any:
            if threading.get_ident() != self._thread:
                return function(*args, **options)
            inner.append(0.0)
            began = clock()
            try:
                return function(*args, **options)
            finally:
                took = clock() - began
                self.seconds[stage] += took - inner.pop()
                if inner:
                    inner[-1] += took

        return timed


def measured(profile: Profile, server: Server, model: str, in_flight: int, seconds: float) -> dict[str, Any]:
    """One run of the load; microseconds per request."""
    with server.run_in_thread():
        options = ["--endpoint", server.endpoint, "--model", model, "--size", "28", "--in-flight", str(in_flight)]
        load("sdk", *options, "--seconds", "1", "--warm-up", "50")
        server._on_loop(profile.start)
        cpu = time.process_time()
        row = load("sdk", *options, "--seconds", str(seconds), "--warm-up", "0")
        cpu = time.process_time() - cpu
        stages = dict(profile.seconds)
    requests = row["requests"]
    found = {stage: 1e6 * stages[stage] / requests for stage in STAGES if stage in stages}
    total = 1e6 * cpu / requests
    return {
        "stages_us": found | {"the rest": total - sum(found.values())},
        "total_us": total,
        "per_second": row["per_second"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--no-ray", action="store_true", help="the inline model alone")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    args = parser.parse_args()
    facts = machine()
    profile = Profile()
    results: dict[str, Any] = {}

    def config(**ray: Any) -> InferentialConfig:
        return InferentialConfig.model_validate(
            json.loads(OUR_CONFIG) | {"ray": ray, "transport": {"bind": "tcp://127.0.0.1:0"}}
        )

    for in_flight in (1, 32):
        server = Server(config=config(enabled=False), models={"echo": lambda obs: {"actions": obs["x"]}}, inline=True)
        row = measured(profile, server, "echo", in_flight, args.seconds)
        results[f"inline model, {in_flight} in flight"] = row
    if not args.no_ray:
        with Stand("stands", "cluster", "--models", "servable") as cluster:
            for in_flight in (1, 32):
                server = Server(config=config(address=cluster["address"]), models=["servable"])
                row = measured(profile, server, "servable", in_flight, args.seconds)
                results[f"direct path, {in_flight} in flight"] = row
    for name, row in results.items():
        print(
            name, {k: round(v, 1) for k, v in row["stages_us"].items()}, f"{row['total_us']:.1f} us in all", flush=True
        )
    args.out.mkdir(parents=True, exist_ok=True)
    found = {"command": "make bench-stages", "machine": facts, "results": results}
    (args.out / "stages.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
