#!/usr/bin/env python3
"""Turns folders of captioned images, as trainers of LoRA read them, into metadata and images that
`coordinator dataset build` reads, so that its filter, tagger, masks and faces work on them.

    python3 deploy/data/captions.py --from DIR --out DIR [--artist NAME] [--rating g]

Reads FROM/[N_]CHARACTER/NAME.{png,jpg,jpeg,webp} with the caption NAME.txt beside it. Writes
OUT/posts.json (the JSON of 2021 and later) and OUT/images/ID.ENDING (links where the file system
has them, else copies). In pipeline.toml:

    [[posts]]
    from = "OUT/posts.json"
    [dataset]
    images = "OUT/images"

  id          from the image's path below FROM, so that it stays when images are added
  character   the folder's name, without the number of repeats; files beside folders are left out
  tags        the caption's parts between commas, in lower case with underscores. The separators
              "|||" (tokens that are kept in front) and ";;;" (alternative captions: the first is
              taken) are known, and of a wildcard {a|b} the first choice is taken
  artist      one for all: NAME, or "unknown"

An image without a caption, or with an empty one, is left out, counted and named; --strict fails.
Needs only Python's standard library.
"""

import argparse
import collections
import hashlib
import json
import os
import re
import shutil
import sys
from pathlib import Path

ENDINGS = {".png", ".jpg", ".jpeg", ".webp"}
REPEATS = re.compile(r"^\d+_(?=.)")
WILDCARD = re.compile(r"\{([^{}|]*)\|[^{}]*\}")
NAMED_MAX = 10


def main():
    parser = argparse.ArgumentParser(description="captioned images as metadata for dataset build")
    parser.add_argument("--from", dest="source", required=True, type=Path, help="folder to read")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--artist", default="unknown", help="the artist of all images")
    parser.add_argument("--rating", default="g", choices="gsqe", help="the rating of all images")
    parser.add_argument("--strict", action="store_true", help="fail if an image is left out")
    options = parser.parse_args()
    if not options.source.is_dir():
        sys.exit(f"captions.py: {options.source} is no folder")
    counts, left_out, posts = collections.Counter(), [], {}
    for image in sorted(options.source.rglob("*")):
        if image.suffix.lower() not in ENDINGS or not image.is_file():
            continue
        path = image.relative_to(options.source)
        reason, tags = read_caption(image, path, counts)
        if reason:
            left_out.append(f"{path}: {reason}")
            continue
        # 13 digits: two of a million images share one with a chance of one in twenty.
        number = 1 + int(hashlib.sha256(path.as_posix().encode()).hexdigest(), 16) % 10**13
        if number in posts:
            sys.exit(f"captions.py: {path} and {posts[number][0]} have the same id: rename one")
        posts[number] = (path, tags)
    if left_out and options.strict:
        sys.exit(f"captions.py: strict: {len(left_out)} images are left out; first {left_out[0]}")
    if not posts:
        example = f"; first {left_out[0]}" if left_out else ""
        sys.exit(f"captions.py: {options.source} has no image with a caption{example}")
    write(posts, options)
    print(f"{len(posts)} images of {counts_of_characters(posts)} characters in {options.out}")
    for name, count in sorted(counts.items()):
        print(f"{count} {name}")
    if left_out:
        print(f"{len(left_out)} images left out:")
        for line in left_out[:NAMED_MAX]:
            print(f"  {line}")


def read_caption(image, path, counts):
    """Why an image is left out, or its tags."""
    if len(path.parts) < 2:
        return "it is in no folder of a character", None
    file = image.with_suffix(".txt")
    if not file.is_file():
        return f"there is no {file.name} beside it", None
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        return f"{file.name} is no UTF-8", None
    alternatives = text.split(";;;")
    counts["captions with alternatives, of which the first is taken"] += 1 < len(alternatives)
    text, wildcards = alternatives[0], 0
    while True:
        text, replaced = WILDCARD.subn(r"\1", text)
        wildcards += replaced
        if not replaced:
            break
    counts["wildcards, of which the first choice is taken"] += wildcards
    parts = re.split(r",|\|\|\||\n", text)
    tags = ["_".join(part.lower().split()) for part in parts]
    tags = list(dict.fromkeys(tag for tag in tags if tag))
    if not tags:
        return f"{file.name} is empty", None
    return None, tags


def character(path):
    name = "_".join(REPEATS.sub("", path.parts[-2]).lower().split())
    return name


def counts_of_characters(posts):
    return len({character(path) for path, _ in posts.values()})


def write(posts, options):
    images = options.out / "images"
    shutil.rmtree(images, ignore_errors=True)
    images.mkdir(parents=True)
    artist = "_".join(options.artist.lower().split())
    lines = []
    for number in sorted(posts):
        path, tags = posts[number]
        source = (options.source / path).resolve()
        place(source, images / f"{number}{path.suffix.lower()}")
        row = {
            "id": number,
            "md5": hashlib.md5(source.read_bytes()).hexdigest(),
            "rating": options.rating,
            "file_ext": path.suffix.lower().lstrip("."),
            "image_width": None,
            "image_height": None,
            "parent_id": None,
            "has_children": False,
            "is_deleted": False,
            "is_banned": False,
            "tag_string_general": " ".join(tags),
            "tag_string_character": character(path),
            "tag_string_artist": artist,
            "source": path.as_posix(),
        }
        lines.append(json.dumps(row, sort_keys=True))
    partial = options.out / "posts.json.partial"
    partial.write_text("".join(f"{line}\n" for line in lines))
    # Written last: metadata never names images that are not there.
    partial.replace(options.out / "posts.json")


def place(source, target):
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


if __name__ == "__main__":
    main()
