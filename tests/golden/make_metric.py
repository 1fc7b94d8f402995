"""Writes metric.json: what torchmetrics' CLIPScore computes with a small CLIP, for
model/tests/metric.rs.

    python3 tests/golden/make_metric.py tests/golden/metric.json

Needs the packages of `make parity` (deploy/setup/parity.sh). Weights and images are stored nowhere:
both sides compute them, as in make_golden.py and tests/parity/clip_tools.py. The model comes to
torchmetrics through a callable; its images are resized by Pillow.
"""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "parity"))

import torch
import torchmetrics
import transformers
from clip_tools import Features, long_prompts, noise, processors, short_prompts
from make_golden import fill
from torchmetrics.functional.image.lpips import _LPIPS
from torchmetrics.functional.multimodal.clip_score import _clip_score_update
from transformers import CLIPConfig, CLIPModel

SIDE = 32
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
TEXT = {**TOWER, "num_hidden_layers": 2, "vocab_size": 49408, "max_position_embeddings": 77}
IMAGE = {**TOWER, "num_hidden_layers": 2, "image_size": SIDE, "patch_size": 8}
SIZES = [(48, 40), (31, 77), (96, 96), (32, 32), (20, 24)]


def main():
    cases = {}
    # Old files name the id 2 as the end token, and the state of the largest id is read.
    for name, end in (("49407", 49407), ("2", 2)):
        text = {**TEXT, "bos_token_id": 49406, "eos_token_id": end, "pad_token_id": 49407}
        config = CLIPConfig(text_config=text, vision_config=IMAGE, projection_dim=16)
        model = CLIPModel(config).eval()
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if parameter.dim() > 0:
                    parameter.copy_(fill(key, list(parameter.shape)))
        with tempfile.TemporaryDirectory() as folder:
            processor = processors(folder, SIDE)["Pillow"]
        features = Features(model)
        cosines = lambda first, second: [
            value / 100
            for value in _clip_score_update(first, second, features, processor)[0].tolist()
        ]
        images = [torch.tensor(noise(*size)).permute(2, 0, 1) for size in SIZES]
        prompts = short_prompts()
        with torch.no_grad():
            cases[name] = {
                "clip_t": cosines(images, prompts),
                "clip_i": cosines(images, images[1:] + images[:1]),
                "clip_t_sliced": cosines(images[:3], long_prompts()),
            }
    lpips = _LPIPS(pretrained=False, pnet_rand=True)
    with torch.no_grad():
        for key, parameter in lpips.named_parameters():
            if key.startswith("net.slice"):
                key = "features." + key.split(".", 2)[2]
            elif not key.startswith("lin") or key.startswith("lins."):
                continue
            values = fill(key, list(parameter.shape))
            # Heads are not negative.
            parameter.copy_(values.abs() if key.startswith("lin") else values)
        # Each image with its mirror image.
        distances = []
        for width, height in [(48, 40), (96, 96), (33, 64)]:
            image = torch.tensor(noise(width, height)).permute(2, 0, 1)[None] / 255
            distance = lpips(image, image.flip(3), normalize=True).item()
            distances.append([width, height, distance])
    versions = {"torchmetrics": torchmetrics.__version__, "transformers": transformers.__version__}
    found = {
        "versions": versions,
        "sizes": SIZES,
        "prompts": short_prompts(),
        "long_prompts": long_prompts(),
        "end_tokens": cases,
        "lpips": distances,
    }
    with open(sys.argv[1], "w") as file:
        file.write(json.dumps(found, indent=1) + "\n")


main()
