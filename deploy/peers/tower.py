"""Writes a random CLIP image tower of size `small` as safetensors, for `make peers` where
deploy/models/clip is missing. What a peer learns of a reference through random features says little
about what it would learn through CLIP's; it shows that its training runs.

    tower.py OUT.safetensors
"""

import json
import random
import struct
import sys

WIDTH, LAYERS, MLP, SIDE, PATCH = 96, 3, 384, 64, 8
PROJECTION = 48


def shapes():
    yield "vision_model.embeddings.class_embedding", [WIDTH]
    yield "vision_model.embeddings.patch_embedding.weight", [WIDTH, 3, PATCH, PATCH]
    yield "vision_model.embeddings.position_embedding.weight", [(SIDE // PATCH) ** 2 + 1, WIDTH]
    yield "visual_projection.weight", [PROJECTION, WIDTH]
    norms = ["pre_layrnorm", "post_layernorm"]
    for layer in range(LAYERS):
        prefix = f"encoder.layers.{layer}"
        norms += [f"{prefix}.layer_norm1", f"{prefix}.layer_norm2"]
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield f"vision_model.{prefix}.self_attn.{name}.weight", [WIDTH, WIDTH]
            yield f"vision_model.{prefix}.self_attn.{name}.bias", [WIDTH]
        for name, outputs, inputs in (("fc1", MLP, WIDTH), ("fc2", WIDTH, MLP)):
            yield f"vision_model.{prefix}.mlp.{name}.weight", [outputs, inputs]
            yield f"vision_model.{prefix}.mlp.{name}.bias", [outputs]
    for norm in norms:
        yield f"vision_model.{norm}.weight", [WIDTH]
        yield f"vision_model.{norm}.bias", [WIDTH]


def values(name, shape, rng):
    count = 1
    for length in shape:
        count *= length
    if "norm" in name:
        return [1.0 if name.endswith("weight") else 0.0] * count
    if len(shape) == 1:
        return [0.0] * count
    scale = (count / shape[0]) ** -0.5
    return [rng.gauss(0.0, scale) for _ in range(count)]


def main():
    out = sys.argv[1]
    rng = random.Random(7)
    header, parts, end = {}, [], 0
    for name, shape in sorted(shapes()):
        numbers = values(name, shape, rng)
        part = struct.pack(f"<{len(numbers)}f", *numbers)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + len(part)]}
        parts.append(part)
        end += len(part)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(out, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(parts))


main()
