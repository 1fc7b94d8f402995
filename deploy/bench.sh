#!/usr/bin/env bash
# `make bench`: the same job on one rank and on two (same global batch, same samples), one after the other on this
# machine; prints samples/s of both, their ratio, and where the time of a step went. Leaves nothing running.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=target/debug
run=$PWD/.demo/bench
pids=()
stop() {
  for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
    kill -TERM "${pids[i]}" 2>/dev/null && wait "${pids[i]}" 2>/dev/null || true
  done
  pids=()
}
trap stop EXIT
trap 'exit 130' INT TERM
start() { # log file, then the command; sets `ready` to its first line
  local log=$run/$1.log
  shift
  "$@" >"$log" 2>&1 &
  local pid=$!
  pids+=("$pid")
  until ready=$(grep -m1 '^[a-z]* ready ' "$log"); do
    kill -0 "$pid" 2>/dev/null || { tail -n 5 "$log" >&2; exit 1; }
    sleep 0.05
  done
}
rm -rf "$run"
mkdir -p "$run"
[ -f "$run/../figures/dataset.json" ] ||
  $bin/coordinator dataset synthesize --characters 120 --outfits 2 --images 8 --size 96 --seed 1 --out "file://$PWD/.demo/figures"
RETRI_COORDINATOR__LISTEN=127.0.0.1:0 RETRI_COORDINATOR__METRICS_LISTEN=127.0.0.1:0 \
  RETRI_COORDINATOR__STORE="file://$run/store" start coordinator $bin/coordinator serve
COORDINATOR_URL=$(grep -o 'rpc=http[^ ]*' <<<"$ready" | cut -d= -f2-)
export COORDINATOR_URL
for worker in w1 w2; do
  RETRI_WORKER__NAME=$worker RETRI_WORKER__COORDINATOR=$COORDINATOR_URL RETRI_WORKER__METRICS_LISTEN=127.0.0.1:0 \
    RETRI_WORKER__RUN_DIR="$run/$worker" RETRI_WORKER__CACHE_DIR="$run/cache" start $worker $bin/worker daemon
done
for world in 1 2; do
  sed -e "s/^name = .*/name = \"bench-$world\"/" -e "s/^workers = .*/workers = { min = $world, max = $world }/" \
    -e "s/^steps = .*/steps = 25/" deploy/jobs/demo.toml >"deploy/jobs/.bench-$world.toml"
  id=$($bin/coordinator submit "deploy/jobs/.bench-$world.toml")
  rm "deploy/jobs/.bench-$world.toml"
  $bin/coordinator watch "$id" >/dev/null
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
