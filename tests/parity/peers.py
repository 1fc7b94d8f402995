"""Compares the paper's peers in `worker forward` with `diffusers` and `transformers`, with the same
random weights and inputs, in fp32 on the CPU, and reads files that the real `torch.save` writes
with `coordinator convert`. Part of `make parity`. FastComposer has no independent implementation
that runs with today's packages; tests/golden/make_peers.py re-expresses its parts.

    peers.py WORKER COORDINATOR [--size small|full|all] [--threads N]

The full size is the two large CLIP towers, of which the larger needs 16 GB; Kandinsky is compared
at small sizes, and its full size by names and shapes.
"""

import argparse
import collections
import gc
import os
import subprocess
import sys
import tempfile
import time

import parity
import torch
from diffusers import ControlNetModel, PriorTransformer, UNet2DConditionModel, VQModel
from parity import FORWARD, RESULTS, check, image, ours, random_weights, unet_inputs
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

SMALL = dict(
    block_out_channels=(8, 16, 16),
    layers_per_block=2,
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    cross_attention_dim=12,
    attention_head_dim=2,
    norm_num_groups=4,
)
UP = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
BIG_G_IMAGE = dict(
    hidden_size=1664,
    intermediate_size=8192,
    num_hidden_layers=48,
    num_attention_heads=16,
    projection_dim=1280,
    hidden_act="gelu",
    image_size=224,
    patch_size=14,
)
VIT_H = dict(
    BIG_G_IMAGE,
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    projection_dim=1024,
)
BIG_G_TEXT = dict(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    projection_dim=1280,
    hidden_act="gelu",
    eos_token_id=49407,
)


def small_unet(folder):
    torch.manual_seed(0)
    model = UNet2DConditionModel(sample_size=8, up_block_types=UP, **SMALL)
    random_weights(model, seed=2).save_pretrained(folder)
    return model


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def controlnet(folder):
    unet = small_unet(f"{folder}/unet")
    torch.manual_seed(0)
    branch = ControlNetModel(conditioning_embedding_out_channels=(16, 32, 96), **SMALL)
    # The zero convolutions are random too.
    random_weights(branch, seed=3).save_pretrained(f"{folder}/controlnet")
    inputs = unet_inputs(unet.config, 8, 2, 5)
    hint = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    arguments = (inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"])
    with torch.no_grad():
        down, middle = branch(*arguments, hint, return_dict=False)
        expected = unet(
            *arguments,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample
    found = ours("controlnet", folder, {**inputs, "controlnet_cond": hint})
    for i, residual in enumerate((*down, middle)):
        check(f"ControlNetModel, residual {i}", found[f"residual.{i}"], residual, FORWARD)
    check("U-Net with ControlNetModel", found["sample"], expected, FORWARD)


def adapter_state(unet, embedding):
    state = {
        "image_proj": {
            "proj.weight": normal(5, 48, embedding) / embedding**0.5,
            "proj.bias": normal(6, 48) * 0.1,
            "norm.weight": 1 + normal(7, 12) * 0.1,
            "norm.bias": normal(8, 12) * 0.1,
        },
        "ip_adapter": {},
    }
    for number, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            width = unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape[0]
            for at, kind in enumerate(("to_k_ip", "to_v_ip")):
                weight = normal(10 * number + at, width, 12) / 12**0.5
                state["ip_adapter"][f"{number}.{kind}.weight"] = weight
    return state


def convert(source, out):
    command = [ARGS.coordinator, "convert", source, "--out", out]
    return subprocess.run(command, capture_output=True, text=True)


def ip_adapter(folder):
    unet = small_unet(f"{folder}/unet")
    state = adapter_state(unet, 24)
    # The authors' file, as torch writes it, converted.
    torch.save(state, f"{folder}/ip-adapter_sd15.bin")
    done = convert(f"{folder}/ip-adapter_sd15.bin", f"{folder}/ip_adapter.safetensors")
    if done.returncode:
        sys.exit(done.stderr)
    unet._load_ip_adapter_weights([state])
    inputs = unet_inputs(unet.config, 8, 2, 5)
    for scale in (0.0, 0.5, 1.0):
        for name, processor in unet.attn_processors.items():
            if name.endswith("attn2.processor"):
                processor.scale = [scale]
        for references in (1, 4):
            embeds = normal(20 + references, 2, references, 24)
            with torch.no_grad():
                expected = unet(
                    inputs["sample"],
                    inputs["timestep"],
                    encoder_hidden_states=inputs["encoder_hidden_states"],
                    added_cond_kwargs={"image_embeds": [embeds]},
                ).sample
            given = {**inputs, "image_embeds": embeds, "scale": torch.tensor(scale)}
            found = ours("ip-adapter", folder, given)["sample"]
            name = f"_load_ip_adapter_weights, scale {scale}, {references} references"
            check(name, found, expected, FORWARD)


def prior(folder):
    torch.manual_seed(0)
    model = PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=3,
        embedding_dim=20,
        num_embeddings=7,
    )
    random_weights(model, seed=4).save_pretrained(folder)
    inputs = {
        "hidden_states": normal(1, 2, 20),
        "timestep": torch.tensor([7, 801]),
        "proj_embedding": normal(2, 2, 20),
        "encoder_hidden_states": normal(3, 2, 7, 20),
        "attention_mask": torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]]),
    }
    with torch.no_grad():
        expected = model(**inputs).predicted_image_embedding
    inputs["attention_mask"] = inputs["attention_mask"].float()
    found = ours("prior", folder, inputs)["predicted_image_embedding"]
    check("PriorTransformer", found, expected, FORWARD)


