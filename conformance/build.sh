#!/bin/bash
# Builds what the conformance suite tests: the C++ and Rust SDKs as Python modules, and the released Rust client. Quick when nothing has changed.
# Prints the folder that must be on PYTHONPATH. Everything is kept outside the tree, under INFERENTIAL_CACHE.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${INFERENTIAL_CACHE:-$HOME/.cache/inferential}
python=${PYTHON:-$cache/venv/bin/python}
# Of this checkout alone: CMake's folders belong to one source folder, and another checkout's modules are not these.
own=$cache/checkouts/$(cksum <<<"$here" | cut -d ' ' -f 1)/conformance
modules=$own/modules
jobs=${JOBS:-2}
mkdir -p "$modules"

cmake -S "$here/bindings/cpp" -B "$own/cpp" -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" \
  -DPython_EXECUTABLE="$python" -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$modules" -DCMAKE_RUNTIME_OUTPUT_DIRECTORY="$modules" >&2
cmake --build "$own/cpp" --target inferential_cpp verbatim_cpp --parallel "$jobs" >&2

wheels=$own/wheels
export CARGO_TARGET_DIR=$cache/cargo-target CARGO_BUILD_JOBS=$jobs
# Not --release: the dependencies are then those that `cargo test` has built, and arithmetic is checked for overflow.
(cd "$here/bindings/rust" && "$python" -m maturin build --interpreter "$python" --out "$wheels") >&2
"$python" -c 'import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extractall(sys.argv[2])' \
  "$(ls -t "$wheels"/*.whl | head -1)" "$modules" >&2

# The released crate as a client of this project's server.
cargo build --locked --manifest-path "$here/peers/rust/Cargo.toml" >&2
echo "$modules"
