#!/usr/bin/env bash
# `make gpu-check`: packs a stripped worker-rank (under 60 MiB) and gpu_check.sh into
# target-gpu-check/gpu-check/. The program is built against libtorch 2.11, which newer GPUs need,
# and not against the version for training.
set -euo pipefail
cd "$(dirname "$0")/../.."
python3 deploy/setup/libtorch.py gpu-check
export LIBTORCH="$PWD/.libtorch-gpu-check"
# tch is made for 2.10, and also works with 2.11.
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
echo "gpu-check: $pack is ready ($((size / 1024 / 1024)) MiB); run gpu_check.sh on a GPU"
