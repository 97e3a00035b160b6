"""16 clients of mixed languages at once, each in its own process, each getting only its own."""

from __future__ import annotations

from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest

from adapters.worker import Worker, WorkerDiedError
from conftest import chosen
from suite.client import Client
from suite.server import Server

CLIENTS, REQUESTS = 16, 300


@pytest.fixture(scope="session")
def crowd(request: pytest.FixtureRequest, server: Server, log_dir: Path) -> dict[str, list[Any]]:
    """For each kind of client how its members fared."""
    kinds = list(islice(cycle(chosen(request.config)), CLIENTS))
    workers = [Worker(kind, log_dir / f"crowd-{i}.log") for i, kind in enumerate(kinds)]
    found: dict[str, list[Any]] = {kind: [] for kind in kinds}
    try:
        models = []
        for i, worker in enumerate(workers):
            connection = Client(worker).connect(server.address, f"crowd-{i}")
            connection.wait_for_link("up")
            models.append(connection.model(("inspector", "policy-v2")[i % 2]))
        for model in models:
            model.begin_pipeline(REQUESTS, 8, limit_s=120)
        for kind, model in zip(kinds, models, strict=True):
            try:
                found[kind].append(model.end())
            except WorkerDiedError as e:
                found[kind].append(str(e))
    finally:
        for worker in workers:
            worker.stop()
    return found


def test_16_clients_at_once_each_get_their_own(kind: str, crowd: dict[str, list[Any]]) -> None:
    assert crowd[kind]
    for outcome in crowd[kind]:
        assert outcome == {"answered": REQUESTS, "wrong": 0, "statuses": {0: REQUESTS}}
