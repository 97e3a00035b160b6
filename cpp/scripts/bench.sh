#!/usr/bin/env bash
# bench.sh [--rounds N] [--json]: round trips of the C++ SDK beside plain libzmq.
set -euo pipefail

build=$("$(dirname "$0")/build.sh" cpp-bench -DINFERENTIAL_BUILD_BENCHMARKS=ON 2>/dev/null)
exec "$build/benchmarks/round_trip" "$@"
