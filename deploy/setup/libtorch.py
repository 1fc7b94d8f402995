#!/usr/bin/env python3
"""Installs libtorch into a cache, and links to it from the checkout, where the build looks for it.

    libtorch.py              CPU flavour, link `.libtorch` (900 MB to download, 500 MB on disk;
                             called by `make setup`)
    libtorch.py cuda         GPU flavour, link `.libtorch-cuda` (7 GB; called by `make build
                             CUDA=1`)
    libtorch.py gpu-check    GPU flavour of the version for newer GPUs, link `.libtorch-gpu-check`

The cache is outside the checkout ($RETRI_CACHE, else ~/.cache/retri), so that a second clone
downloads nothing. The CPU flavour has only the headers and the libraries that are linked. A GPU
flavour is the whole wheel with its CUDA packages, and the CUDA headers that c10d's NCCL header
includes; its link points at the folder `torch`, with `nvidia` beside it.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

VERSION = "2.10.0"
# Versions and hashes of all wheels; pin.sh writes them.
PINNED = pathlib.Path(__file__).resolve().parent / "pinned"
CPU_LIBRARIES = (
    "libtorch_cpu.so",
    "libc10.so",
    "libtorch.so",
    "libgomp",
    "libcudart.so.12",
    "libcupti.so.12",
)
# Versions of the GPU flavours.
CUDA_VERSIONS = {"cuda": "2.10.0", "gpu-check": "2.11.0"}


def main() -> None:
    checkout = pathlib.Path(__file__).resolve().parents[2]
    cache = pathlib.Path(os.environ.get("RETRI_CACHE") or pathlib.Path.home() / ".cache" / "retri")
    flavour = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    if flavour == "cpu":
        home = cache / f"libtorch-{VERSION}-cpu"
        if not (home / "build-version").exists():
            install_cpu(cache, home)
        link(checkout / ".libtorch", home)
    elif flavour in CUDA_VERSIONS:
        version = CUDA_VERSIONS[flavour]
        home = cache / f"libtorch-{version}-cuda"
        if not (home / "torch" / "build-version").exists():
            install_cuda(version, PINNED / f"libtorch-{flavour}.txt", home)
        link(checkout / (".libtorch-" + flavour), home / "torch")
    else:
        sys.exit(
            f"setup: unknown flavour {flavour!r}; it is cpu (the default), "
            f"{' or '.join(CUDA_VERSIONS)}"
        )


def install_cpu(cache: pathlib.Path, home: pathlib.Path) -> None:
    """Downloads the wheels and unpacks the libraries and headers. `build-version` is written last,
    so that an interrupted installation is repeated."""
    wheels = cache / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    print(f"setup: downloading libtorch {VERSION} (CPU, once) into {cache}", flush=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--require-hashes",
        "--dest",
        str(wheels),
        "--requirement",
        str(PINNED / "libtorch-cpu.txt"),
    ]
    if subprocess.run(command).returncode != 0:
        sys.exit(
            f"setup: pip could not download what {PINNED}/libtorch-cpu.txt lists; is the package "
            "index reachable? If a hash differs, the index serves another file: do not use it"
        )
    partial = home.with_name(home.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "lib").mkdir(parents=True)
    for wheel in sorted(wheels.glob("*.whl")):
        unpack(wheel, partial)
    torch_link = partial / "lib" / "libtorch.so"
    torch_link.unlink(missing_ok=True)
    # torch-sys links -ltorch, but everything is in libtorch_cpu.so.
    torch_link.symlink_to("libtorch_cpu.so")
    (partial / "build-version").write_text(VERSION)
    shutil.rmtree(home, ignore_errors=True)
    partial.rename(home)
    shutil.rmtree(wheels)


def install_cuda(version: str, pinned: pathlib.Path, home: pathlib.Path) -> None:
    """Installs the whole wheel and its CUDA packages into their own folder, not into a Python."""
    partial = home.with_name(home.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    print(f"setup: installing libtorch {version} (CUDA, 7 GB, once) into {home}", flush=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-compile",
        "--no-cache-dir",
        "--require-hashes",
        "--target",
        str(partial),
        "--requirement",
        str(pinned),
    ]
    if subprocess.run(command).returncode != 0:
        shutil.rmtree(partial, ignore_errors=True)
        sys.exit(
            f"setup: pip could not install what {pinned} lists; is the package index reachable, or "
            "the disk full? If a hash differs, the index serves another file: do not use it"
        )
    # Triton, 600 MB, is not linked.
    shutil.rmtree(partial / "triton", ignore_errors=True)
    (partial / "torch" / "build-version").write_text(version)
    shutil.rmtree(home, ignore_errors=True)
    partial.rename(home)


def unpack(wheel: pathlib.Path, home: pathlib.Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            name = member.rsplit("/", 1)[-1]
            if member.startswith("torch/include/") and name:
                target = home / member.removeprefix("torch/")
            elif "/lib/" in member and name.startswith(CPU_LIBRARIES):
                target = home / "lib" / name
            else:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, open(target, "wb") as sink:
                shutil.copyfileobj(source, sink)


def link(place: pathlib.Path, home: pathlib.Path) -> None:
    if place.is_symlink() and os.readlink(place) == str(home):
        return
    place.unlink(missing_ok=True)
    place.symlink_to(home)


if __name__ == "__main__":
    main()
