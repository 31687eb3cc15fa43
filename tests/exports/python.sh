#!/usr/bin/env bash
# Prints a Python that imports PyTorch 2.11, onnx and onnxruntime: that of benches/compare/python.sh
# if it does, else one in target/exports that adds what is missing to it (40 MB are downloaded, once).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

has_all() {
    "$1" -c 'import numpy, onnx, onnxruntime, safetensors, torch' 2>/dev/null
}

python=$(benches/compare/python.sh)
if has_all "$python"; then
    echo "$python"
    exit
fi
if ! has_all target/exports/bin/python; then
    echo "onnx and onnxruntime go into target/exports" >&2
    "$python" -m venv target/exports >&2
    # A virtual environment doesn't see the packages of one that it was made from.
    "$python" -c 'import site; print("\n".join(site.getsitepackages()))' \
        >"$(echo target/exports/lib/python3.*/site-packages)/beside.pth"
    target/exports/bin/python -m pip install --quiet \
        --requirement tests/exports/requirements.txt \
        --requirement benches/compare/requirements.txt >&2
fi
echo "$PWD/target/exports/bin/python"
