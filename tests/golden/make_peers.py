"""Writes peers.safetensors: what the public Python libraries compute for the paper's four peers.

    python3 tests/golden/make_peers.py tests/golden/peers.safetensors

Weights, and the packages that are needed, are those of make_golden.py: both sides compute weights
from names.
"""

import re
import sys

import torch
from diffusers import (
    ControlNetModel,
    DDPMScheduler,
    PriorTransformer,
    UnCLIPScheduler,
    UNet2DConditionModel,
    VQModel,
)
from diffusers.models.attention_processor import Attention, AttnProcessor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
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
    model = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, up_block_types=UP, **SMALL
    )
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
    down, middle = model(
        x, t, text, hint, guess_mode=True, conditioning_scale=0.5, return_dict=False
    )
    OUT["control.guess.first"], OUT["control.guess.middle"] = down[0], middle


def vision(prefix, width, layers, projection, activation):
    model = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            projection_dim=projection,
            image_size=28,
            patch_size=7,
            hidden_act=activation,
        )
    )
    return load(model, lambda key: prefix + key)


# The number in the published files, and the module of diffusers, of each attention of the small
# U-Net.
def adapter_state(unet, embedding):
    state = {"image_proj": {}, "ip_adapter": {}}
    for name, shape in (
        ("proj.weight", [48, embedding]),
        ("proj.bias", [48]),
        ("norm.weight", [12]),
        ("norm.bias", [12]),
    ):
        state["image_proj"][name] = fill(f"adapter.image_proj.{name}", shape)
    for number, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            width = unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape[0]
            for kind in ("to_k_ip", "to_v_ip"):
                key = f"{number}.{kind}.weight"
                state["ip_adapter"][key] = fill(f"adapter.ip_adapter.{key}", [width, 12])
    return state


def ip_adapter():
    encoder = vision("vit.", 16, 3, 24, "gelu")
    pixels = values("adapter.pixels", [5, 3, 28, 28]) * 4
    embeddings = encoder(pixels).image_embeds
    OUT["adapter.embeddings"] = embeddings
    x, t = values("unet.x", [2, 4, 8, 8]), torch.tensor([7, 801])
    text = values("unet.context", [2, 5, 12])
    unet = small_unet("unet.")
    unet._load_ip_adapter_weights([adapter_state(unet, 24)])
    # Two samples of one reference each, and of four (one of them twice).
    one, four = embeddings[:2].unsqueeze(1), embeddings[[0, 1, 2, 3, 4, 3, 2, 1]].reshape(2, 4, 24)
    for scale in (0.0, 0.5, 1.0):
        for name, processor in unet.attn_processors.items():
            if name.endswith("attn2.processor"):
                processor.scale = [scale]
        for count, images in ((1, one), (4, four)):
            added = {"image_embeds": [images.detach()]}
            out = unet(x, t, encoder_hidden_states=text, added_cond_kwargs=added).sample
            OUT[f"adapter.{scale}.{count}.out"] = out
    out.square().mean().backward()
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn2.processor
    OUT["adapter.key.grad"] = attention.to_k_ip[0].weight.grad
    projection = unet.encoder_hid_proj.image_projection_layers[0]
    OUT["adapter.projection.grad"] = projection.image_embeds.weight.grad


class StoringProcessor(AttnProcessor):
    """Attention as in AttnProcessor, which keeps its probabilities."""

    def __call__(self, attn: Attention, hidden_states, encoder_hidden_states=None, **_):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        query, key, value = (attn.head_to_batch_dim(it) for it in (query, key, value))
        self.probabilities = attn.get_attention_scores(query, key, None)
        out = attn.batch_to_head_dim(torch.bmm(self.probabilities, value))
        return attn.to_out[1](attn.to_out[0](out))


def mlp(name, x):
    w = lambda part, shape: fill(f"postfuse_module.{name}.{part}", shape)
    x = torch.nn.functional.layer_norm(
        x, x.shape[-1:], w("layernorm.weight", [x.shape[-1]]), w("layernorm.bias", [x.shape[-1]])
    )
    x = torch.nn.functional.gelu(x @ w("fc1.weight", [12, x.shape[-1]]).T + w("fc1.bias", [12]))
    return x @ w("fc2.weight", [12, 12]).T + w("fc2.bias", [12])


