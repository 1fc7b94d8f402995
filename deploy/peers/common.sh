# Sourced by peers.sh and benchmark.sh after loopback.sh: the base models of the paper's peers at
# size small, and their jobs. The caller sets `run`, `demo` and `base`.
# shellcheck shell=bash

# The base of the peers that read references with an image tower: the shipped one with the tower of
# the shipped CLIP, whose folder is what `checkpoint export` wrote.
with_tower=$run/base
base_with_tower() { # makes it, once
  [ ! -d "$with_tower" ] || return 0
  mkdir -p "$with_tower.new"
  cp -r "$base/." deploy/models/clip/clip "$with_tower.new"
  mv "$with_tower.new" "$with_tower"
}

tables() { # [model.*] of the base, of these names
  python3 deploy/experiments/networks.py deploy/jobs/base.toml "$@"
}

write_job() { # name, architecture, base or "", learning rate, steps, lines of [data], of [model]
  local init= networks
  [ -z "$3" ] || init="init = \"file://$3\""
  case $2 in
    clip | kandinsky-prior) networks=$(tables text_encoder) ;;
    *) networks=$(tables noise unet autoencoder text_encoder) ;;
  esac
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
$networks
[train]
steps = $5
global_batch = 16
micro_batch = 8
learning_rate = $4
warmup = 20
[checkpoint]
every = $5
keep = 1
E2
}
