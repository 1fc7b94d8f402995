# Sourced, in the root of the checkout, by the scripts that compare with public implementations.
# Installs their Python packages once into the cache outside the checkout. torch is that of the GPU
# flavour of libtorch, which is the whole wheel.
python3 deploy/setup/libtorch.py cuda
tools=${RETRI_CACHE:-$HOME/.cache/retri}/parity-tools
pins=$(cat deploy/setup/pinned/parity*.txt | sha256sum)
if [ "$(cat "$tools/ready" 2>/dev/null)" != "$pins" ]; then
  rm -rf "$tools"
  python3 -m pip install --quiet --require-hashes --target "$tools" \
    --requirement deploy/setup/pinned/parity.txt
  python3 -m pip install --quiet --require-hashes --no-deps --target "$tools" \
    --requirement deploy/setup/pinned/parity-no-deps.txt
  echo "$pins" >"$tools/ready"
fi
export PYTHONPATH=$tools:$(dirname "$(readlink -f .libtorch-cuda)")
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1
