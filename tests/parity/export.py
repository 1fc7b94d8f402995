"""Loads an exported RetriNet into `diffusers` and `transformers`: every tensor must have a
counterpart, and the outputs must equal those of `worker forward`. The RetriNet itself is
implemented again here, from parts of diffusers (paper, figure 4).

    export.py WORKER FOLDER
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

WORKER, FOLDER = sys.argv[1], Path(sys.argv[2])
BOUND = 1e-4
RESULTS = []


def check(name, good, message):
    RESULTS.append(good)
    print(f"{'ok  ' if good else 'OVER'} {name:<58} {message}", flush=True)


def close(name, ours, theirs):
    error = ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()
    check(name, error <= BOUND, f"{error:.2e} (at most {BOUND:.0e})")


def ours(component, weights, inputs):
    with tempfile.TemporaryDirectory() as folder:
        save_file(inputs, f"{folder}/in.safetensors")
        subprocess.run(
            [
                WORKER,
                "forward",
                "--component",
                component,
                "--weights",
                weights,
                "--inputs",
                f"{folder}/in.safetensors",
                "--outputs",
                f"{folder}/out.safetensors",
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return load_file(f"{folder}/out.safetensors")


def loaded(kind, folder):
    # With low_cpu_mem_usage diffusers requires another package.
    plain = {} if kind is CLIPTextModel else {"low_cpu_mem_usage": False}
    model, loading_info = kind.from_pretrained(FOLDER / folder, output_loading_info=True, **plain)
    wrong = {key: list(value) for key, value in loading_info.items() if value}
    check(
        f"{kind.__name__}.from_pretrained({folder})",
        not wrong,
        wrong or "every tensor has a counterpart",
    )
    return model.eval()


def retrieval_encoder(unet, own):
    """A second U-Net whose encoder is the retrieval encoder."""
    each = unet.config.layers_per_block + 1
    parts = {
        "in_layers.0": "norm1",
        "in_layers.2": "conv1",
        "emb_layers.1": "time_emb_proj",
        "out_layers.0": "norm2",
        "out_layers.3": "conv2",
        "skip_connection": "conv_shortcut",
    }

    def theirs(name):
        block, layer, rest = re.fullmatch(
            r"retrieval\.input_blocks\.(\d+)\.(\d)\.(.*)", name
        ).groups()
        if block == "0":
            return f"conv_in.{rest}"
        level, at = divmod(int(block) - 1, each)
        if rest.startswith("op."):
            return f"down_blocks.{level}.downsamplers.0.conv.{rest[3:]}"
        if layer == "1":
            return f"down_blocks.{level}.attentions.{at}.{rest}"
        part, kind = rest.rsplit(".", 1)
        return f"down_blocks.{level}.resnets.{at}.{parts[part]}.{kind}"

    copy = UNet2DConditionModel.from_config(unet.config).eval()
    weights = {
        theirs(name): tensor for name, tensor in own.items() if name.startswith("retrieval.")
    }
    missing, unexpected = copy.load_state_dict(weights, strict=False)
    missing = [name for name in missing if name.startswith(("conv_in.", "down_blocks."))]
    check(
        "retrieval encoder in a UNet2DConditionModel",
        not missing and not unexpected,
        [*missing, *unexpected] or "complete",
    )
    return copy


def features(unet, sample, time, context):
    found = [sample := unet.conv_in(sample)]
    for block in unet.down_blocks:
        attends = hasattr(block, "attentions")
        sample, outputs = (
            block(sample, time, encoder_hidden_states=context) if attends else block(sample, time)
        )
        found.extend(outputs)
    return found


def retrinet(unet, own, inputs):
    time = unet.time_embedding(unet.time_proj(inputs["timestep"]))
    references, words = inputs["references"], inputs["reference_hidden_states"]
    each = references.shape[1]
    target = features(unet, inputs["sample"], time, inputs["encoder_hidden_states"])
    found = features(
        retrieval_encoder(unet, own),
        references.flatten(0, 1),
        time.repeat_interleave(each, 0),
        words.flatten(0, 1),
    )
    heads, added = unet.config.attention_head_dim, []
    for i, (h, g) in enumerate(zip(target, found)):
        at, tokens = f"cross_attention.{i}.", lambda xs: xs.flatten(2).transpose(1, 2)
        split = lambda xs: xs.unflatten(2, (heads, -1)).transpose(1, 2)
        normed = lambda xs, name: F.layer_norm(xs, xs.shape[-1:], own[f"{at}{name}.weight"])
        query = normed(tokens(h), "norm_q")
        keys = normed(tokens(g).reshape(h.shape[0], -1, g.shape[1]), "norm_kv")
        query, keys, values = (
            query @ own[f"{at}to_q.weight"].T,
            keys @ own[f"{at}to_k.weight"].T,
            keys @ own[f"{at}to_v.weight"].T,
        )
        seen = (
            F.scaled_dot_product_attention(split(query), split(keys), split(values))
            .transpose(1, 2)
            .flatten(2)
        )
        seen = (
            F.linear(seen, own[f"{at}to_out.0.weight"], own[f"{at}to_out.0.bias"])
            .transpose(1, 2)
            .unflatten(2, h.shape[2:])
        )
        added.append(F.conv2d(seen, own[f"zero_convs.{i}.weight"], own[f"zero_convs.{i}.bias"]))
    return unet(
        inputs["sample"],
        inputs["timestep"],
        encoder_hidden_states=inputs["encoder_hidden_states"],
        down_block_additional_residuals=tuple(added),
        mid_block_additional_residual=torch.zeros(()),
    ).sample


@torch.no_grad()
def main():
    torch.manual_seed(1)
    unet, vae, text = (
        loaded(UNet2DConditionModel, "unet"),
        loaded(AutoencoderKL, "vae"),
        loaded(CLIPTextModel, "text_encoder"),
    )
    ids = torch.tensor([[49406, 1710, 320, 5274] + [49407] * 73])
    states = text(ids).last_hidden_state
    close(
        "exported text encoder",
        ours("text", FOLDER / "text_encoder", {"input_ids": ids})["last_hidden_state"],
        states,
    )
    side = unet.config.sample_size
    latent = torch.randn(2, 4, side, side)
    decoded = ours("vae-decode", FOLDER / "vae", {"latent": latent})["image"]
    close("exported autoencoder, decode", decoded, vae.decode(latent).sample)
    encoded = ours("vae-encode", FOLDER / "vae", {"image": decoded})["mean"]
    close("exported autoencoder, encode", encoded, vae.encode(decoded).latent_dist.mean)
    inputs = {
        "sample": latent,
        "timestep": torch.tensor([901, 20]),
        "encoder_hidden_states": states.repeat(2, 1, 1),
    }
    plain = unet(
        latent, inputs["timestep"], encoder_hidden_states=inputs["encoder_hidden_states"]
    ).sample
    close("exported U-Net, decoder trained", ours("unet", FOLDER / "unet", inputs)["sample"], plain)
    own = load_file(FOLDER / "unet/retrinet.safetensors")
    inputs["references"] = torch.randn(2, 3, 4, side, side)
    inputs["reference_hidden_states"] = states.repeat(6, 1, 1).unflatten(0, (2, 3))
    theirs = retrinet(unet, own, inputs)
    close(
        "exported RetriNet, after diffusers' parts",
        ours("retrinet", FOLDER / "unet", inputs)["sample"],
        theirs,
    )
    check("its references change its output", not torch.allclose(theirs, plain, rtol=1e-3), "")


if __name__ == "__main__":
    main()
    info = json.loads((FOLDER / "export.json").read_text())
    print(
        f"export of {info['job']} at step {info['step']}: "
        f"{sum(RESULTS)} of {len(RESULTS)} checks passed"
    )
    sys.exit(0 if all(RESULTS) else 1)
