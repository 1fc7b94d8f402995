#!/usr/bin/env bash
# `make bench-evaluate`: images per second of an evaluation with one worker and with two, beside a
# plain loop over the same sampler, each with one thread. Each runs twice, the second time in the
# opposite order, so that a machine that becomes slower affects all alike. Leaves nothing running.
set -euo pipefail
cd "$(dirname "$0")/.."
run=$PWD/.demo/bench-evaluate
count=${1:-40}
steps=30
fail() {
  echo "BENCH FAILED: $1 (logs: $run/*.log)" >&2
  exit 1
}
# shellcheck source=deploy/loopback.sh
. deploy/loopback.sh

rm -rf "$run"
mkdir -p "$run/images"
figures
start_cluster
sed -e '0,/^name = .*/s//name = "bench"/' -e 's/^steps = .*/steps = 1/' \
  -e 's/^warmup = .*/warmup = 0/' -e "s#\"\.\./#\"$PWD/deploy/#" deploy/jobs/demo.toml \
  >"$run/bench.toml"
model=$($bin/coordinator submit "$run/bench.toml") || fail "the job was refused"
foreground $bin/coordinator watch "$model" >/dev/null || fail "job $model did not finish"

evaluate() { # number of workers; appends the rate to a file
  cat >"$run/plan.toml" <<E2
name = "evaluation-of-$1"
[resources]
workers = { min = $1, max = $1 }
[evaluate]
out_of_domain = { held_out = 4 }
prompts = ["1girl, smile"]
samples = $((count / 4))
steps = $steps
models = [{ job = "$model" }]
E2
  id=$($bin/coordinator evaluate "$run/plan.toml") || fail "the plan was refused"
  foreground $bin/coordinator watch "$id" >/dev/null || fail "job $id did not finish"
  python3 - "$run/store/jobs/$id/images" <<'E3' >>"$run/$1.rates"
import pathlib, sys
records = pathlib.Path(sys.argv[1]).glob("0*.json")
ends = sorted(path.stat().st_mtime for path in records)
print((len(ends) - 1) / (ends[-1] - ends[0]))
E3
}

for what in loop 1 2 2 1 loop; do
  if [ $what = loop ]; then
    target/debug/examples/sample_loop "$run/bench.toml" "$count" $steps "$run/images" \
      >>"$run/loop.rates" || fail "the loop ended"
  else
    evaluate $what
  fi
done
stop
python3 - "$run" <<'E2'
import sys
from statistics import harmonic_mean
rates = {
    name: [float(line) for line in open(f"{sys.argv[1]}/{name}.rates")]
    for name in ("loop", "1", "2")
}
for name, found in rates.items():
    title = "plain loop" if name == "loop" else f"evaluation, {name} worker(s)"
    print(f"{title}: {' and '.join(f'{rate:.3f}' for rate in found)} images/s")
loop, one, two = (harmonic_mean(rates[name]) for name in ("loop", "1", "2"))
print(f"BENCH one worker / plain loop = {one / loop:.3f}")
print(f"BENCH two workers / one worker = {two / one:.2f}")
E2
