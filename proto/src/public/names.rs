//! Tensor names in public files. Ours are those of CompVis for U-Net and autoencoder, and those of
//! Hugging Face for CLIP. Files of `diffusers` use other names (notes 3.2, 5.2); a Stable Diffusion
//! single file uses the same names with a prefix.

use crate::layout::UNetLayout;

/// Prefixes of a component's tensor names in a Stable Diffusion single file.
pub const SINGLE_FILE_UNET: &str = "model.diffusion_model.";
pub const SINGLE_FILE_AUTOENCODER: &str = "first_stage_model.";
pub const SINGLE_FILE_TEXT: &str = "cond_stage_model.transformer.";

/// Prefix of the moving average of the U-Net's tensors in a single file. Their names contain no
/// further dots.
pub const SINGLE_FILE_AVERAGE: &str = "model_ema.";

/// What a single file says about its noise schedule, as field and value. There is no standard:
/// trainers add a tensor `v_pred` to weights that predict v, and `ztsnr` if the last time step is
/// pure noise; others describe the model in the header (`modelspec.prediction_type`).
#[must_use]
pub fn single_file_noise(
    names: &[&str],
    metadata: &std::collections::BTreeMap<String, String>,
) -> Vec<(String, String)> {
    let marks = ["v_pred", "ztsnr"]
        .into_iter()
        .filter(|mark| names.contains(mark))
        .map(|mark| (mark.to_owned(), "present".to_owned()));
    let described = metadata.get_key_value(MODELSPEC_PREDICTION);
    marks
        .chain(described.map(|(field, value)| (field.clone(), value.clone())))
        .collect()
}

/// The field of a safetensors header for what a model predicts: "epsilon" or "v".
pub const MODELSPEC_PREDICTION: &str = "modelspec.prediction_type";

/// Recognizes tensor names of other models that may be mistaken for Stable Diffusion 1.
#[must_use]
pub fn foreign<'a>(mut names: impl Iterator<Item = &'a str>) -> Option<&'static str> {
    const PREFIXES: [(&str, &str); 5] = [
        ("cond_stage_model.model.", "Stable Diffusion 2"),
        ("conditioner.embedders.", "Stable Diffusion XL"),
        ("model.diffusion_model.joint_blocks.", "Stable Diffusion 3"),
        ("model.diffusion_model.double_blocks.", "Flux"),
        ("double_blocks.", "Flux"),
    ];
    names.find_map(|name| {
        let found = PREFIXES.iter().find(|(prefix, _)| name.starts_with(prefix));
        found.map(|(_, model)| *model)
    })
}

/// The file with the tensors of RetriNet that are not part of its U-Net, under full names. Written
/// by `coordinator checkpoint export`, read by jobs that use it as base weights and by `worker
/// forward`.
pub const RETRINET_FILE: &str = "retrinet.safetensors";

/// The metadata key in that file's header for the job's `[model.retrieval]` as JSON.
pub const RETRIEVAL_NOTE: &str = "retrieval";

/// The `diffusers` name of a U-Net tensor.
#[must_use]
pub fn diffusers_unet(name: &str, layout: &UNetLayout) -> Option<String> {
    let (part, rest) = name.split_once('.')?;
    if let ("time_embed", Some((layer, rest))) = (part, rest.split_once('.')) {
        let layer = layer.parse::<usize>().ok()? / 2 + 1;
        return Some(format!("time_embedding.linear_{layer}.{rest}"));
    }
    if part == "out" {
        let (layer, rest) = rest.split_once('.')?;
        let layer = if layer == "0" {
            "conv_norm_out"
        } else {
            "conv_out"
        };
        return Some(format!("{layer}.{rest}"));
    }
    let (block, rest) = rest.split_once('.')?;
    let block: usize = block.parse().ok()?;
    if part == "middle_block" {
        return match block {
            1 => Some(format!("mid_block.attentions.0.{rest}")),
            _ => Some(format!(
                "mid_block.resnets.{}.{}",
                block / 2,
                res_block(rest)?
            )),
        };
    }
    let (layer, rest) = rest.split_once('.')?;
    // Every level has one block more than `res_blocks`: in the encoder the downsampling block, in
    // the decoder the block that receives its skip connection.
    let blocks_per_level = layout.res_blocks + 1;
    match (part, layer) {
        ("input_blocks", _) if block == 0 => Some(format!("conv_in.{rest}")),
        ("input_blocks", _) => {
            let level = (block - 1) / blocks_per_level;
            let index = (block - 1) % blocks_per_level;
            if index == layout.res_blocks {
                let rest = rest.strip_prefix("op.")?;
                return Some(format!("down_blocks.{level}.downsamplers.0.conv.{rest}"));
            }
            block_name(&format!("down_blocks.{level}"), index, layer, rest)
        }
        ("output_blocks", _) => {
            let (level, index) = (block / blocks_per_level, block % blocks_per_level);
            match rest.strip_prefix("conv.") {
                Some(rest) if layer != "0" => {
                    Some(format!("up_blocks.{level}.upsamplers.0.conv.{rest}"))
                }
                _ => block_name(&format!("up_blocks.{level}"), index, layer, rest),
            }
        }
        _ => None,
    }
}

