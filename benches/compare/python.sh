#!/usr/bin/env bash
# Prints a Python that imports PyTorch 2.11: $PYTHON or python3 if it does, else that of .venv in
# the repository root, which is made when it is missing (2.6 GB are downloaded, once).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

has_torch() {
    "$1" -c 'import sys, torch; sys.exit(not torch.__version__.startswith("2.11."))' 2>/dev/null
}

python=${PYTHON:-python3}
if has_torch "$python"; then
    command -v "$python"
    exit
fi
if ! has_torch .venv/bin/python; then
    echo "PyTorch 2.11 goes into .venv (2.6 GB to download); set PYTHON to use one that is there" >&2
    "$python" -m venv .venv >&2 || {
        echo "$python can't make a virtual environment (Debian: apt-get install python3-venv)" >&2
        exit 1
    }
    .venv/bin/python -m pip install --quiet --requirement benches/compare/requirements.txt >&2
fi
echo "$PWD/.venv/bin/python"
