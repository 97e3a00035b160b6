#!/usr/bin/env bash
# build.sh NAME [CMAKE_OPTION...]: configures and builds the C++ SDK in a folder of that name in the cache, and prints the folder.
set -euo pipefail

name=$1
shift
build=${INFERENTIAL_CACHE:-$HOME/.cache/inferential}/cmake/$name
{
  cmake -S "$(dirname "$0")/.." -B "$build" "$@"
  cmake --build "$build" -j "${JOBS:-2}"
} >&2
echo "$build"
