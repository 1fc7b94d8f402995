"""Compares one training micro-step of each of the paper's peers with the same network built from
public PyTorch parts: networks of `diffusers` and `transformers`, foreach AdamW and
scaled-dot-product attention (FastComposer's localisation keeps probabilities, for which its authors
and this comparison compute attention step by step). Both use fp32 on the CPU, the same number of
threads, libtorch, weights and inputs, and must compute the same losses. Part of `make bench-model`.

    peer_step.py PROGRAM [--peer NAME|all] [--size small|full|all] [--resolution PIXELS]
                 [--threads N]

`small` is eight samples at 64 pixels with the update, step by step in turns. `full` is forward and
backward of one sample at the published widths, one implementation after the other: at 256 pixels,
Kandinsky's decoder at 128, which then needs 18 GB.

PROGRAM is the built `model/examples/peer_step.rs`.
"""

import argparse
import gc
import sys
import tempfile

import micro_step
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    PriorTransformer,
    UNet2DConditionModel,
    VQModel,
)
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from micro_step import Ours, agree, gemm_rate, report, unet_config, vae_config
from safetensors.torch import load_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

STEPS = {"small": 9, "full": 2}
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
DEVIATION = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
WHOLE = ("timesteps", "prompt_ids", "subject")


def load(model, tensors):
    """Strict, but for prefixes that releases of transformers give to a tower or not."""
    keys = set(model.state_dict())

    def name(key):
        short = key.removeprefix("vision_model.").removeprefix("text_model.")
        return key if key in keys else short

    missing, extra = model.load_state_dict({name(k): it for k, it in tensors.items()}, strict=False)
    missing = [key for key in missing if "position_ids" not in key]
    if missing or extra:
        sys.exit(f"{type(model).__name__}: missing {missing[:4]}, extra {extra[:4]}")


def diffusers_names(names, config):
    """The names that diffusers gives to CompVis's names of a U-Net."""
    names = list(names)
    numbers = {f"model.diffusion_model.{name}": torch.tensor(i) for i, name in enumerate(names)}
    converted = convert_ldm_unet_checkpoint(numbers, config)
    return {names[number]: theirs for theirs, number in converted.items()}


class Peer:
    """The parts that peers share. `read` gives the weights of a component of ours."""

    parts = ("vae", "text", "unet")

    def __init__(self, facts, inputs, read):
        self.facts = facts
        # The file contains only floats.
        self.inputs = {key: it.long() if key in WHOLE else it for key, it in inputs.items()}
        for part in self.parts:
            getattr(self, f"make_{part}")(read)
        self.make(read)
        trained = [it for it in self.trained() if it.requires_grad]
        self.count = sum(it.numel() for it in trained)
        self.optimizer = torch.optim.AdamW(
            trained, lr=facts["learning_rate"], weight_decay=facts["weight_decay"], foreach=True
        )

    def make_vae(self, read):
        self.vae = AutoencoderKL(**vae_config(self.facts["autoencoder"])).requires_grad_(False)
        if read:
            vae = {f"first_stage_model.{key}": it for key, it in read("autoencoder").items()}
            self.vae.load_state_dict(convert_ldm_vae_checkpoint(vae, self.vae.config))

    def make_text(self, read, projection=None, activation="quick_gelu"):
        text = self.facts["text_encoder"]
        config = CLIPTextConfig(
            vocab_size=49408,
            hidden_size=text["width"],
            intermediate_size=4 * text["width"],
            num_hidden_layers=text["layers"],
            num_attention_heads=text["heads"],
            max_position_embeddings=text["tokens"],
            hidden_act=activation,
            eos_token_id=49407,
            projection_dim=projection or text["width"],
        )
        kind = CLIPTextModelWithProjection if projection else CLIPTextModel
        self.text = kind(config).eval().requires_grad_(False)
        if read:
            load(self.text, read("text_encoder"))

    def make_image(self, read):
        image = self.facts["image_encoder"]
        config = CLIPVisionConfig(
            hidden_size=image["width"],
            intermediate_size=image["mlp_width"],
            num_hidden_layers=image["layers"],
            num_attention_heads=image["heads"],
            image_size=image["side"],
            patch_size=image["patch"],
            projection_dim=image["projection"],
            hidden_act=image["activation"].replace("-", "_"),
        )
        self.image = CLIPVisionModelWithProjection(config).eval().requires_grad_(False)
        if read:
            load(self.image, read("image_encoder"))

    def make_unet(self, read):
        config = unet_config(self.facts["unet"])
        self.unet = UNet2DConditionModel(**config)
        if read:
            unet = read("unet")
            self.names = diffusers_names(unet, config)
            self.unet.load_state_dict({self.names[key]: it for key, it in unet.items()})

    def noisy(self):
        inputs = self.inputs
        with torch.no_grad():
            scale = self.facts["autoencoder"]["scaling_factor"]
            latents = self.vae.encode(inputs["images"]).latent_dist.mean * scale
            context = self.text(inputs["prompt_ids"]).last_hidden_state
        return latents * inputs["signal"] + inputs["noise"] * inputs["level"], context

    def embeddings(self):
        return self.image(pixel_values=(self.inputs["views"] - MEAN) / DEVIATION).image_embeds

    def step(self, update):
        begun = micro_step.time.monotonic(), micro_step.time.process_time()
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        if update:
            self.optimizer.step()
        return {
            "loss": loss.item(),
            "seconds": micro_step.time.monotonic() - begun[0],
            "cpu_seconds": micro_step.time.process_time() - begun[1],
        }


