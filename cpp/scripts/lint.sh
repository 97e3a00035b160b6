#!/usr/bin/env bash
# lint.sh [--fix]: BUILD and MODULE files with buildifier, C++ with clang-format.
set -euo pipefail

cd "$(dirname "$0")/../.."
tools=${INFERENTIAL_CACHE:-$HOME/.cache/inferential}/buildifier
buildifier=$tools/node_modules/.bin/buildifier
[ -x "$buildifier" ] || npm install --silent --no-fund --no-audit --prefix "$tools" @bazel/buildifier@8.2.1

bazel_files=(MODULE.bazel WORKSPACE BUILD.bazel proto/BUILD.bazel)
mapfile -t -O "${#bazel_files[@]}" bazel_files < <(find cpp -name 'BUILD*' -o -name '*.BUILD' -o -name '*.bzl' | sort)
# quickstart.cpp is printed elsewhere as it stands.
mapfile -t sources < <(find cpp \( -name '*.hpp' -o -name '*.cpp' \) -not -name quickstart.cpp | sort)

if [ "${1:-}" = --fix ]; then
  "$buildifier" -lint=fix "${bazel_files[@]}"
  clang-format -i "${sources[@]}"
else
  "$buildifier" -mode=check -lint=warn "${bazel_files[@]}"
  clang-format --dry-run -Werror "${sources[@]}"
fi
