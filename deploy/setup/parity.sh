#!/usr/bin/env bash
# `make parity`: the built worker beside diffusers and transformers. Their Python packages come once into the cache
# outside the checkout, torch from the GPU flavour of libtorch, which is a whole wheel. Arguments go to parity.py.
set -euo pipefail
cd "$(dirname "$0")/../.."
python3 deploy/setup/libtorch.py cuda
tools=${RETRI_CACHE:-$HOME/.cache/retri}/parity-tools
if [ ! -f "$tools/ready" ]; then
  rm -rf "$tools"
  python3 -m pip install --quiet --target "$tools" diffusers==0.42.1 transformers==5.23.0 safetensors numpy
  touch "$tools/ready"
fi
PYTHONPATH=$tools:$(dirname "$(readlink -f .libtorch-cuda)") HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1 \
  exec python3 -W ignore tests/parity/parity.py target/debug/worker "$@"
