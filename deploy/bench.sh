#!/usr/bin/env bash
# `make bench`: the same job on one rank and on two (same global batch, same samples), with fast and with exact sums, each
# twice, the second time in the opposite order, so that a machine that grows slower harms both alike; prints samples/s of
# each, their ratios, and where the time of a step went. Leaves nothing running.
set -euo pipefail
cd "$(dirname "$0")/.."
run=$PWD/.demo/bench
fail() {
  echo "BENCH FAILED: $1 (logs: $run/*.log)" >&2
  exit 1
}
# shellcheck source=deploy/loopback.sh
. deploy/loopback.sh

rm -rf "$run"
mkdir -p "$run"
figures
start_cluster
for run_of in 1-fast 1-exact 2-exact 2-fast 2-fast 2-exact 1-exact 1-fast; do
  world=${run_of%-*} reduction=${run_of#*-}
  sed -e "0,/^name = .*/s//name = \"bench-$run_of\"/" -e "s/^workers = .*/workers = { min = $world, max = $world }/" \
    -e "s/^reduction = .*/reduction = \"$reduction\"/" -e "s/^steps = .*/steps = 25/" \
    -e "s#\"\.\./#\"$PWD/deploy/#" deploy/jobs/demo.toml >"$run/bench-$run_of.toml"
  id=$($bin/coordinator submit "$run/bench-$run_of.toml") || fail "the job was refused"
  foreground $bin/coordinator watch "$id" >/dev/null || fail "job $id did not finish"
  $bin/coordinator describe "$id" --output json >"$run/$run_of.$id.json"
done
stop
python3 - "$run" <<'E2'
import glob, json, sys
from statistics import harmonic_mean, mean
rates = {}
for name in ("1-fast", "2-fast", "1-exact", "2-exact"):
    curves = [json.load(open(path))["curve"] for path in glob.glob(f"{sys.argv[1]}/{name}.*.json")]
    rates[name] = harmonic_mean([curve["samples_per_second"] for curve in curves])
    shares = {phase: mean(curve["shares"][phase] for curve in curves) for phase in curves[0]["shares"]}
    shares = ", ".join(f"{phase} {100 * share:.1f} %" for phase, share in shares.items())
    memory = max(curve["peak_memory_bytes"] for curve in curves) / 2**20
    print(f"{name[0]} rank(s), {name[2:]}: {rates[name]:.1f} samples/s, peak host memory of rank 0 {memory:.0f} MiB, {shares}")
print(f"BENCH two ranks / one rank = {rates['2-fast'] / rates['1-fast']:.2f}")
for world in (1, 2):
    more = 100 * (rates[f"{world}-fast"] / rates[f"{world}-exact"] - 1)
    print(f"BENCH exact sums on {world} rank(s): a step takes {more:+.1f} %")
E2
