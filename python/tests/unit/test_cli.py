from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from inferential import Server, cli, local
from inferential._version import __version__

WAIT_S = 30.0
runner = CliRunner()


def command(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "inferential.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        cwd=cwd,
        check=False,
    )


def test_version_and_help() -> None:
    assert runner.invoke(cli.app, ["--version"]).output == f"inferential {__version__}\n"
    out = runner.invoke(cli.app, ["--help"]).output
    assert all(name in out for name in ("serve", "check-config", "ping"))


def test_check_config_shows_what_is_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(
        '[scheduling]\nstrategy = "round_robin"\n[transport]\nbind = "tcp://127.0.0.1:5555"\n'
        "[models.known.policy]\nmax_inflight = 3\n[models.known.telemetry]\nmax_inflight = 1\n"
    )
    result = runner.invoke(cli.app, ["check-config", str(path)])
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "scheduling.strategy = 'round_robin'",
        "models.known.policy.max_inflight = 3",
        "models.known.telemetry: defaults",
        f"{path}: good",
    ]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[queue]\noverflow = 'x'", "queue.overflow is 'x'"),
        ("[scheduling]\nstrategy = 'x'", "scheduling.strategy: 'x' is unknown; known are"),
        ("[scheduling]\npolicy = 'x'", "scheduling.policy"),
        ("[scheduling.options]\nx = 1", "scheduling.options"),
    ],
)
def test_check_config_tells_what_is_wrong(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    result = command("check-config", str(path))
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert word in result.stderr
    assert "Traceback" not in result.stderr


def test_ping() -> None:
    models = {"policy": local(lambda obs: 1, inline=True)}
    with Server(models=models, bind="tcp://127.0.0.1:0").run_in_thread() as server:
        result = runner.invoke(cli.app, ["ping", server.endpoint, "--count", "2", "--timeout-ms", "20000"])
    assert result.exit_code == 0
    assert "2 of 2 answered" in result.output
    assert "policy: ready" in result.output


def test_ping_without_a_server() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: nobody else gets the port
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        result = runner.invoke(cli.app, ["ping", address, "--count", "1", "--timeout-ms", "50"])
    assert result.exit_code == 1
    assert "no answer" in result.output


def test_ping_waits_for_a_server_as_long_as_it_is_told() -> None:
    """Here until one begins to listen, longer than a connection waits by itself."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    waiting = subprocess.Popen(
        [sys.executable, "-m", "inferential.cli", "ping", f"127.0.0.1:{port}", "--count", "1", "--timeout-ms", "30000"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(2.5)
        models = {"policy": local(lambda obs: 1, inline=True)}
        with Server(models=models, bind=f"tcp://127.0.0.1:{port}").run_in_thread():
            out, _ = waiting.communicate(timeout=WAIT_S)
        assert waiting.returncode == 0
        assert "1 of 1 answered" in out
    finally:
        waiting.kill()
        waiting.communicate()


def test_explain_over_ipv6() -> None:
    models = {"policy": local(lambda obs: 1, inline=True)}
    with Server(models=models, bind="tcp://[::1]:0").run_in_thread() as server:
        result = runner.invoke(cli.app, ["explain", "robot", "1", "--server", server.endpoint, "--timeout-ms", "20000"])
    assert result.exit_code == 1
    assert "request 1 of client 'robot' is not known" in result.output


MODELS = """
def double(obs):
    return {"actions": obs["x"] * 2}
"""


def test_serve_local_callables_until_a_signal(tmp_path: Path) -> None:
    (tmp_path / "my_models.py").write_text(MODELS)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "inferential.cli", "serve", "twice=my_models:double", "my_models:double"),
            *("--bind", "tcp://127.0.0.1:0", "--inline", "--log-level", "warning"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving twice, double on tcp://127.0.0.1:")
        ping = runner.invoke(cli.app, ["ping", line.split()[-1], "--count", "1", "--timeout-ms", "20000"])
        assert "twice: ready" in ping.output
        assert "double: ready" in ping.output
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0
        assert errors == ""
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "models: none given"),
        (["nonsense_module:app"], "cannot import it"),
        (["math:nonsense"], "cannot import it"),
        (["name=math"], "after the = comes MODULE:ATTRIBUTE"),
        ([":x"], "write it as"),
        (["robots/pol.py"], "write MODULE:ATTRIBUTE, as in robots.pol:app"),
        (["f=math:floor", "f=math:ceil"], "another model named 'f' already"),
        (["math:pi"], "model 'pi' is a float"),
        (["math:floor", "--log-level", "loud"], "--log-level is 'loud'"),
        (["math:floor", "--record", "nowhere/run.mcap"], "record: cannot write 'nowhere/run.mcap'"),
        (["math:floor", "--bind", "nonsense"], "transport.bind is 'nonsense'"),
    ],
)
def test_serve_tells_what_is_wrong(arguments: list[str], word: str) -> None:
    result = command("serve", *arguments)
    assert result.returncode == 2
    assert word in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["explain", "robot", "1", "--server", "nonsense://"], "server is 'nonsense://'; it must be tcp://HOST:PORT"),
        (
            ["explain", "robot", "1", "--server", "localhost:99999"],
            "server is 'localhost:99999'; it must be tcp://HOST:PORT",
        ),
        (["explain", "robot\udcff", "1"], "the client's id is 'robot\\udcff', which is not valid Unicode text"),
        (["simulate", "a.yaml", "--plots", "a.xyz"], "a.xyz: plots are .png, .svg or .pdf files"),
        (["explain", "robot", "1", "--timeout-ms", "inf"], "--timeout-ms"),
        (["simulate", "a.yaml", "--json", "nowhere/a.json"], "nowhere/a.json: cannot write it"),
        (["ping", "nonsense://"], "server is 'nonsense://'"),
        (["replay", "nowhere.mcap"], "nowhere.mcap: cannot read it"),
        (["simulate", "nowhere.yaml"], "nowhere.yaml: "),
        (["check-config", "nowhere.toml"], "nowhere.toml: cannot read it"),
    ],
)
def test_what_cannot_be_reached_or_read_is_named(arguments: list[str], word: str) -> None:
    result = command(*arguments)
    assert result.returncode == 2
    assert word in result.stderr
    assert "Traceback" not in result.stderr
