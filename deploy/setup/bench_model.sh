#!/usr/bin/env bash
# `make bench-model`: compares a training micro-step with PyTorch's, of RetriNet and of the paper's
# peers. Arguments go to micro_step.py; `peers` as the first one runs the peers' rows alone, with
# the other arguments.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=deploy/setup/public_tools.sh
. deploy/setup/public_tools.sh
cargo build --locked --quiet --workspace --examples
if [ "${1:-}" = peers ]; then
  shift
  exec python3 -W ignore tests/bench/peer_step.py target/debug/examples/peer_step "$@"
fi
python3 -W ignore tests/bench/micro_step.py target/debug/examples/micro_step "$@"
if [ $# = 0 ]; then
  python3 -W ignore tests/bench/peer_step.py target/debug/examples/peer_step
fi
