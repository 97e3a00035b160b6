#!/usr/bin/env bash
# proto.sh           generates the Python code of proto/ anew
# proto.sh --check   fails where the committed code, or another language's copy of the schema, differs from proto/
set -euo pipefail

cd "$(dirname "$0")/.."
protoc=${INFERENTIAL_CACHE:-$HOME/.cache/inferential}/protoc/bin/python
target=python/inferential/_proto
mapfile -t schemas < <(cd proto && find . -name '*.proto' -printf '%P\n' | sort)

generate() { # into the folder $1
  "$protoc" -m grpc_tools.protoc -I proto --python_out="$1" --pyi_out="$1" "${schemas[@]}"
}

if [ "${1:-}" != --check ]; then
  find "$target" -name '*_pb2.py*' -delete
  generate "$target"
  exit 0
fi

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
generate "$fresh"
failed=0
if ! diff -r -u --exclude=__pycache__ --exclude=__init__.py "$fresh" "$target"; then
  echo "check-proto: $target is not what proto/ gives; run: make proto" >&2
  failed=1
fi
# The crate and the C++ module may carry copies, so that they install without a checkout.
while IFS= read -r copy; do
  original=proto/${copy#*proto/}
  if ! cmp -s "$copy" "$original"; then
    echo "check-proto: $copy differs from $original; copy it anew" >&2
    failed=1
  fi
done < <(git ls-files '*.proto' | grep -v '^proto/' || true)
exit $failed
