#!/usr/bin/env bash
# Runs the check on a machine with one GPU and its own libtorch 2.11: agreement of CPU and GPU, an all-reduce
# over NCCL, step times in fp32, fp16 and bf16. Needs nothing else of ours. Exit code 0 only when all is right.
#
#   gpu_check.sh [FOLDER]     FOLDER: where libtorch's `lib` lies; default: of the python3 that has torch
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
find_torch='import importlib.util as u; s = u.find_spec("torch"); print(s.submodule_search_locations[0] if s else "")'
torch=${1:-$(python3 -c "$find_torch")}
if [ ! -e "$torch/lib/libtorch_cuda.so" ]; then
  echo "gpu-check: no libtorch with CUDA in '${torch:-python3}'; give its folder as argument" >&2
  exit 1
fi
version=$(sed -n "s/^__version__ = '\(.*\)'/\1/p" "$torch/version.py")
case $version in
2.11.*) ;;
*) echo "gpu-check: this binary is for libtorch 2.11, $torch is $version" >&2 && exit 1 ;;
esac
# The wheel's CUDA libraries lie beside it.
path=$torch/lib
for folder in "$torch"/../nvidia/*/lib; do
  [ -d "$folder" ] && path=$path:$folder
done
chmod +x "$here/worker-rank"
LD_LIBRARY_PATH=$path exec "$here/worker-rank" gpu-check "${@:2}"
