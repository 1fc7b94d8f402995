"""Compares one training micro-step (forward, backward, optimizer) of our RetriNet with the same
network built from public PyTorch parts: blocks of `diffusers` and `transformers`, foreach AdamW and
scaled-dot-product attention. Both use fp32 on the CPU (figures: also bf16, PyTorch by autocast),
the same number of threads, libtorch, weights and inputs, and must compute the same losses. Part of
`make bench-model`.

    micro_step.py PROGRAM [--size small|figures|full|memory|all] [--resolution PIXELS] [--threads N]

`small` is the size of that name with four references, `figures` the networks of
deploy/jobs/figures.toml with two.

PROGRAM is the built `model/examples/micro_step.rs`. Prints medians, their ratio (ours / PyTorch's;
below 1 ours is faster) and the fraction of this machine's measured GEMM rate. The full size needs
about 20 GB and runs one implementation after the other; the small size alternates step by step, so
that changes of the machine's speed affect both. `memory` prints the peak memory of our full-size
step with and without activation checkpointing.
"""

import argparse
import copy
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from diffusers.models.attention_processor import Attention
from safetensors.torch import load_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

# Losses differ by rounding, which AdamW amplifies from the second step on.
LOSS_BOUND = {"fp32": 1e-3, "bf16": 3e-2}
STEPS = {"small": 15, "figures": 15, "full": 2}
CHECKPOINTED = "retrieval-encoder,cross-attention,decoder"


class Ours:
    """Our process: reads one line per step and prints one line per step."""

    def __init__(self, size, *options, environment=None):
        command = [ARGS.program, "--size", size, "--threads", str(ARGS.threads), *options]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.facts = self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{ARGS.program} ended with {self.process.wait()}")
        return json.loads(line)

    def step(self):
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return self.read()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def unet_config(facts):
    levels, attends = len(facts["channel_mult"]), facts["attention_levels"]
    down = [
        "CrossAttnDownBlock2D" if level in attends else "DownBlock2D" for level in range(levels)
    ]
    up = [
        "CrossAttnUpBlock2D" if level in attends else "UpBlock2D"
        for level in reversed(range(levels))
    ]
    return dict(
        block_out_channels=[facts["channels"] * mult for mult in facts["channel_mult"]],
        layers_per_block=facts["res_blocks"],
        attention_head_dim=facts["heads"],
        cross_attention_dim=facts["context_dim"],
        norm_num_groups=facts["norm_groups"],
        in_channels=facts["latent_channels"],
        out_channels=facts["latent_channels"],
        down_block_types=down,
        up_block_types=up,
    )


def vae_config(facts):
    levels = len(facts["channel_mult"])
    return dict(
        block_out_channels=[facts["channels"] * mult for mult in facts["channel_mult"]],
        layers_per_block=facts["res_blocks"],
        latent_channels=facts["latent_channels"],
        norm_num_groups=facts["norm_groups"],
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
    )


class Cross(nn.Module):
    """One cross-attention of the retrieval block with its zero convolution (notes 3.4)."""

    def __init__(self, width, heads):
        super().__init__()
        self.norm_q, self.norm_kv = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.attention = Attention(
            width, cross_attention_dim=width, heads=heads, dim_head=width // heads, bias=False
        )
        self.zero = nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.zero.weight)
        nn.init.zeros_(self.zero.bias)

    def forward(self, target, references):
        batch, width, height, _ = target.shape
        tokens = references.flatten(2).transpose(1, 2).reshape(batch, -1, width)
        queries = self.norm_q(target.flatten(2).transpose(1, 2))
        found = self.attention(queries, encoder_hidden_states=self.norm_kv(tokens))
        return self.zero(found.transpose(1, 2).unflatten(2, (height, -1)))


def encode(conv_in, blocks, sample, time, context):
    sample = conv_in(sample)
    features = [sample]
    for block in blocks:
        words = (
            {"encoder_hidden_states": context}
            if getattr(block, "has_cross_attention", False)
            else {}
        )
        sample, outputs = block(hidden_states=sample, temb=time, **words)
        features += outputs
    return features


