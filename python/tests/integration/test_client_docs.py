"""The client's documentation and examples, run as they stand but for the server's address."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inferential import Connection, Server
from tests.integration.raw_server import WAIT_S, RawServer, wait_until_ready

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "python" / "examples"
ADDRESS = "tcp://localhost:5555"


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.DOTALL | re.MULTILINE)


def policy(obs: dict[str, Any]) -> dict[str, Any]:
    return {"actions": np.outer([0.9, 0.8, 0.7, 0.6], -obs["state"]).astype(np.float32)}


@pytest.fixture
def server() -> Iterator[Server]:
    models = {"manipulation-policy": policy, "telemetry": lambda obs: {"seen": np.zeros((4, 7), np.float32)}}
    with Server(bind="tcp://127.0.0.1:0", models=models).run_in_thread() as server:
        with Connection(server.endpoint, "warm-up", connect_timeout_ms=WAIT_S * 1e3) as conn:
            wait_until_ready(conn, *models)
        yield server


def run_python(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def patiently(program: str, endpoint: str) -> str:
    """The deadlines of an example are for a robot's computer, not for one that runs tests."""
    program = program.replace(ADDRESS, endpoint)
    return re.sub(r"\b(timeout_ms|latency_budget_ms)=[\d.]+", rf"\1={WAIT_S * 1e3}", program)


def test_sdk_python(server: Server) -> None:
    found = blocks("sdk-python.md")
    assert len(found) > 10
    names: dict[str, Any] = {}
    for block in found:
        exec(compile(patiently(block, server.endpoint), "sdk-python.md", "exec"), names)


def test_the_programs_of_the_quick_start_are_the_examples() -> None:
    named = [re.match(r"# (python/examples/\w+\.py)\n", block) for block in blocks("quick-start.md")]
    paths = [match[1] for match in named if match]
    assert len(paths) == 3
    for block, match in zip(blocks("quick-start.md"), named, strict=True):
        if match:
            assert block.removeprefix(match[0]) == (ROOT / match[1]).read_text()


@pytest.mark.parametrize("name", ["quickstart.py", "quickstart_async.py"])
def test_quickstart(server: Server, name: str) -> None:
    program = (EXAMPLES / name).read_text()
    assert ADDRESS in program
    assert "actions of shape (4, 7)" in run_python(patiently(program, server.endpoint))


def test_quickstart_without_a_server() -> None:
    unused = RawServer()
    unused.stop()
    assert "no answer" in run_python((EXAMPLES / "quickstart.py").read_text().replace(ADDRESS, unused.address))


def test_control_loop(server: Server) -> None:
    printed = run_python((EXAMPLES / "control_loop.py").read_text(), server.endpoint, "1")
    assert printed.startswith("50 steps: {")
    assert "sent=" in printed


def test_async_fleet(server: Server) -> None:
    printed = run_python((EXAMPLES / "async_fleet.py").read_text(), server.endpoint, "3", "0.5")
    assert len(re.findall(r"robot-0\d: \d+ of 10 answers fresh", printed)) == 3


def test_quickstart_server(tmp_path: Path) -> None:
    unused = RawServer()
    unused.stop()
    endpoint = unused.address
    server = subprocess.Popen([sys.executable, EXAMPLES / "quickstart_server.py", endpoint])
    try:
        with Connection(endpoint, "robot", connect_timeout_ms=WAIT_S * 1e3) as conn:
            wait_until_ready(conn, "manipulation-policy")
            model = conn.model("manipulation-policy", latency_budget_ms=WAIT_S * 1e3)
            assert model.observe(state=np.ones(7, np.float32))
            result = model.get_result(WAIT_S * 1e3)
            assert result is not None
            assert result["actions"].shape == (4, 7)
        server.send_signal(signal.SIGTERM)
        assert server.wait(WAIT_S) == 0
    finally:
        server.kill()
        server.wait()
