"""A server that keeps the machine's processors awake, on the machine's own device where there is one that this user may write."""

from __future__ import annotations

import os
import struct
import threading
import time

import numpy as np
import pytest

from inferential import Connection, Server, local
from inferential.config.schema import InferentialConfig
from inferential.cpu_latency import DEVICE, HOLD_S

WAIT_S = 20.0


def limit_us() -> int:
    """What holds on this machine, whoever asked for it."""
    fd = os.open(DEVICE, os.O_RDONLY)
    try:
        return int(struct.unpack("=i", os.read(fd, 4))[0])
    finally:
        os.close(fd)


@pytest.mark.skipif(
    not os.access(DEVICE, os.R_OK | os.W_OK), reason=f"this user may not write {DEVICE}, or there is none"
)
def test_processors_are_kept_awake_while_requests_come() -> None:
    config = InferentialConfig()
    config.cpu.max_wakeup_latency_us = 7
    server = Server(config, models={"m": local(lambda obs: {"y": obs["x"]}, inline=True)}, bind="tcp://127.0.0.1:0")
    before = limit_us()
    with server.run_in_thread():
        with Connection(server.endpoint, client_id="a") as connection:
            assert connection.ping(timeout_ms=WAIT_S * 1e3) is not None
            assert limit_us() == before  # a ping is no request
            model = connection.model("m")
            model.observe(x=np.zeros(3))
            assert model.get_result(timeout_ms=WAIT_S * 1e3) is not None
            assert limit_us() == min(before, 7)
        until = time.monotonic() + 2 * HOLD_S + WAIT_S
        while limit_us() != before:
            assert time.monotonic() < until
            threading.Event().wait(0.05)
    assert limit_us() == before
