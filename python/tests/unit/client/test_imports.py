"""What the client's modules import: nothing of the server, and where rules are decided no clock, loop or socket."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import inferential.client

CLIENT = Path(inferential.client.__file__).parent
NOT_ON_A_ROBOT = {
    "pydantic",
    "ray",
    "typer",
    "rich",
    "prometheus_client",
    "yaml",
    "PIL",
    "simplejpeg",
    "ml_dtypes",
    "mcap",
}
OF_THE_SERVER = {
    "server",
    "config",
    "engine",
    "scheduling",
    "tracking",
    "metrics",
    "backends",
    "transport",
    "assembler",
    "cli",
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("name", ["session", "reply", "observation", "watchdog", "options"])
def test_rules_are_decided_without_clock_loop_or_socket(name: str) -> None:
    roots = {module.partition(".")[0] for module in imported(CLIENT / f"{name}.py")}
    assert not roots & {"time", "asyncio", "zmq", "socket", "threading"}


@pytest.mark.parametrize("path", sorted(CLIENT.glob("*.py")), ids=lambda path: path.stem)
def test_the_client_imports_nothing_of_the_server(path: Path) -> None:
    for module in imported(path):
        assert module.partition(".")[0] not in NOT_ON_A_ROBOT
        root, _, rest = module.partition(".")
        assert root != "inferential" or rest.partition(".")[0] not in OF_THE_SERVER


def test_a_client_loads_pyzmq_protobuf_and_numpy_only() -> None:
    program = (
        "import sys, inferential\n"
        "assert not {'zmq', 'numpy'} & set(sys.modules), 'importing the package alone loads nothing'\n"
        "from inferential import AsyncConnection, Connection, Model, AsyncModel, Rate, Status\n"
        "conn = Connection('localhost:1', 'robot', connect_timeout_ms=0)\n"
        "import numpy as np\n"
        "conn.model('policy').observe(state=np.zeros(7))\n"
        "conn.close()\n"
        f"loaded = {NOT_ON_A_ROBOT!r} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_without_its_extra_the_server_says_which_one_is_missing() -> None:
    program = (
        "import sys\n"
        "sys.modules['pydantic'] = None\n"
        "try:\n"
        "    from inferential import Server\n"
        "except ImportError as e:\n"
        "    assert 'inferential[server]' in str(e) and 'pydantic' in str(e), e\n"
        "else:\n"
        "    raise AssertionError\n"
        "from inferential import Connection\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
