"""The demo in a short form: what `make demo` runs, with its own verdict."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "fleet_demo"
ROBOTS, SECONDS = 3, 5


@pytest.mark.timeout(300)
def test_the_demo_keeps_its_robots_upright() -> None:
    done = subprocess.run(
        [sys.executable, str(DEMO), "--robots", str(ROBOTS), "--seconds", str(SECONDS)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=280,
        check=False,
    )
    # Non-zero: a request without an outcome, or a fall that a missing or late reply explains.
    assert done.returncode == 0, done.stdout
    assert "FAILED" not in done.stdout
    asked = {name: int(count) for name, count in re.findall(r"^(\w+): (\d+) requests", done.stdout, re.MULTILINE)}
    assert asked["balance"] > ROBOTS * SECONDS * 50 / 4, done.stdout  # the robots lived, whatever else the machine did
    assert asked["watch"] > ROBOTS * SECONDS, done.stdout
    assert f"robots stayed upright for {SECONDS} s" in done.stdout