class RetriNet(nn.Module):
    def __init__(self, facts):
        super().__init__()
        self.unet = UNet2DConditionModel(**unet_config(facts["unet"]))
        self.retrieval = nn.ModuleList(
            [copy.deepcopy(self.unet.conv_in), copy.deepcopy(self.unet.down_blocks)]
        )
        self.cross = nn.ModuleList(
            Cross(width, facts["unet"]["heads"]) for width in facts["widths"]
        )
        frozen = (
            self.unet.conv_in,
            self.unet.time_embedding,
            self.unet.down_blocks,
            self.unet.mid_block,
        )
        for part in frozen:
            part.requires_grad_(False)

    def forward(self, noisy, timesteps, context, references, words):
        unet, each = self.unet, len(references) // len(noisy)
        with torch.no_grad():
            time = unet.time_embedding(unet.time_proj(timesteps))
            features = encode(unet.conv_in, unet.down_blocks, noisy, time, context)
            sample = unet.mid_block(features[-1], time, encoder_hidden_states=context)
        found = encode(*self.retrieval, references, time.repeat_interleave(each, 0), words)
        features = [h + cross(h, g) for cross, h, g in zip(self.cross, features, found)]
        for block in unet.up_blocks:
            count = len(block.resnets)
            features, skips = features[:-count], tuple(features[-count:])
            more = (
                {"encoder_hidden_states": context}
                if getattr(block, "has_cross_attention", False)
                else {}
            )
            sample = block(hidden_states=sample, temb=time, res_hidden_states_tuple=skips, **more)
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(sample)))