class ControlNet(Peer):
    def make(self, read):
        config = unet_config(self.facts["unet"])
        self.unet.requires_grad_(False)
        for of_decoder in ("out_channels", "up_block_types"):
            del config[of_decoder]
        halvings = len(self.facts["autoencoder"]["channel_mult"]) - 1
        hint = (16, 32, 96, 256)[: halvings + 1]
        self.branch = ControlNetModel(conditioning_embedding_out_channels=hint, **config)
        if read:
            branch = read("controlnet")
            self.branch.load_state_dict(
                {self.branch_name(key, len(hint)): it for key, it in branch.items()}
            )

    def branch_name(self, key, widths):
        parts = key.split(".")
        if parts[0] == "input_hint_block":
            layer, last = int(parts[1]) // 2, 2 * widths - 1
            name = {0: "conv_in", last: "conv_out"}.get(layer, f"blocks.{layer - 1}")
            return f"controlnet_cond_embedding.{name}.{parts[2]}"
        if parts[0] == "zero_convs":
            return f"controlnet_down_blocks.{parts[1]}.{parts[3]}"
        if parts[0] == "middle_block_out":
            return f"controlnet_mid_block.{parts[2]}"
        return self.names[key]

    def trained(self):
        return self.branch.parameters()

    def loss(self):
        noisy, context = self.noisy()
        timesteps = self.inputs["timesteps"]
        down, middle = self.branch(
            noisy, timesteps, context, self.inputs["hints"], return_dict=False
        )
        predicted = self.unet(
            noisy,
            timesteps,
            context,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample
        return F.mse_loss(predicted, self.inputs["noise"])


class IpAdapter(Peer):
    parts = ("vae", "text", "unet", "image")

    def make(self, read):
        if read:
            state = {}
            for key, tensor in read("ip_adapter").items():
                part, rest = key.split(".", 1)
                state.setdefault(part, {})[rest] = tensor
        else:
            state = self.random()
        self.unet._load_ip_adapter_weights([state], low_cpu_mem_usage=False)
        self.unet.requires_grad_(False)
        for processor in self.unet.attn_processors.values():
            if isinstance(processor, nn.Module):
                processor.requires_grad_(True)
                processor.scale = [1.0]
        self.unet.encoder_hid_proj.requires_grad_(True)

    def random(self):
        context = self.facts["unet"]["context_dim"]
        width = self.facts["image_encoder"]["projection"]
        state = {"image_proj": {}, "ip_adapter": {}}
        for key, shape in (("proj", (4 * context, width)), ("norm", (context,))):
            state["image_proj"][f"{key}.weight"] = torch.randn(shape) * 0.02
            state["image_proj"][f"{key}.bias"] = torch.zeros(shape[0])
        for number, name in enumerate(self.unet.attn_processors):
            if name.endswith("attn2.processor"):
                keys = self.unet.get_submodule(name.removesuffix(".processor")).to_k.weight
                for kind in ("to_k_ip", "to_v_ip"):
                    weight = torch.randn(keys.shape) * 0.02
                    state["ip_adapter"][f"{number}.{kind}.weight"] = weight
        return state

    def trained(self):
        return self.unet.parameters()

    def loss(self):
        noisy, context = self.noisy()
        with torch.no_grad():
            embeds = self.embeddings()[:, None]
        predicted = self.unet(
            noisy,
            self.inputs["timesteps"],
            context,
            added_cond_kwargs={"image_embeds": [embeds]},
        ).sample
        return F.mse_loss(predicted, self.inputs["noise"])


class Storing:
    """Keeps the attention probabilities of a layer."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
        value = attn.head_to_batch_dim(attn.to_v(encoder_hidden_states))
        found = attn.get_attention_scores(query, key)
        self.kept = found.unflatten(0, (len(hidden_states), -1))
        return attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(found @ value)))


class Mlp(nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        self.layernorm = nn.LayerNorm(inputs)
        self.fc1, self.fc2 = nn.Linear(inputs, width), nn.Linear(width, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(self.layernorm(x))))


class Fusion(nn.Module):
    """`postfuse_module` of FastComposer's authors."""

    def __init__(self, width):
        super().__init__()
        self.mlp1, self.mlp2 = Mlp(2 * width, width), Mlp(width, width)
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, states, embeds):
        fused = states + self.mlp1(torch.cat([states, embeds], -1))
        return self.layer_norm(fused + self.mlp2(fused))


