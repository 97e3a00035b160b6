#!/usr/bin/env bash
# Fails with one clear line where there is no cargo, or one older than the crate's minimum.
set -euo pipefail

cd "$(dirname "$0")/.."
wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' rust/Cargo.toml)
found=$(cargo --version 2>/dev/null | cut -d' ' -f2 || true)
if [ -z "$found" ] || [ "$(printf '%s\n' "$wanted" "$found" | sort -V | head -n1)" != "$wanted" ]; then
  echo "check-cargo: cargo $wanted or later is needed, found: ${found:-none}" >&2
  exit 1
fi
