#!/usr/bin/env bash
# The compiler of the schema: the oldest supported grpcio-tools, in an environment of its own, so that the
# generated code runs with every protobuf the wheel allows (4.25 and later).
set -euo pipefail

version=1.62.3
root=$(cd "$(dirname "$0")/.." && pwd)
venv=${INFERENTIAL_CACHE:-$HOME/.cache/inferential}/protoc
python=${PYTHON:-python3}

[ "$(cat "$venv/stamp" 2>/dev/null)" = "$version" ] && exit 0
if [ ! -x "$venv/bin/python" ]; then
  "$python" -c 'import ensurepip' 2>/dev/null || "$root/scripts/apt-install.sh" python3-venv
  "$python" -m venv "$venv"
fi
# It still imports pkg_resources, which newer setuptools no longer has.
"$venv/bin/python" -m pip install -q "grpcio-tools==$version" "setuptools<80"
echo "$version" >"$venv/stamp"
