"""Compiles the parts without I/O with mypyc when a wheel is built (docs/adr/0005-compiled-core.md). Every other module stays as it is.

Without a C compiler or Python's headers, and with INFERENTIAL_PURE=1 in the environment, the wheel is pure Python: slower, the same in all
else.
An editable installation is never compiled.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMPILED = [
    "assembler.py",
    "driver.py",
    "engine.py",
    "model_call.py",
    "replica.py",
    "transport.py",
    "types.py",
    "wire.py",
    "backends/direct.py",
    "backends/link.py",
    "backends/local.py",
    "backends/unix_link.py",
    "client/core.py",
    "client/reply.py",
    "client/session.py",
    "client/socket.py",
    "metrics/collector.py",
    "metrics/ring.py",
    "scheduling/*.py",
    "tracking/*.py",
]
INTERPRETED = {
    "scheduling/base.py",  # users inherit from it
}


class CompileHook(BuildHookInterface):  # type: ignore[misc]
    """Adds the compiled modules to the wheel, beside the Python that they were made of."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it packs."""
        if self.target_name != "wheel" or version == "editable" or os.environ.get("INFERENTIAL_PURE") == "1":
            return
        missing = _missing()
        if missing:
            self.app.display_warning(f"{missing}: this wheel of inferential is pure Python, and slower")
            return
        self._directory = tempfile.mkdtemp(prefix="inferential-mypyc-")
        for path in _compile(Path(self.root), Path(self._directory)):
            build_data["force_include"][str(path)] = path.relative_to(Path(self._directory) / "built").as_posix()
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Called by hatchling when the wheel is there."""
        if hasattr(self, "_directory"):
            shutil.rmtree(self._directory, ignore_errors=True)


def _missing() -> str:
    """What keeps this machine from compiling; empty where nothing does."""
    if sys.version_info < (3, 11):
        return "Python 3.10"  # mypyc takes its IntEnum for a plain int
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    if shutil.which(compiler.split()[0]) is None:
        return f"no C compiler ({compiler})"
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").exists():
        return f"no headers of Python (Python.h in {headers})"
    return ""


def _compile(root: Path, directory: Path) -> list[Path]:
    """Builds the extension modules into `directory`, laid out as in the wheel."""
    from mypyc.build import mypycify
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    package = root / "inferential"
    sources = {p for pattern in COMPILED for p in package.glob(pattern)} - {package / p for p in INTERPRETED}
    modules = sorted(str(p.relative_to(root)) for p in sources if p.name != "__init__.py")
    built = directory / "built"
    before = Path.cwd()
    os.chdir(root)  # mypy names modules after where it runs
    try:
        extensions = mypycify(
            ["--config-file", "mypyc.ini", f"--cache-dir={directory / 'mypy'}", *modules],
            opt_level="1",
            debug_level="0",
            group_name="inferential",
            target_dir=str(directory / "c"),
        )
        command = build_ext(Distribution({"name": "inferential", "ext_modules": extensions}))
        command.build_lib = str(built)
        command.build_temp = str(directory / "objects")
        command.ensure_finalized()
        command.run()
    finally:
        os.chdir(before)
    return sorted(built.rglob("*.so"))
