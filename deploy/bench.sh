#!/usr/bin/env bash
# `make bench`: trains the same job on one rank and on two (same global batch, same samples), with
# fast and with exact sums. Each runs twice, the second time in the opposite order, so that a
# machine that becomes slower affects all alike. Prints samples/s, their ratios, and the time of a
# step by phase. Leaves nothing running.
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
  sed -e "0,/^name = .*/s//name = \"bench-$run_of\"/" \
    -e "s/^workers = .*/workers = { min = $world, max = $world }/" \
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
    phases = curves[0]["fractions"]
    parts = {phase: mean(curve["fractions"][phase] for curve in curves) for phase in phases}
    parts = ", ".join(f"{phase} {100 * part:.1f} %" for phase, part in parts.items())
    memory = max(curve["peak_memory_bytes"] for curve in curves) / 2**20
    print(f"{name[0]} rank(s), {name[2:]}: {rates[name]:.1f} samples/s, "
          f"peak host memory of rank 0 {memory:.0f} MiB, {parts}")
print(f"BENCH two ranks / one rank = {rates['2-fast'] / rates['1-fast']:.2f}")
for world in (1, 2):
    more = 100 * (rates[f"{world}-fast"] / rates[f"{world}-exact"] - 1)
    print(f"BENCH exact sums on {world} rank(s): a step takes {more:+.1f} %")
E2
