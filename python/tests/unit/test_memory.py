"""Memory that was freed is kept for the next message (docs/adr/0007-freed-memory-is-kept.md)."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# Frames of cameras come and go, 32 at a time; prints how often the system had to hand out a page.
PROGRAM = """
import resource, sys
from inferential.memory import keep_freed_memory

def frames():
    return [b"x" * 150_000 for _ in range(32)]

kept = keep_freed_memory() if "keep" in sys.argv else False
for _ in range(3):
    frames()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    frames()
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(*arguments: str, **variables: str) -> tuple[int, int]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=environment | variables,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    kept, faults = map(int, done.stdout.split())
    return kept, faults


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_pages_are_not_fetched_anew_for_each_message() -> None:
    _, before = run()
    kept, after = run("keep")
    assert kept
    assert after < 640 < before, "a page or more for each of 640 frames before, hardly any after"


@pytest.mark.parametrize(
    "variables",
    [
        {"MALLOC_TRIM_THRESHOLD_": "131072"},
        {"MALLOC_MMAP_THRESHOLD_": "131072"},
        {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"},
    ],
)
def test_what_the_user_has_set_stands(variables: dict[str, str]) -> None:
    kept, _ = run("keep", **variables)
    assert not kept
