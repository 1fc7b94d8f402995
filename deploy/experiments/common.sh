# Sourced by images.sh and leakage.sh, which set `run` and `fail` as deploy/loopback.sh wants them:
# the Python packages that judge images, and a script that runs on the cluster.
# shellcheck shell=bash
# shellcheck source=deploy/loopback.sh
. deploy/loopback.sh
mkdir -p "$run"

packages() { # folder in the cache, requirements; sets `packages` to what Python must search
  # The GPU flavour of libtorch is the whole wheel of torch. The others are checked by their hashes.
  python3 deploy/setup/libtorch.py cuda
  local folder=${RETRI_CACHE:-$HOME/.cache/retri}/$1
  if [ ! -f "$folder/ready" ]; then
    rm -rf "$folder"
    python3 -m pip install --quiet --no-compile --no-deps --require-hashes --target "$folder" \
      --requirement "deploy/setup/pinned/$2" || fail "the Python packages could not be installed"
    touch "$folder/ready"
  fi
  packages=$folder:$(dirname "$(readlink -f .libtorch-cuda)")
}

script() { # a Python script of this folder and its arguments; the cluster must be running
  PYTHONPATH=$packages foreground \
    python3 -W ignore "deploy/experiments/$1" "$bin/coordinator" "$run" "${@:2}" || fail "see above"
}
