"""A full queue: REJECTED reaches every client as that, with its reason and hint."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from conftest import CONFIG
from suite.client import Client
from suite.cluster import Gate
from suite.server import Server, wait_until_ready

OK, REJECTED, QUEUE_FULL = 0, 3, 1


@pytest.fixture(scope="module")
def small(start_server: Callable[..., Server]) -> Server:
    """A server whose queues hold two requests."""
    config = {**CONFIG, "queue": {"request_ttl_ms": 60_000.0, "max_requests_per_model": 2, "overflow": "reject_newest"}}
    found = start_server(["gate"], config=config).wait()
    wait_until_ready(found.address, ["gate"])
    return found


def test_rejected_when_the_queue_is_full(client: Client, small: Server, gate: Gate) -> None:
    connection = client.connect(small.address, hold_off=False)
    connection.wait_for_link("up")
    model = connection.model("gate", latency_budget_ms=60_000.0)
    model.send({}, {"label": "runs"})
    gate.entered(1)
    ids = [model.send({}, {"label": str(i)}) for i in range(4)]
    rejected = [model.reply() for _ in range(2)]
    assert [(r.request_id, r.status, r.reason, r.local) for r in rejected] == [
        (i, REJECTED, QUEUE_FULL, False) for i in ids[2:]
    ]
    assert all(r.retry_after_ms >= 0 and r.error for r in rejected)
    gate.open()
    assert [model.reply().status for _ in range(3)] == [OK] * 3
    assert sorted(gate.entered(3)) == ["0", "1", "runs"], "rejected work never reaches a model"
