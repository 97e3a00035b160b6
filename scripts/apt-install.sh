#!/usr/bin/env bash
# apt-install.sh PACKAGE...: installs the Debian packages that are missing; takes no time when none is.
set -euo pipefail

if ! command -v dpkg-query >/dev/null; then
  echo "apt-install: not a Debian machine; these packages (or their likes) are needed: $*" >&2
  exit 0
fi

missing=()
for package in "$@"; do
  status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

sudo=()
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || { echo "apt-install: root or sudo is needed to install: ${missing[*]}" >&2; exit 1; }
  sudo=(sudo)
fi
export DEBIAN_FRONTEND=noninteractive
apt_get() { "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@"; }

echo "apt-install: ${missing[*]}"
for attempt in 1 2 3; do
  if apt_get update && apt_get install -y --no-install-recommends "${missing[@]}"; then
    exit 0
  fi
  echo "apt-install: try $attempt failed" >&2
  sleep $((attempt * 5))
done
exit 1