class FastComposer(Peer):
    parts = ("vae", "text", "unet", "image")

    def make(self, read):
        self.fusion = Fusion(self.facts["text_encoder"]["width"])
        if read:
            self.fusion.load_state_dict(read("postfuse_module"))
        tower = getattr(self.image, "vision_model", self.image)
        for layer in tower.encoder.layers[-2:]:
            layer.requires_grad_(True)
        last = len(self.facts["unet"]["channel_mult"]) - 1
        outer = ("down_blocks.0.", f"up_blocks.{last}.")
        processors = self.unet.attn_processors
        for name in processors:
            if name.endswith("attn2.processor") and not name.startswith(outer):
                processors[name] = Storing()
        self.unet.set_attn_processor(processors)

    def trained(self):
        return [*self.unet.parameters(), *self.fusion.parameters(), *self.image.parameters()]

    def localization(self):
        figures, subject = self.inputs["figures"], self.inputs["subject"]
        layers = []
        for processor in self.unet.attn_processors.values():
            if not isinstance(processor, Storing):
                continue
            kept = processor.kept
            column = kept[torch.arange(len(kept)), :, :, subject]
            side = int(column.shape[-1] ** 0.5)
            column = column.unflatten(2, (side, side))
            mask = F.interpolate(figures, size=(side, side), mode="bilinear", antialias=True)
            mean = lambda of: (column * of).sum((2, 3)) / (of.sum((2, 3)) + 1e-5)
            layers.append((mean(1 - mask) - mean(mask)).mean(1))
        return torch.stack(layers).mean(0) / (1 + 1e-5)

    def loss(self):
        noisy, context = self.noisy()
        rows, subject = torch.arange(len(noisy)), self.inputs["subject"]
        fused = context.clone()
        fused[rows, subject] = self.fusion(context[rows, subject], self.embeddings())
        predicted = self.unet(noisy, self.inputs["timesteps"], fused).sample
        error = (predicted - self.inputs["noise"]).square().flatten(1).mean(1)
        return (error + self.facts["localization"] * self.localization()).mean()


class KandinskyPrior(Peer):
    parts = ("image",)

    def make(self, read):
        prior, embedding = self.facts["prior"], self.facts["image_encoder"]["projection"]
        projected = prior["text_projection"]
        activation = self.facts["image_encoder"]["activation"].replace("-", "_")
        self.make_text(read, embedding if projected else None, activation)
        self.prior = PriorTransformer(
            num_attention_heads=prior["heads"],
            attention_head_dim=prior["width"] // prior["heads"],
            num_layers=prior["layers"],
            embedding_dim=embedding,
            num_embeddings=self.facts["text_encoder"]["tokens"],
        )
        # As it begins without published weights.
        self.prior.clip_mean.data.zero_()
        self.prior.clip_std.data.fill_(1.0)
        if read:
            self.prior.load_state_dict(read("prior"))
        self.prior.clip_mean.requires_grad_(False)
        self.prior.clip_std.requires_grad_(False)

    def trained(self):
        return self.prior.parameters()

    def loss(self):
        inputs, ids = self.inputs, self.inputs["prompt_ids"]
        with torch.no_grad():
            found = self.text(ids)
            projected = self.facts["prior"]["text_projection"]
            embedding = found.text_embeds if projected else found.pooler_output
            clean = (self.embeddings() - self.prior.clip_mean) / self.prior.clip_std
            noisy = clean * inputs["signal"] + inputs["noise"] * inputs["level"]
            ends = (ids == 49407).long()
            mask = (ends.cumsum(1) - ends) == 0
        predicted = self.prior(
            noisy, inputs["timesteps"], embedding, found.last_hidden_state, mask
        ).predicted_image_embedding
        return F.mse_loss(predicted, clean)


