#!/usr/bin/env bash
# Trains the weights under deploy/models: an autoencoder and a CLIP, a base model on the latents of
# the one with the text encoder of the other, and a RetriNet on that, by a coordinator and two
# workers of our own on loopback. It takes hours and may be interrupted at any time: programs, store
# and data lie in one folder outside the checkout, and `start` goes on from the last checkpoint.
# Everything runs in the background, at the lowest priority.
#   train-base.sh start             go on with whatever was training
#   train-base.sh STAGE             begin a stage, or go on with it: autoencoder, clip, base or
#                                   figures (deploy/jobs/STAGE.toml), or decoder: the autoencoder
#                                   goes on with a frozen encoder, so that latents, and what was
#                                   trained on them, stay valid; the others are paused
#   train-base.sh STAGE again       the same from step 0, as a new job: from newer weights of the
#                                   stages before, or with other fields
#   train-base.sh STAGE from FOLDER the same from these exported weights, such as the stage's own
#   train-base.sh export STAGE      the newest checkpoint as fp16 weights, into weights/STAGE-STEP
#   train-base.sh status            what runs, and how far it is
#   train-base.sh install           copy the programs of this checkout again, for the next start
#   train-base.sh stop              end what it started; nothing is lost but the step in flight
# A stage starts from the newest exported weights of the one before: look at those first
# (deploy/experiments/images.sh measures them). The first three jobs have constant rates and a
# moving average, so that every checkpoint is as good as if the run had been meant to end there.
# RETRI_TRAINING is the folder (default: training in $RETRI_CACHE or ~/.cache/retri).
set -euo pipefail
cd "$(dirname "$0")/.."
root=${RETRI_TRAINING:-${RETRI_CACHE:-$HOME/.cache/retri}/training}
port=${RETRI_TRAINING_PORT:-7390}
# A step allocates and frees the same memory again and again. If the kernel does not get it back
# each time, a step in bf16 takes a tenth less.
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=67108864
export COORDINATOR_URL=http://127.0.0.1:$port
# Pinned: the version is the SHA-256 of the data set's dataset.json.
synthesize=(--characters 4000 --outfits 2 --images 4 --size 64 --seed 11 --backgrounds plain)
version=ddbef884483214cb0274b5de0964784a0152d127c0190ddbc62685f3abde35dc

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
  # Linux shares the processor between sessions before it looks at niceness, so the session's own
  # priority counts.
  # shellcheck disable=SC2016
  setsid nice -n 19 bash -c 'echo 19 2>/dev/null >/proc/self/autogroup || true; exec "$0" "$@"' \
    "$root/bin/$program" "$@" >>"$root/run/$name.log" 2>&1 </dev/null &
  echo $! >"$root/run/$name.pid"
}

start() {
  mkdir -p "$root/run"
  [ -x "$root/bin/worker-rank" ] || install
  # At the lowest priority a process may not run for minutes; that is no fault.
  RETRI_COORDINATOR__LISTEN=127.0.0.1:$port RETRI_COORDINATOR__METRICS_LISTEN=127.0.0.1:0 \
    RETRI_COORDINATOR__WEB_LISTEN=127.0.0.1:0 \
    RETRI_COORDINATOR__STORE="file://$root/store" RETRI_COORDINATOR__DETECT_WITHIN_MS=600000 \
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
  [ "$found" = "$version" ] ||
    fail "$root/figures has version $found; these weights are made from $version"
}

before() { # the stages whose weights a stage starts from
  case $1 in
    autoencoder | clip) ;;
    decoder) echo autoencoder ;;
    base) echo autoencoder clip ;;
    figures) echo base ;;
    *) fail "there is no stage $1; it is autoencoder, decoder, base, figures or clip" ;;
  esac
}

newest() { # the exported weights of a stage with the most steps
  find "$root/weights" -maxdepth 1 -name "$1-*" 2>/dev/null | sort -V | tail -n 1
}

