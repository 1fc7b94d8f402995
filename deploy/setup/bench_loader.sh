#!/usr/bin/env bash
# `make bench-loader`: samples per second of our loader beside MosaicML Streaming with Pillow.
# Arguments go to loader_peers.py.
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo build --locked --quiet --workspace --example bench_loader --bin coordinator
# The GPU flavour of libtorch is the whole wheel of torch, whose DataLoader is used.
python3 deploy/setup/libtorch.py cuda
tools=${RETRI_CACHE:-$HOME/.cache/retri}/loader-tools
if [ ! -f "$tools/ready" ]; then
  rm -rf "$tools"
  python3 -m pip install --quiet --no-compile --require-hashes --no-deps --target "$tools" \
    --requirement deploy/setup/pinned/loader.txt
  touch "$tools/ready"
fi
export PYTHONPATH=$tools:$(dirname "$(readlink -f .libtorch-cuda)")
exec python3 -W ignore tests/bench/loader_peers.py \
  target/debug/examples/bench_loader target/debug/coordinator "$@"
