"""Opens the exports of the paper's peers with the pipelines of `diffusers`, generates with each,
and compares its network with `worker forward` on the same folder.

    export_peers.py movq FOLDER      writes a random MoVQ of size small
    export_peers.py check WORKER RUN opens the folders RUN/model-*
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, PriorTransformer, VQModel
from safetensors.torch import load_file, save_file

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


def kandinsky(worker, run):
    pipeline = opened(run, "kandinsky-decoder")
    embeds = {"image_embeds": normal(7, 1, 48), "negative_image_embeds": normal(8, 1, 48)}
    latents = normal(9, 1, 4, 16, 16)
    generated(
        "kandinsky-decoder", pipeline=pipeline, height=128, width=128, latents=latents, **embeds
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
    WORKER, RUN = sys.argv[2], Path(sys.argv[3])
    stable_diffusion(WORKER, RUN)
    kandinsky(WORKER, RUN)
    print(f"exports of the peers: {sum(RESULTS)} of {len(RESULTS)}")
    sys.exit(0 if all(RESULTS) else 1)
