"""Compares `worker score --faces` with facenet-pytorch: where faces are in a photo, with the real
weights of MTCNN that its package ships, and their embeddings, with random weights. Part of `make
parity`.

    faces.py WORKER

The photo is scikit-image's `astronaut` (NASA, public domain), at several sizes and mirrored, and an
image without a face.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from clip_tools import picture
from facenet_pytorch import MTCNN, InceptionResnetV1
from parity import random_weights
from PIL import Image
from safetensors.torch import save_file

# Boxes in pixels; cosines and distances of embeddings.
BOX_BOUND, BOUND = 0.01, 1e-4


def photos():
    """Before the package is imported: its import needs much that is not needed here."""
    package = Path(importlib.util.find_spec("skimage").submodule_search_locations[0])
    photo = Image.open(package / "data" / "astronaut.png").convert("RGB")
    whole = np.asarray(photo)
    yield photo
    yield Image.fromarray(whole[:, ::-1].copy())
    yield photo.resize((300, 384), Image.BICUBIC)
    yield Image.fromarray(whole[:260, 120:330].copy())
    yield Image.fromarray(picture(200, 240, 3))


def main():
    worker = sys.argv[1]
    torch.manual_seed(0)
    detector = MTCNN().eval()
    embedder = InceptionResnetV1().eval()
    random_weights(embedder, seed=5)
    with torch.no_grad():
        for name, values in embedder.named_buffers():
            if name.endswith("running_var"):
                values.uniform_(0.5, 2)
            elif name.endswith("running_mean"):
                values.normal_(0, 0.1)
    expected = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name in ["pnet", "rnet", "onet"]:
            save_file(getattr(detector, name).state_dict(), folder / f"{name}.safetensors")
        save_file(embedder.state_dict(), folder / "inception_resnet_v1.safetensors")
        items = []
        for index, photo in enumerate(photos()):
            photo.save(folder / f"{index}.png")
            items.append({"image": f"{index}.png", "whole": ["0.png"]})
            boxes, _ = detector.detect(photo)
            face = detector(photo)
            with torch.no_grad():
                embedding = None if face is None else embedder(face[None])[0].double()
            expected.append(([] if boxes is None else boxes.tolist(), embedding))
        (folder / "list.json").write_text(json.dumps(items))
        command = [worker, "score", "--faces", folder, "--list", folder / "list.json"]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(printed)["images"]
    first = expected[0][1]
    box_error, error, faces = 0, 0, 0
    for row, (boxes, embedding) in zip(found, expected, strict=True):
        same = len(row["faces"]) == len(boxes)
        faces += len(boxes)
        if not same:
            other = f"facenet-pytorch {len(boxes)}"
            print(f"OVER faces: {len(row['faces'])} in {row['image']}, {other}")
            sys.exit(1)
        if not boxes:
            assert row["face"] == 0 and "face_distance" not in row
            continue
        box_error = max(box_error, np.abs(np.array(row["faces"]) - np.array(boxes)).max())
        cosine = max(0, float(embedding @ first))
        distance = float((embedding - first).norm())
        error = max(error, abs(row["face"] - cosine), abs(row["face_distance"] - distance))
    ok = box_error <= BOX_BOUND and error <= BOUND and faces >= 4
    print(
        f"{'ok  ' if ok else 'OVER'} faces: {faces} in {len(expected)} images; boxes differ by at"
        f" most {box_error:.1e} pixels, cosines and distances by {error:.1e}"
    )
    sys.exit(0 if ok else 1)


main()
