#!/usr/bin/env bash
# compiled.sh PYTHON [PYTEST OPTION...]: the tests of the core on an installation in which it is compiled.
set -euo pipefail
python=$1
shift
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# Copied, because pytest would find the source beside the tests before what is installed.
mkdir "$folder/python"
cp -r "$here" "$here/../pyproject.toml" "$here/../examples" "$folder/python/"
cp -r "$here/../../docs" "$folder/"
cd "$folder/python"
"$python" -c 'from inferential.types import COMPILED; assert COMPILED, "the core of this installation is not compiled"'
"$python" -m pytest -p no:cacheprovider tests/property tests/unit/engine tests/unit/scheduling tests/unit/client tests/unit/tracking \
  tests/unit/backends tests/unit/test_{wire,assembler,metrics,simulator,model_call,replica}.py \
  tests/integration/test_{server,client_live,client_server}.py "$@"
