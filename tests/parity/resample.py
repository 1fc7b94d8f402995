"""Compares our resizing with Pillow's: writes tests/golden/resample.json, which
model/data/src/resample.rs is tested against.

    resample.py FILE [--check]

--check compares with the file instead of writing it.
"""

import hashlib
import itertools
import json
import sys

import numpy as np
import PIL
from clip_tools import noise
from PIL import Image

# from, to: shrinking, enlarging, one direction only, odd factors, single pixels. Pillow 13 and
# newer shrink the height first if the image is more than twice as high as wide, or if the height
# shrinks much more than the width; older ones never do.
CASES = [
    ((384, 384), (224, 224)),
    ((384, 300), (286, 224)),
    ((300, 451), (224, 336)),
    ((64, 64), (224, 224)),
    ((224, 224), (224, 224)),
    ((224, 448), (224, 224)),
    ((500, 224), (500, 100)),
    ((1000, 3), (7, 2)),
    ((150, 300), (224, 448)),
    ((1, 1), (5, 3)),
    ((17, 29), (1, 1)),
    ((97, 89), (89, 97)),
    ((2048, 1536), (298, 224)),
    ((120, 60), (30, 30)),
    ((200, 384), (224, 430)),
]
FILTERS = {"bicubic": Image.BICUBIC, "bilinear": Image.BILINEAR}


def main():
    cases = []
    for name, ((from_width, from_height), (width, height)) in itertools.product(FILTERS, CASES):
        image = noise(from_width, from_height)
        resized = np.asarray(Image.fromarray(image).resize((width, height), FILTERS[name]))
        bytes_ = resized.tobytes()
        cases.append(
            {
                "filter": name,
                "from_width": from_width,
                "from_height": from_height,
                "width": width,
                "height": height,
                "first": list(bytes_[:12]),
                "sha256": hashlib.sha256(bytes_).hexdigest(),
            }
        )
    if "--check" in sys.argv:
        with open(sys.argv[1]) as file:
            same = json.load(file)["cases"] == cases
        print(f"{'ok  ' if same else 'OVER'} resample: the bytes of Pillow {PIL.__version__}")
        sys.exit(0 if same else 1)
    with open(sys.argv[1], "w") as file:
        lines = ",\n".join(json.dumps(case) for case in cases)
        file.write(f'{{"pillow": "{PIL.__version__}", "cases": [\n{lines}\n]}}\n')


main()
