#!/usr/bin/env bash
# `make bench-model`: compares a training micro-step with PyTorch's. Arguments go to micro_step.py.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=deploy/setup/public_tools.sh
. deploy/setup/public_tools.sh
cargo build --locked --quiet --workspace --example micro_step
exec python3 -W ignore tests/bench/micro_step.py target/debug/examples/micro_step "$@"