/// Our name for a `diffusers` tensor of the U-Net's encoder; None for all other tensors.
#[must_use]
pub fn encoder_from_diffusers(name: &str, layout: &UNetLayout) -> Option<String> {
    if let Some(rest) = name.strip_prefix("conv_in.") {
        return Some(format!("input_blocks.0.0.{rest}"));
    }
    let (level, rest) = name.strip_prefix("down_blocks.")?.split_once('.')?;
    let first = 1 + level.parse::<usize>().ok()? * (layout.res_blocks + 1);
    if let Some(rest) = rest.strip_prefix("downsamplers.0.conv.") {
        return Some(format!(
            "input_blocks.{}.0.op.{rest}",
            first + layout.res_blocks
        ));
    }
    let (kind, rest) = rest.split_once('.')?;
    let (index, rest) = rest.split_once('.')?;
    let block = first + index.parse::<usize>().ok()?;
    match kind {
        "attentions" => Some(format!("input_blocks.{block}.1.{rest}")),
        _ => {
            let part = RES_BLOCK
                .iter()
                .find_map(|(ours, theirs)| Some(format!("{ours}{}", rest.strip_prefix(theirs)?)));
            Some(format!("input_blocks.{block}.0.{}", part?))
        }
    }
}

/// The current `diffusers` name of an autoencoder tensor that an older release may have written.
#[must_use]
pub fn autoencoder_of_today(name: &str) -> String {
    const ATTENTION: &str = ".mid_block.attentions.0.";
    let names = [
        ("query", "to_q"),
        ("key", "to_k"),
        ("value", "to_v"),
        ("proj_attn", "to_out.0"),
    ];
    let renamed = names.iter().find_map(|(old, current)| {
        let (tower, kind) = name.split_once(&format!("{ATTENTION}{old}."))?;
        Some(format!("{tower}{ATTENTION}{current}.{kind}"))
    });
    renamed.unwrap_or_else(|| name.to_owned())
}

fn block_name(level: &str, index: usize, layer: &str, rest: &str) -> Option<String> {
    match layer {
        "0" => Some(format!("{level}.resnets.{index}.{}", res_block(rest)?)),
        _ => Some(format!("{level}.attentions.{index}.{rest}")),
    }
}

const RES_BLOCK: [(&str, &str); 6] = [
    ("in_layers.0.", "norm1."),
    ("in_layers.2.", "conv1."),
    ("emb_layers.1.", "time_emb_proj."),
    ("out_layers.0.", "norm2."),
    ("out_layers.3.", "conv2."),
    ("skip_connection.", "conv_shortcut."),
];

fn res_block(name: &str) -> Option<String> {
    RES_BLOCK
        .iter()
        .find_map(|(ours, theirs)| Some(format!("{theirs}{}", name.strip_prefix(ours)?)))
}

/// The `diffusers` names of an autoencoder tensor in a model with this many levels: the current
/// one, then that of older files.
#[must_use]
pub fn diffusers_autoencoder(name: &str, levels: usize) -> Vec<String> {
    let Some((tower, rest)) = name
        .split_once('.')
        .filter(|(tower, _)| ["encoder", "decoder"].contains(tower))
    else {
        // quant_conv and post_quant_conv have the same names.
        return vec![name.to_owned()];
    };
    let parts: Vec<&str> = rest.split('.').collect();
    let reversed = |level: &str| {
        level
            .parse()
            .map_or(0, |level: usize| (levels - 1).saturating_sub(level))
    };
    let found = match parts.as_slice() {
        ["mid", "attn_1", layer, kind] => {
            const LAYERS: [(&str, &str, &str); 5] = [
                ("norm", "group_norm", "group_norm"),
                ("q", "to_q", "query"),
                ("k", "to_k", "key"),
                ("v", "to_v", "value"),
                ("proj_out", "to_out.0", "proj_attn"),
            ];
            let layers = LAYERS.iter().find(|(ours, ..)| ours == layer);
            let named = |layer: &str| format!("mid_block.attentions.0.{layer}.{kind}");
            layers.map_or_else(Vec::new, |(_, current, old)| {
                vec![named(current), named(old)]
            })
        }
        ["mid", block, rest @ ..] => {
            let block = if *block == "block_1" { 0 } else { 1 };
            vec![format!("mid_block.resnets.{block}.{}", shortcut(rest))]
        }
        ["down", level, "block", block, rest @ ..] => {
            vec![format!(
                "down_blocks.{level}.resnets.{block}.{}",
                shortcut(rest)
            )]
        }
        ["down", level, "downsample", rest @ ..] => {
            vec![format!(
                "down_blocks.{level}.downsamplers.0.{}",
                rest.join(".")
            )]
        }
        ["up", level, "block", block, rest @ ..] => {
            let level = reversed(level);
            vec![format!(
                "up_blocks.{level}.resnets.{block}.{}",
                shortcut(rest)
            )]
        }
        ["up", level, "upsample", rest @ ..] => {
            vec![format!(
                "up_blocks.{}.upsamplers.0.{}",
                reversed(level),
                rest.join(".")
            )]
        }
        ["norm_out", kind] => vec![format!("conv_norm_out.{kind}")],
        _ => vec![rest.to_owned()],
    };
    found
        .into_iter()
        .map(|rest| format!("{tower}.{rest}"))
        .collect()
}

