"""Writes golden.safetensors: what the public Python libraries compute, for `model/tests`.

    python3 -m venv venv
    venv/bin/pip install torch==2.10.0 diffusers transformers safetensors numpy
    venv/bin/python tests/golden/make_golden.py tests/golden/golden.safetensors

No weights are stored: both sides compute them from each tensor's name (`fill`, also in
model/tests/golden.rs). Names are CompVis names for the U-Net and the autoencoder, Hugging Face
names for the text encoder; the tables below translate.
"""

import re
import sys

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    Transformer2DModel,
    UNet2DConditionModel,
)
from diffusers.models.resnet import ResnetBlock2D
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

torch.set_num_threads(1)
OUT = {}


def unit(name, count):
    """Reproducible numbers in [-0.5, 0.5): a hash of index and name, exact on both sides."""
    seed = 2166136261
    for byte in name.encode():
        seed = ((seed ^ byte) * 16777619) % 2**32
    x = (np.arange(count, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(seed)) % np.uint64(
        2**32
    )
    for shift, factor in ((15, 2246822519), (13, 3266489917)):
        x = ((x ^ (x >> np.uint64(shift))) * np.uint64(factor)) % np.uint64(2**32)
    x = x ^ (x >> np.uint64(16))
    return x.astype(np.float64) / 2**32 - 0.5


def values(name, shape):
    return torch.tensor(unit(name, int(np.prod(shape))), dtype=torch.float32).reshape(shape)


def fill(name, shape):
    x = values(name, shape)
    if "embedding" in name:
        return x * 0.2
    if len(shape) > 1:
        return x * float(np.sqrt(12.0 / np.prod(shape[1:])))
    return x * 0.2 + 1.0 if name.endswith("weight") else x * 0.2


def load(model, rename):
    state = model.state_dict()
    for key, tensor in state.items():
        if not key.endswith("position_ids"):
            name, shape = rename(key), list(tensor.shape)
            tensor.copy_(fill(name, shape))
    return model.eval()


RES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {"conv_in.": "input_blocks.0.0.", "conv_norm_out.": "out.0.", "conv_out.": "out.2."}
VAE = {
    "conv_shortcut": "nin_shortcut",
    "conv_norm_out": "norm_out",
    "attn_1.group_norm": "attn_1.norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def res_name(key):
    head, tail = key.split(".", 1)
    return f"{RES[head]}.{tail}"


def unet_name(key, layers, attends):
    per = layers + 1
    if m := re.match(r"time_embedding\.linear_(\d)\.(.*)", key):
        return f"time_embed.{(int(m[1]) - 1) * 2}.{m[2]}"
    for old, new in ENDS.items():
        if key.startswith(old):
            return new + key[len(old) :]
    if m := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", key):
        if m[1] == "attentions":
            return f"middle_block.1.{m[3]}"
        return f"middle_block.{2 * int(m[2])}.{res_name(m[3])}"
    m = re.match(
        r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", key
    )
    side, level, kind, j, rest = m[1], int(m[2]), m[3], int(m[4]), m[5]
    block = per * level + j + 1 if side == "down" else per * level + j
    stem = "input_blocks" if side == "down" else "output_blocks"
    if kind == "resnets":
        return f"{stem}.{block}.0.{res_name(rest)}"
    if kind == "attentions":
        return f"{stem}.{block}.1.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{per * (level + 1)}.0.op.{rest.split('.')[1]}"
    return f"output_blocks.{per * level + layers}.{2 if attends[level] else 1}.{rest}"


def vae_name(key, levels):
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = re.sub(r"mid_block\.attentions\.0", "mid.attn_1", key)
    key = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}", key)
    key = re.sub(r"(up\.\d)\.resnets\.(\d)", r"\1.block.\2", key)
    key = re.sub(r"(up\.\d)\.upsamplers\.0", r"\1.upsample", key)
    for old, new in VAE.items():
        key = key.replace(old, new)
    return key


def schedule_and_sampler():
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    leading = {"set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}
    schedulers = {
        "ddim": lambda: DDIMScheduler(**betas, **leading, clip_sample=False),
        "pndm": lambda: PNDMScheduler(**betas, **leading, skip_prk_steps=True),
        "dpm_solver": lambda: DPMSolverMultistepScheduler(**betas),
    }
    OUT["schedule.kept"] = schedulers["ddim"]().alphas_cumprod.clone()
    for name, make in schedulers.items():
        for steps in (10, 20, 25, 50):
            scheduler = make()
            scheduler.set_timesteps(steps)
            OUT[f"sampler.{name}.{steps}.timesteps"] = scheduler.timesteps.to(torch.float32)
            x, trail = values("sampler.start", [8]) * 4, []
            for t in scheduler.timesteps:
                noise = 0.3 * x + 0.1 * float(t) / 1000
                x = scheduler.step(noise, t, x).prev_sample
                trail.append(x)
            OUT[f"sampler.{name}.{steps}.trail"] = torch.stack(trail)


def blocks():
    res = ResnetBlock2D(in_channels=16, out_channels=24, temb_channels=32, groups=8, eps=1e-5)
    load(res, lambda key: "res." + res_name(key))
    OUT["res.out"] = res(values("res.x", [2, 16, 6, 6]), values("res.time", [2, 32]))
    transformer = Transformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=16,
        cross_attention_dim=12,
        norm_num_groups=8,
    )
    load(transformer, lambda key: "transformer." + key)
    x, context = values("transformer.x", [2, 16, 4, 6]), values("transformer.context", [2, 5, 12])
    OUT["transformer.out"] = transformer(x, encoder_hidden_states=context).sample


def reference_attention():
    c, heads, n = 16, 4, 3
    w = lambda name, shape: fill("reference." + name, shape)
    h, g = values("reference.h", [2, c, 4, 4]), values("reference.g", [2 * n, c, 4, 4])
    q = torch.nn.functional.layer_norm(h.flatten(2).transpose(1, 2), [c], w("norm_q.weight", [c]))
    kv = g.reshape(2, n, c, 16).permute(0, 1, 3, 2).reshape(2, n * 16, c)
    kv = torch.nn.functional.layer_norm(kv, [c], w("norm_kv.weight", [c]))
    q, k, v = (
        q @ w("to_q.weight", [c, c]).T,
        kv @ w("to_k.weight", [c, c]).T,
        kv @ w("to_v.weight", [c, c]).T,
    )
    split = lambda x: x.reshape(2, -1, heads, c // heads).transpose(1, 2)
    weight = (split(q) @ split(k).transpose(2, 3) / (c // heads) ** 0.5).softmax(-1)
    a = (weight @ split(v)).transpose(1, 2).reshape(2, 16, c)
    a = a @ w("to_out.0.weight", [c, c]).T + w("to_out.0.bias", [c])
    u = a @ w("zero.weight", [c, c, 1, 1]).reshape(c, c).T + w("zero.bias", [c])
    OUT["reference.out"] = u.transpose(1, 2).reshape(2, c, 4, 4)


def unet():
    attends = [True, True, False]
    model = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=2,
        block_out_channels=(8, 16, 16),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    load(
        model,
        lambda key: "unet." + unet_name(key, 2, attends[::-1] if key.startswith("up") else attends),
    )
    x = values("unet.x", [2, 4, 8, 8]).requires_grad_(True)
    out = model(
        x, torch.tensor([7, 801]), encoder_hidden_states=values("unet.context", [2, 5, 12])
    ).sample
    out.square().mean().backward()
    OUT["unet.out"], OUT["unet.x.grad"] = out, x.grad
    OUT["unet.down.grad"] = model.down_blocks[0].downsamplers[0].conv.weight.grad
    OUT["unet.time.grad"] = model.time_embedding.linear_1.weight.grad


def autoencoder():
    model = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
    )
    # The attention's projections are linear here and 1x1 convolutions there: `fill` sees the same
    # fan in.
    load(model, lambda key: "autoencoder." + vae_name(key, 3))
    moments = model.encode(values("autoencoder.x", [2, 3, 16, 16]) * 2).latent_dist
    OUT["autoencoder.mean"], OUT["autoencoder.log_variance"] = moments.mean, moments.logvar
    OUT["autoencoder.decoded"] = model.decode(values("autoencoder.z", [2, 4, 4, 4]) * 4).sample


def text():
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=16,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
        )
    )
    load(
        model, lambda key: "text." + (key if key.startswith("text_model.") else "text_model." + key)
    )
    # "", "face", "clothes": begin, word, then end tokens (notes on CLIP's vocabulary).
    ids = [[49406] + word + [49407] * (76 - len(word)) for word in ([], [1710], [7080])]
    OUT["text.out"] = (
        model(torch.tensor(ids), attention_mask=None).last_hidden_state[:, :12].contiguous()
    )


def adamw():
    parameter = torch.nn.Parameter(values("adamw.start", [10]))
    optimizer = torch.optim.AdamW(
        [parameter], lr=0.1, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3
    )
    trail = []
    for step in range(1, 5):
        parameter.grad = values(f"adamw.gradient.{step}", [10]) * 3
        torch.nn.utils.clip_grad_norm_([parameter], 2.0)
        optimizer.step()
        trail.append(parameter.detach().clone())
    OUT["adamw.trail"] = torch.stack(trail)


if __name__ == "__main__":
    schedule_and_sampler()
    unet()
    adamw()
    with torch.no_grad():
        blocks()
        reference_attention()
        autoencoder()
        text()
    save_file(
        {name: x.detach().to(torch.float32).contiguous() for name, x in OUT.items()}, sys.argv[1]
    )
    for name, tensor in sorted(OUT.items()):
        print(f"{name}: {list(tensor.shape)}, largest {tensor.abs().max():.4f}")
