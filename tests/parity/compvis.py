"""CompVis's names of Stable Diffusion 1.x for diffusers' names, as in the authors' own files."""

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet(name, config):
    layers = config["layers_per_block"]
    top = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    head, _, last = name.rpartition(".")
    if head in top:
        return f"{top[head]}.{last}"
    parts = name.split(".")
    if parts[0] == "mid_block":
        kind, index, rest = parts[1], int(parts[2]), ".".join(parts[3:])
        place = f"middle_block.{1 if kind == 'attentions' else 2 * index}"
    else:
        side, level, kind, index = parts[0], int(parts[1]), parts[2], int(parts[3])
        rest = ".".join(parts[4:])
        down = side == "down_blocks"
        if kind == "downsamplers":
            return f"input_blocks.{(layers + 1) * (level + 1)}.0.op.{parts[-1]}"
        if kind == "upsamplers":
            place = 2 if config["up_block_types"][level].startswith("CrossAttn") else 1
            return f"output_blocks.{(layers + 1) * level + layers}.{place}.conv.{parts[-1]}"
        first = (layers + 1) * level + index
        block = f"input_blocks.{first + 1}" if down else f"output_blocks.{first}"
        place = f"{block}.{1 if kind == 'attentions' else 0}"
    if kind == "resnets":
        head, _, last = rest.rpartition(".")
        rest = f"{RESNET[head]}.{last}"
    return f"{place}.{rest}"


def autoencoder(name, levels):
    parts = name.split(".")
    if len(parts) < 4:
        return name.replace("conv_norm_out", "norm_out")
    side, block = parts[0], parts[1]
    if block == "mid_block":
        rest = ".".join(parts[4:])
        if parts[2] == "attentions":
            head, _, last = rest.rpartition(".")
            return f"{side}.mid.attn_1.{ATTENTION[head]}.{last}"
        place = f"{side}.mid.block_{int(parts[3]) + 1}"
    else:
        level, kind, rest = int(parts[2]), parts[3], ".".join(parts[5:])
        up = block == "up_blocks"
        place = f"{side}.up.{levels - 1 - level}" if up else f"{side}.down.{level}"
        if kind == "downsamplers":
            return f"{place}.downsample.{rest}"
        if kind == "upsamplers":
            return f"{place}.upsample.{rest}"
        place = f"{place}.block.{parts[4]}"
    return f"{place}.{rest.replace('conv_shortcut', 'nin_shortcut')}"