fn shortcut(parts: &[&str]) -> String {
    parts.join(".").replace("nin_shortcut", "conv_shortcut")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::size;

    #[test]
    fn unet_names_as_in_the_table_of_notes_3_2() {
        let layout = UNetLayout::from(&size::named("sd15").unwrap().0);
        for (ours, theirs) in [
            ("time_embed.0.weight", "time_embedding.linear_1.weight"),
            ("time_embed.2.bias", "time_embedding.linear_2.bias"),
            ("input_blocks.0.0.weight", "conv_in.weight"),
            (
                "input_blocks.1.0.in_layers.0.weight",
                "down_blocks.0.resnets.0.norm1.weight",
            ),
            (
                "input_blocks.5.1.proj_in.weight",
                "down_blocks.1.attentions.1.proj_in.weight",
            ),
            (
                "input_blocks.6.0.op.bias",
                "down_blocks.1.downsamplers.0.conv.bias",
            ),
            (
                "input_blocks.7.0.skip_connection.weight",
                "down_blocks.2.resnets.0.conv_shortcut.weight",
            ),
            (
                "input_blocks.11.0.emb_layers.1.weight",
                "down_blocks.3.resnets.1.time_emb_proj.weight",
            ),
            (
                "middle_block.0.out_layers.3.bias",
                "mid_block.resnets.0.conv2.bias",
            ),
            (
                "middle_block.1.norm.weight",
                "mid_block.attentions.0.norm.weight",
            ),
            (
                "middle_block.2.out_layers.0.bias",
                "mid_block.resnets.1.norm2.bias",
            ),
            (
                "output_blocks.2.1.conv.weight",
                "up_blocks.0.upsamplers.0.conv.weight",
            ),
            (
                "output_blocks.5.2.conv.weight",
                "up_blocks.1.upsamplers.0.conv.weight",
            ),
            (
                "output_blocks.5.1.transformer_blocks.0.attn2.to_out.0.bias",
                "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_out.0.bias",
            ),
            (
                "output_blocks.11.0.in_layers.2.weight",
                "up_blocks.3.resnets.2.conv1.weight",
            ),
            ("out.0.weight", "conv_norm_out.weight"),
            ("out.2.bias", "conv_out.bias"),
        ] {
            assert_eq!(
                diffusers_unet(ours, &layout).as_deref(),
                Some(theirs),
                "{ours}"
            );
            let back = encoder_from_diffusers(theirs, &layout);
            assert_eq!(
                back.as_deref(),
                Some(ours).filter(|it| it.starts_with("input_blocks"))
            );
        }
        assert_eq!(diffusers_unet("hint.0.weight", &layout), None);
    }

    #[test]
    fn autoencoder_names_count_decoder_levels_the_other_way_and_know_older_files() {
        for (ours, theirs) in [
            ("quant_conv.weight", "quant_conv.weight"),
            ("encoder.conv_in.bias", "encoder.conv_in.bias"),
            (
                "encoder.down.0.block.1.conv1.weight",
                "encoder.down_blocks.0.resnets.1.conv1.weight",
            ),
            (
                "encoder.down.1.block.0.nin_shortcut.bias",
                "encoder.down_blocks.1.resnets.0.conv_shortcut.bias",
            ),
            (
                "encoder.down.2.downsample.conv.weight",
                "encoder.down_blocks.2.downsamplers.0.conv.weight",
            ),
            (
                "encoder.mid.block_2.norm1.weight",
                "encoder.mid_block.resnets.1.norm1.weight",
            ),
            (
                "decoder.up.3.upsample.conv.bias",
                "decoder.up_blocks.0.upsamplers.0.conv.bias",
            ),
            (
                "decoder.up.0.block.2.norm2.weight",
                "decoder.up_blocks.3.resnets.2.norm2.weight",
            ),
            ("decoder.norm_out.bias", "decoder.conv_norm_out.bias"),
            ("decoder.conv_out.weight", "decoder.conv_out.weight"),
        ] {
            assert_eq!(diffusers_autoencoder(ours, 4), [theirs]);
        }
        let names = diffusers_autoencoder("decoder.mid.attn_1.proj_out.weight", 4);
        assert_eq!(
            names,
            [
                "decoder.mid_block.attentions.0.to_out.0.weight",
                "decoder.mid_block.attentions.0.proj_attn.weight"
            ]
        );
        assert!(
            names
                .iter()
                .all(|name| autoencoder_of_today(name) == names[0])
        );
    }
}
