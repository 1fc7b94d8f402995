"""What the comparisons of CLIP scores share: the tokenizer's files and images that both sides make.
"""

import gzip
import importlib.util
import json
from pathlib import Path

import numpy as np


def noise(width, height):
    """Pixels, as `noise` in model/data/src/resample.rs: no two neighbours are alike."""
    state = (width * 0x9E3779B9 & 0xFFFFFFFF) ^ height
    values = np.empty(width * height * 3, np.uint8)
    for index in range(len(values)):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        values[index] = state >> 24
    return values.reshape(height, width, 3)


def picture(width, height, seed):
    """A smooth image with edges: discs of random colours on a gradient."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([x * 255 / width, y * 255 / height, (x + y) * 128 / (width + height)], -1)
    for _ in range(12):
        cx, cy, radius = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(5, width / 3)
        image[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = rng.uniform(0, 255, 3)
    return image.astype(np.uint8)


def tokenizer(folder, length=77):
    """`transformers`' CLIPTokenizer with the vocabulary that open_clip ships."""
    from transformers import CLIPTokenizer

    package = Path(importlib.util.find_spec("open_clip").submodule_search_locations[0])
    lines = gzip.open(package / "bpe_simple_vocab_16e6.txt.gz").read().decode().split("\n")
    merges = lines[1 : 49152 - 256 - 2 + 1]
    printable = [*range(33, 127), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    texts = letters + [letter + "</w>" for letter in letters]
    texts += ["".join(merge.split()) for merge in merges] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {text: index for index, text in enumerate(texts)}
    assert len(vocabulary) == 49408
    folder = Path(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return CLIPTokenizer.from_pretrained(folder)


class Features:
    """A CLIPModel as torchmetrics 1.9 expects it: this release of `transformers` returns the
    embeddings in an object, which torchmetrics takes for a tensor."""

    def __init__(self, model):
        self.model = model
        self.config = model.config

    def to(self, device):
        self.model.to(device)
        return self

    def eval(self):
        return self

    def get_image_features(self, pixel_values):
        return self.model.get_image_features(pixel_values).pooler_output

    def get_text_features(self, input_ids, attention_mask):
        return self.model.get_text_features(input_ids, attention_mask).pooler_output


def processors(folder, side):
    """CLIP's processor with Pillow's resizing, and with torchvision's (the default of this release
    of `transformers`)."""
    from transformers import CLIPImageProcessor, CLIPProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    options = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    words = tokenizer(folder)
    return {
        name: CLIPProcessor(image_processor=kind(**options), tokenizer=words)
        for name, kind in (("Pillow", CLIPImageProcessorPil), ("torchvision", CLIPImageProcessor))
    }


def short_prompts():
    return [
        "1girl, solo, long hair, blue eyes, school uniform, smile",
        "a photo of a cat",
        "face",
        "",
        "standing, arms up, looking at viewer, simple background, white background, "
        "short sleeves, pleated skirt",
    ]


def long_prompts():
    """More than 77 tokens, as most prompts of the paper's benchmark."""
    tags = ", ".join(
        "1girl solo long_hair blue_hair school_uniform black_legwear thighhighs pleated_skirt "
        "hair_ribbon looking_at_viewer".split()
    )
    return [f"{tags}, {tags}, {tags}", "word " * 100, f"{tags}, {tags}, arms up, smile"]
