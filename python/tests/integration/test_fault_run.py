"""The short form of `make fault`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fault.py"


@pytest.mark.timeout(240)
def test_every_request_ends_in_exactly_one_outcome(ray_session: None) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, str(SCRIPT), "--seconds", "10", "--address", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "without an outcome: 0; with two: 0; with another's answer: 0" in done.stdout
