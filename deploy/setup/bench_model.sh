#!/usr/bin/env bash
# `make bench-model`: a training micro-step of ours beside one of PyTorch's. Arguments go to micro_step.py.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=deploy/setup/public_tools.sh
. deploy/setup/public_tools.sh
cargo build --locked --quiet --workspace --example micro_step
exec python3 -W ignore tests/bench/micro_step.py target/debug/examples/micro_step "$@"
