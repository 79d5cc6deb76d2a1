#!/bin/sh
# Makes the environments that are missing (this project's and the peers') and runs the benchmarks in them.
# All arguments go to `python -m benchmarks`. Needs Python 3.11 or later; uses uv when it is there.
set -eu
cd "$(dirname "$0")/.."
python=benchmarks/.venvs/ours/bin/python
if [ ! -e benchmarks/.venvs/ours/.complete ]; then
    if command -v uv >/dev/null 2>&1; then
        uv venv --quiet --clear benchmarks/.venvs/ours
        uv pip install --quiet --python "$python" --editable .
    else
        "${PYTHON:-python3}" -m venv --clear benchmarks/.venvs/ours
        "$python" -m pip install --quiet --editable .
    fi
    touch benchmarks/.venvs/ours/.complete
fi
exec "$python" -m benchmarks --setup "$@"
