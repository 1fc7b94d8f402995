# Sourced by demo.sh, bench.sh and leakage.sh: a coordinator and two workers on loopback, which are
# stopped when the script ends, however it ends. The caller sets `run`, the folder for logs, store
# and sockets, and `fail`, a function that prints what went wrong and exits.
# shellcheck shell=bash
bin=target/debug
pids=()

stop() {
  # Workers first, so that none reports a lost coordinator. What does not exit in time is killed.
  for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
    kill -TERM "${pids[i]}" 2>/dev/null || continue
    { sleep 30 && kill -KILL "${pids[i]}"; } 2>/dev/null &
    local killer=$!
    wait "${pids[i]}" 2>/dev/null || true
    kill "$killer" 2>/dev/null || true
  done
  pids=()
}

foreground() { # runs a long command; a signal still ends the script at once
  "$@" &
  pids+=("$!")
  local status=0
  wait "$!" || status=$?
  unset 'pids[-1]' # the process id may be reused from now on
  return "$status"
}
trap stop EXIT
trap 'exit 130' INT TERM

start() { # log file, then the command; sets `ready` to its first line
  local log=$run/$1.log
  shift
  rm -f "$log" # not to be confused with that of an earlier run
  "$@" >"$log" 2>&1 &
  local pid=$!
  pids+=("$pid")
  until ready=$(grep -s -m1 '^[a-z]* ready ' "$log"); do
    kill -0 "$pid" 2>/dev/null || {
      tail -n 5 "$log" >&2
      fail "$(basename "$log" .log) did not start"
    }
    sleep 0.05
  done
}

start_cluster() { # exports COORDINATOR_URL
  RETRI_COORDINATOR__LISTEN=127.0.0.1:0 RETRI_COORDINATOR__METRICS_LISTEN=127.0.0.1:0 \
    RETRI_COORDINATOR__WEB_LISTEN=127.0.0.1:0 \
    RETRI_COORDINATOR__STORE="file://$run/store" start coordinator $bin/coordinator serve
  COORDINATOR_URL=$(grep -o 'rpc=http[^ ]*' <<<"$ready" | cut -d= -f2-)
  export COORDINATOR_URL
  local worker
  for worker in w1 w2; do
    RETRI_WORKER__NAME=$worker RETRI_WORKER__COORDINATOR=$COORDINATOR_URL RETRI_WORKER__DEVICES=1 \
      RETRI_WORKER__METRICS_LISTEN=127.0.0.1:0 RETRI_WORKER__RUN_DIR="$run/$worker" \
      RETRI_WORKER__CACHE_DIR="$run/cache" start $worker $bin/worker daemon
  done
}

figures() { # generates the demo's data set, once; equal seeds give equal bytes
  [ -f .demo/figures/dataset.json ] ||
    $bin/coordinator dataset synthesize --characters 120 --outfits 2 --images 8 --size 64 --seed 1 \
      --backgrounds plain --out "file://$PWD/.demo/figures" ||
      fail "the figures could not be generated"
}
