"""Starts what is measured and what measures it, each in a process of its own, and ends them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("INFERENTIAL_CACHE", Path.home() / ".cache" / "inferential"))
PYTHON = sys.executable
PEER_PYTHON = str(CACHE / "peer-1.4.0" / "bin" / "python")

READY_TIMEOUT_S = 180.0

# A Ray that is started by ray.init() asks those who join it for its token; they only look for it when told to.
os.environ.setdefault("RAY_AUTH_MODE", "token")
# Everybody's replicas run at the priority of all else. Ray's default of 15 would have them wait for the load generators.
os.environ.setdefault("RAY_worker_niceness", "0")


class Stand:
    """A process that prints a line of JSON when it is ready, and runs until it is ended. A context manager."""

    def __init__(self, script: str, *args: str, python: str = PYTHON, env: Mapping[str, str] | None = None) -> None:
        self.name = " ".join([script, *args])
        self._process = subprocess.Popen(
            [python, str(HERE / f"{script}.py"), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log(),
            text=True,
            env={**os.environ, **(env or {})},
        )
        self.pid = self._process.pid
        self.facts = self._first_line()

    def __getitem__(self, fact: str) -> str:
        return str(self.facts[fact])

    def __enter__(self) -> Stand:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def stop(self) -> None:
        """Nothing of it runs any more, except within `running`."""
        self._process.send_signal(signal.SIGSTOP)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """One that was stopped runs for so long."""
        self._process.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.stop()

    def close(self) -> None:
        """Asks it to end, then ends it."""
        self._process.terminate()
        self._process.send_signal(signal.SIGCONT)  # one that is stopped hears nothing
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _log(self) -> IO[str]:
        """What it has to say goes into a file in the cache."""
        logs = CACHE / "bench-logs"
        logs.mkdir(parents=True, exist_ok=True)
        self.log = logs / (re.sub(r"[^\w.-]+", "-", self.name)[:100] + ".log")
        return self.log.open("w")

    def _first_line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        timer = threading.Timer(READY_TIMEOUT_S, self._process.kill)
        timer.start()
        try:
            for line in self._process.stdout:
                if line.startswith('{"ready"'):
                    threading.Thread(target=self._drain, daemon=True).start()
                    return json.loads(line)  # type: ignore[no-any-return]
        finally:
            timer.cancel()
        raise RuntimeError(f"{self.name} ended ({self._process.wait()}) before it was ready; see {self.log}")

    def _drain(self) -> None:
        assert self._process.stdout is not None
        for _ in self._process.stdout:
            pass


def measure(*command: str, timeout_s: float = 300.0, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Runs a load generator to its end; what it printed last, a line of JSON."""
    done = subprocess.run(
        list(command),
        stdout=subprocess.PIPE,
        text=True,
        timeout=timeout_s,
        env={**os.environ, **(env or {})},
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not lines:
        program = " ".join(Path(part).name for part in command[1:3])  # what is on record names no path of one machine
        raise RuntimeError(f"{program} exited {done.returncode} without a result")
    return json.loads(lines[-1])  # type: ignore[no-any-return]


def load(how: str, *args: str, python: str = PYTHON, timeout_s: float = 300.0) -> dict[str, Any]:
    """Runs load.py to its end."""
    return measure(python, str(HERE / "load.py"), how, *args, timeout_s=timeout_s)
