"""The control loop of docs/conformance.md, with every client against the live server."""

from __future__ import annotations

import inspect
from pathlib import Path

from suite.client import Connection, f32

DOCUMENT = Path(__file__).parents[2] / "docs" / "conformance.md"


def test_a_control_loop_always_has_an_action(live: Connection) -> None:
    stand_still = {"state": f32(0, 0)}
    policy = live.model(
        "inspector", latency_budget_ms=10_000.0, step_ms=20.0, fallback=("hold", 600_000.0, stand_still)
    )
    joints = f32(0.5, -0.5)
    sources = []
    for cycle in range(50):
        sent = policy.send({"state": joints}, urgency=0.5, steps_remaining=50 - cycle, latest_only=True)
        action = policy.act(timeout_ms=10_000)
        sources.append(action.source)
        assert action.tensors["state"] == joints, "what the model saw comes back, or is held"
        if action.source == "fresh":
            assert (action.request_id, action.status) == (sent, 0)
        policy.pace(hz=200, ticks=1)
    assert sources.count("fresh") > 25, "a busy machine may miss some"
    live.close()
    action = policy.act(timeout_ms=10_000)
    assert (action.source, action.tensors["state"], action.status) == ("hold", joints, None)


def test_the_document_shows_it() -> None:
    assert inspect.getsource(test_a_control_loop_always_has_an_action) in DOCUMENT.read_text()
