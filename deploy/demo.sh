#!/usr/bin/env bash
# `make demo`: starts a coordinator and two workers on loopback, runs the demo job from sample data
# to images, and stops everything again, also after a failure or Ctrl-C. The results are in
# .demo/out-DATA; images/grid.png shows, from left to right, a target, what the autoencoder makes of
# it, the references, a sample, one with the references of another character, and one of the base
# weights alone.
#   demo.sh [figures|wesnoth]
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:-figures}
demo=$PWD/.demo
run=$demo/run-$data
out=$demo/out-$data

fail() {
  echo "DEMO FAILED: $1 (logs: $run/*.log)" >&2
  exit 1
}
# shellcheck source=deploy/loopback.sh
. deploy/loopback.sh

rm -rf "$run" "$out"
mkdir -p "$run" "$out"

case $data in
  figures)
    job=deploy/jobs/demo.toml
    figures
    ;;
  wesnoth)
    job=deploy/jobs/wesnoth.toml
    if [ ! -f "$demo/wesnoth/dataset.json" ]; then
      python3 deploy/data/wesnoth.py --out "$demo/wesnoth-import" ||
        fail "the sprites could not be downloaded"
      $bin/coordinator dataset import "$demo/wesnoth-import" --out "file://$demo/wesnoth" ||
        fail "the import failed"
    fi
    ;;
  *) fail "DATA=$data is unknown; it must be figures or wesnoth" ;;
esac

start_cluster

id=$($bin/coordinator submit "$job") || fail "the job was refused"
echo "job $id"
foreground $bin/coordinator watch "$id" || fail "job $id did not finish"
$bin/coordinator describe "$id" --curve "$out/loss.png" --output json >"$out/job.json" ||
  fail "no loss curve"
$bin/coordinator curve "$id" --format jsonl >"$out/steps.jsonl" || fail "no steps"
# The same prompts and seeds three times: with the references of another character, from the base
# weights (which ignore them) and from the trained ones, and with the references of the target.
sample() { # folder, further arguments
  foreground $bin/coordinator sample "$id" --count 24 --seed 1 --prompt pose --guidance 2 \
    --method dpm-solver --steps 20 --out "$out/$1" "${@:2}" || fail "no images could be generated"
}
sample base --swap-references --base
sample swapped --swap-references
sample images --beside "$out/swapped,$out/base"
checkpoint=$(find "$run/store/jobs/$id/checkpoints" -name manifest.json | sort | tail -n 1)
[ -n "$checkpoint" ] || fail "there is no checkpoint"
$bin/coordinator checkpoint verify "$id" >/dev/null || fail "the checkpoint does not verify"
summary=$(python3 - "$out" <<'E2'
import json, sys
read = lambda name: json.load(open(f"{sys.argv[1]}/{name}"))
curve = read("job.json")["curve"]
# The loss of single steps is too noisy for a few minutes; that of held-out characters is always
# measured with the same noise.
steps = [json.loads(line) for line in open(f"{sys.argv[1]}/steps.jsonl")]
name = "loss_validation"
held_out = [step[name] for step in steps if name in step]
before, after = (read(f"{name}/images.json")["summary"] for name in ("base", "swapped"))
print(
    f"steps={curve['steps']} held-out loss={held_out[0]:.4f}->{held_out[-1]:.4f} "
    f"swap={before['correct']}->{after['correct']}/{after['count']}"
)
sys.exit(0 if held_out[-1] < held_out[0] else 1)
E2
) || fail "the loss of held-out characters did not fall: $summary"
stop
echo "swap test: images from another character's references that are nearest to that character in \
its outfit among 8, before -> after training"
echo "images: $out/images/grid.png, loss curve: $out/loss.png"
echo "DEMO OK $summary checkpoint=${checkpoint%/manifest.json} images=$out/images"
