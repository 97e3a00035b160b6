#!/usr/bin/env bash
# build.sh NAME [CMAKE_OPTION...]: configures and builds the C++ SDK in a folder of that name in the cache, and prints the folder.
set -euo pipefail

name=$1
shift
source=$(cd "$(dirname "$0")/.." && pwd)
# CMake's folders belong to one source folder, so each checkout has its own.
build=${INFERENTIAL_CACHE:-$HOME/.cache/inferential}/checkouts/$(cksum <<<"$source" | cut -d ' ' -f 1)/$name
{
  cmake -S "$source" -B "$build" "$@"
  cmake --build "$build" -j "${JOBS:-2}"
} >&2
echo "$build"
