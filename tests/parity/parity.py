"""Compares `worker forward` with `diffusers` and `transformers`, with the same random weights and
inputs, in fp32 on the CPU. Part of `make parity`.

    parity.py WORKER [--size small|full|all] [--threads N]

Prints one line per comparison, with the relative error |out - reference| / |reference| and its
bound; the exit code is 1 if an error exceeds its bound. Each model exists in only one process at a
time: at full size the largest needs about 12 GB.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

FORWARD, GRADIENT = 1e-4, 1e-3
RESULTS = []


def check(name, ours, theirs, bound):
    error = ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()
    RESULTS.append(error <= bound)
    print(
        f"{'ok  ' if error <= bound else 'OVER'} {name:<58} {error:.2e} (at most {bound:.0e})",
        flush=True,
    )


def random_weights(model, seed):
    """Random weights: zero weights and identity norms would hide errors."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            scale = parameter[0].numel() ** -0.5
            parameter.data.normal_(0, scale, generator=generator)
        else:
            shift = 1.0 if name.endswith("weight") else 0.0
            parameter.data.normal_(shift, 0.1, generator=generator)
    return model.eval()


def ours(component, weights, inputs, *options):
    with tempfile.TemporaryDirectory() as folder:
        inputs_file, out = f"{folder}/in.safetensors", f"{folder}/out.safetensors"
        save_file(inputs, inputs_file)
        command = [
            ARGS.worker,
            "forward",
            "--component",
            component,
            "--weights",
            str(weights),
            "--inputs",
            inputs_file,
            "--outputs",
            out,
            "--threads",
            str(ARGS.threads),
            *options,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stderr}")
        return load_file(out)


def unet_inputs(config, side, batch, tokens, seed=1):
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator)
    return {
        "sample": normal(batch, config["in_channels"], side, side),
        "timestep": torch.tensor([7, 801, 500, 3][:batch]),
        "encoder_hidden_states": normal(batch, tokens, config["cross_attention_dim"]),
    }


def unet(name, config, side, batch, tokens, folder):
    torch.manual_seed(0)
    model = random_weights(UNet2DConditionModel(**config), seed=2)
    model.save_pretrained(folder)
    inputs = unet_inputs(model.config, side, batch, tokens)
    floats = [
        inputs[key].clone().requires_grad_(True) for key in ("sample", "encoder_hidden_states")
    ]
    out = model(floats[0], inputs["timestep"], encoder_hidden_states=floats[1]).sample
    out.square().mean().backward()
    reference = {f"gradient.{key}": parameter.grad for key, parameter in model.named_parameters()}
    reference["gradient.sample"], reference["gradient.encoder_hidden_states"] = (
        floats[0].grad,
        floats[1].grad,
    )
    norms = {key: gradient.norm().item() for key, gradient in reference.items()}
    # On disk, because both models together do not fit into memory at full size.
    save_file({**reference, "sample": out.detach()}, f"{folder}/reference.safetensors")
    del model, reference, floats
    gc.collect()
    plain = ours("unet", folder, inputs)["sample"]
    found = ours("unet", folder, inputs, "--gradients")
    worst, square, total = (0.0, ""), 0.0, 0.0
    with safe_open(f"{folder}/reference.safetensors", "pt") as expected:
        check(f"{name} sample", plain, expected.get_tensor("sample"), FORWARD)
        for key, norm in norms.items():
            difference = (
                (found[key].reshape(-1) - expected.get_tensor(key).reshape(-1)).norm().item()
            )
            square, total = square + difference**2, total + norm**2
            # Skip gradients that are only rounding errors (a bias in front of a norm).
            if norm > 1e-5 * max(norms.values()):
                worst = max(worst, (difference / norm, key))
    error = (square / total) ** 0.5
    RESULTS.append(error <= GRADIENT and worst[0] <= GRADIENT)
    print(
        f"{'ok  ' if RESULTS[-1] else 'OVER'} {name + ' gradients, all':<58} {error:.2e}, "
        f"worst {worst[0]:.2e} in {worst[1]} (at most {GRADIENT:.0e})",
        flush=True,
    )