first_weights() { # the folder that a stage starts from, if there is one before it
  local earlier folder folders=()
  for earlier in $(before "$1"); do
    folder=$(newest "$earlier")
    [ -n "$folder" ] || fail "there are no weights of $earlier: train-base.sh export $earlier"
    folders+=("$folder")
  done
  case ${#folders[@]} in
    0) return ;;
    1) ;;
    *) # Each has components of its own.
      folder=$root/weights/start-of-$1
      rm -rf "$folder"
      mkdir "$folder"
      for earlier in "${folders[@]}"; do
        find "$earlier" -mindepth 1 -maxdepth 1 -type d ! -name scheduler ! -name tokenizer \
          -exec cp -r {} "$folder" \;
      done
      ;;
  esac
  echo "$folder"
}

stage() { # stage, `again` or `from`, folder
  local weights= other job=$1 lines=
  before "$1" >/dev/null
  [ -x "$root/bin/worker-rank" ] || install
  data
  start
  # One stage at a time; a job that is done cannot be paused.
  for other in autoencoder decoder base figures clip; do
    [ "$other" = "$1" ] || [ ! -s "$root/$other.id" ] ||
      "$root/bin/coordinator" pause "$(cat "$root/$other.id")" 2>/dev/null || true
  done
  if [ -s "$root/$1.id" ] && [ -z "${2:-}" ]; then
    "$root/bin/coordinator" resume "$(cat "$root/$1.id")" 2>/dev/null || true
    status
    return
  fi
  if [ "${2:-}" = from ]; then
    weights=$(readlink -e "${3:-none}") || fail "there is no folder ${3:-of weights: name it}"
  else
    weights=$(first_weights "$1")
  fi
  [ "$1" != decoder ] || job=autoencoder lines='\nfreeze = ["encoder"]'
  [ -z "$weights" ] || lines="\\ninit = \"file://$weights\"$lines"
  sed -e "s|^name = .*|name = \"$1\"|" -e "s|^dataset = .*|dataset = \"file://$root/figures\"|" \
    -e '/^init = /d' -e "s|^size = .*|&$lines|" "deploy/jobs/$job.toml" >"$root/$1.toml"
  if [ -s "$root/$1.id" ]; then
    "$root/bin/coordinator" pause "$(cat "$root/$1.id")" 2>/dev/null || true
  fi
  "$root/bin/coordinator" submit "$root/$1.toml" >"$root/$1.id.new" || fail "$1 was refused"
  mv "$root/$1.id.new" "$root/$1.id"
  status
}

export_stage() {
  local from=$root/weights/$1.new step half=(--half)
  rm -rf "$from" "$from.normalized"
  # Normalised in fp32, then halved. A decoder's latents are normalised already.
  [ "$1" != autoencoder ] || half=()
  "$root/bin/coordinator" checkpoint export "$(cat "$root/$1.id")" "${half[@]}" --out "$from" ||
    fail "$1 cannot be exported"
  step=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["step"])' \
    "$from/export.json")
  if [ "$1" = autoencoder ]; then
    "$root/bin/worker" normalize-latents --weights "$from" --dataset "file://$root/figures" \
      --holdout 0.05 --seed 7 --storage fp16 --out "$from.normalized" >/dev/null ||
      fail "the latents cannot be normalised"
    cp "$from/export.json" "$from.normalized/autoencoder.json"
    rm -rf "$from"
    from=$from.normalized
  fi
  rm -rf "$root/weights/$1-$step"
  mv "$from" "$root/weights/$1-$step"
  echo "$root/weights/$1-$step"
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
  start)
    start
    status
    ;;
  autoencoder | decoder | base | figures | clip) stage "$@" ;;
  status) status ;;
  export)
    [ -s "$root/${2:-none}.id" ] || fail "export needs a stage that was begun"
    export_stage "$2"
    ;;
  install) install ;;
  stop) stop ;;
  *)
    sed -n '2,/^set /p' "$0" | sed -e '/^set /d' -e 's/^# \{0,1\}//' >&2
    exit 2
    ;;
esac
