#!/usr/bin/env python3
"""Runs every layer of the tests, one after another (they share few cores), and sums them up. Standard library only.

Usage: test_all.py [LAYER...]. Exits non-zero if any layer failed. Each layer is a make target.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time

LAYERS = [
    "check-version",
    "check-proto",
    "lint",
    "test",
    "test-compiled",
    "build-cpp",
    "test-cpp",
    "build-rust",
    "test-rust",
    "conformance",
]

# The closing lines of pytest, cargo test and bazel test, and the numbers in them.
SUMMARY = re.compile(
    r"=* ?\d+ (passed|failed|error|skipped).* in [\d.]+s|test result: |Executed \d+ out of \d+ tests?: "
)
PASSED = re.compile(r"(\d+) (?:tests? )?pass")
FAILED = re.compile(r"(\d+) (?:tests? )?(?:fail|error)")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def run(layer: str) -> tuple[int, int, float, int]:
    """Runs one layer; returns its passed and failed tests, seconds and exit status."""
    print(f"\n==== make {layer}", flush=True)
    started = time.monotonic()
    passed = failed = 0
    with subprocess.Popen(
        ["make", "--no-print-directory", layer],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            plain = COLOUR.sub("", line)
            if SUMMARY.match(plain):
                passed += sum(map(int, PASSED.findall(plain)))
                failed += sum(map(int, FAILED.findall(plain)))
    status = process.returncode
    if not passed and not failed:  # a check without tests of its own
        passed, failed = (1, 0) if status == 0 else (0, 1)
    elif status and not failed:
        failed = 1
    return passed, failed, time.monotonic() - started, status


def main() -> int:
    """Runs the layers named on the command line, or all."""
    layers = sys.argv[1:] or LAYERS
    if unknown := [layer for layer in layers if layer not in LAYERS]:
        print(f"test_all: no layer {', '.join(unknown)}; there are {', '.join(LAYERS)}", file=sys.stderr)
        return 2
    rows = [(layer, *run(layer)) for layer in layers]
    print("\nlayer              passed  failed  seconds")
    for layer, passed, failed, seconds, status in rows:
        print(f"{layer:<18} {passed:>6}  {failed:>6}  {seconds:>7.0f}" + (f"  exit {status}" if status else ""))
    print(f"{'all':<18} {sum(r[1] for r in rows):>6}  {sum(r[2] for r in rows):>6}  {sum(r[3] for r in rows):>7.0f}")
    print(f"{sum(r[1] for r in rows)} passed, {sum(r[2] for r in rows)} failed")
    return 1 if any(status for *_, status in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
