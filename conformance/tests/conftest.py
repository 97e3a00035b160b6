"""Fixtures: a worker process per kind of client, a stand-in per case, one Ray and one server for the live cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.worker import KINDS, Worker
from suite.client import Client, Connection, Model
from suite.cluster import ABSENT, MODELS, Cluster, Gate
from suite.matrix import Matrix
from suite.server import Server, wait_until_ready
from suite.standin import StandIn


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--clients", default=",".join(KINDS), help="kinds of clients to test, separated by commas")
    parser.addoption("--matrix", type=Path, help="also write the matrix to this file")


def chosen(config: pytest.Config) -> list[str]:
    return [k for k in str(config.getoption("--clients")).split(",") if k]


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Matrix(chosen(config), config.getoption("--matrix")))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        metafunc.parametrize("kind", chosen(metafunc.config), scope="session")


@pytest.fixture(scope="session")
def log_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="session")
def workers(log_dir: Path) -> Iterator[dict[str, Worker]]:
    """A running worker per kind; replaced after a crash."""
    running: dict[str, Worker] = {}
    yield running
    for worker in running.values():
        worker.stop()


@pytest.fixture
def client(kind: str, workers: dict[str, Worker], log_dir: Path) -> Iterator[Client]:
    """The client under test."""
    if kind not in workers or not workers[kind].alive:
        workers[kind] = Worker(kind, log_dir / f"{kind}.log")
    client = Client(workers[kind])
    yield client
    client.close()


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with StandIn() as s:
        yield s


@pytest.fixture
def connection(client: Client, stand_in: StandIn) -> Connection:
    """A connection to the stand-in, which is up."""
    found = client.connect(stand_in.address)
    found.wait_for_link("up")
    return found


@pytest.fixture
def model(connection: Connection) -> Model:
    """A handle on the model `policy` of the stand-in."""
    return connection.model("policy")


# --- live servers ----------------------------------------------------------------------------------------------------

CONFIG: dict[str, Any] = {
    # No case runs into these by being slow on a busy machine; cases that want a deadline set one.
    "queue": {"request_ttl_ms": 60_000.0},
    "scheduling": {
        "pipeline_dispatch": {"enabled": True},
        "default_latency_budget_ms": 30_000.0,
        "urgency_weight_ms": 5_000.0,
        "priority_window_ms": 5_000.0,
        # A case that lets a request miss its deadline must not change the order of the next case.
        "contention_hold_ms": 1.0,
    },
    # What is staged at a replica can no longer be superseded or overtaken; the cases say exactly what waits.
    "dispatch": {"staging": False},
    "models": {
        "known": {
            "inspector": {"max_inflight": 8},
            "gate": {"max_inflight": 1},
            "odd": {"max_inflight": 4},
            "policy-v2": {"max_inflight": 4},
            "plain": {"max_inflight": 4},
            ABSENT: {},
        }
    },
}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    found = Cluster()
    yield found
    found.close()


@pytest.fixture(scope="session")
def start_server(cluster: Cluster, log_dir: Path) -> Iterator[Callable[..., Server]]:
    """Starts a server on the suite's Ray."""
    started: list[Server] = []

    def start(models: list[str], *, config: dict[str, Any] | None = None, **options: Any) -> Server:
        log = log_dir / f"server-{len(started)}.log"
        server = Server(models, log, config=config or CONFIG, ray_address=cluster.address, **options)
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def server(start_server: Callable[..., Server]) -> Server:
    """The server that most live cases share; its models are ready."""
    found = start_server([*MODELS, "plain", ABSENT]).wait()
    wait_until_ready(found.address, [*MODELS, "plain"])
    return found


@pytest.fixture
def gate(cluster: Cluster) -> Iterator[Gate]:
    """The gate, closed."""
    found = Gate(cluster.control)
    found.close()
    yield found
    found.open()


@pytest.fixture
def live(client: Client, server: Server) -> Connection:
    """A connection of the client under test to the live server, which is up."""
    found = client.connect(server.address)
    found.wait_for_link("up")
    return found
