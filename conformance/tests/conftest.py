"""Fixtures: one worker process per kind of client, and a stand-in per case."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from adapters.worker import KINDS, Worker
from suite.client import Client, Connection, Model
from suite.matrix import Matrix
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
