#!/usr/bin/env bash
# The released inferential 1.4.0 in an environment of its own: for the interoperation tests and the benchmarks.
set -euo pipefail

version=1.4.0
root=$(cd "$(dirname "$0")/.." && pwd)
venv=${INFERENTIAL_CACHE:-$HOME/.cache/inferential}/peer-$version
python=${PYTHON:-python3}

[ "$(cat "$venv/stamp" 2>/dev/null)" = "$version" ] && exit 0
if [ ! -x "$venv/bin/python" ]; then
  "$python" -c 'import ensurepip' 2>/dev/null || "$root/scripts/apt-install.sh" python3-venv
  "$python" -m venv "$venv"
fi
[ -x "$venv/bin/uv" ] || "$venv/bin/python" -m pip install -q uv
"$venv/bin/uv" pip install -q --python "$venv/bin/python" "inferential==$version" "ray[serve]>=2.40"
echo "$version" >"$venv/stamp"
