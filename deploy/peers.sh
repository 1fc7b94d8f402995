#!/usr/bin/env bash
# `make peers`: trains the paper's four peers in both pairings at size small on loopback, nine jobs
# as deploy/jobs/table2 has them, and generates one grid for each of the ten rows of table 2. The
# results are in .demo/out-peers.
#   peers.sh [STEPS]
set -euo pipefail
cd "$(dirname "$0")/.."
steps=${1:-400}
demo=$PWD/.demo
run=$demo/run-peers
out=$demo/out-peers
base=$PWD/deploy/models/base

fail() {
  echo "PEERS FAILED: $1 (logs: $run/*.log)" >&2
  exit 1
}
# shellcheck source=deploy/loopback.sh
. deploy/loopback.sh

rm -rf "$run" "$out"
mkdir -p "$run" "$out"
figures

# shellcheck source=deploy/peers/common.sh
. deploy/peers/common.sh
base_with_tower
start_cluster

train() { # name, architecture, base, learning rate, lines of [data], lines of [model]
  write_job "$1" "$2" "$3" "$4" "$steps" "$5" "$6"
  id=$($bin/coordinator submit "$run/$1.toml") || fail "the job $1 was refused"
  foreground $bin/coordinator watch "$id" >/dev/null || fail "job $id did not finish"
  $bin/coordinator describe "$id" --curve "$out/$1-loss.png" --output json >"$out/$1.json" ||
    fail "no loss curve of $id"
  python3 - "$out/$1.json" "$1" <<'E3'
import json, sys
curve = json.load(open(sys.argv[1]))["curve"]
print(f"{sys.argv[2]:<22} loss {curve['loss_first']:.4f} -> {curve['loss_last']:.4f}", flush=True)
E3
}

row() { # name of the row, then options of `coordinator sample`
  local name=$1
  shift
  foreground $bin/coordinator sample "$id" --count 4 --seed 1 --guidance 2 --out "$out/$name" "$@" \
    >/dev/null || fail "no images of $name"
  cp "$out/$name/grid.png" "$out/$name.png"
}

train kandinsky-prior kandinsky-prior "$with_tower" 1e-3 "" ""
$bin/coordinator checkpoint export "$id" --out "$run/prior" >/dev/null || fail "no prior"
cp -r "$run/prior/prior" "$with_tower"
for pairing in a b; do
  data="pairing = \"$pairing\""
  train "fastcomposer-$pairing" fastcomposer "$with_tower" 3e-4 "$data" ""
  row "FastComposer-0.5-$pairing" --steps 30 --knob alpha=0.5
  train "controlnet-$pairing" controlnet "$base" 1e-3 "$data" ""
  row "ControlNet-$pairing" --steps 30
  train "ip-adapter-$pairing" ip-adapter "$with_tower" 1e-3 "$data" ""
  row "IP-Adapter-0.5-$pairing" --steps 30 --knob image_scale=0.5
  # The variant that begins from the base's U-Net: no MoVQ of this size is shipped.
  train "kandinsky-$pairing" kandinsky-decoder "$with_tower" 3e-4 "$data" \
    'variant = "unclip-sd15"'
  for strength in 0.1 0.2; do
    row "Kandinsky-$strength-$pairing" --method ddpm --steps 50 --knob "prior_strength=$strength"
  done
done
stop
echo "PEERS OK: ten grids and nine loss curves in $out"
