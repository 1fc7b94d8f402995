#!/usr/bin/env bash
# `make bench`: the same job on one rank and on two (same global batch, same samples), one after the other on this
# machine; prints samples/s of both, their ratio, and where the time of a step went. Leaves nothing running.
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
for world in 1 2; do
  sed -e "0,/^name = .*/s//name = \"bench-$world\"/" -e "s/^workers = .*/workers = { min = $world, max = $world }/" \
    -e "s/^steps = .*/steps = 25/" -e "s#\"\.\./#\"$PWD/deploy/#" deploy/jobs/demo.toml >"$run/bench-$world.toml"
  id=$($bin/coordinator submit "$run/bench-$world.toml") || fail "the job was refused"
  foreground $bin/coordinator watch "$id" >/dev/null || fail "job $id did not finish"
  $bin/coordinator describe "$id" --output json >"$run/world-$world.json"
done
stop
python3 - "$run" <<'E2'
import json, sys
rates = {}
for world in (1, 2):
    curve = json.load(open(f"{sys.argv[1]}/world-{world}.json"))["curve"]
    rates[world] = curve["samples_per_second"]
    shares = ", ".join(f"{phase} {100 * share:.1f} %" for phase, share in curve["shares"].items())
    memory = curve["peak_memory_bytes"] / 2**20
    print(f"{world} rank(s): {rates[world]:.1f} samples/s, peak memory of rank 0 {memory:.0f} MiB, {shares}")
print(f"BENCH two ranks / one rank = {rates[2] / rates[1]:.2f}")
E2
