#!/usr/bin/env bash
# Checks Ganglion on a machine with a GPU, row by row: deploy/gpu_check.py says how, and what with
# (--help). Here or, after `deploy/gpu-check.sh --pack DIR`, from that folder on another machine,
# which needs its own driver and a Python with PyTorch 2.11, and neither cargo nor a network.
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/gpu_check.py" "$@"
