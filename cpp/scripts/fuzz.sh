#!/usr/bin/env bash
# fuzz.sh [SECONDS]: libFuzzer on the decoder, from the golden vectors on, with the address and undefined behaviour sanitizers.
set -euo pipefail

cd "$(dirname "$0")"
build=$(CC=clang CXX=clang++ ./build.sh cpp-fuzz -DCMAKE_BUILD_TYPE=RelWithDebInfo -DINFERENTIAL_BUILD_FUZZERS=ON \
  -DINFERENTIAL_SANITIZE=address,undefined)
python3 ../fuzz/seeds.py "$build/seeds"
mkdir -p "$build/corpus"
# protobuf says on standard error what is not UTF-8, at every such input.
"$build/fuzz/decode_fuzz" -max_total_time="${1:-60}" -max_len=4096 -timeout=10 -rss_limit_mb=4096 -print_final_stats=1 \
  -artifact_prefix="$build/" "$build/corpus" "$build/seeds" 2> >(grep -v 'libprotobuf ERROR' >&2)
