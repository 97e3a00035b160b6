"""A fleet of robots on real physics, balanced through the server: `make demo`, or `python examples/fleet_demo [--mujoco]`.

This process holds the server and an embedded Ray with the two models; the robots live in a process of their own (fleet.py) and reach
the server as any client does. Exits non-zero if a request got no outcome, or a robot fell within 200 ms of a missing or late reply.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from display import line, live, share, upright
from models import Balancer, Watcher
from ray import serve
from rich.console import Console
from rich.live import Live

from inferential import Server
from inferential.config.schema import InferentialConfig, ModelConfig, ModelsConfig

HERE = Path(__file__).parent
LINE_EVERY_S = 2.0


def deploy(kind: str) -> None:
    """Starts Ray inside this process, and the two models on it."""
    # Ray's workers inherit this process's environment; they import models.py from here.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="ERROR")
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR", "enable_access_log": False})
    serve.run(Balancer.bind(kind), name="balance", route_prefix=None)
    serve.run(Watcher.bind(kind), name="watch", route_prefix=None)


def make_server() -> Server:
    """A server for the two models, on a free port."""
    config = InferentialConfig(
        models=ModelsConfig(known={"balance": ModelConfig(max_inflight=8), "watch": ModelConfig(max_inflight=2)}),
    )
    config.transport.bind = "tcp://127.0.0.1:0"
    config.scheduling.strategy = "model_deadline"
    config.scheduling.pipeline_dispatch.enabled = True
    return Server(config=config, models=["balance", "watch"])


def server_view(server: Server) -> dict[str, dict[str, float]]:
    """What only the server knows of each model: queue depth at dispatch (mean), requests dropped."""
    view = {}
    for model in ("balance", "watch"):
        labels = {"model": model}
        depth = server.metrics.get_stats("queue_depth", labels=labels)
        dropped = [server.metrics.get_stats(name, labels=labels) for name in ("queue_full_drops", "requests_expired")]
        view[model] = {
            "queue_depth": depth.mean if depth.count else 0.0,
            "drops": float(sum(stats.count for stats in dropped)),
        }
    return view


async def run_fleet(server: Server, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Runs the robots' process beside the server, shows what it reports, and returns its last word."""
    fleet = await asyncio.create_subprocess_exec(
        sys.executable,
        str(HERE / "fleet.py"),
        *("--server", server.endpoint, "--robots", str(args.robots)),
        *("--seconds", str(args.seconds), "--kind", args.kind),
        stdout=asyncio.subprocess.PIPE,
    )
    assert fleet.stdout is not None
    report: dict[str, Any] = {}
    shown_at = float("-inf")
    try:
        with Live(console=console, auto_refresh=False, transient=False) as table:
            async for text in fleet.stdout:
                report = json.loads(text)
                if console.is_terminal:
                    table.update(live(report, server_view(server)), refresh=True)
                elif time.monotonic() - shown_at >= LINE_EVERY_S or report["done"]:
                    shown_at = time.monotonic()
                    print(line(report), flush=True)
        status = await fleet.wait()
    finally:
        if fleet.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it heard the same Ctrl-C
                fleet.terminate()
            await fleet.wait()
    if status or not report.get("done"):
        raise SystemExit(f"demo: the robots' process ended with {status} before it was done")
    return report


def sum_up(report: dict[str, Any], view: dict[str, dict[str, float]]) -> int:
    """Prints the summary; the exit status."""
    print(f"\n{upright(report)} robots stayed upright for {report['elapsed_s']:.0f} s; falls: {report['falls']}")
    for name, tally in report["models"].items():
        late = ", ".join(f"{count} {status}" for status, count in sorted(tally["statuses"].items()))
        print(
            f"{name}: {tally['asked']} requests, {share(tally)} in time, "
            f"p50 {tally.get('p50_ms', 0):.2f} ms, p99 {tally.get('p99_ms', 0):.2f} ms, "
            f"queue depth {view[name]['queue_depth']:.1f}, drops {view[name]['drops']:.0f}"
            + (f" ({late})" if late else "")
        )
        for status, words in tally["words"].items():
            print(f"  {status}: {words}")
    if report["vision_error_deg"] is not None:
        print(f"watch: measured the tilt to within {report['vision_error_deg']:.2f} deg (mean error)")
    failed = 0
    if report["without_outcome"]:
        print(f"FAILED: {report['without_outcome']} requests got no outcome")
        failed = 1
    if report["falls_blamed"]:
        print(f"FAILED: {report['falls_blamed']} falls within 200 ms of a missing or late reply")
        failed = 1
    return failed


async def run(args: argparse.Namespace) -> int:
    """The server and the fleet, from start to end."""
    server = make_server()
    await server.start()
    try:
        report = await run_fleet(server, args, Console())
        return sum_up(report, server_view(server))
    finally:
        await server.stop()


def main() -> int:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(
        prog="fleet_demo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--robots", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--mujoco", dest="kind", action="store_const", const="inverted-pendulum", default="cart-pole")
    args = parser.parse_args()
    print(f"{args.robots} robots ({args.kind}), 50 Hz, for {args.seconds:.0f} s. Starting Ray Serve ...", flush=True)
    deploy(args.kind)
    try:
        return asyncio.run(run(args))
    except KeyboardInterrupt:
        return 130
    finally:
        ray.shutdown()  # and Serve with it


if __name__ == "__main__":
    sys.exit(main())
