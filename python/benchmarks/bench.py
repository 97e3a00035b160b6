"""Benchmarks, side by side in one run: `make bench`, or
`python bench.py [SECTION...] [--rounds N] [--seconds S] [--in-flight K...] [--out DIR]`.

Competitors take turns within each round, so that a slow moment of the machine hits all of them; figures are medians over the
rounds, ratios are taken within a round. Each section writes DIR/SECTION.json; report.py turns those into docs/benchmarks.md.
Sections that end in _awake are the same with the machine's processors kept awake, for all competitors alike.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from processes import HERE, PEER_PYTHON, Stand, load

from inferential.cpu_latency import DEVICE
from inferential.types import COMPILED

SMALL, CAMERA, LARGE = "28", "150528", "6220800"
QUIET_PERCENT = 8.0
"""Of the machine's processors together."""
ROOT = HERE.parent.parent

Row = dict[str, Any]
Run = Callable[[], Row]


def rounds(runs: dict[str, Run], count: int) -> dict[str, list[Row]]:
    """Runs each competitor once per round, in turn."""
    rows: dict[str, list[Row]] = {name: [] for name in runs}
    for turn in range(count):
        for name, run in runs.items():
            try:
                row = run()
            except (RuntimeError, TimeoutError, subprocess.TimeoutExpired) as error:
                row = {"error": str(error)}
            rows[name].append(row)
            brief = {k: round(v, 3) for k, v in row.items() if isinstance(v, (int, float))} or row
            print(f"  round {turn + 1}: {name}: {brief}", flush=True)
    return rows


def settle() -> None:
    """Waits until what was started has come to rest: Ray starts workers ahead for seconds after a process has joined. A minute at most."""
    until = time.monotonic() + 60.0
    while psutil.cpu_percent(interval=1.0) > QUIET_PERCENT and time.monotonic() < until:
        pass


def load_peer(peer: Stand, *options: str) -> Row:
    """Load on a server of 1.4.0, which runs only for that time: without a client it wakes up some 900 times a second all the same, and that
    would be measured with everybody else.
    """
    with peer.running():
        return load("sdk", "--endpoint", peer["endpoint"], *options, python=PEER_PYTHON)


def summarise(rows: list[Row]) -> Row:
    """Medians over the rounds; the quantiles of the median round."""
    good = [row for row in rows if "error" not in row]
    if not good:
        return {"error": rows[-1].get("error", "no result")}
    keys = [k for k, v in good[0].items() if isinstance(v, (int, float))]
    found: Row = {k: statistics.median(row[k] for row in good if k in row) for k in keys}
    found["lost"] = sum(row.get("lost", 0) for row in good)
    if "p50_ms" in found:
        middle = min(good, key=lambda row: abs(row["p50_ms"] - found["p50_ms"]))
        found["quantiles_ms"] = middle["quantiles_ms"]
    return found


def ratio(rows: dict[str, list[Row]], a: str, b: str, key: str) -> float | None:
    """Median over the rounds of a / b."""
    pairs = [(x[key], y[key]) for x, y in zip(rows[a], rows[b], strict=True) if key in x and key in y]
    return statistics.median(x / y for x, y in pairs) if pairs else None


