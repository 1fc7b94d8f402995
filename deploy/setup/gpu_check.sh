#!/usr/bin/env bash
# Checks training on a machine with one GPU and its own libtorch 2.11: agreement of CPU and GPU, an
# all-reduce over NCCL, step times in fp32, fp16 and bf16. Needs only the files that `make
# gpu-check` packs. Exit code 0 only if everything is right.
#
#   gpu_check.sh [FOLDER]     FOLDER: that with libtorch's `lib`; default: that of python3's torch
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
find_torch='
import importlib.util
spec = importlib.util.find_spec("torch")
print(spec.submodule_search_locations[0] if spec else "")
'
torch=${1:-$(python3 -c "$find_torch")}
if [ ! -e "$torch/lib/libtorch_cuda.so" ]; then
  echo "gpu-check: no libtorch with CUDA in '${torch:-python3}'; pass its folder as argument" >&2
  exit 1
fi
version=$(sed -n "s/^__version__ = '\(.*\)'/\1/p" "$torch/version.py")
case $version in
2.11.*) ;;
*) echo "gpu-check: this binary is for libtorch 2.11, $torch is $version" >&2 && exit 1 ;;
esac
# The CUDA libraries of the wheel are beside it.
path=$torch/lib
for folder in "$torch"/../nvidia/*/lib; do
  [ -d "$folder" ] && path=$path:$folder
done
chmod +x "$here/worker-rank"
LD_LIBRARY_PATH=$path exec "$here/worker-rank" gpu-check "${@:2}"