def kandinsky_unet(folder):
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=8,
        block_out_channels=(16, 32, 48, 64),
        layers_per_block=3,
        down_block_types=["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3,
        up_block_types=["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"],
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        attention_head_dim=16,
        cross_attention_dim=12,
        encoder_hid_dim=24,
        encoder_hid_dim_type="image_proj",
        addition_embed_type="image",
        resnet_time_scale_shift="scale_shift",
        norm_num_groups=8,
    )
    random_weights(model, seed=5).save_pretrained(folder)
    inputs = {
        "sample": normal(1, 2, 4, 16, 16),
        "timestep": torch.tensor([7, 801]),
        "image_embeds": normal(2, 2, 24),
    }
    with torch.no_grad():
        expected = model(
            inputs["sample"],
            inputs["timestep"],
            encoder_hidden_states=None,
            added_cond_kwargs={"image_embeds": inputs["image_embeds"]},
        ).sample
    check(
        "UNet2DConditionModel of Kandinsky 2.2",
        ours("image-unet", folder, inputs)["sample"],
        expected,
        FORWARD,
    )


def movq(folder):
    torch.manual_seed(0)
    model = VQModel(
        block_out_channels=(32, 64, 64),
        down_block_types=["DownEncoderBlock2D"] * 2 + ["AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 2,
        layers_per_block=2,
        latent_channels=4,
        num_vq_embeddings=16,
        vq_embed_dim=4,
        norm_type="spatial",
    )
    random_weights(model, seed=6).save_pretrained(folder)
    pixels = normal(7, 2, 3, 24, 24)
    with torch.no_grad():
        latents = model.encode(pixels).latents
        decoded = model.decode(latents, force_not_quantize=True).sample
    found = ours("movq-encode", folder, {"image": pixels})["latents"]
    check("VQModel with spatial norm, encode", found, latents, FORWARD)
    found = ours("movq-decode", folder, {"latent": latents.contiguous()})["image"]
    check("VQModel with spatial norm, decode", found, decoded, FORWARD)


class Attack:
    def __reduce__(self):
        return os.system, ("true",)


def files(folder):
    """What the real torch.save writes is read with the same values, or refused."""
    branch = {"input_hint_block.0.weight": normal(1, 16, 3, 3, 3).half()}
    branch["zero_convs.0.0.weight"] = normal(2, 8, 8).t().contiguous().t()[:, :, None, None]
    branch["zero_convs.0.0.bias"] = torch.nn.Parameter(normal(3, 20)[4:12])
    flat = {f"control_model.{name}": tensor for name, tensor in branch.items()}
    nested = {"state_dict": collections.OrderedDict(flat), "global_step": 7, "epoch": 1}
    for name, state in (("bare", flat), ("lightning", nested)):
        torch.save(state, f"{folder}/{name}.pth")
        done = convert(f"{folder}/{name}.pth", f"{folder}/{name}.safetensors")
        if done.returncode:
            sys.exit(done.stderr)
        found = load_file(f"{folder}/{name}.safetensors")
        same = found.keys() == flat.keys()
        same = same and all(torch.equal(found[key], flat[key].detach()) for key in flat)
        same = same and all(found[key].dtype == flat[key].dtype for key in flat)
        RESULTS.append(same)
        print(f"{'ok  ' if same else 'OVER'} torch.save, {name} dictionary, every value")
    refused = {
        "a call": ({"a": Attack()}, ".system"),
        "a class": ({"a": normal(1, 2), "b": argparse.Namespace()}, "argparse.Namespace"),
        "plus": ({"image_proj": {"latents": normal(1, 2)}}, '"plus"'),
        "SDXL": (
            {"image_proj": {}, "ip_adapter": {"1.to_k_ip.weight": normal(1, 4, 2048)}},
            "Stable Diffusion XL",
        ),
        "inpainting": (
            {"model.diffusion_model.input_blocks.0.0.weight": normal(1, 4, 9, 3, 3)},
            "inpainting",
        ),
        "2.x": ({"cond_stage_model.model.ln_final.weight": normal(1, 4)}, "Stable Diffusion 2"),
    }
    for name, (state, why) in refused.items():
        torch.save(state, f"{folder}/refused.bin")
        done = convert(f"{folder}/refused.bin", f"{folder}/refused.safetensors")
        good = done.returncode != 0 and why in done.stderr
        good = good and not os.path.exists(f"{folder}/refused.safetensors")
        RESULTS.append(good)
        print(f"{'ok  ' if good else 'OVER'} {name} is refused: {done.stderr.strip()[-110:]}")


def small(folder):
    for part in (controlnet, ip_adapter, prior, kandinsky_unet, movq, files):
        with tempfile.TemporaryDirectory() as inner:
            part(inner)


def full(folder):
    image("CLIP ViT-H/14", VIT_H, f"{folder}/h")
    gc.collect()
    torch.manual_seed(0)
    model = random_weights(CLIPTextModelWithProjection(CLIPTextConfig(**BIG_G_TEXT)), seed=9)
    model.save_pretrained(f"{folder}/text")
    ids = torch.randint(1, 49405, (2, 77), generator=torch.Generator().manual_seed(1))
    ids[:, 0], ids[0, 9:], ids[1, 40:] = 49406, 49407, 49407
    with torch.no_grad():
        expected = model(input_ids=ids)
    found = ours("text", f"{folder}/text", {"input_ids": ids})
    name = "CLIP bigG text tower"
    check(f"{name}, states", found["last_hidden_state"], expected.last_hidden_state, FORWARD)
    check(f"{name}, embedding", found["text_embeds"], expected.text_embeds, FORWARD)
    del model, expected
    gc.collect()
    image("CLIP bigG image tower", BIG_G_IMAGE, f"{folder}/g")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("worker")
    parser.add_argument("coordinator")
    parser.add_argument("--size", choices=("small", "full", "all"), default="all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    ARGS = parity.ARGS = parser.parse_args()
    torch.set_num_threads(ARGS.threads)
    for size in (small, full):
        if ARGS.size in (size.__name__, "all"):
            begun = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                size(folder)
            print(f"{size.__name__}: {time.monotonic() - begun:.0f} s", flush=True)
    print(f"peers: {sum(RESULTS)} of {len(RESULTS)} within their bounds")
    sys.exit(0 if all(RESULTS) else 1)
