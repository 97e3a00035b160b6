#!/bin/sh
# Runs the decoder's fuzz target for so many seconds (60) with stable Rust: the coverage that libFuzzer steers by comes from
# LLVM flags that need no nightly compiler. Seeds are the golden vectors; a crash leaves its input in the corpus folder's parent.
set -eu
seconds=${1:-60}
cd "$(dirname "$0")"
cache=${INFERENTIAL_CACHE:-$HOME/.cache/inferential}
work=$cache/rust-fuzz
mkdir -p "$work/corpus" "$work/seeds"

# A seed is the byte that says how long the payload is, the envelope and the payload (see fuzz_targets/decode.rs).
for envelope in ../../conformance/vectors/v[12]/resp-*.envelope; do
    payload=${envelope%.envelope}.payload
    [ -f "$payload" ] || continue
    size=$(wc -c < "$payload")
    [ "$size" -lt 256 ] || continue
    { printf "\\$(printf %03o "$size")"; cat "$envelope" "$payload"; } > "$work/seeds/$(basename "$envelope" .envelope)"
done

export CARGO_TARGET_DIR="$cache/cargo-target-fuzz"
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
 -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
# With a target given, these flags do not reach build scripts and macros.
host=$(rustc -vV | sed -n 's/^host: //p')
cargo build --release --target "$host" --bin decode
exec "$CARGO_TARGET_DIR/$host/release/decode" -max_total_time="$seconds" -max_len=4096 -rss_limit_mb=2048 -timeout=10 \
    -print_final_stats=1 -artifact_prefix="$work/" "$work/corpus" "$work/seeds"
