#!/usr/bin/env python3
"""Converts the unit sprites of Battle for Wesnoth to the format of `coordinator dataset import`.

    python3 deploy/data/wesnoth.py --out DIR

Downloads Debian's package of Wesnoth data with `apt-get download` into a cache ($RETRI_CACHE, else
~/.cache/retri) and unpacks it there without installing it. Writes DIR/samples.jsonl and copies of
the frames. Needs only Python's standard library.

Fields of a sample:
  character   the unit type (the id in its .cfg file), with "_(female)" for female variants; it has
              one outfit
  image       a frame of the unit, unchanged: drawn art with exact alpha, which the import uses as
              the mask. Frames that do not show the whole unit (dying, teleporting, shadows,
              overlays) are left out
  prompts     race, gender, level, weapon and pose, from the .cfg file and the frame's name
  cloths      words for clothes in the unit's description; often none
  similar     none: the import links all frames of a unit
  bbox        none: the package has no face boxes, so the import guesses the upper part of the
              figure, and says so
  artists     "wesnoth": the package credits its artists together

The team colour of a frame is magenta, as in the package. The art is licensed under the GPL, version
2 or later (Wesnoth's copyright file is copied too): download it, train on it, do not commit it.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# Oldest first, so that the images do not change between Debian releases. The first one available is
# used.
PACKAGES = ["wesnoth-1.16-data", "wesnoth-1.18-data"]
SKIPPED_FRAMES = re.compile(
    r"die|death|dying|dead|explo|halo|projectile|missile|bolt|beam|mask|shadow|teleport|glow"
    r"|overlay|trail",
    re.I,
)
POSES = [
    (r"attack|melee|ranged|strike|stab|slash|thrust|shoot|throw|fire", "attack"),
    (r"defen[cds]", "defending"),
    (r"idle|stand|blink|breath", "standing"),
    (r"lead|command", "arm_up"),
    (r"mag|cast|heal|spell", "casting_spell"),
    (r"run|charg|mov|walk|gallop", "running"),
    (r"fly", "flying"),
    (r"swim", "swimming"),
]
WEAPONS = {
    "sword": "holding_sword",
    "longsword": "holding_sword",
    "bow": "holding_bow",
    "longbow": "holding_bow",
    "crossbow": "holding_crossbow",
    "staff": "holding_staff",
    "spear": "holding_spear",
    "axe": "holding_axe",
    "mace": "holding_mace",
    "hammer": "holding_hammer",
    "dagger": "holding_dagger",
    "lance": "holding_lance",
    "trident": "holding_trident",
    "club": "holding_club",
    "scimitar": "holding_sword",
    "pike": "holding_spear",
    "javelin": "holding_spear",
    "halberd": "holding_spear",
    "knife": "holding_dagger",
    "sabre": "holding_sword",
}
CLOTHES = {
    r"robe": "robe",
    r"armou?r|plate mail|chain ?mail": "armor",
    r"cloak": "cloak",
    r"hood": "hood",
    r"helm": "helmet",
    r"shield": "shield",
    r"\bfurs?\b": "fur",
    r"gown|dress": "dress",
    r"turban": "turban",
}
HUMANOID = {
    "human",
    "elf",
    "dwarf",
    "dunefolk",
    "merman",
    "lizard",
    "naga",
    "orc",
    "goblin",
    "khalifate",
}


def main():
    parser = argparse.ArgumentParser(description="Wesnoth unit sprites as an import folder")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument(
        "--min-frames", type=int, default=4, help="units with fewer different frames are left out"
    )
    options = parser.parse_args()
    root = unpacked(cache_folder())
    core = next(iter(sorted(root.glob("usr/share/games/wesnoth/*/data/core"))), None)
    if core is None:
        sys.exit(f"wesnoth.py: {root} holds no data/core folder; delete it and run again")
    units = [unit for path in sorted((core / "units").rglob("*.cfg")) for unit in read_units(path)]
    rows, identities = write_rows(core / "images", units, options)
    for copyright_file in root.glob("usr/share/doc/wesnoth-*-data/copyright"):
        shutil.copyfile(copyright_file, options.out / "copyright")
    if not rows:
        sys.exit(
            f"wesnoth.py: {len(units)} units but no frames in {core}/images; "
            "the package changed its layout"
        )
    print(f"{rows} frames of {identities} units in {options.out}")
    print(
        "face boxes are left to the import, which guesses them from the upper part of each figure"
    )


def cache_folder():
    base = os.environ.get("RETRI_CACHE")
    folder = (Path(base) if base else Path.home() / ".cache" / "retri") / "wesnoth"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def unpacked(cache):
    """The package's files, downloaded and unpacked once. Only complete folders are renamed."""
    files = cache / "files"
    if files.is_dir():
        return files
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            sys.exit(
                f"wesnoth.py: {tool} is missing; this data set is from a Debian or Ubuntu package"
            )
    package = next(iter(sorted(cache.glob("wesnoth-*-data_*.deb"))), None) or download(cache)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        target = Path(scratch) / "files"
        subprocess.run(["dpkg-deb", "-x", package, target], check=True)
        target.rename(files)
    return files


