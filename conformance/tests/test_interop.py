"""The released 1.4.0 clients against this server, and every client here against the released server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from suite.client import Client, Connection, f32, some
from suite.server import Server

CACHE = Path(os.environ.get("INFERENTIAL_CACHE", Path.home() / ".cache" / "inferential"))
PEERS = Path(__file__).parents[1] / "peers"
PEER_PYTHON = CACHE / "peer-1.4.0" / "bin" / "python"
PEER_RUST = Path(os.environ.get("CARGO_TARGET_DIR", CACHE / "cargo-target")) / "debug" / "released-peer"
V1_DTYPES = ["FLOAT16", "FLOAT32", "FLOAT64", "BFLOAT16", "UINT8", "INT32", "INT64", "BOOL"]


def run(command: list[str]) -> Any:
    """A released client's own account."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False, cwd="/")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("released", ["sync", "async"])
def test_released_python_client(server: Server, released: str) -> None:
    out = run([str(PEER_PYTHON), str(PEERS / "client.py"), server.address, released])
    seen = json.loads(out.pop("seen"))
    assert out == {
        "dtypes": dict.fromkeys(["float16", "float32", "float64", "uint8", "int32", "int64", "bool"], True),
        "answered": 100,
        "big": True,
        "two_models": [True, True],
        "an_error_is_no_reply": True,
        "after_an_error": True,
    }
    assert (seen["client_id"], seen["client_type"], seen["request_id"]) == (f"released-{released}", "franka", 0)
    assert (seen["urgency"], seen["steps_remaining"], seen["priority"]) == (0.75, 50, 2)
    assert seen["values"]["task"] == "fold the towel"


@pytest.mark.parametrize("released", ["sync", "async"])
def test_released_rust_client(server: Server, released: str) -> None:
    assert run([str(PEER_RUST), server.address, released]) == {
        "dtypes": [True] * 8,
        "answered": 100,
        "two_models": True,
        "an_error_is_no_reply": True,
        "after_an_error": True,
    }


@pytest.fixture(scope="module")
def released_server(log_dir: Path) -> Iterator[str]:
    """The released server in its own environment; its address."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with (log_dir / "released-server.log").open("wb") as log:
        process = subprocess.Popen(
            [str(PEER_PYTHON), str(PEERS / "server.py"), str(port)], stdout=log, stderr=log, cwd="/"
        )
    try:
        begin = time.monotonic()
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (log_dir / "released-server.log").read_text()
                assert time.monotonic() - begin < 60
                time.sleep(0.05)
        yield f"tcp://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(20)


@pytest.fixture
def old(client: Client, released_server: str) -> Connection:
    found = client.connect(released_server)
    found.wait_for_link("up")
    return found


def test_released_server_every_v1_dtype(old: Connection) -> None:
    model = old.model("echo")
    # The released package reads bfloat16 as numpy can: not as itself.
    for dtype in (d for d in V1_DTYPES if d != "BFLOAT16"):
        tensor = some(dtype, (3, 5))
        sent = model.send({"x": tensor}, {"task": "fold the towel", "操作": "掴む"})
        r = model.ok()
        assert (r.request_id, r.tensors["x"]) == (sent, tensor)
        assert r.metadata["task"] == "fold the towel"
        assert r.metadata["操作"] == "掴む"
        assert not r.local


def test_released_server_in_a_control_loop(old: Connection) -> None:
    model = old.model("echo")
    for i in range(100):
        sent = model.send({"x": f32(i)}, urgency=0.5, steps_remaining=100 - i)
        r = model.get_result()
        assert r is not None
        assert (r.request_id, r.tensors["x"]) == (sent, f32(i))


def test_released_server_two_models(old: Connection) -> None:
    echo, negate = old.model("echo"), old.model("negate")
    for i in range(1, 20):
        a, b = echo.send({"x": f32(i)}), negate.send({"x": f32(i)})
        r = negate.ok()
        assert (r.request_id, r.tensors["actions"]) == (b, f32(-i))
        r = echo.ok()
        assert (r.request_id, r.tensors["x"]) == (a, f32(i))


def test_released_server_large_tensors(old: Connection) -> None:
    model = old.model("echo")
    tensors = {"a": some("UINT8", (1000, 1000), 1), "b": some("FLOAT32", (250_000,), 2)}
    for _ in range(2):
        model.send(tensors)
        assert model.ok().tensors == tensors


def test_released_server_knows_no_ping_and_no_cancel(old: Connection) -> None:
    model = old.model("echo")
    model.send({"x": f32(1)})
    model.ok()
    assert old.ping(300) is None
    sent = model.send({"x": f32(1)})
    assert not model.cancel(sent)
    model.ok()
    assert old.counters()["late_replies"] == 0
