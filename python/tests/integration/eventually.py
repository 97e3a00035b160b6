"""Waiting for what another thread or process is about to do."""

from __future__ import annotations

import time
from collections.abc import Callable

WAIT_S = 20.0


def eventually(condition: Callable[[], bool]) -> None:
    """Returns once it holds; fails where it does not within WAIT_S."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "did not come true"
        time.sleep(0.005)
