"""Imports point one way (docs/architecture.md)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import inferential

ROOT = Path(inferential.__file__).parent

PURE = ("scheduling", "tracking", "engine", "client.session")
NOT_IN_PURE = {"time", "asyncio", "zmq", "ray", "threading", "socket"}
BELOW = {
    # a part: what of this package it may import (itself always)
    "errors": set(),
    "types": {"errors"},
    "config": {"errors", "types"},
    "images": {"errors", "types"},
    "wire": {"errors", "types", "images", "_proto"},
    "tracking": {"errors", "types", "config", "scheduling"},
    "metrics": {"errors", "types", "config"},
    "scheduling": {"errors", "types", "config", "tracking"},
    "engine": {"errors", "types", "config", "scheduling", "tracking"},
    "model_call": {"errors", "types", "wire", "scheduling"},
    "assembler": {"errors", "types", "images", "wire", "scheduling"},
    "transport": {"errors", "types", "config"},
    "client": {"errors", "types", "wire", "images", "_version"},
}


def modules(part: str) -> list[Path]:
    path = ROOT.joinpath(*part.split("."))
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def imports(path: Path) -> set[str]:
    """Everything a module imports at run time, as full names."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            found |= {f"{node.module}.{a.name}" for a in node.names}
    return found


@pytest.mark.parametrize("part", PURE)
def test_the_core_has_neither_clock_nor_io(part: str) -> None:
    for path in modules(part):
        bad = {name for name in imports(path) if name.partition(".")[0] in NOT_IN_PURE}
        assert not bad, f"{path.name} imports {bad}"


@pytest.mark.parametrize("part", sorted(BELOW))
def test_a_part_imports_what_is_below_it(part: str) -> None:
    allowed = BELOW[part] | {part.partition(".")[0]}
    for path in modules(part):
        ours = {n.split(".")[1] for n in imports(path) if n.startswith("inferential.")}
        assert ours <= allowed, f"{path.name} imports {ours - allowed}"


def test_only_wire_and_what_has_a_schema_of_its_own_import_generated_code() -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        if "_proto" not in path.parts and any("_proto" in n for n in imports(path))
    }
    assert "wire.py" in users
    client_schema = {u for u in users if any("_proto.inferential.v1" in n for n in imports(ROOT / u))}
    assert client_schema <= {"wire.py", "recording.py", "replay.py"}


CLIENT = """
import sys
import inferential
from inferential import AsyncConnection, AsyncModel, Connection, Model, Rate, Status
heavy = {m.partition(".")[0] for m in sys.modules} & {
    "pydantic", "ray", "typer", "rich", "prometheus_client", "yaml", "PIL", "simplejpeg", "ml_dtypes", "mcap"}
assert not heavy, heavy
ours = {m for m in sys.modules if m.startswith("inferential.")}
assert not any(m.startswith(("inferential.config", "inferential.server", "inferential.scheduling")) for m in ours), ours
"""

WITHOUT_SERVER = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pydantic", "ray", "prometheus_client", "typer"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from inferential import Connection
try:
    from inferential import Server
except ImportError as e:
    assert "pip install 'inferential[server]'" in str(e), e
else:
    raise SystemExit("no error")
from inferential.errors import MissingDependencyError
assert issubclass(MissingDependencyError, ImportError)
"""

LOCAL_SERVER = """
import sys
from inferential import Server, local
Server(models={"m": lambda obs: obs}, bind="tcp://127.0.0.1:0")
assert "ray" not in sys.modules
"""


@pytest.mark.parametrize(
    "program", [CLIENT, WITHOUT_SERVER, LOCAL_SERVER], ids=["client", "without-server", "local-server"]
)
def test_what_a_program_loads(program: str) -> None:
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 0, result.stderr


def test_every_public_name_is_there() -> None:
    for name in inferential.__all__:
        assert getattr(inferential, name) is not None
    assert set(inferential._MODULES) | {"__version__"} == set(inferential.__all__)
    assert dir(inferential) == sorted(inferential.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        inferential.nonsense  # noqa: B018
