"""Compares `worker score` with torchmetrics' CLIPScore and the processors of `transformers`, with
random weights. Part of `make parity`.

    metrics.py WORKER [--size small|full|all] [--threads N]

The model comes to torchmetrics through a callable, so nothing is downloaded. For prompts of at most
77 tokens the cosines agree within 1e-4. torchmetrics slices longer ones, which loses their end
token: `worker score` prints both ("clip_t" keeps it, "clip_t_sliced" does not), and so does this.
The images are resized by Pillow; the difference to torchvision's resizing is shown, too.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from clip_tools import Features, long_prompts, noise, picture, processors, short_prompts
from parity import CLIP_IMAGE, CLIP_TEXT, random_weights
from PIL import Image
from torchmetrics.functional.multimodal.clip_score import _clip_score_update
from torchmetrics.multimodal import CLIPScore
from transformers import CLIPConfig, CLIPModel

BOUND = 1e-4
SMALL = dict(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=2)
SIZES = {
    "small": (
        dict(SMALL, vocab_size=49408, max_position_embeddings=77, eos_token_id=49407),
        dict(SMALL, image_size=32, patch_size=8),
        16,
    ),
    # openai/clip-vit-large-patch14, whose config has the old id of the end token.
    "full": (dict(CLIP_TEXT, eos_token_id=2), CLIP_IMAGE, 768),
}


def compare(name, worker, threads):
    text, image, projection = SIZES[name]
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=image, projection_dim=projection)
    model = random_weights(CLIPModel(config), seed=11)
    images = [picture(384, 384, 1), picture(384, 384, 2), picture(300, 451, 3), noise(97, 64)]
    images += [picture(1024, 768, 4), noise(224, 224), picture(200, 384, 5), picture(64, 64, 6)]
    prompts = short_prompts()[:5] + long_prompts()
    if name == "full":
        # A forward pass takes seconds.
        images, prompts = images[2:5], prompts[:2] + prompts[5:6]
    long = [index for index, prompt in enumerate(prompts) if prompt in long_prompts()]
    short = [index for index in range(len(prompts)) if index not in long]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        model.save_pretrained(folder / "clip")
        kinds = processors(folder, image["image_size"])
        items = []
        for index, (pixels, prompt) in enumerate(zip(images, prompts, strict=True)):
            Image.fromarray(pixels).save(folder / f"{index}.png")
            other = f"{(index + 1) % len(images)}.png"
            items.append({"image": f"{index}.png", "prompt": prompt, "references": [other]})
        (folder / "list.json").write_text(json.dumps(items))
        command = [worker, "score", "--clip", folder / "clip", "--list", folder / "list.json"]
        done = subprocess.run(
            [*map(str, command), "--threads", str(threads)], capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(done.stderr)
    found = json.loads(done.stdout)
    tensors = [torch.tensor(pixels).permute(2, 0, 1) for pixels in images]
    others = tensors[1:] + tensors[:1]
    features, passed = Features(model), True
    for kind, processor in kinds.items():
        if name == "full" and kind != "Pillow":
            continue
        cosines = lambda first, second: [
            value / 100
            for value in _clip_score_update(first, second, features, processor)[0].tolist()
        ]
        # One by one: a prompt is padded to the longest beside it.
        theirs = [cosines([tensor], [prompt])[0] for tensor, prompt in zip(tensors, prompts)]
        clip_i = cosines(tensors, others)
        errors = {
            "CLIP-T": max(abs(theirs[i] - found["images"][i]["clip_t"]) for i in short),
            "CLIP-I": max(abs(a - b["clip_i"]) for a, b in zip(clip_i, found["images"])),
        }
        errors["CLIP-T sliced"] = max(
            abs(theirs[i] - found["images"][i]["clip_t_sliced"]) for i in long
        )
        for measure, error in errors.items():
            judged = kind == "Pillow"
            fine = error <= BOUND or not judged
            passed &= fine
            bound = f"at most {BOUND:.0e}" if judged else "shown only"
            label = f"{name} {measure}, images by {kind}"
            print(f"{'ok  ' if fine else 'OVER'} {label:<58} {error:.2e} ({bound})", flush=True)
        if kind == "Pillow" and name == "small":
            metric = CLIPScore(model_name_or_path=lambda: (features, processor))
            metric.update(tensors, others)
            error = abs(metric.compute().item() - found["clip_score"]["clip_i"]) / 100
            passed &= error <= BOUND
            print(f"{'ok  ' if error <= BOUND else 'OVER'} {name} CLIPScore {error:.2e}")
    for index in long:
        item = found["images"][index]
        print(
            f"     {name} prompt of {item['prompt_tokens']} tokens: {item['clip_t']:.4f} with its "
            f"end token, {item['clip_t_sliced']:.4f} sliced"
        )
    cut = [index for index, item in enumerate(found["images"]) if item["prompt_cut"]]
    assert cut == long, (cut, long)
    del model, features
    gc.collect()
    return passed


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("worker")
    parser.add_argument("--size", choices=["small", "full", "all"], default="all")
    parser.add_argument("--threads", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = list(SIZES) if arguments.size == "all" else [arguments.size]
    with torch.no_grad():
        passed = [compare(name, arguments.worker, arguments.threads) for name in names]
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