def download(cache):
    errors = []
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        os.chmod(scratch, 0o755)
        for name in PACKAGES:
            command = ["apt-get", "-o", "APT::Sandbox::User=root", "download", name]
            done = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
            found = next(iter(Path(scratch).glob("*.deb")), None)
            if done.returncode == 0 and found is not None:
                return found.rename(cache / found.name)
            errors.append(done.stderr.strip())
    names = " or ".join(PACKAGES)
    sys.exit(
        f"wesnoth.py: cannot download {names}; `apt-get update` may help\n" + "\n".join(errors)
    )


def read_units(path):
    """The unit types of a .cfg file, and another unit for each [female]. Top-level fields only."""
    text = path.read_text(encoding="utf-8", errors="replace")
    for block in re.findall(r"\[unit_type\](.*?)\[/unit_type\]", text, re.S):
        female = re.search(r"\[female\](.*?)\[/female\]", block, re.S)
        top = re.sub(r"\[(\w+)\].*?\[/\1\]", "", block, flags=re.S)
        unit = {
            "id": field(top, "id"),
            "race": field(top, "race") or "monster",
            "level": field(top, "level"),
            "image": field(top, "image"),
            "female": (field(top, "gender") or "male").split(",")[0].strip() == "female",
            "text": field(top, "description").lower(),
            "weapons": re.findall(r"\[attack\].*?name\s*=\s*\"?([\w ]+)", block, re.S),
        }
        if unit["id"] and unit["image"]:
            yield unit
            if female and field(female.group(1), "image"):
                yield {
                    **unit,
                    "image": field(female.group(1), "image"),
                    "female": True,
                    "variant": "_(female)",
                }


def field(text, name):
    found = re.search(rf"^\s*{name}\s*=\s*(?:_\s*)?(?:\"([^\"]*)\"|([^\n#]*))", text, re.M)
    return (found.group(1) or found.group(2) or "").strip() if found else ""


def write_rows(images, units, options):
    """Copies frames and writes samples.jsonl. Returns the numbers of rows and of units."""
    bases = {}
    for unit in units:
        base = images / re.sub(r"[~:].*$", "", unit["image"])
        if base.is_file():
            bases.setdefault(base.with_suffix(""), unit)
    frames = {base: [] for base in bases}
    for folder in sorted({base.parent for base in bases}):
        here = [base for base in bases if base.parent == folder]
        for picture in sorted(folder.glob("*.png")):
            owner = owner_of(picture.stem, here)
            if owner is not None and not SKIPPED_FRAMES.search(picture.stem[len(owner.name) :]):
                frames[owner].append(picture)
    options.out.mkdir(parents=True, exist_ok=True)
    rows, identities = 0, 0
    with open(options.out / "samples.jsonl", "w", encoding="utf-8") as lines:
        for base, pictures in sorted(frames.items()):
            pictures = different(pictures)
            if len(pictures) < options.min_frames:
                continue
            identities += 1
            for picture in pictures:
                row = row_of(bases[base], base, picture, images)
                target = options.out / row["image"]
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(picture, target)
                lines.write(json.dumps(row) + "\n")
                rows += 1
    return rows, identities


def owner_of(stem, bases):
    """The unit whose name is the longest prefix of the frame's name, up to a separator."""
    fits = [
        b for b in bases if stem == b.name or (stem.startswith(b.name) and stem[len(b.name)] == "-")
    ]
    return max(fits, key=lambda b: len(b.name), default=None)


def different(pictures):
    """Without identical frames: many animations repeat one."""
    seen = {hashlib.sha256(p.read_bytes()).hexdigest(): p for p in reversed(pictures)}
    return sorted(seen.values())


def row_of(unit, base, picture, images):
    character = re.sub(r"\W+", "_", unit["id"].lower()).strip("_") + unit.get("variant", "")
    relative = picture.relative_to(images)
    tags = {"solo", "full_body", "pixel_art", "simple_background", "white_background"}
    tags.add(re.sub(r"\W+", "_", unit["race"].lower()))
    if unit["race"] in HUMANOID:
        tags.add("1girl" if unit["female"] else "1boy")
    if unit["race"] == "elf":
        tags.add("pointy_ears")
    if unit["level"].isdigit():
        tags.add(f"level_{unit['level']}")
    suffix = picture.stem[len(base.name) :].lower()
    poses = [tag for pattern, tag in POSES if re.search(pattern, suffix)]
    tags.update(poses or ["standing"])
    in_name = [w for w in re.split(r"[^a-z]+", suffix) if w in WEAPONS]
    weapons = in_name or [w for w in unit["weapons"][:1] if w in WEAPONS]
    tags.update(WEAPONS[w] for w in weapons)
    cloths = sorted({word for pattern, word in CLOTHES.items() if re.search(pattern, unit["text"])})
    tags.update(cloths)
    return {
        "id": str(relative.with_suffix("")),
        "character": character,
        "artists": "wesnoth",
        "outfit": "default",
        "prompts": ", ".join(sorted(tags)),
        "cloths": cloths,
        "image": str(relative),
    }


if __name__ == "__main__":
    main()