def fastcomposer():
    """No public implementation runs with today's packages: re-expressed from its code's parts."""
    encoder = vision("vit.", 16, 3, 12, "quick_gelu")
    embeddings = encoder(values("fast.pixels", [2, 3, 28, 28]) * 4).image_embeds
    OUT["fast.embeddings"] = embeddings
    text = values("unet.context", [2, 5, 12])
    states = text[torch.arange(2), torch.tensor([2, 1])]
    first = states + mlp("mlp1", torch.cat([states, embeddings], -1))
    second = first + mlp("mlp2", first)
    fused = torch.nn.functional.layer_norm(
        second,
        [12],
        fill("postfuse_module.layer_norm.weight", [12]),
        fill("postfuse_module.layer_norm.bias", [12]),
    )
    # The second sample has no object.
    context = text.clone()
    context[0, 2] = fused[0]
    OUT["fast.context"] = context
    unet = small_unet("unet.")
    processors = {name: StoringProcessor() for name in unet.attn_processors}
    unet.set_attn_processor(dict(processors))
    x, t = values("unet.x", [2, 4, 8, 8]), torch.tensor([7, 801])
    noise = values("fast.noise", [2, 4, 8, 8])
    predicted = unet(x, t, encoder_hidden_states=context.detach()).sample
    OUT["fast.out"] = predicted
    figures = (values("fast.figures", [2, 1, 32, 32]) > 0).float() * torch.tensor([1.0, 0.0]).view(
        2, 1, 1, 1
    )
    mask = torch.nn.functional.interpolate(
        figures, size=(8, 8), mode="bilinear", align_corners=False
    )
    OUT["fast.noise_loss"] = ((predicted - noise) * mask).square().mean()
    # Of the small U-Net, whose first level attends too: the second level of both towers, and the
    # middle.
    layers = [
        p
        for name, p in processors.items()
        if "attn2" in name and re.match(r"down_blocks.1|mid|up_blocks.1", name)
    ]
    losses = []
    for layer in layers:
        a = layer.probabilities
        heads, cells = a.shape[0] // 2, a.shape[1]
        side = int(cells**0.5)
        s = torch.nn.functional.interpolate(
            figures, size=(side, side), mode="bilinear", antialias=True
        )
        s = s.reshape(2, 1, cells)
        a = a.reshape(2, heads, cells, -1)
        a = torch.stack([a[0, :, :, 2], a[1, :, :, 0]])
        background = (a * (1 - s)).sum(2) / ((1 - s).sum(2) + 1e-5)
        figure = (a * s).sum(2) / (s.sum(2) + 1e-5)
        has = torch.tensor([1.0, 0.0]).view(2, 1)
        losses.append(((background - figure) * has / (has + 1e-5)).mean())
    OUT["fast.localization"] = torch.stack(losses).mean()
    (OUT["fast.noise_loss"] + OUT["fast.localization"]).backward()
    OUT["fast.query.grad"] = (
        unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_q.weight.grad
    )
    OUT["fast.conv.grad"] = unet.conv_in.weight.grad


def prior():
    model = PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        embedding_dim=12,
        num_embeddings=5,
    )
    load(model, lambda key: "prior." + key)
    noisy, t = values("prior.noisy", [2, 12]), torch.tensor([7, 801])
    embedding, states = values("prior.embedding", [2, 12]), values("unet.context", [2, 5, 12])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    out = model(noisy, t, embedding, states, mask).predicted_image_embedding
    OUT["prior.out"] = out
    out.square().mean().backward()
    OUT["prior.query.grad"] = model.transformer_blocks[0].attn1.to_q.weight.grad
    OUT["prior.in.grad"] = model.proj_in.weight.grad


def image_unet():
    blocks = ["SimpleCrossAttn{}Block2D", "SimpleCrossAttn{}Block2D"]
    model = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=8,
        block_out_channels=(8, 16, 24),
        layers_per_block=2,
        down_block_types=["ResnetDownsampleBlock2D"] + [it.format("Down") for it in blocks],
        up_block_types=[it.format("Up") for it in blocks] + ["ResnetUpsampleBlock2D"],
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        attention_head_dim=8,
        cross_attention_dim=12,
        encoder_hid_dim=24,
        encoder_hid_dim_type="image_proj",
        addition_embed_type="image",
        resnet_time_scale_shift="scale_shift",
        norm_num_groups=4,
    )
    load(model, lambda key: "image_unet." + key)
    x, t = values("unet.x", [2, 4, 8, 8]), torch.tensor([7, 801])
    added = {"image_embeds": values("image.embeds", [2, 24]) * 4}
    out = model(x, t, encoder_hidden_states=None, added_cond_kwargs=added).sample
    OUT["image_unet.out"] = out
    out.square().mean().backward()
    OUT["image_unet.key.grad"] = model.mid_block.attentions[0].add_k_proj.weight.grad
    OUT["image_unet.down.grad"] = model.down_blocks[0].downsamplers[0].conv1.weight.grad
    OUT["image_unet.tokens.grad"] = model.encoder_hid_proj.image_embeds.weight.grad


def movq():
    # diffusers fixes the groups of spatial norms at 32.
    model = VQModel(
        block_out_channels=(32, 32, 64),
        down_block_types=["DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
        layers_per_block=1,
        latent_channels=4,
        num_vq_embeddings=16,
        vq_embed_dim=4,
        norm_type="spatial",
    )
    load(model, lambda key: "movq." + key)
    image = values("movq.image", [2, 3, 16, 16]) * 2
    latents = model.encode(image).latents
    OUT["movq.latents"] = latents
    OUT["movq.image"] = model.decode(latents, force_not_quantize=True).sample


def schedulers():
    sample, predicted = values("step.sample", [1, 12]), values("step.predicted", [1, 12]) * 30
    prior = UnCLIPScheduler(
        variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=10.0
    )
    prior.set_timesteps(25)
    steps = prior.timesteps.tolist()
    OUT["unclip.timesteps"] = prior.timesteps
    for i in (0, 12, 23, 24):
        generator = torch.Generator().manual_seed(3)
        noise = torch.randn([1, 12], generator=generator)
        generator = torch.Generator().manual_seed(3)
        before = steps[i + 1] if i + 1 < len(steps) else None
        out = prior.step(predicted, steps[i], sample, prev_timestep=before, generator=generator)
        OUT[f"unclip.{i}"], OUT["step.noise"] = out.prev_sample, noise
    decoder = DDPMScheduler(
        beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample=False
    )
    decoder.set_timesteps(100)
    OUT["ddpm.timesteps"] = decoder.timesteps
    for i in (0, 50, 98, 99):
        generator = torch.Generator().manual_seed(3)
        out = decoder.step(predicted, decoder.timesteps[i], sample, generator=generator)
        OUT[f"ddpm.{i}"] = out.prev_sample


if __name__ == "__main__":
    controlnet()
    ip_adapter()
    fastcomposer()
    prior()
    image_unet()
    movq()
    schedulers()
    save_file(
        {name: x.detach().to(torch.float32).contiguous() for name, x in OUT.items()}, sys.argv[1]
    )
    for name, tensor in sorted(OUT.items()):
        print(f"{name}: {list(tensor.shape)}, largest {tensor.abs().max():.4f}")
