#!/usr/bin/env bash
# `make demo`: one coordinator and two workers on loopback, the demo job from sample data to pictures, then everything
# is stopped again, also after a failure or Ctrl-C. Leaves its results in .demo/out. Argument: figures or wesnoth.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:-figures}
bin=target/debug
demo=$PWD/.demo
run=$demo/run-$data
out=$demo/out-$data
pids=()

stop() {
  # Workers first, so that none reports a lost coordinator.
  for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
    kill -TERM "${pids[i]}" 2>/dev/null && wait "${pids[i]}" 2>/dev/null || true
  done
  pids=()
}
fail() {
  echo "DEMO FAILED: $1 (logs: $run/*.log)" >&2
  exit 1
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
    kill -0 "$pid" 2>/dev/null || { tail -n 5 "$log" >&2; fail "$1 did not start"; }
    sleep 0.05
  done
}

rm -rf "$run" "$out"
mkdir -p "$run" "$out"

case $data in
  figures)
    job=deploy/jobs/demo.toml
    [ -f "$demo/figures/dataset.json" ] ||
      $bin/coordinator dataset synthesize --characters 120 --outfits 2 --images 8 --size 96 --seed 1 \
        --out "file://$demo/figures"
    ;;
  wesnoth)
    job=deploy/jobs/wesnoth.toml
    if [ ! -f "$demo/wesnoth/dataset.json" ]; then
      python3 deploy/data/wesnoth.py --out "$demo/wesnoth-import"
      $bin/coordinator dataset import "$demo/wesnoth-import" --out "file://$demo/wesnoth"
    fi
    ;;
  *) fail "DATA=$data is unknown; it must be figures or wesnoth" ;;
esac

RETRI_COORDINATOR__LISTEN=127.0.0.1:0 RETRI_COORDINATOR__METRICS_LISTEN=127.0.0.1:0 \
  RETRI_COORDINATOR__STORE="file://$run/store" start coordinator $bin/coordinator serve
COORDINATOR_URL=$(grep -o 'rpc=http[^ ]*' <<<"$ready" | cut -d= -f2-)
export COORDINATOR_URL
for worker in w1 w2; do
  RETRI_WORKER__NAME=$worker RETRI_WORKER__COORDINATOR=$COORDINATOR_URL RETRI_WORKER__DEVICES=1 \
    RETRI_WORKER__METRICS_LISTEN=127.0.0.1:0 RETRI_WORKER__RUN_DIR="$run/$worker" \
    RETRI_WORKER__CACHE_DIR="$run/cache" start $worker $bin/worker daemon
done

id=$($bin/coordinator submit "$job") || fail "the job was refused"
echo "job $id"
$bin/coordinator watch "$id" || fail "job $id did not finish"
$bin/coordinator describe "$id" --curve "$out/loss.png" --output json >"$out/job.json"
$bin/coordinator sample "$id" --count 8 --seed 1 --out "$out/pictures" || fail "no pictures could be drawn"
checkpoint=$($bin/coordinator checkpoints "$id" --output json |
  python3 -c 'import json,sys; c=json.load(sys.stdin)[-1]; print(str(c["step"])+"-g"+str(c["generation"]))')
$bin/coordinator checkpoint verify "$id" >/dev/null || fail "the checkpoint does not verify"
summary=$(python3 - "$out/job.json" <<'E2'
import json, sys
curve = json.load(open(sys.argv[1]))["curve"]
print(f"steps={curve['steps']} loss={curve['loss_first']:.4f}->{curve['loss_last']:.4f}")
sys.exit(0 if curve["loss_last"] < curve["loss_first"] else 1)
E2
) || fail "the loss did not fall: $summary"
stop
echo "pictures: $out/pictures/grid.png, loss curve: $out/loss.png"
echo "DEMO OK $summary checkpoint=$id@$checkpoint pictures=$out/pictures"
