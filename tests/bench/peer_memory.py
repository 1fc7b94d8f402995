"""Memory of the paper's peers at their published sizes from the sizes of tensors, without
computing: their public networks run on fake tensors, and what autograd keeps is counted.

    peer_memory.py

Weights that train are fp32 with gradients and two moments, and an fp16 copy while a step runs;
frozen ones are fp16. Activations are fp16 and for one sample at 256 pixels.
"""

import torch
from diffusers import ControlNetModel, PriorTransformer, UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode

SD15 = dict(cross_attention_dim=768, attention_head_dim=8)
CLIP_TEXT, CLIP_VISION, VIT_H = 123_060_480, 303_966_208, 632_076_800
VAE, MOVQ, BIG_G_TEXT, BIG_G_IMAGE = 83_653_863, 67_000_000, 694_659_840, 1_844_907_264


def count(*models):
    return sum(p.numel() for model in models for p in model.parameters())


def kept(run, *models):
    """Bytes of what autograd keeps of a forward pass, without the weights."""
    weights = {p.untyped_storage()._cdata for model in models for p in model.parameters()}
    sizes = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            sizes[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    del out
    return sum(sizes.values())


def row(name, trained, frozen, activations, batch):
    giga = 1e9
    static = trained * 18 + frozen * 2
    total = static + batch * activations
    fits = ["yes" if total < size * giga * 0.94 else "no" for size in (16, 32)]
    print(
        f"| {name} | {trained:,} | {static / giga:.1f} | {activations / giga:.2f} | {batch} | "
        f"{total / giga:.1f} | {fits[0]} | {fits[1]} |"
    )


def half(*shape):
    return torch.empty(*shape, dtype=torch.float16)


def controlnet(unet, unlocked):
    branch = ControlNetModel(**SD15)
    unet.requires_grad_(False)
    if unlocked:
        for part in (unet.up_blocks, unet.conv_norm_out, unet.conv_out):
            part.requires_grad_(True)
    x, t, text = half(1, 4, 32, 32), torch.tensor([5]), half(1, 77, 768)

    def run():
        down, mid = branch(x, t, text, half(1, 3, 256, 256), return_dict=False)
        return unet(
            x, t, text, down_block_additional_residuals=down, mid_block_additional_residual=mid
        ).sample

    activations = kept(run, unet, branch)
    decoder = sum(p.numel() for p in unet.parameters() if p.requires_grad)
    trained = count(branch) + decoder
    frozen = count(unet) - decoder + VAE + CLIP_TEXT
    return trained, frozen, activations


def main():
    with FakeTensorMode():
        unet = UNet2DConditionModel(**SD15)
        x, t, text = half(1, 4, 32, 32), torch.tensor([5]), half(1, 77, 768)
        whole = kept(lambda: unet(x, t, text).sample, unet)
        row("controlnet", *controlnet(unet, False), 4)
        row("controlnet, unlocked", *controlnet(unet, True), 4)
        unet.requires_grad_(False)
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(".attn2.to_k." in name or ".attn2.to_v." in name)
        # The adapter's keys and values reach as far as those of the text.
        adapter = kept(lambda: unet(x, t, text).sample, unet)
        row("ip-adapter", 22_319_616, count(unet) + VAE + CLIP_TEXT + VIT_H, adapter, 8)
        frozen = VAE + CLIP_TEXT + CLIP_VISION - 25_192_448
        row("fastcomposer", 887_671_748, frozen, whole, 16)
        del unet
        kandinsky = UNet2DConditionModel(
            out_channels=8,
            block_out_channels=(384, 768, 1152, 1536),
            layers_per_block=3,
            down_block_types=["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3,
            up_block_types=["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"],
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            attention_head_dim=64,
            cross_attention_dim=768,
            encoder_hid_dim=1280,
            encoder_hid_dim_type="image_proj",
            addition_embed_type="image",
            resnet_time_scale_shift="scale_shift",
        )
        added = {"image_embeds": half(1, 1280)}
        run = lambda: kandinsky(x, t, encoder_hidden_states=None, added_cond_kwargs=added).sample
        row("kandinsky-decoder", count(kandinsky), MOVQ + BIG_G_IMAGE, kept(run, kandinsky), 1)
        prior = PriorTransformer(embedding_dim=1280)
        trained = count(prior) - 2560
        run = lambda: prior(half(1, 1280), t, half(1, 1280), half(1, 77, 1280))[0]
        row("kandinsky-prior", trained, BIG_G_TEXT + BIG_G_IMAGE, kept(run, prior), 1)


torch.set_default_dtype(torch.float16)
main()