def autoencoder(name, config, side, folder):
    torch.manual_seed(0)
    model = random_weights(AutoencoderKL(**config), seed=3)
    model.save_pretrained(folder)
    generator = torch.Generator().manual_seed(4)
    image = torch.rand(1, 3, side, side, generator=generator) * 2 - 1
    with torch.no_grad():
        moments = model.encode(image).latent_dist
        latent = torch.randn(moments.mean.shape, generator=generator)
        decoded = model.decode(latent).sample
    del model
    gc.collect()
    encoded = ours("vae-encode", folder, {"image": image})
    check(f"{name} encode mean", encoded["mean"], moments.mean, FORWARD)
    check(f"{name} encode logvar", encoded["logvar"], moments.logvar, FORWARD)
    check(
        f"{name} decode", ours("vae-decode", folder, {"latent": latent})["image"], decoded, FORWARD
    )


def text(name, config, folder, fp16=False):
    torch.manual_seed(0)
    model = random_weights(CLIPTextModel(CLIPTextConfig(**config)), seed=5)
    if fp16:
        model = model.half().float()
        model.half().save_pretrained(folder)
        model = model.float()
    else:
        model.save_pretrained(folder)
    words = [[49406, 1710, 49407], [49406, 7080, 320, 5274, 49407]]
    ids = torch.tensor(
        [line + [49407] * (config["max_position_embeddings"] - len(line)) for line in words]
    )
    with torch.no_grad():
        reference = model(ids)
    del model
    found = ours("text", folder, {"input_ids": ids})
    check(
        f"{name} last_hidden_state",
        found["last_hidden_state"],
        reference.last_hidden_state,
        FORWARD,
    )
    check(f"{name} pooler_output", found["pooler_output"], reference.pooler_output, FORWARD)


def image(name, config, folder):
    torch.manual_seed(0)
    model = random_weights(CLIPVisionModelWithProjection(CLIPVisionConfig(**config)), seed=6)
    model.save_pretrained(folder)
    side = config["image_size"]
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        reference = model(pixel_values=pixels).image_embeds
    del model
    check(
        f"{name} image_embeds",
        ours("image", folder, {"pixel_values": pixels})["image_embeds"],
        reference,
        FORWARD,
    )


def clip_whole(name, text_config, vision_config, projection, folder):
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=text_config, vision_config=vision_config, projection_dim=projection
    )
    model = random_weights(CLIPModel(config), seed=8)
    model.save_pretrained(folder)
    count = sum(parameter.numel() for parameter in model.parameters())
    side = vision_config["image_size"]
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(7))
    ids = torch.tensor([[49406, 1710] + [49407] * (text_config["max_position_embeddings"] - 2)])
    with torch.no_grad():
        states = model.text_model(ids)
        text_embeds = model.text_projection(states.pooler_output)
        image_embeds = model.visual_projection(
            model.vision_model(pixel_values=pixels).pooler_output
        )
    del model
    gc.collect()
    found = ours("text", folder, {"input_ids": ids})
    check(f"{name} ({count:,} values) text_embeds", found["text_embeds"], text_embeds, FORWARD)
    check(
        f"{name} image_embeds",
        ours("image", folder, {"pixel_values": pixels})["image_embeds"],
        image_embeds,
        FORWARD,
    )


def retrinet(name, folder, side, references):
    """Before training, a RetriNet equals its U-Net, bit for bit."""
    config = json.loads(Path(folder, "config.json").read_text())
    inputs = unet_inputs(config, side, 1, 77)
    plain = ours("unet", folder, inputs)["sample"]
    generator = torch.Generator().manual_seed(9)
    inputs["references"] = torch.randn(
        1, references, config["in_channels"], side, side, generator=generator
    )
    inputs["reference_hidden_states"] = torch.randn(
        1, references, 77, config["cross_attention_dim"], generator=generator
    )
    with_references = ours("retrinet", folder, inputs)["sample"]
    RESULTS.append(torch.equal(plain, with_references))
    print(
        f"{'ok  ' if RESULTS[-1] else 'OVER'} {name} before training equals its U-Net, bit for bit",
        flush=True,
    )