class Theirs:
    """The same micro-step in PyTorch."""

    def __init__(self, facts, inputs, weights=None, precision="fp32"):
        self.autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
        text = facts["text_encoder"]
        # The file contains only floats.
        whole = {
            name: inputs[name].long()
            for name in ("timesteps", "prompt_ids", "word_ids", "word_index")
        }
        self.inputs, self.scaling = inputs | whole, facts["autoencoder"]["scaling_factor"]
        self.vae = AutoencoderKL(**vae_config(facts["autoencoder"])).requires_grad_(False)
        self.text = (
            CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=49408,
                    hidden_size=text["width"],
                    intermediate_size=4 * text["width"],
                    num_hidden_layers=text["layers"],
                    num_attention_heads=text["heads"],
                    max_position_embeddings=text["tokens"],
                    hidden_act="quick_gelu",
                    eos_token_id=49407,
                )
            )
            .eval()
            .requires_grad_(False)
        )
        self.net = RetriNet(facts)
        if weights:
            self.load(facts, weights)
        trained = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        self.count = sum(parameter.numel() for parameter in trained)
        self.optimizer = torch.optim.AdamW(
            trained, lr=facts["learning_rate"], weight_decay=0.01, foreach=True
        )
        with torch.no_grad():
            # Our implementation caches the states of the concept words, so this one does, too.
            self.words = self.text(self.inputs["word_ids"]).last_hidden_state

    def load(self, facts, folder):
        read = lambda name: load_file(f"{folder}/{name}.safetensors")
        prefixed = lambda tensors: {
            f"model.diffusion_model.{key}": value for key, value in tensors.items()
        }
        unet, own = read("unet"), read("retrinet")
        config = unet_config(facts["unet"])
        self.net.unet.load_state_dict(convert_ldm_unet_checkpoint(prefixed(unet), config))
        copies = {
            key.removeprefix("retrieval."): value
            for key, value in own.items()
            if key.startswith("retrieval.")
        }
        copies = convert_ldm_unet_checkpoint(prefixed({**unet, **copies}), config)
        for part, name in zip(self.net.retrieval, ("conv_in.", "down_blocks.")):
            part.load_state_dict(
                {key.removeprefix(name): it for key, it in copies.items() if key.startswith(name)}
            )
        for number, cross in enumerate(self.net.cross):
            names = {"norm_q.weight": "norm_q.weight", "norm_kv.weight": "norm_kv.weight"}
            names.update(
                {f"attention.{key}": key for key in ("to_q.weight", "to_k.weight", "to_v.weight")}
            )
            names.update(
                {f"attention.to_out.0.{key}": f"to_out.0.{key}" for key in ("weight", "bias")}
            )
            state = {
                theirs: own[f"cross_attention.{number}.{ours}"] for theirs, ours in names.items()
            }
            state.update(
                {f"zero.{key}": own[f"zero_convs.{number}.{key}"] for key in ("weight", "bias")}
            )
            cross.load_state_dict(state)
        vae = {f"first_stage_model.{key}": value for key, value in read("autoencoder").items()}
        self.vae.load_state_dict(convert_ldm_vae_checkpoint(vae, self.vae.config))
        missing, extra = self.text.load_state_dict(
            {key.removeprefix("text_model."): it for key, it in read("text_encoder").items()},
            strict=False,
        )
        if extra or [key for key in missing if "position_ids" not in key]:
            sys.exit(f"text encoder: missing {missing}, extra {extra}")

    def forward(self):
        inputs = self.inputs
        with torch.no_grad():
            latents = self.vae.encode(inputs["images"]).latent_dist.mean * self.scaling
            count = len(inputs["noise"])
            noisy = latents[:count] * inputs["signal"] + inputs["noise"] * inputs["level"]
            context = self.text(inputs["prompt_ids"]).last_hidden_state
        predicted = self.net(
            noisy, inputs["timesteps"], context, latents[count:], self.words[inputs["word_index"]]
        )
        difference = predicted - inputs["noise"]
        terms = [
            (difference * inputs[mask]).square().flatten(1).mean(1)
            for mask in ("target_mask", "face_mask")
        ]
        return (terms[0] + terms[1]).sum() / count

    def step(self):
        begun, cpu_begun = time.monotonic(), time.process_time()
        self.optimizer.zero_grad()
        with self.autocast:
            loss = self.forward()
        loss.backward()
        self.optimizer.step()
        return {
            "loss": loss.item(),
            "seconds": time.monotonic() - begun,
            "cpu_seconds": time.process_time() - cpu_begun,
        }

    def flops(self):
        """FLOPs of one forward and backward, as PyTorch counts them."""
        with FlopCounterMode(display=False) as counter:
            self.forward().backward()
        return counter.get_total_flops()


def gemm_rate():
    """FLOP/s of the fastest of several square fp32 matrix products."""
    side, times = 2048, []
    a, b = torch.randn(side, side), torch.randn(side, side)
    for _ in range(8):
        begun = time.monotonic()
        torch.mm(a, b)
        times.append(time.monotonic() - begun)
    return 2 * side**3 / min(times)


def report(name, facts, ours, theirs, flops, rates):
    median = lambda steps, what: statistics.median(step[what] for step in steps)
    medians, cpu = (
        [median(steps, what) for steps in (ours, theirs)] for what in ("seconds", "cpu_seconds")
    )
    rate = statistics.median(rates)
    print(
        f"{name}: {facts['trained']:,} trained values, "
        f"{flops / 1e9:,.1f} GFLOP per micro-step, {ARGS.threads} threads"
    )
    for side, steps, wall, cpu_time in zip(("ours", "PyTorch"), (ours, theirs), medians, cpu):
        times = [step["seconds"] for step in steps]
        print(
            f"  {side:<8} median {wall:8.3f} s of {len(steps)} "
            f"({min(times):.3f} to {max(times):.3f}), {cpu_time:.3f} s of "
            f"CPU time, {flops / wall / rate:.0%} of the GEMM rate of {rate / 1e9:,.0f} GFLOP/s"
        )
    # On a shared machine the CPU time is the more stable one.
    print(
        f"BENCH {name}: ours / PyTorch = {medians[0] / medians[1]:.3f} "
        f"(by CPU time {cpu[0] / cpu[1]:.3f})",
        flush=True,
    )


