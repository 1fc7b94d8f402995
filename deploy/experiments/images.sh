#!/usr/bin/env bash
# `make measure-images`: do samples of the small model look like figures, and like their references?
# Generates a data set of characters that were used for no choice, samples from exported weights at
# the defaults of `coordinator sample`, and writes STAGE.json and STAGE.png (a grid to look at) into
# .demo/images/report. The head of images.py defines the measures. About half an hour on two cores.
#   images.sh autoencoder WEIGHTS   the gate before a base is trained
#   images.sh base WEIGHTS          the gate before a RetriNet is trained
#   images.sh retrinet WEIGHTS BASE [--count N]
# WEIGHTS and BASE are folders that `coordinator checkpoint export` wrote.
set -euo pipefail
cd "$(dirname "$0")/../.."
stage=${1:-}
case $stage in
  autoencoder | base | retrinet) ;;
  *)
    sed -n '2,/^set /p' "$0" | sed -e '/^set /d' -e 's/^# \{0,1\}//' >&2
    exit 2
    ;;
esac
run=$PWD/.demo/images
fail() {
  echo "IMAGES FAILED: $1 (logs: $run/*.log)" >&2
  exit 1
}
# shellcheck source=deploy/experiments/common.sh
. deploy/experiments/common.sh
packages image-tools images.txt
# An image takes a second on a free machine; on a busy one it must not count as hanging.
export RETRI_COORDINATOR__DETECT_WITHIN_MS=30000
start_cluster
script images.py "$@"