CROSS = ("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
SD15_UNET = dict(cross_attention_dim=768, attention_head_dim=8)
SD15_VAE = dict(
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    latent_channels=4,
)
CLIP_TEXT = dict(
    vocab_size=49408,
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    max_position_embeddings=77,
    hidden_act="quick_gelu",
    eos_token_id=49407,
)
CLIP_IMAGE = dict(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=224,
    patch_size=14,
    projection_dim=768,
    hidden_act="quick_gelu",
)
SMALL_UNETS = {
    "three levels, odd sides": (
        dict(
            block_out_channels=(32, 48, 80),
            layers_per_block=1,
            attention_head_dim=4,
            cross_attention_dim=20,
            norm_num_groups=8,
            down_block_types=(CROSS[0], CROSS[1], CROSS[0]),
            up_block_types=(CROSS[2], CROSS[3], CROSS[2]),
        ),
        13,
    ),
    "heads by level, other time, nine channels in": (
        dict(
            block_out_channels=(24, 40),
            layers_per_block=3,
            attention_head_dim=(2, 5),
            cross_attention_dim=12,
            norm_num_groups=4,
            norm_eps=1e-3,
            flip_sin_to_cos=False,
            freq_shift=1,
            in_channels=9,
            use_linear_projection=True,
            down_block_types=(CROSS[1], CROSS[0]),
            up_block_types=(CROSS[2], CROSS[3]),
        ),
        8,
    ),
    "one level": (
        dict(
            block_out_channels=(16,),
            layers_per_block=2,
            attention_head_dim=1,
            cross_attention_dim=8,
            norm_num_groups=2,
            down_block_types=(CROSS[0],),
            up_block_types=(CROSS[2],),
        ),
        5,
    ),
}


def small(folder):
    for number, (name, (config, side)) in enumerate(SMALL_UNETS.items()):
        at = f"{folder}/unet-{number}"
        unet(f"U-Net, {name}", config, side, 2, 5, at)
        retrinet(f"RetriNet, {name}", at, side, 3)
    autoencoder(
        "autoencoder, two levels",
        dict(
            block_out_channels=(8, 24),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=3,
            norm_num_groups=4,
        ),
        20,
        f"{folder}/vae",
    )
    tiny = dict(
        CLIP_TEXT, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3
    )
    text("text", tiny, f"{folder}/text")
    text(
        "text, gelu, old end token",
        dict(tiny, hidden_act="gelu", eos_token_id=2, layer_norm_eps=1e-3),
        f"{folder}/text-2",
    )
    text("text, fp16 file", tiny, f"{folder}/text-3", fp16=True)
    little = dict(
        CLIP_IMAGE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=30,
        patch_size=7,
        projection_dim=10,
    )
    image("image", little, f"{folder}/image")
    clip_whole("CLIP", dict(tiny, projection_dim=10), little, 10, f"{folder}/clip")


def full(folder):
    text("text, ViT-L/14", CLIP_TEXT, f"{folder}/text")
    clip_whole(
        "CLIP ViT-L/14", dict(CLIP_TEXT, projection_dim=768), CLIP_IMAGE, 768, f"{folder}/clip"
    )
    autoencoder("autoencoder, SD 1.5, 256 px", SD15_VAE, 256, f"{folder}/vae")
    unet("U-Net, SD 1.5, latent 32", SD15_UNET, 32, 1, 77, f"{folder}/unet")
    retrinet("RetriNet, SD 1.5, N = 4", f"{folder}/unet", 16, 4)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("worker")
    parser.add_argument("--size", choices=("small", "full", "all"), default="all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    ARGS = parser.parse_args()
    torch.set_num_threads(ARGS.threads)
    for size in (small, full):
        if ARGS.size in (size.__name__, "all"):
            begun = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                size(folder)
            print(f"{size.__name__}: {time.monotonic() - begun:.0f} s", flush=True)
    print(f"parity: {sum(RESULTS)} of {len(RESULTS)} within their bounds")
    sys.exit(0 if all(RESULTS) else 1)
