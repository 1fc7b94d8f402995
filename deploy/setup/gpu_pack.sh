#!/usr/bin/env bash
# Packs what `make gpu-check` hands over: `target-gpu-check/gpu-check/` with a stripped worker-rank (under 60 MiB)
# and gpu_check.sh. It is built against the libtorch of machines with newer GPUs (2.11), not the one we train with.
set -euo pipefail
cd "$(dirname "$0")/../.."
python3 deploy/setup/libtorch.py gpu-check
export LIBTORCH="$PWD/.libtorch-gpu-check"
# tch is made for 2.10 and works with 2.11 too.
export LIBTORCH_BYPASS_VERSION_CHECK=1
cargo build --locked -p rank --features rank/cuda --target-dir target-gpu-check
pack=target-gpu-check/gpu-check
rm -rf "$pack" && mkdir -p "$pack"
strip -o "$pack/worker-rank" target-gpu-check/debug/worker-rank
cp deploy/setup/gpu_check.sh "$pack/"
size=$(stat -c %s "$pack/worker-rank")
if [ "$size" -gt $((60 * 1024 * 1024)) ]; then
  echo "gpu-check: worker-rank has $size bytes stripped; at most 60 MiB are allowed" >&2
  exit 1
fi
echo "gpu-check: $pack is ready ($((size / 1024 / 1024)) MiB); run gpu_check.sh on a machine with a GPU"
