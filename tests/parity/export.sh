#!/usr/bin/env bash
# Part of `make parity`: trains the demo's RetriNet for a few steps on loopback, exports it with
# `coordinator checkpoint export`, and checks the export with `diffusers` and `transformers`
# (export.py). Runs with the caller's PYTHONPATH, in the checkout.
set -euo pipefail
run=$(mktemp -d)

fail() {
  echo "PARITY FAILED: $1 (logs: $run/*.log)" >&2
  exit 1
}
# shellcheck source=deploy/loopback.sh
. deploy/loopback.sh

figures
sed -e 's/^steps = .*/steps = 3/' -e 's/^warmup = .*/warmup = 0/' \
  -e "s|\"../../.demo|\"$PWD/.demo|" -e "s|\"../models|\"$PWD/deploy/models|" \
  deploy/jobs/demo.toml >"$run/job.toml"
start_cluster
id=$($bin/coordinator submit "$run/job.toml") || fail "the job was refused"
foreground $bin/coordinator watch "$id" >/dev/null || fail "job $id did not finish"
$bin/coordinator checkpoint export "$id" --out "$run/model" >/dev/null || fail "no export"
stop
python3 -W ignore tests/parity/export.py $bin/worker "$run/model" ||
  fail "the export is not what diffusers expects"
rm -rf "$run"
