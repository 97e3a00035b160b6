"""Each package, made from this tree and installed where nothing of it is, doing a round trip against the live server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from suite.server import Server

REPOSITORY = Path(__file__).parents[2]
VERSION = (REPOSITORY / "VERSION").read_text().strip()
CACHE = Path(os.environ.get("INFERENTIAL_CACHE", Path.home() / ".cache" / "inferential"))
ROUND_TRIP = Path(__file__).parents[1] / "peers" / "round_trip.py"
UV = [sys.executable, "-m", "uv"]

pytestmark = pytest.mark.timeout(1200)  # builds; on a busy machine


def run(*command: str | Path, cwd: Path = REPOSITORY, **environment: str) -> str:
    """A program's output; fails with all it said."""
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1100,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}:\n{done.stdout[-6000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel and the sdist; the wheel is built from the sdist, as an index's user would."""
    out = tmp_path_factory.mktemp("dist")
    run(*UV, "build", "--quiet", "--out-dir", out, REPOSITORY / "python")
    return {"wheel": next(out.glob("*.whl")), "sdist": next(out.glob("*.tar.gz"))}


@pytest.mark.parametrize("form", ["wheel", "sdist"])
def test_python_package(form: str, distributions: dict[str, Path], server: Server, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    python = venv / "bin" / "python"
    run(*UV, "venv", "--quiet", "--python", sys.executable, venv)
    run(*UV, "pip", "install", "--quiet", "--python", python, distributions[form])
    frozen = run(*UV, "pip", "freeze", "--quiet", "--python", python)
    installed = {line.split("==")[0].split(" @")[0].lower() for line in frozen.splitlines()}
    assert installed == {"inferential", "numpy", "protobuf", "pyzmq"}
    compiled = "from inferential.types import COMPILED; print(COMPILED)"
    assert run(python, "-c", compiled, cwd=tmp_path).strip() == "True"
    done = run(python, ROUND_TRIP, server.address, "inspector", VERSION, cwd=tmp_path)
    assert done.strip().endswith("ok")
    said = run(
        python, "-c", "from inferential.errors import MissingDependencyError as E\n"
        "try:\n from inferential import Server; Server(models=['m'])\nexcept (ImportError, E) as e: print(e)", cwd=tmp_path,
    )  # fmt: skip
    assert "inferential[server]" in said


def test_python_package_with_the_server_extra(distributions: dict[str, Path], tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    python = venv / "bin" / "python"
    run(*UV, "venv", "--quiet", "--python", sys.executable, venv)
    run(
        *UV, "pip", "install", "--quiet", "--python", python, f"inferential[server] @ {distributions['wheel'].as_uri()}"
    )
    program = tmp_path / "server.py"
    program.write_text(
        "import sys\nfrom inferential import Connection, Server\n"
        "server = Server(bind='tcp://127.0.0.1:0', models={'double': lambda obs: {'y': obs['x'] * 2}})\n"
        "import numpy as np\n"
        "with server.run_in_thread(), Connection(server.endpoint, 'installed') as conn:\n"
        "    model = conn.model('double', latency_budget_ms=60_000.0)\n"
        "    model.observe(x=np.float32([1, 2]))\n"
        "    print(model.get_result(timeout_ms=60_000)['y'].tolist())\n"
    )
    assert run(python, program, cwd=tmp_path).strip().endswith("[2.0, 4.0]")
    assert f"inferential {VERSION}" in run(venv / "bin" / "inferential", "--version", cwd=tmp_path)
    run(python, "-c", "import ray, pydantic, typer, rich, prometheus_client, ml_dtypes", cwd=tmp_path)


RUST = """\
fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let conn = inferential::Connection::new(&arguments[1], "installed", "crate");
    let model = conn.model(&arguments[2], 60_000.0, 1);
    model.observe().tensor_f32("state", &[1.0, 2.0], &[2]).send();
    let result = model.get_result(60_000).expect("an answer");
    assert_eq!(result["state"].as_f32(), Ok(&[1.0, 2.0][..]));
    println!("ok");
}
"""


def test_rust_crate(server: Server, tmp_path: Path) -> None:
    target = os.environ.get("CARGO_TARGET_DIR", str(CACHE / "cargo-target"))
    environment = {"CARGO_TARGET_DIR": target, "CARGO_BUILD_JOBS": os.environ.get("JOBS", "2")}
    run("cargo", "package", "--quiet", "--no-verify", "--allow-dirty", cwd=REPOSITORY / "rust", **environment)
    archive = Path(target) / "package" / f"inferential-{VERSION}.crate"
    shutil.unpack_archive(archive, tmp_path, "gztar")
    project = tmp_path / "project"
    run("cargo", "new", "--quiet", "--bin", project, cwd=tmp_path)
    run("cargo", "add", "--quiet", "--path", tmp_path / f"inferential-{VERSION}", "inferential", cwd=project)
    (project / "src" / "main.rs").write_text(RUST)
    assert f"inferential v{VERSION}" in run("cargo", "tree", "--depth", "1", cwd=project, **environment)
    said = run("cargo", "run", "--quiet", "--", server.address, "inspector", cwd=project, **environment)
    assert said.strip().endswith("ok")


def test_cpp_by_cmake_pkg_config_and_bazel(server: Server) -> None:
    # That script installs the SDK into an empty prefix and asserts the version in each program.
    said = run(REPOSITORY / "cpp" / "scripts" / "check_packages.sh", server.address, "inspector")
    for form in ("find_package, static", "find_package, shared", "pkg-config, static", "pkg-config, shared", "Bazel"):
        assert f"== {form}" in said
