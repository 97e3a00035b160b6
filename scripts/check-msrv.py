#!/usr/bin/env python3
"""Fails where a locked dependency wants a newer Rust than the crate says it needs. Standard library only.

Usage: check-msrv.py FOLDER... (with a Cargo.lock each; the crate's own `rust-version` is the bound for all of them)
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CRATE = Path(__file__).parents[1] / "rust"


def packages(folder: Path) -> list[dict[str, str]]:
    """What the lock file resolves to on Linux, with every feature."""
    command = ["cargo", "metadata", "--locked", "--all-features", "--format-version", "1"]
    command += ["--filter-platform", "x86_64-unknown-linux-gnu"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, check=True)
    metadata = json.loads(done.stdout)
    used = {node["id"] for node in metadata["resolve"]["nodes"]}
    return [p for p in metadata["packages"] if p["id"] in used]


def version(text: str) -> tuple[int, ...]:
    """1.88 and 1.88.0 are the same."""
    parts = [int(n) for n in text.split("-")[0].split(".")]
    return tuple(parts + [0] * (3 - len(parts)))


def main() -> int:
    """See the module."""
    bound = next(p["rust_version"] for p in packages(CRATE) if p["name"] == "inferential")
    newer = []
    count = 0
    for folder in map(Path, sys.argv[1:]):
        found = packages(folder)
        count += len(found)
        wanting = [p for p in found if p["rust_version"] and version(p["rust_version"]) > version(bound)]
        newer += [f"{folder}: {p['name']} {p['version']} wants Rust {p['rust_version']}" for p in wanting]
    for line in newer:
        print(line, file=sys.stderr)
    if newer:
        print(f"check-msrv: rust/Cargo.toml says {bound}: lock older versions, or say more", file=sys.stderr)
        return 1
    print(f"check-msrv: {count} locked packages, none wants a newer Rust than {bound}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
