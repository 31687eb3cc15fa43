#!/usr/bin/env bash
# What the worker's image holds, as a tree:  image-tree.sh LIBTORCH PROGRAM TREE
#
#   TREE/bin/gan-worker
#   TREE/lib                 -> libtorch/torch/lib, where the program's rpath ($ORIGIN/../lib) looks
#   TREE/libtorch/torch/lib  as deploy/libtorch.sh lays it out in the folder LIBTORCH…
#   TREE/libtorch/nvidia     …because libtorch's own rpath leads from there to CUDA's libraries
set -euo pipefail

layout=$(dirname "$(readlink -f "$1/torch")")
if [ ! -d "$layout/nvidia" ]; then
    echo "image-tree: $1/torch is no download of deploy/libtorch.sh, but a link to $layout/torch" >&2
    exit 1
fi
mkdir -p "$3/bin" "$3/libtorch/torch"
cp "$2" "$3/bin/gan-worker"
cp -r "$layout/torch/lib" "$3/libtorch/torch/lib"
cp -r "$layout/nvidia" "$3/libtorch/nvidia"
ln -s libtorch/torch/lib "$3/lib"