class Bench:
    """The options of a run, and what the sections share."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.rounds = args.rounds
        self.seconds = args.seconds
        self.quick = args.quick
        self.in_flight = args.in_flight
        self.failures: list[str] = []

    def options(self, size: str, in_flight: int = 1, clients: int = 1) -> list[str]:
        seconds = self.seconds * (2 if size == LARGE else 1)
        warm_up = 20 if size == LARGE or self.quick else 200
        return [
            *("--size", size, "--in-flight", str(in_flight), "--clients", str(clients)),
            *("--seconds", str(seconds), "--warm-up", str(warm_up)),
        ]

    def compare(self, runs: dict[str, Run]) -> tuple[dict[str, list[Row]], Row]:
        rows = rounds(runs, self.rounds)
        return rows, {name: summarise(found) for name, found in rows.items()}

    # ------------------------------------------------------------------ sections

    def roundtrip(self) -> Row:
        """One client, a local inline model: against one raw hop, and against the released 1.4.0 and its in-process model."""
        found: Row = {}
        with contextlib.ExitStack() as stack:
            start = stack.enter_context
            echo = {copy: start(Stand("stands", "raw-echo", "--copy", copy)) for copy in ("0", "1")}
            ours = start(Stand("stands", "ours"))
            peer = start(Stand("stands", "peer", python=PEER_PYTHON))
            settle()
            peer.stop()
            for size in (SMALL, CAMERA):
                for in_flight in (1, 32):
                    options = self.options(size, in_flight)
                    raw = echo["1" if size == SMALL else "0"]["endpoint"]
                    print(f"{size} bytes, {in_flight} in flight", flush=True)
                    rows, summary = self.compare(
                        {
                            "raw ZMQ, one hop": lambda o=options, e=raw: load("raw", "--endpoint", e, *o),
                            "inferential 2.0.0, inline model": lambda o=options: load(
                                "sdk", "--endpoint", ours["endpoint"], *o
                            ),
                            "inferential 1.4.0, in-process model": lambda o=options: load_peer(peer, *o),
                        }
                    )
                    mine = "inferential 2.0.0, inline model"
                    summary["ratios"] = {
                        "p50 / raw": ratio(rows, mine, "raw ZMQ, one hop", "p50_ms"),
                        "throughput / raw": ratio(rows, mine, "raw ZMQ, one hop", "per_second"),
                        "p50 / 1.4.0": ratio(rows, mine, "inferential 1.4.0, in-process model", "p50_ms"),
                        "throughput / 1.4.0": ratio(rows, mine, "inferential 1.4.0, in-process model", "per_second"),
                    }
                    found[f"{size} bytes, {in_flight} in flight"] = summary
        return found

    def handle(self) -> Row:
        """What the server adds to a tuned Serve handle: the same application, with and without it."""
        found: Row = {}
        with contextlib.ExitStack() as stack:
            start = stack.enter_context
            address = start(Stand("stands", "cluster", "--models", "tuned"))["address"]
            ours = start(Stand("stands", "ours", "--address", address, "--models", "tuned", "--config", OUR_CONFIG))
            settle()
            for size in (SMALL, CAMERA):
                options = self.options(size)
                print(f"{size} bytes", flush=True)
                rows, summary = self.compare(
                    {
                        "Serve handle alone, tuned": lambda o=options: load(
                            "handle", "--address", address, "--model", "tuned", "--tuned", *o
                        ),
                        "inferential 2.0.0, handle path": lambda o=options: load(
                            "sdk", "--endpoint", ours["endpoint"], "--model", "tuned", *o
                        ),
                    }
                )
                pairs = zip(rows["inferential 2.0.0, handle path"], rows["Serve handle alone, tuned"], strict=True)
                added = [x["p50_ms"] - y["p50_ms"] for x, y in pairs if "p50_ms" in x and "p50_ms" in y]
                summary["ratios"] = {"added p50, ms": statistics.median(added) if added else None}
                found[f"{size} bytes, 1 in flight"] = summary
        return found

    def direct(self) -> Row:
        """Every way through Ray Serve, and the floor under them."""
        found: Row = {}
        with contextlib.ExitStack() as stack:
            start = stack.enter_context
            broker = {copy: start(Stand("stands", "raw-broker", "--copy", copy)) for copy in ("0", "1")}
            for copy, stand in broker.items():
                start(Stand("stands", "raw-worker", "--endpoint", stand["back"], "--copy", copy))
            address = start(Stand("stands", "cluster", "--models", "default,tuned,servable"))["address"]
            ours = start(
                Stand("stands", "ours", "--address", address, "--models", "servable,tuned", "--config", OUR_CONFIG)
            )
            peer = start(Stand("stands", "peer", "--address", address, "--models", "default", python=PEER_PYTHON))
            settle()
            peer.stop()
            for size, in_flight in [(s, k) for s in (SMALL, CAMERA, LARGE) for k in self.in_flight]:
                if size == LARGE and in_flight > 8:
                    continue
                options = self.options(size, in_flight)
                raw = broker["1" if size == SMALL else "0"]["endpoint"]

                def through(model: str, o: list[str] = options) -> Row:
                    return load("sdk", "--endpoint", ours["endpoint"], "--model", model, *o)

                def alone(model: str, *more: str, o: list[str] = options) -> Row:
                    return load("handle", "--address", address, "--model", model, *more, *o)

                runs: dict[str, Run] = {
                    "raw ZMQ, two hops": lambda o=options, e=raw: load("raw", "--endpoint", e, *o),
                    "inferential 2.0.0, direct path": lambda t=through: t("servable"),
                }
                if in_flight in (1, 32) or size == LARGE:
                    runs |= {
                        "inferential 2.0.0, handle path": lambda t=through: t("tuned"),
                        "Serve handle alone, tuned": lambda a=alone: a("tuned", "--tuned"),
                        "Serve handle alone, default": lambda a=alone: a("default"),
                        "inferential 1.4.0 on Ray Serve": lambda o=options: load_peer(peer, "--model", "default", *o),
                    }
                print(f"{size} bytes, {in_flight} in flight", flush=True)
                rows, summary = self.compare(runs)
                mine = "inferential 2.0.0, direct path"
                summary["ratios"] = {
                    "p50 / raw": ratio(rows, mine, "raw ZMQ, two hops", "p50_ms"),
                    "throughput / raw": ratio(rows, mine, "raw ZMQ, two hops", "per_second"),
                }
                if "inferential 1.4.0 on Ray Serve" in runs:
                    summary["ratios"] |= {
                        "p50 of 1.4.0 / ours": ratio(rows, "inferential 1.4.0 on Ray Serve", mine, "p50_ms"),
                        "throughput / 1.4.0": ratio(rows, mine, "inferential 1.4.0 on Ray Serve", "per_second"),
                    }
                found[f"{size} bytes, {in_flight} in flight"] = summary
        return found

    def clients(self) -> Row:
        """The direct path with many clients, each with one request in flight."""
        found: Row = {}
        with contextlib.ExitStack() as stack:
            start = stack.enter_context
            broker = start(Stand("stands", "raw-broker"))
            start(Stand("stands", "raw-worker", "--endpoint", broker["back"]))
            address = start(Stand("stands", "cluster", "--models", "servable"))["address"]
            ours = start(Stand("stands", "ours", "--address", address, "--models", "servable", "--config", OUR_CONFIG))
            settle()
            for count in (1, 4, 64):
                options = self.options(SMALL, in_flight=count, clients=count)
                print(f"{count} clients", flush=True)
                _, summary = self.compare(
                    {
                        "raw ZMQ, two hops": lambda o=options: load("raw", "--endpoint", broker["endpoint"], *o),
                        "inferential 2.0.0, direct path": lambda o=options: load(
                            "sdk", "--endpoint", ours["endpoint"], "--model", "servable", *o
                        ),
                    }
                )
                found[f"{SMALL} bytes, {count} clients"] = summary
        return found

    def replicas(self) -> Row:
        """The direct path with more replicas."""
        found: Row = {}
        for count in (1, 2, 4):
            with contextlib.ExitStack() as stack:
                start = stack.enter_context
                stand = Stand("stands", "cluster", "--models", "servable", "--replicas", str(count))
                address = start(stand)["address"]
                ours = start(
                    Stand("stands", "ours", "--address", address, "--models", "servable", "--config", OUR_CONFIG)
                )
                settle()
                for size in (SMALL, CAMERA):
                    for in_flight in (1, 32):
                        options = self.options(size, in_flight)
                        print(f"{count} replicas, {size} bytes, {in_flight} in flight", flush=True)
                        _, summary = self.compare(
                            {
                                "inferential 2.0.0, direct path": lambda o=options, e=ours["endpoint"]: load(
                                    "sdk", "--endpoint", e, "--model", "servable", *o
                                )
                            }
                        )
                        found[f"{count} replicas, {size} bytes, {in_flight} in flight"] = summary
        return found

    def idle(self) -> Row:
        """CPU of a server with 1,000 connected clients and their heartbeats, beside a bare ROUTER with the same."""
        seconds = 5.0 if self.quick else 30.0

        def cpu_percent(stand: Stand, *raw: str) -> Row:
            with Stand("load", "idle", "--endpoint", stand["endpoint"], "--clients", "1000", *raw):
                time.sleep(2.0)
                process = psutil.Process(stand.pid)
                before = process.cpu_times()
                time.sleep(seconds)
                after = process.cpu_times()
                used = after.user + after.system - before.user - before.system
                return {"cpu_percent_of_a_core": 100 * used / seconds, "rss_mb": process.memory_info().rss / 2**20}

        with Stand("stands", "raw-echo") as bare, Stand("stands", "ours") as ours:
            rows, summary = self.compare(
                {
                    "bare ROUTER": lambda: cpu_percent(bare, "--raw"),
                    "inferential 2.0.0": lambda: cpu_percent(ours),
                }
            )
        key = "cpu_percent_of_a_core"
        added = [x[key] - y[key] for x, y in zip(rows["inferential 2.0.0"], rows["bare ROUTER"], strict=True)]
        summary["ratios"] = {"added, % of a core": statistics.median(added)}
        return {"1,000 idle clients": summary}

    def memory(self) -> Row:
        """The server's memory with 10,000 idle clients, and with 1,000 that ask twice a second, over time."""
        seconds = 20.0 if self.quick else 600.0
        found: Row = {}
        for name, clients, processes, hz, heartbeat_ms in [
            ("10,000 idle clients, heartbeats of 5 s", 10_000, 4, "0", "5000"),
            ("1,000 clients at 2 Hz, heartbeats of 1 s", 1_000, 1, "2", "1000"),
        ]:
            with contextlib.ExitStack() as stack:
                ours = stack.enter_context(
                    Stand("stands", "ours", "--config", '{"transport": {"idle_client_timeout_s": 3600}}')
                )
                process = psutil.Process(ours.pid)
                empty = process.memory_info().rss
                for _ in range(processes):
                    each = [
                        "--endpoint",
                        ours["endpoint"],
                        "--clients",
                        str(clients // processes),
                        "--hz",
                        hz,
                        "--heartbeat-ms",
                        heartbeat_ms,
                    ]
                    stack.enter_context(Stand("load", "idle", *each))
                samples: list[float] = []
                until = time.monotonic() + seconds
                while time.monotonic() < until:
                    time.sleep(seconds / 20)
                    samples.append(process.memory_info().rss / 2**20)
                half = len(samples) // 2
                found[name] = {
                    "rss_empty_mb": empty / 2**20,
                    "rss_mb": samples[-1],
                    "growth_second_half_mb": samples[-1] - samples[half],
                    "minutes": seconds / 60,
                    "samples_mb": [round(s, 1) for s in samples],
                }
                print(f"  {name}: {found[name]}", flush=True)
                if not self.quick and found[name]["growth_second_half_mb"] > 0.05 * samples[half] + 2:
                    self.failures.append(f"memory: with {name} the server grew while nothing changed")
        return found

    def cpp(self) -> Row:
        """The C++ SDK beside plain libzmq in C++, against one echo server; its own program measures all."""
        command = [ROOT / "cpp" / "scripts" / "bench.sh", "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return beside_libzmq([json.loads(line) for line in done.stdout.splitlines()], {"sdk": "C++ SDK"})

    def rust(self) -> Row:
        """Likewise for Rust."""
        command = ["cargo", "bench", "--locked", "--quiet", "--bench", "round_trip"]
        done = subprocess.run(command, cwd=ROOT / "rust", stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout[done.stdout.index("{") :])["round_trip"]
        clients = {"blocking": "blocking", "blocking_owned": "blocking, payload given away", "tokio": "tokio"}
        return beside_libzmq(found, clients)


def beside_libzmq(found: list[Row], clients: dict[str, str]) -> Row:
    """What the SDKs' own programs measured, by the names that readers see."""
    bare, frames = "libzmq, one frame", "libzmq, the same frames"
    sections: Row = {}
    for row in found:
        section = {
            name: {
                "p50_ms": row[key]["p50_us"] / 1e3,
                "p99_ms": row[key]["p99_us"] / 1e3,
                "allocations": row[key]["allocations"],
            }
            for key, name in ({"bare": bare, "frames": frames} | clients).items()
        }
        ratios = {
            f"{name} / {floor}": section[name]["p50_ms"] / section[floor]["p50_ms"]
            for name in clients.values()
            for floor in (bare, frames)
        }
        sections[f"{row['bytes']} bytes"] = section | {"ratios": ratios}
    return sections


OUR_CONFIG = json.dumps(
    {
        "scheduling": {"pipeline_dispatch": {"enabled": True}},
        "models": {"default": {"max_inflight": 64, "latency_budget_ms": 10_000}},
        "queue": {"request_ttl_ms": 20_000},
    }
)

IN_FLIGHT = [1, 2, 4, 8, 16, 32, 64]
OWN_LENGTH = ["memory", "cpp", "rust"]
"""Sections for which --rounds and --seconds change nothing."""
AWAKE = "_awake"
SECTIONS = [
    *("roundtrip", "roundtrip" + AWAKE, "handle", "handle" + AWAKE, "direct", "direct" + AWAKE),
    *("clients", "replicas", "idle", "memory", "cpp", "rust"),
]


@contextlib.contextmanager
def processors_awake() -> Iterator[None]:
    """What a server with cpu.max_wakeup_latency_us = 0 does to the machine while it has requests."""
    with open(DEVICE, "wb", buffering=0) as device:
        device.write(struct.pack("=i", 0))
        yield


def machine() -> Row:
    """What the figures were made on."""
    models = [
        line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "ray": version("ray"),
        "pyzmq": version("pyzmq"),
        "compiled": COMPILED,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "load_before": [round(x, 2) for x in os.getloadavg()],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--in-flight", type=int, nargs="+", default=IN_FLIGHT, help="requests at a time, of direct")
    parser.add_argument("--quick", action="store_true", help="one short round: does it run at all")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks", help="where the JSON goes")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.seconds = 1, 0.5
    sections = args.sections or SECTIONS
    if unknown := [s for s in sections if s not in SECTIONS]:
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(args)
    for section in sections:
        print(f"== {section}", flush=True)
        awake = section.endswith(AWAKE)
        if awake and not os.access(DEVICE, os.W_OK):
            print(f"left out: this user may not write {DEVICE}, or there is none", flush=True)
            continue
        facts = machine()
        with processors_awake() if awake else contextlib.nullcontext():
            results = getattr(bench, section.removesuffix(AWAKE))()
        options = "" if section in OWN_LENGTH else f" --rounds {args.rounds} --seconds {args.seconds:g}"
        if section.removesuffix(AWAKE) == "direct" and args.in_flight != IN_FLIGHT:
            options += " --in-flight " + " ".join(map(str, args.in_flight))
        command = f"make bench ARGS={shlex.quote(section + options)}"
        (args.out / f"{section}.json").write_text(
            json.dumps({"command": command, "machine": facts, "results": results}, indent=1) + "\n"
        )
    for failure in bench.failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
