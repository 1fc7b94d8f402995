"""Opens the exports of the paper's peers with the pipelines of `diffusers`, generates with each,
and compares its network with `worker forward` on the same folder.

    export_peers.py movq FOLDER      writes a random MoVQ of size small
    export_peers.py save RUN BASE    writes exported weights with the real torch.save
    export_peers.py check WORKER RUN opens the folders RUN/model-*
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import compvis
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    PriorTransformer,
    UNet2DConditionModel,
    VQModel,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPVisionModelWithProjection

BOUND = 1e-4
RESULTS = []
# With low_cpu_mem_usage diffusers requires another package.
PLAIN = {"low_cpu_mem_usage": False}


def check(name, good, message):
    RESULTS.append(good)
    print(f"{'ok  ' if good else 'OVER'} {name:<58} {message}", flush=True)


def close(name, ours, theirs):
    error = ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()
    check(name, error <= BOUND, f"{error:.2e} (at most {BOUND:.0e})")


def ours(worker, component, weights, inputs):
    with tempfile.TemporaryDirectory() as folder:
        save_file(inputs, f"{folder}/in.safetensors")
        command = [worker, "forward", "--component", component, "--weights", str(weights)]
        command += ["--inputs", f"{folder}/in.safetensors"]
        command += ["--outputs", f"{folder}/out.safetensors"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return load_file(f"{folder}/out.safetensors")


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def movq(folder):
    torch.manual_seed(0)
    model = VQModel(
        block_out_channels=(32, 64, 128),
        down_block_types=["DownEncoderBlock2D"] * 2 + ["AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 2,
        layers_per_block=1,
        latent_channels=4,
        num_vq_embeddings=16384,
        vq_embed_dim=4,
        norm_type="spatial",
    )
    model.save_pretrained(folder)


def opened(run, name):
    pipeline = DiffusionPipeline.from_pretrained(run / f"model-{name}", **PLAIN)
    pipeline.set_progress_bar_config(disable=True)
    check(f"DiffusionPipeline.from_pretrained, {name}", True, type(pipeline).__name__)
    return pipeline


def unet_inputs():
    return {
        "sample": normal(1, 2, 4, 16, 16),
        "timestep": torch.tensor([7, 801]),
        "encoder_hidden_states": normal(2, 2, 77, 48),
    }


def generated(name, **arguments):
    pipeline = arguments.pop("pipeline")
    image = pipeline(num_inference_steps=2, output_type="pt", **arguments).images
    check(f"{name} generates", bool(torch.isfinite(image).all()), list(image.shape))


def stable_diffusion(worker, run):
    text = {"prompt_embeds": normal(3, 1, 77, 48), "negative_prompt_embeds": normal(4, 1, 77, 48)}
    size = {"height": 64, "width": 64}
    inputs = unet_inputs()
    arguments = (inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"])
    # 1. ControlNet
    pipeline = opened(run, "controlnet")
    hint = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    generated("controlnet", pipeline=pipeline, image=hint, **text)
    with torch.no_grad():
        hints = hint.expand(2, -1, -1, -1).contiguous()
        down, mid = pipeline.controlnet(*arguments, hints, return_dict=False)
        expected = pipeline.unet(
            *arguments, down_block_additional_residuals=down, mid_block_additional_residual=mid
        ).sample
    given = {**inputs, "controlnet_cond": hints}
    found = ours(worker, "controlnet", run / "model-controlnet", given)["sample"]
    close("controlnet, exported", found, expected)
    # 2. IP-Adapter, by the loader that reads its authors' files
    pipeline = opened(run, "ip-adapter")
    folder = str(run / "model-ip-adapter")
    pipeline.load_ip_adapter(folder, subfolder="", weight_name="ip_adapter.safetensors", **PLAIN)
    pipeline.set_ip_adapter_scale(0.5)
    embeds = normal(6, 2, 1, 48)
    generated("ip-adapter", pipeline=pipeline, ip_adapter_image_embeds=[embeds], **size, **text)
    with torch.no_grad():
        expected = pipeline.unet(*arguments, added_cond_kwargs={"image_embeds": [embeds]}).sample
    given = {**inputs, "image_embeds": embeds, "scale": torch.tensor(0.5)}
    close("ip-adapter, exported", ours(worker, "ip-adapter", folder, given)["sample"], expected)
    # 3. FastComposer, whose fusion no pipeline reads
    pipeline = opened(run, "fastcomposer")
    generated("fastcomposer without its fusion", pipeline=pipeline, **size, **text)
    authors_file(run / "model-fastcomposer")


def authors_file(folder):
    """The file that FastComposer's code loads into one module, against the modules that it has. The
    names of its releases: an attention of the autoencoder, no text_model., and the positions."""
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def then(name):
        for today, older in old.items():
            attention = "mid_block.attentions.0"
            name = name.replace(f"{attention}.{today}.", f"{attention}.{older}.")
        return name

    unet = UNet2DConditionModel.from_pretrained(folder / "unet", **PLAIN)
    vae = AutoencoderKL.from_pretrained(folder / "vae", **PLAIN)
    text = CLIPTextModel.from_pretrained(folder / "text_encoder")
    image = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder")
    expected = {f"unet.{name}": it for name, it in unet.state_dict().items()}
    expected |= {f"vae.{then(name)}": it for name, it in vae.state_dict().items()}
    # transformers of today may also leave out text_model.
    texts = text.state_dict().items()
    expected |= {f"text_encoder.{name.removeprefix('text_model.')}": it for name, it in texts}
    expected |= {f"image_encoder.{name}": it for name, it in image.state_dict().items()}
    fusion = load_file(folder / "postfuse_module.safetensors").items()
    expected |= {f"postfuse_module.{name}": it for name, it in fusion}
    for tower, count in (("text_encoder", 77), ("image_encoder.vision_model", 65)):
        expected[f"{tower}.embeddings.position_ids"] = torch.arange(count)[None]
    same = state.keys() == expected.keys()
    same = same and all(torch.equal(state[name], it) for name, it in expected.items())
    wrong = sorted(state.keys() ^ expected.keys())[:4]
    check("FastComposer's pytorch_model.bin by torch.load", same, wrong or f"{len(state)} tensors")


def unclip(run):
    """Stable Diffusion's networks as Kandinsky's pipeline, against the same weights as they are."""
    pipeline = opened(run, "unclip/pipeline")
    embeds = {"image_embeds": normal(14, 1, 48), "negative_image_embeds": normal(15, 1, 48)}
    latents = normal(16, 1, 4, 16, 16)
    size = {"height": 64, "width": 64}
    generated("unclip-sd15", pipeline=pipeline, latents=latents, **size, **embeds)
    folder = run / "model-unclip"
    vae = AutoencoderKL.from_pretrained(folder / "vae", **PLAIN)
    scale = json.loads((folder / "vae/config.json").read_text())["scaling_factor"]
    pixels = normal(17, 1, 3, 64, 64)
    with torch.no_grad():
        encoded = vae.encode(pixels).latent_dist.mean * scale
        close("unclip-sd15, encoded by its movq", pipeline.movq.encode(pixels).latents, encoded)
        decoded = pipeline.movq.decode(latents, force_not_quantize=True).sample
        close("unclip-sd15, decoded by its movq", decoded, vae.decode(latents / scale).sample)
    own = load_file(folder / "unclip.safetensors")
    plain = UNet2DConditionModel.from_pretrained(folder / "unet", **PLAIN)
    embed = normal(18, 2, 48)
    linear = torch.nn.functional.linear
    norm = torch.nn.functional.layer_norm

    def projected(layer, of):
        return linear(of, own[f"{layer}.weight"], own[f"{layer}.bias"])

    def normed(layer, of):
        return norm(of, of.shape[-1:], own[f"{layer}.weight"], own[f"{layer}.bias"])

    added = normed("add_embedding.image_norm", projected("add_embedding.image_proj", embed))
    tokens = projected("encoder_hid_proj.image_embeds", embed).unflatten(1, (32, -1))
    tokens = normed("encoder_hid_proj.norm", tokens)
    plain.time_embedding.register_forward_hook(lambda module, given, out: out + added)
    given = unet_inputs()
    with torch.no_grad():
        expected = plain(given["sample"], given["timestep"], encoder_hidden_states=tokens).sample
        found = pipeline.unet(
            given["sample"],
            given["timestep"],
            encoder_hidden_states=None,
            added_cond_kwargs={"image_embeds": embed},
        ).sample
    close("unclip-sd15, noise of its U-Net", found[:, :4], expected)
    check("unclip-sd15, variance of its U-Net", not found[:, 4:].any(), "zero")


def save(run, base):
    """Weights of the exports in the files that authors published, by the real torch.save."""
    state = {}
    for name, tensor in load_file(run / "model-ip-adapter/ip_adapter.safetensors").items():
        part, rest = name.split(".", 1)
        state.setdefault(part, {})[rest] = tensor
    torch.save(state, run / "model-ip-adapter/ip-adapter_sd15.bin")
    folder = run / "model-controlnet"
    config = json.loads((folder / "unet/config.json").read_text())
    known = {}
    whole = {}
    for name, tensor in load_file(folder / "unet/diffusion_pytorch_model.safetensors").items():
        known[name] = compvis.unet(name, config)
        whole[f"model.diffusion_model.{known[name]}"] = tensor
    levels = len(json.loads((base / "vae/config.json").read_text())["block_out_channels"])
    for name, tensor in load_file(base / "vae/diffusion_pytorch_model.safetensors").items():
        # Its attention is a convolution there.
        if ".attentions." in name and tensor.dim() == 2:
            tensor = tensor[:, :, None, None]
        whole[f"first_stage_model.{compvis.autoencoder(name, levels)}"] = tensor.float()
    for name, tensor in load_file(base / "text_encoder/model.safetensors").items():
        name = name.removeprefix("text_model.")
        whole[f"cond_stage_model.transformer.text_model.{name}"] = tensor.float()
    branch = load_file(folder / "controlnet/diffusion_pytorch_model.safetensors")
    last = max(int(name.split(".")[2]) for name in branch if ".blocks." in name)
    for name, tensor in branch.items():
        parts = name.split(".")
        if name.startswith("controlnet_cond_embedding."):
            if parts[1] == "blocks":
                layer, rest = 1 + int(parts[2]), parts[3]
            else:
                layer, rest = (0 if parts[1] == "conv_in" else last + 2), parts[2]
            ours = f"input_hint_block.{2 * layer}.{rest}"
        elif name.startswith("controlnet_down_blocks."):
            ours = f"zero_convs.{parts[1]}.0.{parts[2]}"
        elif name.startswith("controlnet_mid_block."):
            ours = f"middle_block_out.0.{parts[1]}"
        else:
            ours = known[name]
        whole[f"control_model.{ours}"] = tensor
    torch.save(whole, run / "control_sd15_small.pth")


def kandinsky(worker, run):
    pipeline = opened(run, "kandinsky-decoder")
    embeds = {"image_embeds": normal(7, 1, 48), "negative_image_embeds": normal(8, 1, 48)}
    latents = normal(9, 1, 4, 16, 16)
    generated(
        "kandinsky-decoder", pipeline=pipeline, height=64, width=64, latents=latents, **embeds
    )
    inputs = unet_inputs()
    del inputs["encoder_hidden_states"]
    inputs["image_embeds"] = normal(10, 2, 48)
    with torch.no_grad():
        expected = pipeline.unet(
            inputs["sample"],
            inputs["timestep"],
            encoder_hidden_states=None,
            added_cond_kwargs={"image_embeds": inputs["image_embeds"]},
        ).sample
    folder = run / "model-kandinsky-decoder"
    close(
        "kandinsky-decoder, exported",
        ours(worker, "image-unet", folder / "unet", inputs)["sample"],
        expected,
    )
    folder = run / "model-kandinsky-prior" / "prior"
    prior, report = PriorTransformer.from_pretrained(folder, output_loading_info=True, **PLAIN)
    wrong = {key: list(value) for key, value in report.items() if value}
    check("PriorTransformer.from_pretrained", not wrong, wrong or "every tensor")
    given = {
        "hidden_states": normal(11, 2, 48),
        "timestep": torch.tensor([7, 801]),
        "proj_embedding": normal(12, 2, 48),
        "encoder_hidden_states": normal(13, 2, 77, 48),
        "attention_mask": torch.ones(2, 77),
    }
    with torch.no_grad():
        expected = prior(**given).predicted_image_embedding
    found = ours(worker, "prior", folder, given)["predicted_image_embedding"]
    close("kandinsky-prior, exported", found, expected)


if __name__ == "__main__":
    if sys.argv[1] == "movq":
        movq(sys.argv[2])
        sys.exit(0)
    if sys.argv[1] == "save":
        save(Path(sys.argv[2]), Path(sys.argv[3]))
        sys.exit(0)
    WORKER, RUN = sys.argv[2], Path(sys.argv[3])
    stable_diffusion(WORKER, RUN)
    kandinsky(WORKER, RUN)
    unclip(RUN)
    print(f"exports of the peers: {sum(RESULTS)} of {len(RESULTS)}")
    sys.exit(0 if all(RESULTS) else 1)
