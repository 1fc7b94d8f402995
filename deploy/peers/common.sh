# Sourced by peers.sh and benchmark.sh after loopback.sh: the base models of the paper's peers at
# size small, and their jobs. The caller sets `run`, `demo` and `base`.
# shellcheck shell=bash

# The base of the peers that read references with an image tower: the shipped one with the tower of
# the shipped CLIP, whose folder is what `checkpoint export` wrote.
with_tower=$run/base
base_with_tower() { # makes it, once
  [ ! -d "$with_tower" ] || return 0
  mkdir -p "$with_tower.new"
  cp "$base"/*.safetensors "$with_tower.new"
  if [ -d deploy/models/clip/clip ]; then
    cp -r deploy/models/clip/clip "$with_tower.new"
  else
    echo "deploy/models/clip is missing: the image tower is random" >&2
    python3 deploy/peers/tower.py "$with_tower.new/image_encoder.safetensors"
  fi
  mv "$with_tower.new" "$with_tower"
}

write_job() { # name, architecture, base or "", learning rate, steps, lines of [data], of [model]
  local init= weighting='loss_weighting = "noise"'
  [ -z "$3" ] || init="init = \"file://$3\""
  [ "$2" != clip ] || weighting=
  cat >"$run/$1.toml" <<E2
name = "$1"
[resources]
workers = { min = 1, max = 2 }
[data]
dataset = "file://$demo/figures"
resolution = 64
holdout = 0.1
seed = 7
$6
[model]
architecture = "$2"
size = "small"
$init
$7
[train]
steps = $5
global_batch = 16
micro_batch = 8
learning_rate = $4
warmup = 20
$weighting
[checkpoint]
every = $5
keep = 1
E2
}
