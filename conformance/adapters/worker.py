"""A client under test in a process of its own, so that a crash or a hang costs one case and not the suite.

Here: the loop of that process (`python -m adapters.worker KIND FD`), and `Worker`, its end in the suite. Between them a
socket pair that nobody else can reach carries (method, arguments) one way and (True, value) or (False, error) the other.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from adapters.base import Adapter, CallError

KINDS = {
    "python-sync": "adapters.python_sync:PythonSync",
    "python-async": "adapters.python_async:PythonAsync",
    "cpp": "adapters.native:Cpp",
    "rust-sync": "adapters.native:RustSync",
    "rust-async": "adapters.native:RustAsync",
}
# Where build.sh puts the binding modules; it prints the folder, and `make conformance` puts it there.
MODULES = Path(os.environ.get("PYTHONPATH", "").partition(os.pathsep)[0])
START_S = 60.0
MARGIN_S = 30.0  # beyond what a call itself may take; the machine may be busy


class WorkerDiedError(Exception):
    """The client's process crashed or hung during a call. The next case gets a new one."""


class Worker:
    """The suite's end of a client process. Not thread-safe; several workers run at the same time with begin() and end()."""

    def __init__(self, kind: str, log_path: Path) -> None:
        self.kind = kind
        self._log_path = log_path
        ours, theirs = socket.socketpair()
        with theirs, log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "adapters.worker", kind, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=Path(__file__).parents[1],
                env={**os.environ, "PYTHONPATH": str(MODULES)},
                stdout=log,
                stderr=log,
            )
        self._pipe = Connection(ours.detach())
        self._deadline = 0.0
        self.alive = True
        self.begin("version", limit_s=START_S)
        self.version: str = self.end()

    def call(self, method: str, *args: Any, limit_s: float = 0.0) -> Any:
        """One call.

        Raises:
            CallError: the SDK refused it.
            WorkerDiedError: no answer within limit_s plus a margin, or the process is gone.
        """
        self.begin(method, *args, limit_s=limit_s)
        return self.end()

    def begin(self, method: str, *args: Any, limit_s: float = 0.0) -> None:
        """Starts a call; end() waits for it."""
        if not self.alive:
            raise WorkerDiedError(f"{self.kind}: its process is gone")
        self._deadline = time.monotonic() + limit_s + MARGIN_S
        try:
            self._pipe.send((method, args))
        except OSError as e:
            self._lost(f"{method}: {e}")

    def end(self) -> Any:
        """The value of the call that begin() started. Errors as for call()."""
        try:
            if not self._pipe.poll(max(0.0, self._deadline - time.monotonic())):
                self._process.send_signal(signal.SIGABRT)  # faulthandler writes where it hangs
                self._lost("hung: no answer in time")
            ok, value = self._pipe.recv()
        except (EOFError, OSError) as e:
            self._lost(f"crashed: {e!r}")
        if ok:
            return value
        raise value

    def _lost(self, what: str) -> None:
        self.stop(1.0)
        tail = self._log_path.read_text(errors="replace")[-2000:] if self._log_path.exists() else ""
        raise WorkerDiedError(f"{self.kind}: {what} (exit code {self._process.returncode}); its log ends:\n{tail}")

    def stop(self, timeout_s: float = 5.0) -> int | None:
        """Ends the process; its exit code."""
        self.alive = False
        self._pipe.close()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        return self._process.returncode


def make_adapter(kind: str) -> Adapter:
    """The adapter of that name."""
    module, name = KINDS[kind].split(":")
    adapter: Adapter = getattr(importlib.import_module(module), name)()
    return adapter


def main() -> None:
    """Serves calls until the suite closes its end."""
    faulthandler.enable()
    kind, fd = sys.argv[1], int(sys.argv[2])
    pipe = Connection(os.dup(fd))
    os.close(fd)
    adapter = make_adapter(kind)
    while True:
        try:
            method, args = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            pipe.send((True, getattr(adapter, method)(*args)))
        except CallError as e:
            pipe.send((False, e))
        except Exception as e:  # a bug in an adapter or an SDK: tell the case
            pipe.send((False, CallError("other", f"{type(e).__name__}: {e}")))


if __name__ == "__main__":
    main()
