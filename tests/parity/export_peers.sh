#!/usr/bin/env bash
# Part of `make parity`: trains each of the paper's peers for two steps at size small on loopback,
# exports it with `coordinator checkpoint export`, and opens the export with the pipelines of
# `diffusers` (export_peers.py). Runs with the caller's PYTHONPATH, in the checkout.
set -euo pipefail
run=$(mktemp -d)

fail() {
  echo "PARITY FAILED: $1 (logs: $run/*.log)" >&2
  exit 1
}
# shellcheck source=deploy/loopback.sh
. deploy/loopback.sh

figures
for base in base published; do
  mkdir -p "$run/$base"
  cp deploy/models/base/*.safetensors "$run/$base"
  python3 deploy/peers/tower.py "$run/$base/image_encoder.safetensors"
done
rm "$run/published/autoencoder.safetensors" "$run/published/unet.safetensors"
python3 -W ignore tests/parity/export_peers.py movq "$run/published/movq"
start_cluster

peer() { # architecture, base, lines of [model], name of the export
  cat >"$run/$1.toml" <<E2
name = "$1"
[data]
dataset = "file://$PWD/.demo/figures"
resolution = 64
[model]
architecture = "$1"
size = "small"
init = "file://$2"
$3
[train]
steps = 2
global_batch = 2
micro_batch = 1
learning_rate = 1e-3
warmup = 0
[checkpoint]
every = 2
E2
  id=$($bin/coordinator submit "$run/$1.toml") || fail "the job $1 was refused"
  foreground $bin/coordinator watch "$id" >/dev/null || fail "job $id did not finish"
  $bin/coordinator checkpoint export "$id" --out "$run/model-${4:-$1}" >/dev/null || fail "no export"
}

peer controlnet "$PWD/deploy/models/base" ""
peer ip-adapter "$run/base" ""
peer fastcomposer "$run/base" ""
peer kandinsky-prior "$run/base" ""
peer kandinsky-decoder "$run/published" ""
peer kandinsky-decoder "$run/base" 'variant = "unclip-sd15"' unclip
stop
python3 -W ignore tests/parity/export_peers.py check $bin/worker "$run" ||
  fail "an export is not what diffusers expects"
rm -rf "$run"
