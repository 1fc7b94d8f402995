#!/usr/bin/env bash
# `make bench-recovery`: trains on four CPU ranks and kills one of them repeatedly: KILLS times with
# this system, then PEER_KILLS times each under torchrun and torchft (20 take about half an hour).
# Repeats all summaries at the end.
#   bench_recovery.sh KILLS PEER_KILLS
set -euo pipefail
cd "$(dirname "$0")/../.."
[[ "$1" =~ ^[0-9]+$ && "$2" =~ ^[0-9]+$ ]] || {
  echo "bench_recovery: KILLS=$1 PEER_KILLS=$2: both must be whole numbers" >&2
  exit 2
}
said=$(mktemp)
trap 'rm -f "$said"' EXIT
target/debug/recovery "$1" | tee "$said"
if (($2 > 0)); then
  # The GPU flavour of libtorch is the whole wheel of torch. torchft is installed into the cache.
  python3 deploy/setup/libtorch.py cuda
  tools=${RETRI_CACHE:-$HOME/.cache/retri}/recovery-tools
  if [ ! -f "$tools/ready" ]; then
    rm -rf "$tools"
    python3 -m pip install --quiet --no-compile --require-hashes --target "$tools" \
      --requirement deploy/setup/pinned/recovery.txt
    python3 -m pip install --quiet --no-compile --require-hashes --no-deps --target "$tools" \
      --requirement deploy/setup/pinned/recovery-no-deps.txt
    touch "$tools/ready"
  fi
  export PYTHONPATH=$tools:$(dirname "$(readlink -f .libtorch-cuda)")
  for peer in torchrun torchrun-own-store torchft; do
    python3 -W ignore tests/bench/recovery_peers.py "$peer" --kills "$2" | tee -a "$said"
  done
fi
echo
grep '^BENCH' "$said"
