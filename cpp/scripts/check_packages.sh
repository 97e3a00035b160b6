#!/usr/bin/env bash
# check_packages.sh [ADDRESS MODEL]: installs the C++ SDK into an empty prefix and uses it from outside this repository, by
# find_package, by pkg-config and as a Bazel repository; static and shared. Each program checks the version and, with an
# address, does a round trip with that server.
set -euo pipefail

cd "$(dirname "$0")/.."
repository=$(cd .. && pwd)
cache=${INFERENTIAL_CACHE:-$HOME/.cache/inferential}
version=$(tr -d '[:space:]' <../VERSION)
programs=$PWD/tests/packages
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

check() { # what, program
  echo "== $1"
  "$2" "${arguments[@]}"
}
arguments=("$@" "$version")

for kind in static shared; do
  shared=$([ $kind = shared ] && echo ON || echo OFF)
  prefix=$work/$kind
  build=$(scripts/build.sh "cpp-install-$kind" -DBUILD_SHARED_LIBS=$shared -DCMAKE_INSTALL_LIBDIR=lib)
  cmake --install "$build" --prefix "$prefix" >/dev/null

  cmake -S "$programs/cmake" -B "$work/cmake-$kind" -DCMAKE_PREFIX_PATH="$prefix" >/dev/null
  cmake --build "$work/cmake-$kind" >/dev/null
  check "find_package, $kind" "$work/cmake-$kind/round_trip"

  export PKG_CONFIG_PATH=$prefix/lib/pkgconfig
  [ "$(pkg-config --modversion inferential)" = "$version" ]
  flags=$(pkg-config --define-prefix --cflags --libs inferential)
  # shellcheck disable=SC2086  # flags are words
  "${CXX:-c++}" -std=c++17 -Wall -Wextra -Werror "$programs/round_trip.cpp" $flags -Wl,-rpath,"$prefix/lib" -o "$work/pkg-config-$kind"
  check "pkg-config, $kind" "$work/pkg-config-$kind"
done

leaked=$(nm -D --defined-only -C "$work/shared/lib/libinferential.so" | grep -E 'inferential::(v1|wire)|google::protobuf' || true)
if [ -n "$leaked" ]; then
  echo "check_packages: the shared library shows what should be hidden:" >&2
  echo "$leaked" | head >&2
  exit 1
fi
if grep -rlE 'zmq|\.pb\.h|google/protobuf' "$work/shared/include"; then
  echo "check_packages: an installed header names ZMQ or protobuf" >&2
  exit 1
fi

mkdir "$work/bazel"
sed "s#@REPOSITORY@#$repository#" "$programs/bazel/WORKSPACE.in" >"$work/bazel/WORKSPACE"
cp "$programs/bazel/BUILD.in" "$work/bazel/BUILD"
cp "$programs/round_trip.cpp" ../.bazelrc "$work/bazel/"
cd "$work/bazel"
bazel --output_user_root="$cache/bazel" --max_idle_secs=60 build --config=debian --color=no --noshow_progress --symlink_prefix="$work/bazel/out-" //:round_trip
check "Bazel" "$work/bazel/out-bin/round_trip"
