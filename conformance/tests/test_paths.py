"""The other ways to a model: through a plain deployment's handle, and in the server's own process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.base import DTYPES
from conftest import CONFIG
from suite.client import Client, Connection, f32, some
from suite.server import Server, wait_until_ready

OK, UNKNOWN_MODEL, MODEL_ERROR = 0, 2, 6
PATIENT: dict[str, Any] = {"latency_budget_ms": 60_000.0}


@pytest.fixture(scope="module")
def local_server(log_dir: Path) -> Iterator[Server]:
    """A server without Ray."""
    config = {k: v for k, v in CONFIG.items() if k != "models"}
    found = Server([], log_dir / "server-local.log", config=config, local=True).wait()
    wait_until_ready(found.address, ["inspector", "odd"])
    yield found
    assert found.stop() == 0


@pytest.fixture(params=["handle", "local"])
def path(request: pytest.FixtureRequest, client: Client) -> tuple[Connection, str]:
    """A connection, and the model that is reached that way."""
    server: Server = request.getfixturevalue("server" if request.param == "handle" else "local_server")
    connection = client.connect(server.address)
    connection.wait_for_link("up")
    return connection, "plain" if request.param == "handle" else "inspector"


def test_fields_and_every_dtype(path: tuple[Connection, str]) -> None:
    connection, name = path
    model = connection.model(name, **PATIENT)
    tensors = {dtype: some(dtype, (3, 5)) for dtype in DTYPES} | {
        "scalar": some("FLOAT64", ()),
        "none": some("INT16", (0, 2)),
    }
    sent = model.send(tensors, {"task": "fold", "操作": "掴む"}, urgency=0.5, steps_remaining=7, priority=2, slot="s")
    r = model.ok()
    assert r.tensors == tensors
    seen = json.loads(r.metadata["seen"])
    assert (seen["request_id"], seen["urgency"], seen["steps_remaining"], seen["priority"], seen["slot"]) == (
        sent,
        0.5,
        7,
        2,
        "s",
    )
    assert (seen["values"]["task"], seen["values"]["操作"]) == ("fold", "掴む")


def test_large_tensors(path: tuple[Connection, str]) -> None:
    connection, name = path
    model = connection.model(name, **PATIENT)
    tensors = {"a": some("UINT8", (1_000_000,), 1), "small": f32(1, 2), "b": some("FLOAT32", (250_000,), 2)}
    for _ in range(2):
        model.send(tensors)
        assert model.ok().tensors == tensors


def test_a_pipeline(path: tuple[Connection, str]) -> None:
    connection, name = path
    model = connection.model(name)
    model.begin_pipeline(500, 16, limit_s=60)
    assert model.end() == {"answered": 500, "wrong": 0, "statuses": {OK: 500}}


def test_errors(client: Client, local_server: Server) -> None:
    connection = client.connect(local_server.address)
    connection.wait_for_link("up")
    model = connection.model("odd", **PATIENT)
    model.send({}, {"how": "raise"})
    r = model.reply()
    assert r.status == MODEL_ERROR
    assert "the arm is on fire" in r.error
    nobody = connection.model("nobody", **PATIENT)
    nobody.send()
    assert nobody.reply().status == UNKNOWN_MODEL
