#!/usr/bin/env bash
# Lays libtorch out at .libtorch/torch, where .cargo/config.toml looks for it.
# What it does, in which order, and its options: deploy/libtorch.py, or --help.
set -euo pipefail

python=${PYTHON:-python3}
if ! command -v "$python" >/dev/null; then
    echo "libtorch: there is no $python here. Install Python 3 with pip" \
        "(Debian: apt-get install python3 python3-pip) and run this again." >&2
    exit 1
fi
exec "$python" "$(dirname "${BASH_SOURCE[0]}")/libtorch.py" "$@"
