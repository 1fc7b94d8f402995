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
for peer in ip fused published; do
  mkdir -p "$run/$peer"
  cp deploy/models/base/*.safetensors "$run/$peer"
done
python3 deploy/peers/tower.py "$run/ip/image_encoder.safetensors" 64
python3 deploy/peers/tower.py "$run/fused/image_encoder.safetensors" 48
cp "$run/fused/image_encoder.safetensors" "$run/published"
rm "$run/published/autoencoder.safetensors" "$run/published/unet.safetensors"
python3 -W ignore tests/parity/export_peers.py movq "$run/published/movq"
start_cluster

peer() { # architecture, base, variant
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
  $bin/coordinator checkpoint export "$id" --out "$run/model-$1" >/dev/null || fail "no export"
}

peer controlnet "$PWD/deploy/models/base" ""
peer ip-adapter "$run/ip" ""
peer fastcomposer "$run/fused" ""
peer kandinsky-prior "$run/fused" ""
peer kandinsky-decoder "$run/published" ""
stop
python3 -W ignore tests/parity/export_peers.py check $bin/worker "$run" ||
  fail "an export is not what diffusers expects"
rm -rf "$run"
