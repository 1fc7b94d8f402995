"""Reads images from standard input, and writes the faces that animeface finds in them.

An image is the line "WIDTH HEIGHT" and its pixels, three bytes each. Its faces are a line of JSON:
[[likelihood, left, top, width, height], ...]. The first line that is written names the versions.
"""

import json
import sys

import PIL
import PIL.Image

if int(PIL.__version__.split(".")[0]) >= 11:
    sys.exit(f"animeface finds no face with Pillow {PIL.__version__}: it needs one before 11")

from importlib.metadata import version

import animeface

print(json.dumps([version("animeface"), PIL.__version__]), flush=True)
while line := sys.stdin.buffer.readline():
    width, height = map(int, line.split())
    pixels = sys.stdin.buffer.read(width * height * 3)
    image = PIL.Image.frombytes("RGB", (width, height), pixels)
    boxes = [(face.likelihood, face.face.pos) for face in animeface.detect(image)]
    rows = [[score, box.x, box.y, box.width, box.height] for score, box in boxes]
    print(json.dumps(rows), flush=True)