class KandinskyDecoder(Peer):
    parts = ("image",)

    def make(self, read):
        autoencoder, unet = self.facts["autoencoder"], self.facts["unet"]
        levels = len(autoencoder["channel_mult"])
        self.movq = VQModel(
            block_out_channels=[autoencoder["channels"] * it for it in autoencoder["channel_mult"]],
            down_block_types=["DownEncoderBlock2D"] * (levels - 1) + ["AttnDownEncoderBlock2D"],
            up_block_types=["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * (levels - 1),
            layers_per_block=autoencoder["res_blocks"],
            latent_channels=autoencoder["latent_channels"],
            num_vq_embeddings=16384,
            vq_embed_dim=autoencoder["latent_channels"],
            norm_type="spatial",
        ).requires_grad_(False)
        widths = [unet["channels"] * it for it in unet["channel_mult"]]
        further = len(widths) - 1
        self.unet = UNet2DConditionModel(
            in_channels=unet["latent_channels"],
            out_channels=2 * unet["latent_channels"],
            block_out_channels=widths,
            layers_per_block=unet["res_blocks"],
            down_block_types=["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * further,
            up_block_types=["SimpleCrossAttnUpBlock2D"] * further + ["ResnetUpsampleBlock2D"],
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            attention_head_dim=widths[1] // unet["heads"],
            cross_attention_dim=unet["context_dim"],
            encoder_hid_dim=self.facts["image_encoder"]["projection"],
            encoder_hid_dim_type="image_proj",
            addition_embed_type="image",
            resnet_time_scale_shift="scale_shift",
            norm_num_groups=unet["norm_groups"],
        )
        if read:
            self.movq.load_state_dict(read("autoencoder"))
            self.unet.load_state_dict(read("unet"))

    def trained(self):
        return self.unet.parameters()

    def loss(self):
        inputs = self.inputs
        with torch.no_grad():
            latents = self.movq.encode(inputs["images"]).latents
            embeds = self.embeddings()
            noisy = latents * inputs["signal"] + inputs["noise"] * inputs["level"]
        predicted = self.unet(
            noisy,
            inputs["timesteps"],
            encoder_hidden_states=None,
            added_cond_kwargs={"image_embeds": embeds},
        ).sample
        return F.mse_loss(predicted[:, : latents.shape[1]], inputs["noise"])


PEERS = {
    "controlnet": ControlNet,
    "ip-adapter": IpAdapter,
    "fastcomposer": FastComposer,
    "kandinsky-prior": KandinskyPrior,
    "kandinsky-decoder": KandinskyDecoder,
}


def ours_of(name, size, *options):
    return Ours(size, "--architecture", name, *options)


def same_count(ours, theirs):
    if theirs.count != ours.facts["trained"]:
        sys.exit(f"we train {ours.facts['trained']} values, PyTorch {theirs.count}")


def small(name):
    with tempfile.TemporaryDirectory() as folder:
        ours = ours_of(name, "small", "--export", folder, "--update")
        read = lambda component: load_file(f"{folder}/{component}.safetensors")
        theirs = PEERS[name](ours.facts, read("inputs"), read)
    same_count(ours, theirs)
    with FlopCounterMode(display=False) as counter:
        theirs.loss().backward()
    found, rates = ([], []), []
    for number in range(2 + STEPS["small"]):
        pair = ours.step(), theirs.step(update=True)
        agree(pair[0]["loss"], pair[1]["loss"], f"{name}, step {number + 1}", "fp32")
        rates.append(gemm_rate())
        if number >= 2:
            for steps, it in zip(found, pair):
                steps.append(it)
    ours.close()
    report(f"{name}, small", ours.facts, *found, counter.get_total_flops(), rates)


def full(name):
    side = ARGS.resolution or (128 if name == "kandinsky-decoder" else 256)
    rates = [gemm_rate()]
    with tempfile.TemporaryDirectory() as folder:
        options = ("--export-inputs", folder, "--resolution", str(side))
        ours = ours_of(name, "full", *options)
        inputs = load_file(f"{folder}/inputs.safetensors")
    steps = [ours.step() for _ in range(1 + STEPS["full"])]
    ours.close()
    rates.append(gemm_rate())
    theirs = PEERS[name](ours.facts, inputs, None)
    same_count(ours, theirs)
    # FLOPs are counted during the warm-up step.
    with FlopCounterMode(display=False) as counter:
        theirs.step(update=False)
    other = [theirs.step(update=False) for _ in range(STEPS["full"])]
    rates.append(gemm_rate())
    del theirs
    gc.collect()
    title = f"{name}, published size at {side} px, forward and backward"
    report(title, ours.facts, steps[1:], other, counter.get_total_flops(), rates)
    print(f"  memory   ours {steps[-1]['peak_memory_bytes'] / 1e9:.1f} GB at most")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("--peer", choices=(*PEERS, "all"), default="all")
    parser.add_argument("--size", choices=("small", "full", "all"), default="all")
    parser.add_argument("--resolution", type=int, help="of the published size")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    ARGS = micro_step.ARGS = parser.parse_args()
    torch.set_num_threads(ARGS.threads)
    torch.manual_seed(0)
    for name in PEERS if ARGS.peer == "all" else [ARGS.peer]:
        for size in (small, full):
            if ARGS.size in (size.__name__, "all"):
                size(name)
