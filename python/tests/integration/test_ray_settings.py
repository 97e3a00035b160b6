"""What the settings about Ray do (tests/unit/test_settings.py has the whole list)."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inferential import Connection, Server, Status
from inferential.backends.ray_serve import RayServeBackend
from inferential.config.schema import InferentialConfig

from .ray_driver import Driver, driving

SMALL = {"num_cpus": 0.1}

EMBEDDED = """
import os
from inferential.backends import cluster
from inferential.config.schema import RayConfig
import ray
assert cluster.join_or_start(RayConfig(address="local", namespace="robots", num_cpus=3))
niceness = ray.get(ray.remote(lambda: os.getpriority(os.PRIO_PROCESS, 0)).remote())
print("got", ray.get_runtime_context().namespace, int(ray.cluster_resources()["CPU"]), niceness)
"""


def test_embedded_ray() -> None:
    """address="local" starts one of its own whatever runs here, with the namespace and num_cpus that were asked for; its workers have
    this process's priority."""
    result = subprocess.run([sys.executable, "-c", EMBEDDED], capture_output=True, text=True, timeout=110, check=False)
    assert f"got robots 3 {os.getpriority(os.PRIO_PROCESS, 0)}" in result.stdout, result.stderr


APPLICATION = """
import numpy as np
from ray import serve
from inferential.serving import servable
@serve.deployment(ray_actor_options={"num_cpus": 0.1})
@servable
class Policy:
    def infer(self, obs):
        return {"actions": obs["state"] * 2}
app = Policy.bind()
"""


