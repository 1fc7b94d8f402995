#!/usr/bin/env bash
# `make demo`: starts a coordinator and two workers on loopback, runs the demo job from sample data
# to images, and stops everything again, also after a failure or Ctrl-C. The results are in
# .demo/out-DATA.
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
foreground $bin/coordinator sample "$id" --count 8 --seed 1 --steps 30 --guidance 3 \
  --out "$out/images" || fail "no images could be generated"
checkpoint=$(find "$run/store/jobs/$id/checkpoints" -name manifest.json | sort | tail -n 1)
[ -n "$checkpoint" ] || fail "there is no checkpoint"
$bin/coordinator checkpoint verify "$id" >/dev/null || fail "the checkpoint does not verify"
summary=$(python3 - "$out/job.json" <<'E2'
import json, sys
curve = json.load(open(sys.argv[1]))["curve"]
print(f"steps={curve['steps']} loss={curve['loss_first']:.4f}->{curve['loss_last']:.4f}")
sys.exit(0 if curve["loss_last"] < curve["loss_first"] else 1)
E2
) || fail "the loss did not fall: $summary"
stop
echo "images: $out/images/grid.png, loss curve: $out/loss.png"
echo "DEMO OK $summary checkpoint=${checkpoint%/manifest.json} images=$out/images"
