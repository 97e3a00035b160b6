#!/usr/bin/env bash
# setup-python.sh demo|dev: the virtual environment with this checkout installed in it (editable).
# `dev` holds all that `demo` does. Quick when nothing has changed; the environment follows the checkout that ran this last.
set -euo pipefail

profile=${1:?demo or dev}
root=$(cd "$(dirname "$0")/.." && pwd)
cache=${INFERENTIAL_CACHE:-$HOME/.cache/inferential}
venv=$cache/venv
python=${PYTHON:-python3}

case $profile in
  demo) install=(-e "$root/python[server]" --group "$root/python/pyproject.toml:demo") ;;
  dev)  install=(-e "$root/python[server,record,plots]" --group "$root/python/pyproject.toml:dev") ;;
  *) echo "setup-python: unknown profile $profile; demo or dev" >&2; exit 2 ;;
esac

mkdir -p "$cache"
exec 9>"$cache/venv.lock"
flock 9 # two checkouts may share the cache

wanted=$({ echo "$root"; cat "$root/python/pyproject.toml" "$root/scripts/setup-python.sh"; } | sha256sum | cut -d' ' -f1)
for done in "$profile" dev; do
  if [ "$(cat "$venv/stamp-$done" 2>/dev/null)" = "$wanted" ]; then
    exit 0
  fi
done

"$python" - <<'PY' || exit 1
import sys
if not (3, 10) <= sys.version_info[:2] <= (3, 13):
    sys.exit(f"setup-python: Python 3.10 to 3.13 is needed, this is {sys.version.split()[0]}; choose one with PYTHON=...")
PY
if [ ! -x "$venv/bin/python" ]; then
  "$python" -c 'import ensurepip' 2>/dev/null || "$root/scripts/apt-install.sh" python3-venv
  "$python" -m venv "$venv"
fi
rm -f "$venv"/stamp-*
[ -x "$venv/bin/uv" ] || "$venv/bin/python" -m pip install -q uv
"$venv/bin/uv" pip install -q --python "$venv/bin/python" "${install[@]}"
echo "$wanted" >"$venv/stamp-$profile"
