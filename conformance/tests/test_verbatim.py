"""The programs that users are shown, as they stand, on port 5555 of a network namespace of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adapters.worker import MODULES

HERE = Path(__file__).parents[1]
CACHE = Path(os.environ.get("INFERENTIAL_CACHE", Path.home() / ".cache" / "inferential"))

pytestmark = pytest.mark.timeout(900)  # a Ray of its own, and a build


def has_namespaces() -> str:
    """Empty, or why there are none."""
    try:
        done = subprocess.run(
            ["unshare", "--net", "ip", "link", "set", "lo", "up"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except FileNotFoundError as e:
        return str(e)
    return "" if done.returncode == 0 else done.stderr.strip()


def rust_program(folder: Path) -> Path:
    """client.rs inside a main function, built against this tree's crate with warnings as errors."""
    target = os.environ.get("CARGO_TARGET_DIR", str(CACHE / "cargo-target"))
    (folder / "src").mkdir()
    (folder / "Cargo.toml").write_text(
        '[package]\nname = "verbatim"\nversion = "0.0.0"\nedition = "2021"\n\n'
        f'[dependencies]\ninferential = {{ path = "{HERE.parent / "rust"}" }}\n\n[workspace]\n'
    )
    body = (HERE / "verbatim" / "client.rs").read_text()
    (folder / "src" / "main.rs").write_text(
        "#![deny(warnings)]\n#![allow(unused_variables)]\nfn main() {\n"
        f"{body}\nstd::process::exit(if conn.counters().ok == 1 {{ 0 }} else {{ 3 }});\n}}\n"
    )
    done = subprocess.run(
        ["cargo", "build", "--quiet"],
        cwd=folder,
        env={**os.environ, "CARGO_TARGET_DIR": target, "CARGO_BUILD_JOBS": os.environ.get("JOBS", "2")},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Path(target) / "debug" / "verbatim"


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """How each program ended."""
    why_not = has_namespaces()
    if why_not:
        pytest.skip(f"this machine lets nobody make network namespaces: {why_not}")
    rust = rust_program(tmp_path_factory.mktemp("rust"))
    # Ray wants an address of its own beside loopback, and a route by which to find it.
    network = "ip link set lo up && ip address add 10.99.0.1/32 dev lo && ip route add default dev lo src 10.99.0.1"
    inside = f"{network} && exec '{sys.executable}' -m suite.namespace '{MODULES / 'verbatim_cpp'}' '{rust}'"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", inside], cwd=HERE, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_python_server_as_shown(ended: Any) -> None:
    assert ended["server.py"]["exit"] == 0, ended["server.py"]
    assert "[manipulation-policy/agent-01] " in ended["server.py"]["said"], "its metric handler prints"


@pytest.mark.parametrize("program", ["client.py", "client.cpp", "client.rs"])
def test_client_as_shown_gets_an_answer(ended: Any, program: str) -> None:
    assert "exit" not in ended[program], ended[program]
