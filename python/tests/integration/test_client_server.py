"""Both clients against the real server with models in its own process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from inferential import AsyncConnection, Connection, LinkState, Server, Status
from inferential.errors import ModelError
from tests.integration.raw_server import WAIT_S, wait_until_ready

STATE = np.arange(7, dtype=np.float32)
LONG_MS = WAIT_S * 1e3


class Gate:
    """A model that waits until it is let through."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        self.entered.set()
        assert self.open.wait(WAIT_S)
        return {"actions": obs["state"] * 2}


def fail(obs: dict[str, Any]) -> dict[str, Any]:
    raise ModelError("the arm is not calibrated")


def see(obs: dict[str, Any]) -> dict[str, Any]:
    return {"shape": np.array(obs["camera"].shape), "dtype": str(obs["camera"].dtype)}


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def server(gate: Gate) -> Iterator[Server]:
    models = {"policy": lambda obs: {"actions": obs["state"] * 2, "note": "hi"}, "gate": gate, "fail": fail, "see": see}
    with Server(bind="tcp://127.0.0.1:0", models=models).run_in_thread() as server:
        with Connection(server.endpoint, "warm-up", connect_timeout_ms=LONG_MS) as conn:
            wait_until_ready(conn, *models)
        yield server
        gate.open.set()


@pytest.fixture
def conn(server: Server) -> Iterator[Connection]:
    with Connection(server.endpoint, "robot", "arm", connect_timeout_ms=LONG_MS) as conn:
        yield conn


def test_the_blocking_client(conn: Connection) -> None:
    model = conn.model("policy", latency_budget_ms=LONG_MS, priority=0)
    for _ in range(50):
        assert model.observe(urgency=0.8, steps_remaining=50, state=STATE)
        result = model.get_result(LONG_MS)
        assert result is not None
        np.testing.assert_array_equal(result["actions"], STATE * 2)
        assert result.metadata == {"note": "hi"}
        assert 0 < result.timing.server_ms <= result.round_trip_ms
    assert conn.server_version == 2


def test_the_asyncio_client(server: Server) -> None:
    async def main() -> None:
        async with AsyncConnection(server.endpoint, "robot", connect_timeout_ms=LONG_MS) as conn:

            async def robot(i: int) -> None:
                model = conn.model("policy", latency_budget_ms=LONG_MS, slot=f"arm-{i}")
                await model.observe(state=STATE + i)

            await asyncio.gather(*(robot(i) for i in range(10)))
            model = conn.model("policy")
            slots = {}
            while reply := await model.next_reply(LONG_MS):
                assert reply.ok
                slots[reply.slot] = float(reply["actions"][0])
            assert slots == {f"arm-{i}": 2.0 * i for i in range(10)}

    asyncio.run(main())


def test_ping(conn: Connection) -> None:
    found = conn.ping(LONG_MS)
    assert found is not None
    assert dict(found.models) == {"policy": True, "gate": True, "fail": True, "see": True}
    assert found.protocol == 2
    assert found.server


def test_statuses(conn: Connection) -> None:
    unknown = conn.model("nobody")
    assert unknown.observe(state=STATE)
    assert unknown.get_result(LONG_MS) is None
    assert unknown.last_status == Status.UNKNOWN_MODEL
    assert "nobody" in unknown.last_error
    failing = conn.model("fail", latency_budget_ms=LONG_MS)
    assert failing.observe(state=STATE)
    assert failing.get_result(LONG_MS) is None
    assert failing.last_status == Status.MODEL_ERROR
    assert "not calibrated" in failing.last_error


def test_cancel_supersede_and_expire(conn: Connection, gate: Gate) -> None:
    assert conn.ping(LONG_MS) is not None  # now the server is known to speak v2
    model = conn.model("gate", latency_budget_ms=LONG_MS)
    running = model.observe(state=STATE)
    assert gate.entered.wait(WAIT_S)
    while True:  # until the model's slots are taken and requests queue
        extra = model.observe(state=STATE)
        if extra.request_id > running.request_id + 16:
            break
    older = model.observe(state=STATE, latest_only=True)
    newer = model.observe(state=STATE, latest_only=True)
    found = model.next_reply(LONG_MS)
    assert found is not None
    assert (found.request_id, found.status) == (older.request_id, Status.SUPERSEDED)
    assert model.cancel(newer.request_id)
    found = model.next_reply(LONG_MS)
    assert found is not None
    assert (found.request_id, found.status) == (newer.request_id, Status.CANCELLED)
    hasty = model.observe(state=STATE, latency_budget_ms=1)
    found = model.next_reply(LONG_MS)
    assert found is not None
    assert found.request_id == hasty.request_id
    assert found.status in (Status.EXPIRED, Status.REJECTED)
    gate.open.set()
    done = []
    while reply := model.next_reply(LONG_MS):
        done.append(reply.request_id)
    assert sorted(done) == list(range(running.request_id, extra.request_id + 1))


def test_an_encoded_camera_reaches_the_model_decoded(conn: Connection) -> None:
    model = conn.model("see", latency_budget_ms=LONG_MS)
    for encode in ("jpeg", "png"):
        assert model.observe(camera=np.zeros((48, 64, 3), np.uint8), encode=encode)
        result = model.get_result(LONG_MS)
        assert result is not None
        np.testing.assert_array_equal(result["shape"], [48, 64, 3])
        assert result.metadata["dtype"] == "uint8"


def test_a_restart_of_the_server() -> None:
    def serve(bind: str) -> Server:
        return Server(bind=bind, models={"policy": lambda obs: {"actions": obs["state"]}})

    with serve("tcp://127.0.0.1:0").run_in_thread() as server:
        endpoint = server.endpoint
        conn = Connection(endpoint, "robot", connect_timeout_ms=LONG_MS)
        wait_until_ready(conn, "policy")
        model = conn.model("policy", latency_budget_ms=LONG_MS)
        assert model.observe(state=STATE)
        assert model.get_result(LONG_MS) is not None
    deadline = time.monotonic() + WAIT_S
    while conn.link_state is not LinkState.DOWN:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert not model.observe(state=STATE)
    with conn, serve(endpoint).run_in_thread():
        assert conn.wait_until_up(LONG_MS)
        wait_until_ready(conn, "policy")
        assert model.observe(state=STATE + 1)
        result = model.get_result(LONG_MS)
        assert result is not None
        np.testing.assert_array_equal(result["actions"], STATE + 1)
        assert conn.stats.reconnects == 1
