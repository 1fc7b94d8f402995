#!/usr/bin/env bash
# Prints a line for each missing prerequisite, with the Debian package to install. Called by `make
# setup`.
set -u
missing=0
need() { # command, what to do
  command -v "$1" >/dev/null 2>&1 || { echo "setup: $1 is missing: $2" >&2; missing=1; }
}
need cargo "install Rust from https://rustup.rs"
need c++ "apt-get install g++"
need python3 "apt-get install python3"
if command -v python3 >/dev/null 2>&1; then
  python3 -m pip --version >/dev/null 2>&1 || {
    echo "setup: pip is missing: apt-get install python3-pip" >&2
    missing=1
  }
fi
if command -v cargo >/dev/null 2>&1; then
  have=$(cargo --version | cut -d' ' -f2)
  want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
  oldest=$(printf '%s\n%s\n' "$have" "$want" | sort -V | head -1)
  [ "$oldest" = "$want" ] || {
    echo "setup: cargo is $have, at least $want is needed: rustup update" >&2
    missing=1
  }
fi
exit $missing
