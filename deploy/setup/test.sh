#!/usr/bin/env bash
# `make test`: runs every test of the workspace, and prints the totals in the last line.
set -euo pipefail
cd "$(dirname "$0")/../.."
python3 deploy/setup/test_tools.py
python3 deploy/setup/onnx.py
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
cargo test --locked --workspace --no-fail-fast 2>&1 | tee "$log" || status=$?
sum() { # the number before this word in all result lines
  awk -v word="$1" '
    /^test result:/ {for (i = 2; i <= NF; i++) if ($i ~ "^" word) n += $(i - 1)}
    END {print n + 0}' "$log"
}
echo "$(sum passed) passed, $(sum failed) failed, $(sum ignored) skipped"
exit $status
