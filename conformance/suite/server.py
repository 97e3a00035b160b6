"""A live inferential server in a process of its own, which cases may stop, kill and start again on its port.

Run as a program (`python -m suite.server JSON`) it is that process: it prints its endpoint when it serves, answers questions on
standard input, and leaves on SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

START_S = 60.0
SAYS = "@ "
"""Before each line that is meant for the suite."""


class Server:
    """The suite's end."""

    def __init__(
        self,
        models: list[str],
        log_path: Path,
        *,
        config: dict[str, Any] | None = None,
        ray_address: str | None = None,
        local: bool = False,
        port: int = 0,
    ) -> None:
        settings: dict[str, Any] = {k: dict(v) for k, v in (config or {}).items()}
        settings["transport"] = {**settings.get("transport", {}), "bind": f"tcp://127.0.0.1:{port}"}
        settings["ray"] = {**settings.get("ray", {}), "address": ray_address} if ray_address else {"enabled": False}
        self._models = models
        self._log_path = log_path
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "suite.server",
                    json.dumps({"config": settings, "models": models, "local": local}),
                ],
                cwd=Path(__file__).parents[1],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
                env={**os.environ, "RAY_SERVE_LOG_TO_STDERR": "0"},
            )
        self.address = ""
        self.port = 0
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def wait(self) -> Server:
        """Until it serves."""
        line = self._line(START_S)
        assert line.startswith("serving "), f"the server said {line!r}; its log is {self._log_path}:\n{self._log()}"
        self.address = line.split()[1]
        self.port = int(self.address.rpartition(":")[2])
        return self

    def ask(self, question: str) -> Any:
        """`count NAME`: how often a metric was recorded; `health`."""
        assert self._process.stdin is not None
        self._process.stdin.write(question + "\n")
        return json.loads(self._line(20.0))

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self._process.kill()
        self._process.wait(20)

    def join(self, timeout_s: float) -> int:
        """Its exit code."""
        return self._process.wait(timeout_s)

    def stop(self) -> int | None:
        """Ends it in any case."""
        if self._process.poll() is None:
            self.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        return self._process.returncode

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):  # closed by stop()
            for line in self._process.stdout:
                # Libraries of the server print too (Ray forwards what its workers say).
                if line.startswith(SAYS):
                    self._lines.put(line.removeprefix(SAYS).strip())

    def _line(self, timeout_s: float) -> str:
        try:
            return self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise AssertionError(
                f"the server said nothing for {timeout_s:g} s; its log {self._log_path} ends:\n{self._log()}"
            ) from None

    def _log(self) -> str:
        return self._log_path.read_text(errors="replace")[-3000:]


def wait_until_ready(address: str, models: list[str], timeout_s: float = 60.0) -> None:
    """Pings until every model is ready."""
    from inferential import Connection

    begin = time.monotonic()
    with Connection(address, "conformance-suite") as connection:
        while True:
            pong = connection.ping(1000)
            if pong is not None and all(pong.models.get(m) for m in models):
                return
            assert time.monotonic() - begin < timeout_s, f"not ready after {timeout_s:g} s: {pong}"
            time.sleep(0.05)


async def main() -> None:
    """The server process."""
    import logging

    from inferential import Server as RealServer
    from inferential.config.schema import InferentialConfig

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    what = json.loads(sys.argv[1])
    models: Any = what["models"]
    if what["local"]:
        from suite.models import Inspector, Odd

        models = {"inspector": Inspector(), "odd": Odd()}
    server = RealServer(InferentialConfig.model_validate(what["config"]), models=models)
    running = asyncio.create_task(server.run())
    while not server.endpoint and not running.done():
        await asyncio.sleep(0.005)
    if server.endpoint:
        print(f"{SAYS}serving {server.endpoint}", flush=True)
    loop = asyncio.get_running_loop()

    def answer() -> None:
        line = sys.stdin.readline()
        if not line:
            loop.remove_reader(sys.stdin)
            return
        kind, _, name = line.strip().partition(" ")
        if kind == "health":
            print(SAYS + json.dumps(server.health(), default=str), flush=True)
            return
        print(SAYS + json.dumps(server.metrics.get_stats(name).count), flush=True)

    loop.add_reader(sys.stdin, answer)
    await running


if __name__ == "__main__":
    asyncio.run(main())
