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
  cp -r deploy/models/base/. deploy/models/clip/clip "$run/$base"
done
rm -r "$run/published/vae" "$run/published/unet"
python3 -W ignore tests/parity/export_peers.py movq "$run/published/movq"
start_cluster

tables() { # [model.*] of the base, of these names
  python3 deploy/experiments/networks.py deploy/jobs/base.toml "$@"
}

peer() { # architecture, base, lines of [model]
  local networks
  case $1,$3 in
    kandinsky-decoder,) networks= ;;
    kandinsky-prior,*) networks=$(tables text_encoder) ;;
    *) networks=$(tables noise unet autoencoder text_encoder) ;;
  esac
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
$networks
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
}

exported() { # name
  $bin/coordinator checkpoint export "$id" --out "$run/model-$1" >/dev/null || fail "no export"
}

# The published file of torch.save must train as the same weights in an exported folder do.
same() { # architecture, folder, file, what the file is
  peer "$1" "$2" ""
  first=$($bin/coordinator checkpoint digest "$id") || fail "no digest of $id"
  peer "$1" "$3" ""
  second=$($bin/coordinator checkpoint digest "$id") || fail "no digest of $id"
  [ "$first" = "$second" ] || fail "$4 trains otherwise than the same weights in a folder"
  echo "ok   model.init = $4: $first as from the folder"
}

peer controlnet "$PWD/deploy/models/base" ""
exported controlnet
peer ip-adapter "$run/base" ""
exported ip-adapter
peer fastcomposer "$run/base" ""
exported fastcomposer
peer kandinsky-prior "$run/base" ""
exported kandinsky-prior
peer kandinsky-decoder "$run/published" ""
exported kandinsky-decoder
peer kandinsky-decoder "$run/base" 'variant = "unclip-sd15"'
exported unclip
python3 -W ignore tests/parity/export_peers.py save "$run" "$PWD/deploy/models/base"
same controlnet "$run/model-controlnet" "$run/control_sd15_small.pth" "control_sd15_*.pth"
same ip-adapter "$run/model-ip-adapter" "$run/model-ip-adapter/ip-adapter_sd15.bin" \
  "ip-adapter_sd15.bin"
same fastcomposer "$run/model-fastcomposer" "$run/model-fastcomposer/pytorch_model.bin" \
  "FastComposer's pytorch_model.bin"
stop
python3 -W ignore tests/parity/export_peers.py check $bin/worker "$run" ||
  fail "an export is not what diffusers expects"
rm -rf "$run"