@pytest.mark.timeout(240)
def test_a_server_with_a_ray_of_its_own(tmp_path: Path) -> None:
    """`inferential serve` starts Ray, deploys the application, serves it on the direct path, and all of it ends with code 0."""
    (tmp_path / "policy.py").write_text(APPLICATION)
    with subprocess.Popen(
        [sys.executable, "-m", "inferential.cli", "serve", "--bind", "tcp://127.0.0.1:0", "policy=policy:app"],
        cwd=tmp_path,
        env={**os.environ, "RAY_ADDRESS": "local"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            endpoint = next(line.split()[-1] for line in process.stdout if line.startswith("serving policy on "))
            with Connection(endpoint, "robot", hold_off=False) as conn:
                model = conn.model("policy", latency_budget_ms=1000.0)
                until_s, reply = time.monotonic() + 120.0, None
                while not (reply is not None and reply.ok):
                    assert time.monotonic() < until_s, f"no answer from the application: {reply}"
                    assert model.observe(state=np.ones(3, np.float32))
                    reply = model.next_reply(timeout_ms=5000)
                    if reply is None or not reply.ok:
                        time.sleep(0.1)
                np.testing.assert_array_equal(reply["actions"], [2, 2, 2])
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()


DEPLOYING = """
import asyncio, os, signal, time
from ray import serve
from inferential import Server
from inferential.config.schema import InferentialConfig

@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Slow:
    def __init__(self):
        time.sleep(300)
    def infer(self, obs):
        return {}

@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Broken:
    def __init__(self):
        raise ValueError("no weights")
    def infer(self, obs):
        return {}

async def main():
    config = InferentialConfig()
    config.ray.address = "local"
    server = Server(config, models={"slow": Slow.bind(), "broken": Broken.bind()}, bind="tcp://127.0.0.1:0")
    await server.run(lambda: print("started", flush=True))
    print("returned", flush=True)
asyncio.run(main())
"""


@pytest.mark.timeout(240)
def test_applications_that_do_not_come_up(tmp_path: Path) -> None:
    """What could not be deployed is told of; one that is still being deployed keeps no server from its end, and starts no other Ray."""
    (tmp_path / "program.py").write_text(DEPLOYING)
    errors = tmp_path / "errors"
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "program.py"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == "started"
            until_s = time.monotonic() + 120.0
            while "'broken' could not be deployed" not in errors.read_text():
                assert time.monotonic() < until_s, errors.read_text()
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
            assert process.stdout.read().strip() == "returned"
        finally:
            process.kill()
    assert "no weights" in errors.read_text()


SIGNALLED = """
import asyncio, os, signal
from inferential import Server
from inferential.backends import cluster
from inferential.config.schema import InferentialConfig
cluster.prepare_environment()
from ray import serve
start = serve.start
def signalled(**options):  # Ray has been joined, the server has not started
    os.kill(os.getpid(), signal.SIGTERM)
    start(**options)
serve.start = signalled
config = InferentialConfig()
config.ray.address = "local"
asyncio.run(Server(config, models=["m"], bind="tcp://127.0.0.1:0").run(lambda: print("started")))
print("returned")
"""


@pytest.mark.timeout(240)
def test_sigterm_while_ray_starts() -> None:
    """The server gives its start up and ends properly: Ray's own handlers do not abort it."""
    result = subprocess.run([sys.executable, "-c", SIGNALLED], capture_output=True, text=True, timeout=220, check=False)
    assert (result.returncode, result.stdout.split()) == (0, ["returned"]), result.stderr


WITHOUT_TOKEN = """
from inferential.backends import cluster
from inferential.config.schema import RayConfig
from inferential.errors import ConfigError
try:
    cluster.join_or_start(RayConfig(address="127.0.0.1:1"))
except ConfigError as e:
    print("refused:", e)
"""


def test_cluster_that_asks_for_a_token(tmp_path: Path) -> None:
    """Who has none is told so, and what to set."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TOKEN],
        env={**env, "HOME": str(tmp_path), "RAY_AUTH_MODE": "token"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert "refused: ray.address: cannot use '127.0.0.1:1'" in result.stdout, result.stderr
    assert "RAY_AUTH_MODE=token" in result.stdout


def test_how_often_deployments_are_looked_up(ray_session: None) -> None:
    from ray import serve

    @serve.deployment(ray_actor_options=SMALL)
    class Late:
        def infer(self, obs: dict[str, Any]) -> int:
            return 1

    async def main() -> None:
        async with driving(["looked-up"], poll_s=3600.0) as seldom, driving(["looked-up"], poll_s=0.1) as often:
            await asyncio.sleep(0)
            await asyncio.to_thread(serve.run, Late.bind(), name="looked-up", route_prefix=None)
            await often.replica("looked-up")
            assert not seldom.of("looked-up")

    try:
        asyncio.run(main())
    finally:
        serve.delete("looked-up")


def test_how_long_a_silent_replica_lives(ray_session: None) -> None:
    """health_timeout_ms: of two servers, the one that waits less gives a stopped replica up first."""
    from ray import serve

    from inferential.serving import servable

    @serve.deployment(ray_actor_options=SMALL, health_check_timeout_s=120)
    @servable
    class Policy:
        def infer(self, obs: dict[str, Any]) -> dict[str, str]:
            return {"pid": str(os.getpid())}

    def backend(health_timeout_ms: float) -> RayServeBackend:
        config = InferentialConfig()
        config.ray.poll_s = 0.2
        config.dispatch.health_timeout_ms = health_timeout_ms
        return RayServeBackend(config, {"silent": None})

    async def main() -> None:
        quick, patient = Driver(backend(600.0)), Driver(backend(100_000.0))
        for driver in (quick, patient):
            await driver.backend.start(driver)
        try:
            for driver in (quick, patient):
                await driver.replica("silent", "direct")
            pid = int((await quick.infer("silent"))["pid"])
            os.kill(pid, signal.SIGSTOP)
            try:
                await quick.until(lambda: not quick.of("silent"))
                assert patient.of("silent")
            finally:
                os.kill(pid, signal.SIGCONT)
            await quick.replica("silent", "direct")
        finally:
            for driver in (quick, patient):
                await driver.backend.stop(5.0)

    serve.run(Policy.bind(), name="silent", route_prefix=None)
    try:
        asyncio.run(main())
    finally:
        serve.delete("silent")


@pytest.mark.timeout(240)
def test_why_a_model_has_no_replica_is_told(ray_session: None, caplog: pytest.LogCaptureFixture) -> None:
    """By the error text of UNAVAILABLE, by health() and, where Serve has given up, by the log."""
    from ray import serve

    from inferential.serving import servable

    @serve.deployment(ray_actor_options=SMALL)
    @servable
    class Weightless:
        def __init__(self) -> None:
            raise FileNotFoundError("weights.pt is not there")

        def infer(self, obs: dict[str, Any]) -> int:
            return 1

    config = InferentialConfig()
    config.ray.poll_s = 0.2
    models = {"weightless": Weightless.bind(), "nobodys": None}
    deadline = time.monotonic() + 200.0
    with Server(config, bind="tcp://127.0.0.1:0", models=models).run_in_thread() as server:
        try:
            with Connection(server.endpoint, "robot", connect_timeout_ms=20_000.0) as conn:
                weightless, nobodys = conn.model("weightless"), conn.model("nobodys")
                while True:
                    weightless.observe(x=np.zeros(1))
                    reply = weightless.next_reply(20_000.0)
                    assert reply is not None
                    assert reply.status == Status.UNAVAILABLE
                    if "DEPLOY_FAILED" in reply.error:
                        break
                    assert time.monotonic() < deadline, reply.error
                    time.sleep(0.2)
                assert "weights.pt is not there" in reply.error
                assert "weights.pt is not there" in server.health()["models"]["weightless"]["trouble"]
                nobodys.observe(x=np.zeros(1))
                reply = nobodys.next_reply(20_000.0)
                assert reply is not None
                assert "there is no Ray Serve application of that name" in reply.error
        finally:
            serve.delete("weightless")
    told = [r.getMessage() for r in caplog.records if "model 'weightless' has no replica yet" in r.getMessage()]
    assert any("DEPLOY_FAILED" in text and "weights.pt is not there" in text for text in told)
    assert len(told) <= 4
