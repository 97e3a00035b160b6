"""Runs in a network namespace of its own, where port 5555 is free: `python -m suite.namespace CPP_PROGRAM RUST_PROGRAM`.

Starts Ray there, deploys the models that the shown programs ask, runs those programs, and prints how each ended as JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

VERBATIM = Path(__file__).parents[1] / "verbatim"
ADDRESS = "tcp://127.0.0.1:5555"
CLIENT = (
    "import runpy, sys; g = runpy.run_path(sys.argv[1]); "
    "sys.exit(0 if g['result'] is not None and g['actions'].shape == (7,) else 3)"
)
SERVER = "import asyncio; from inferential import Server; asyncio.run(Server(bind='tcp://*:5555', models=['policy-v2']).run())"
TRIES = 50  # the programs give the server 50 ms, which a busy machine may take for itself


def tried(command: list[str]) -> dict[str, Any]:
    """Runs a program until it gets its answer in the time it gives."""
    for i in range(TRIES):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 0:
            return {"tries": i + 1}
        if done.returncode != 3:  # something else than no answer in time
            break
    return {"tries": TRIES, "exit": done.returncode, "said": (done.stdout + done.stderr)[-3000:]}


def main() -> None:
    """See the module."""
    folder = tempfile.mkdtemp(prefix="icn-", dir="/tmp")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from inferential.backends.cluster import prepare_environment

    prepare_environment()
    import ray
    from ray import serve

    ray.init(address="local", namespace="serve", num_cpus=8, include_dashboard=False, log_to_driver=False,
             logging_level="warning", _temp_dir=folder)  # fmt: skip
    serve.start(proxy_location="Disabled")
    from suite import models
    from suite.server import wait_until_ready

    names = ["manipulation-policy", "telemetry", "policy-v2"]
    serve.run_many([models.target(name, models.Doubler, direct=True) for name in names])
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    found: dict[str, Any] = {}
    for server_command, ready, clients in (
        (
            [sys.executable, str(VERBATIM / "server.py")],
            names[:2],
            {"client.py": [sys.executable, "-c", CLIENT, str(VERBATIM / "client.py")]},
        ),
        ([sys.executable, "-c", SERVER], names[2:], {"client.cpp": [sys.argv[1]], "client.rs": [sys.argv[2]]}),
    ):
        with tempfile.TemporaryFile("w+") as log:
            server = subprocess.Popen(
                server_command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONUNBUFFERED": "1"}
            )
            try:
                wait_until_ready(ADDRESS, ready)
                for name, command in clients.items():
                    found[name] = tried(command)
                server.send_signal(signal.SIGTERM)
                code = server.wait(30)
            finally:
                server.kill()
                server.wait(10)
            log.seek(0)
            if "server.py" not in found:
                found["server.py"] = {"exit": code, "said": log.read()[-3000:]}
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
