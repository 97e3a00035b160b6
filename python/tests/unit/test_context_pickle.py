"""A context that goes to another process keeps the time that is left, not a clock of this one."""

from __future__ import annotations

import pickle
import time

import pytest

from inferential.model_call import Context


def test_deadline_travels_as_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context("robot", "arm", "m", 7, 1, {"x": 5}, 1010.0, 2, 0.5, 3, 20.0, "left")
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    data = pickle.dumps(context)
    monkeypatch.setattr(time, "monotonic", lambda: 50.0)
    there = pickle.loads(data)
    assert there.deadline == 60.0
    assert there.remaining_ms == 10_000.0
    assert (there.client_id, there.request_id, there.slot) == ("robot", 7, "left")
