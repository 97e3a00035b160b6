"""A server that keeps the machine's processors awake, on the machine's own device where there is one that this user may write."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest

from inferential import Connection, Server, local
from inferential.config.schema import InferentialConfig
from inferential.cpu_latency import DEVICE

from .eventually import WAIT_S, eventually

FORKS = """
import asyncio, os, sys, time
from inferential.cpu_latency import CpuLatency
cpu = CpuLatency(7, asyncio.new_event_loop(), lambda: True)
cpu.used(time.monotonic())
child = os.fork()
if child:
    print(child, flush=True)
sys.stdin.read()
"""

pytestmark = pytest.mark.skipif(
    not os.access(DEVICE, os.R_OK | os.W_OK), reason=f"this user may not write {DEVICE}, or there is none"
)


def limit_us() -> int:
    """What holds on this machine, whoever asked for it."""
    fd = os.open(DEVICE, os.O_RDONLY)
    try:
        return int(struct.unpack("=i", os.read(fd, 4))[0])
    finally:
        os.close(fd)


def test_processors_are_kept_awake_while_requests_come() -> None:
    config = InferentialConfig()
    config.cpu.max_wakeup_latency_us = 7
    release = threading.Event()

    def model(obs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if obs["x"][0]:
            assert release.wait(WAIT_S)
        return {"y": obs["x"]}

    before = limit_us()
    server = Server(config, models={"m": local(model)}, bind="tcp://127.0.0.1:0")
    with server.run_in_thread(), Connection(server.endpoint, client_id="a") as connection:
        assert connection.ping(timeout_ms=WAIT_S * 1e3) is not None
        connection.model("nobody").observe(x=np.zeros(1))
        assert connection.ping(timeout_ms=WAIT_S * 1e3) is not None
        assert limit_us() == before  # neither is a request to a model
        m = connection.model("m")
        m.observe(x=np.zeros(1))
        assert m.get_result(timeout_ms=WAIT_S * 1e3) is not None
        assert limit_us() == min(before, 7)
        eventually(lambda: limit_us() == before)
        m.observe(x=np.ones(1))
        eventually(lambda: limit_us() == min(before, 7))
        release.set()
        assert m.get_result(timeout_ms=WAIT_S * 1e3) is not None
        assert limit_us() == min(before, 7)
    assert limit_us() == before


def test_a_killed_server_s_children_do_not_keep_them_awake() -> None:
    before = limit_us()
    with subprocess.Popen(
        [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            assert limit_us() == min(before, 7)
            process.kill()
            process.wait(WAIT_S)
            os.kill(child, 0)  # it lives
            eventually(lambda: limit_us() == before)
            os.kill(child, 0)
        finally:
            os.kill(child, signal.SIGKILL)
