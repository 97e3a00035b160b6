#!/usr/bin/env bash
# setup-compiled.sh: a second virtual environment over the first one, in which this package is installed as its users get it:
# a wheel with the core compiled. Prints its Python. Quick when nothing has changed.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cache=${INFERENTIAL_CACHE:-$HOME/.cache/inferential}
venv=$cache/venv
compiled=$cache/compiled

"$root/scripts/apt-install.sh" gcc python3-dev >&2
exec 9>"$cache/compiled.lock"
flock 9

wanted=$(cd "$root/python" && {
  "$venv/bin/python" -VV
  cat pyproject.toml hatch_build.py mypyc.ini ../scripts/setup-compiled.sh
  find inferential -name '*.py*' -not -path '*/__pycache__/*' -print0 | sort -z | xargs -0 sha256sum
} | sha256sum | cut -d' ' -f1)
if [ "$(cat "$compiled/stamp" 2>/dev/null)" != "$wanted" ]; then
  rm -f "$compiled/stamp"
  [ -x "$compiled/bin/python" ] || "$venv/bin/python" -m venv --without-pip "$compiled"
  site='import sysconfig; print(sysconfig.get_path("purelib"))'
  # What this package needs is found there, but not the package itself: .pth files in it are not followed.
  "$venv/bin/python" -c "$site" >"$("$compiled/bin/python" -c "$site")/base.pth"
  "$venv/bin/uv" pip install -q --python "$compiled/bin/python" --no-deps --no-build-isolation --no-cache --reinstall "$root/python" >&2
  echo "$wanted" >"$compiled/stamp"
fi
echo "$compiled/bin/python"
