#!/usr/bin/env bash
# Gets the data sets that the job files in deploy/jobs name: MNIST, Fashion-MNIST, emoji of 64×64.
# What it does and its options: deploy/fetch_data.py, or --help.
set -euo pipefail

python=${PYTHON:-python3}
if ! command -v "$python" >/dev/null; then
    echo "fetch-data: there is no $python here. Install Python 3" \
        "(Debian: apt-get install python3) and run this again." >&2
    exit 1
fi
exec "$python" "$(dirname "${BASH_SOURCE[0]}")/fetch_data.py" "$@"
