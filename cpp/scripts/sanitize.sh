#!/usr/bin/env bash
# The C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer.
set -euo pipefail

cd "$(dirname "$0")"
build=$(./build.sh cpp-sanitize -DCMAKE_BUILD_TYPE=RelWithDebInfo -DINFERENTIAL_BUILD_TESTS=ON -DINFERENTIAL_SANITIZE=address,undefined)
UBSAN_OPTIONS=print_stacktrace=1 ctest --test-dir "$build" --output-on-failure
