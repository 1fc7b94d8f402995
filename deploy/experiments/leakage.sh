#!/usr/bin/env bash
# `make leakage`: does training on *different* images of a character leak less of the reference than
# training on the same image twice? Trains twelve RetriNets with equal budgets from the small base
# weights (composition and reconstruction, pairing a and b, three seeds), generates images of
# held-out characters with each, and writes .demo/leakage/report-FREEZE (report.md, results.json,
# plots).
# Two hours on two cores. An interrupted run continues where it stopped: store and images stay in
# .demo/leakage.
#   leakage.sh [--steps N] [--seeds 1,2,3] [--images N] [--freeze paper|unfrozen]
#              [--base FOLDER --like JOB.toml]
set -euo pipefail
cd "$(dirname "$0")/../.."
run=$PWD/.demo/leakage
fail() {
  echo "LEAKAGE FAILED: $1 (logs: $run/*.log)" >&2
  exit 1
}
# shellcheck source=deploy/experiments/common.sh
. deploy/experiments/common.sh
packages experiment-tools experiments.txt
# Characters that the base has not seen: another seed than that of its data set.
[ -f "$run/data/dataset.json" ] ||
  $bin/coordinator dataset synthesize --characters 400 --outfits 2 --images 8 --size 64 --seed 2 \
    --backgrounds plain --out "file://$run/data" || fail "the figures could not be generated"
start_cluster
script leakage.py "$@"