def agree(first, second, where, precision):
    if abs(first - second) > LOSS_BOUND[precision] * abs(second):
        sys.exit(
            f"{where}: our loss is {first}, PyTorch's {second}: these are not the same network"
        )


def small():
    compare("small", "fp32")


def figures():
    compare("figures", "fp32")
    compare("figures", "bf16")


def compare(size, precision):
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(size, "--export", folder, "--precision", precision)
        theirs = Theirs(ours.facts, load_file(f"{folder}/inputs.safetensors"), folder, precision)
    if theirs.count != ours.facts["trained"]:
        sys.exit(f"we train {ours.facts['trained']} values, PyTorch {theirs.count}")
    name = size if precision == "fp32" else f"{size} in {precision}"
    flops, found, rates = theirs.flops(), ([], []), []
    for number in range(2 + STEPS[size]):
        pair = ours.step(), theirs.step()
        agree(pair[0]["loss"], pair[1]["loss"], f"{name}, step {number + 1}", precision)
        rates.append(gemm_rate())
        if number >= 2:
            for steps, it in zip(found, pair):
                steps.append(it)
    ours.close()
    report(name, ours.facts, *found, flops, rates)


def full():
    rates = [gemm_rate()]
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours("full", "--export-inputs", folder, "--resolution", str(ARGS.resolution))
        inputs = load_file(f"{folder}/inputs.safetensors")
    steps = [ours.step() for _ in range(1 + STEPS["full"])]
    memory = steps[-1]["peak_memory_bytes"]
    ours.close()
    rates.append(gemm_rate())
    theirs = Theirs(ours.facts, inputs)
    if theirs.count != ours.facts["trained"]:
        sys.exit(f"we train {ours.facts['trained']} values, PyTorch {theirs.count}")
    # FLOPs are counted during the warm-up step.
    with FlopCounterMode(display=False) as counter:
        theirs.step()
    other = [theirs.step() for _ in range(STEPS["full"])]
    rates.append(gemm_rate())
    del theirs
    gc.collect()
    name = f"full at {ARGS.resolution} px"
    report(name, ours.facts, steps[1:], other, counter.get_total_flops(), rates)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"  memory   ours {memory / 1e9:.1f} GB at most, PyTorch's {peak / 1e9:.1f} GB")


def memory():
    print(
        "peak resident memory of a full-size micro-step, 384 px, N = 4, batch 1 "
        "(notes 7.4: about 21.7 GB in fp32)"
    )
    again = ("--checkpointing", CHECKPOINTED)
    # bf16 tensors have the same size as fp16, and a CPU computes them in acceptable time.
    half = ("--precision", "bf16")
    # Freed memory is returned to the kernel at once, so that resident memory is allocated memory.
    exact = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    for name, options in (
        ("fp32", ()),
        ("fp32, activation checkpointing", again),
        ("bf16", half),
        ("bf16, activation checkpointing", (*again, *half)),
    ):
        ours = Ours("full", *options, environment=exact)
        # Moments and gradients are allocated in the first step.
        step = ours.step()
        ours.close()
        print(
            f"BENCH memory, {name}: {step['peak_memory_bytes'] / 1e9:.2f} GB at most, "
            f"{ours.facts['memory_bytes'] / 1e9:.2f} GB of it before the step, "
            f"which took {step['seconds']:.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    sizes = ("small", "figures", "full", "memory", "all")
    parser.add_argument("--size", choices=sizes, default="all")
    parser.add_argument(
        "--resolution", type=int, default=384, help="of the full size; 384 is the paper's"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    ARGS = parser.parse_args()
    torch.set_num_threads(ARGS.threads)
    for part in (small, figures, full, memory):
        if ARGS.size in (part.__name__, "all"):
            part()
