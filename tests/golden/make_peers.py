"""Writes peers.safetensors: what the public Python libraries compute for the paper's four peers.

    python3 tests/golden/make_peers.py tests/golden/peers.safetensors

Weights, and the packages that are needed, are those of make_golden.py: both sides compute weights from names.
"""

import re
import sys

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from make_golden import fill, load, unet_name, values
from safetensors.torch import save_file

torch.set_num_threads(1)
OUT = {}

SMALL = {
    "layers_per_block": 2,
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
UP = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
ATTENDS = [True, True, False]


def small_unet(prefix):
    model = UNet2DConditionModel(sample_size=8, in_channels=4, out_channels=4, up_block_types=UP, **SMALL)
    return load(model, lambda key: prefix + small_name(key))


def small_name(key):
    return unet_name(key, 2, ATTENDS[::-1] if key.startswith("up") else ATTENDS)


def controlnet_name(key):
    if m := re.match(r"controlnet_cond_embedding\.(conv_in|conv_out|blocks\.(\d))\.(.*)", key):
        layer = {"conv_in": 0, "conv_out": 5}.get(m[1])
        layer = 1 + int(m[2]) if layer is None else layer
        return f"input_hint_block.{2 * layer}.{m[3]}"
    if m := re.match(r"controlnet_down_blocks\.(\d+)\.(.*)", key):
        return f"zero_convs.{m[1]}.0.{m[2]}"
    if m := re.match(r"controlnet_mid_block\.(.*)", key):
        return f"middle_block_out.0.{m[1]}"
    return small_name(key)


def controlnet():
    model = ControlNetModel(conditioning_embedding_out_channels=(16, 32, 96), **SMALL)
    load(model, lambda key: "controlnet." + controlnet_name(key))
    unet = small_unet("unet.")
    x, t = values("unet.x", [2, 4, 8, 8]), torch.tensor([7, 801])
    text = values("unet.context", [2, 5, 12])
    hint = values("control.hint", [2, 3, 32, 32]) + 0.5
    down, middle = model(x, t, text, hint, return_dict=False)
    for i, residual in enumerate((*down, middle)):
        OUT[f"control.residual.{i}"] = residual
    out = unet(
        x, t, text, down_block_additional_residuals=down, mid_block_additional_residual=middle
    ).sample
    OUT["control.out"] = out
    out.square().mean().backward()
    OUT["control.hint.grad"] = model.controlnet_cond_embedding.conv_in.weight.grad
    OUT["control.zero.grad"] = model.controlnet_down_blocks[3].weight.grad
    OUT["control.time.grad"] = model.time_embedding.linear_1.weight.grad
    # The guess mode of diffusers fades the residuals in the same way as ours.
    down, middle = model(x, t, text, hint, guess_mode=True, conditioning_scale=0.5, return_dict=False)
    OUT["control.guess.first"], OUT["control.guess.middle"] = down[0], middle


if __name__ == "__main__":
    controlnet()
    save_file({name: x.detach().to(torch.float32).contiguous() for name, x in OUT.items()}, sys.argv[1])
    for name, tensor in sorted(OUT.items()):
        print(f"{name}: {list(tensor.shape)}, largest {tensor.abs().max():.4f}")
