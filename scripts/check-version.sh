#!/usr/bin/env bash
# The file VERSION is the version; every package's own must equal it.
set -euo pipefail

cd "$(dirname "$0")/.."
version=$(tr -d '[:space:]' <VERSION)
failed=0
check() { # file, its version
  if [ "$2" != "$version" ]; then
    echo "check-version: $1 says '${2}', VERSION says '$version'" >&2
    failed=1
  fi
}
check python/inferential/_version.py "$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' python/inferential/_version.py)"
[ ! -f rust/Cargo.toml ] || check rust/Cargo.toml "$(sed -n 's/^version = "\(.*\)"$/\1/p' rust/Cargo.toml | head -n1)"
[ ! -f MODULE.bazel ] || check MODULE.bazel "$(sed -n '/^module(/,/)/s/.*version = "\([^"]*\)".*/\1/p' MODULE.bazel | head -n1)"
grep -q "^## \[$version\]" CHANGELOG.md || { echo "check-version: CHANGELOG.md has no entry '## [$version]'" >&2; failed=1; }
exit $failed
