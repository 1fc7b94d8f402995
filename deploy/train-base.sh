#!/usr/bin/env bash
# Trains the weights under deploy/models: an autoencoder, a base model on it, and a RetriNet on that,
# by a coordinator and two workers of our own on loopback. It takes hours and may be interrupted at
# any time: programs, store and data lie in one folder outside the checkout, and the same command
# goes on from the last checkpoint. Everything runs in the background, at the lowest priority.
#   train-base.sh STAGE     start or resume: autoencoder, base or figures (deploy/jobs/STAGE.toml)
#   train-base.sh status    what runs, and how far it is
#   train-base.sh export STAGE FOLDER   the newest checkpoint as fp16 weights
#   train-base.sh install   copy the programs of this checkout again, for the next start
#   train-base.sh stop      end the processes that it started; nothing is lost but the step in flight
# Each stage starts from the exported weights of the one before: look at those first.
# RETRI_TRAINING is the folder (default: training in $RETRI_CACHE or ~/.cache/retri).
set -euo pipefail
cd "$(dirname "$0")/.."
root=${RETRI_TRAINING:-${RETRI_CACHE:-$HOME/.cache/retri}/training}
port=${RETRI_TRAINING_PORT:-7390}
export COORDINATOR_URL=http://127.0.0.1:$port
# Pinned: the version is the SHA-256 of the data set's dataset.json.
synthesize=(--characters 4000 --outfits 2 --images 4 --size 96 --seed 11 --backgrounds plain)
version=

fail() {
  echo "train-base.sh: $1" >&2
  exit 1
}

install() {
  mkdir -p "$root/bin"
  local program
  for program in coordinator worker worker-rank; do
    [ -x "target/debug/$program" ] || fail "target/debug/$program is missing: make build"
    # A new file, because the old one may be running.
    cp "target/debug/$program" "$root/bin/$program.new"
    mv "$root/bin/$program.new" "$root/bin/$program"
  done
  git rev-parse HEAD >"$root/bin/commit"
}

running() { # process name: true if the process that we started as this is alive
  local pid
  pid=$(cat "$root/run/$1.pid" 2>/dev/null) || return 1
  # A process id may have been reused, so its program must be ours too.
  [ "$(readlink "/proc/$pid/exe" 2>/dev/null | sed 's/ (deleted)$//')" = "$root/bin/$2" ]
}

launch() { # process name, program, arguments; settings are in the environment
  local name=$1 program=$2
  shift
  running "$name" "$program" && return
  shift
  setsid nice -n 19 "$root/bin/$program" "$@" >>"$root/run/$name.log" 2>&1 </dev/null &
  echo $! >"$root/run/$name.pid"
}

start() {
  mkdir -p "$root/run"
  [ -x "$root/bin/worker-rank" ] || install
  RETRI_COORDINATOR__LISTEN=127.0.0.1:$port RETRI_COORDINATOR__METRICS_LISTEN=127.0.0.1:0 \
    RETRI_COORDINATOR__STORE="file://$root/store" RETRI_COORDINATOR__DETECT_WITHIN_MS=30000 \
    launch coordinator coordinator serve
  local worker
  for worker in w1 w2; do
    RETRI_WORKER__NAME=$worker RETRI_WORKER__COORDINATOR=$COORDINATOR_URL RETRI_WORKER__DEVICES=1 \
      RETRI_WORKER__METRICS_LISTEN=127.0.0.1:0 RETRI_WORKER__RUN_DIR="$root/run/$worker" \
      RETRI_WORKER__CACHE_DIR="$root/cache" launch $worker worker daemon
  done
  local try
  for ((try = 0; try < 120; try++)); do
    "$root/bin/coordinator" jobs >/dev/null 2>&1 && return
    sleep 1
  done
  fail "the coordinator does not answer at $COORDINATOR_URL (log: $root/run/coordinator.log)"
}

data() {
  if [ ! -f "$root/figures/dataset.json" ]; then
    rm -rf "$root/figures"
    nice -n 19 "$root/bin/coordinator" dataset synthesize "${synthesize[@]}" \
      --out "file://$root/figures" || fail "the figures could not be generated"
  fi
  local found
  found=$(sha256sum "$root/figures/dataset.json" | cut -d' ' -f1)
  [ -z "$version" ] || [ "$found" = "$version" ] ||
    fail "$root/figures has version $found; these weights are made from $version"
}

before() { # the stage whose weights a stage starts from
  case $1 in
    autoencoder) ;;
    base) echo autoencoder ;;
    figures) echo base ;;
    *) fail "there is no stage $1; it is autoencoder, base or figures" ;;
  esac
}

stage() {
  local from
  from=$(before "$1")
  [ -x "$root/bin/worker-rank" ] || { mkdir -p "$root" && install; }
  data
  start
  if [ ! -s "$root/$1.id" ]; then
    [ -z "$from" ] || [ -d "$root/weights/$from" ] ||
      fail "no weights of $from: train-base.sh export $from $root/weights/$from"
    sed -e "s|\"../../.demo/figures-base\"|\"file://$root/figures\"|" \
      -e "s|\"../models/next-$from\"|\"file://$root/weights/$from\"|" \
      "deploy/jobs/$1.toml" >"$root/$1.toml"
    "$root/bin/coordinator" submit "$root/$1.toml" >"$root/$1.id.new" || fail "$1 was refused"
    mv "$root/$1.id.new" "$root/$1.id"
  fi
  status
}

status() {
  local name
  for name in coordinator w1 w2; do
    if running $name "$([ $name = coordinator ] && echo coordinator || echo worker)"; then
      echo "$name: runs as process $(cat "$root/run/$name.pid")"
    else
      echo "$name: does not run"
    fi
  done
  "$root/bin/coordinator" jobs || true
}

stop() {
  local name program pid
  # Workers first, so that none reports a lost coordinator.
  for name in w1 w2 coordinator; do
    program=$([ $name = coordinator ] && echo coordinator || echo worker)
    running $name "$program" || continue
    pid=$(cat "$root/run/$name.pid")
    kill -TERM "$pid"
    timeout 120 tail --pid="$pid" -f /dev/null || fail "$name, process $pid, does not end"
    rm "$root/run/$name.pid"
  done
}

case ${1:-} in
  autoencoder | base | figures) stage "$1" ;;
  status) status ;;
  export)
    [ $# = 3 ] || fail "export needs a stage and a folder"
    "$root/bin/coordinator" checkpoint export "$(cat "$root/$2.id")" --half --out "$3"
    ;;
  install) install ;;
  stop) stop ;;
  *)
    sed -n '2,/^set /p' "$0" | sed -e '/^set /d' -e 's/^# \{0,1\}//' >&2
    exit 2
    ;;
esac
