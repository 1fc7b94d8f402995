//! Writes the `config.json` that `diffusers` and `transformers` need for our weights. The inverse
//! of [`super::config`]. Pure.

use crate::architecture::Clip;
use crate::layout::{CLIP_END, CLIP_VOCABULARY};
use crate::spec::{AutoencoderConfig, Model, TextEncoderConfig, UNetConfig};
use serde_json::{Value, json};

/// The release of diffusers that defines these fields; newer releases read them too.
pub(super) const DIFFUSERS: &str = "0.42.1";

/// The config of a component ("autoencoder", "text_encoder", "unet" or "clip") of a
/// model that works at
/// `resolution` pixels; None: its architecture has no such component.
#[must_use]
pub fn config(component: &str, model: &Model, resolution: u32) -> Option<String> {
    let architecture = &model.architecture;
    let config = match component {
        "autoencoder" => autoencoder(architecture.autoencoder()?, resolution),
        "text_encoder" => text(architecture.text_encoder()?),
        "clip" => clip(architecture.clip()?, resolution),
        _ => unet(
            architecture.unet()?,
            resolution / architecture.autoencoder()?.factor(),
        ),
    };
    Some(format!("{config:#}\n"))
}

fn unet(config: &UNetConfig, side: u32) -> Value {
    let levels = 0..config.channel_mult.len() as u32;
    let blocks = |plain: &str, attends: &str| -> Vec<String> {
        let kind = |level: u32| {
            if config.attention_levels.contains(&level) {
                attends
            } else {
                plain
            }
        };
        levels.clone().map(|level| kind(level).to_owned()).collect()
    };
    let down = blocks("DownBlock2D", "CrossAttnDownBlock2D");
    let mut up = blocks("UpBlock2D", "CrossAttnUpBlock2D");
    up.reverse();
    json!({
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": DIFFUSERS,
        "act_fn": "silu",
        // The field's name is a historical mistake: it holds the number of heads.
        "attention_head_dim": config.heads,
        "block_out_channels": widths(config.channels, &config.channel_mult),
        "cross_attention_dim": config.context_dim,
        "down_block_types": down,
        "downsample_padding": 1,
        "flip_sin_to_cos": true,
        "freq_shift": 0,
        "in_channels": config.latent_channels,
        "layers_per_block": config.res_blocks,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "norm_eps": 1e-5,
        "norm_num_groups": config.norm_groups,
        "out_channels": config.latent_channels,
        "sample_size": side,
        "up_block_types": up,
    })
}

fn autoencoder(config: &AutoencoderConfig, resolution: u32) -> Value {
    let levels = config.channel_mult.len();
    json!({
        "_class_name": "AutoencoderKL",
        "_diffusers_version": DIFFUSERS,
        "act_fn": "silu",
        "block_out_channels": widths(config.channels, &config.channel_mult),
        "down_block_types": vec!["DownEncoderBlock2D"; levels],
        "in_channels": 3,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.res_blocks,
        "norm_num_groups": config.norm_groups,
        "out_channels": 3,
        "sample_size": resolution,
        "scaling_factor": config.scaling_factor,
        "up_block_types": vec!["UpDecoderBlock2D"; levels],
    })
}

fn text(config: &TextEncoderConfig) -> Value {
    json!({
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "bos_token_id": CLIP_END - 1,
        "eos_token_id": CLIP_END,
        "pad_token_id": CLIP_END,
        "hidden_act": "quick_gelu",
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": config.tokens,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "projection_dim": config.width,
        "vocab_size": CLIP_VOCABULARY,
    })
}

fn clip(config: &Clip, resolution: u32) -> Value {
    let image = &config.image_encoder;
    let mut towers = [
        text(&config.text_encoder),
        json!({
            "model_type": "clip_vision_model",
            "hidden_act": "quick_gelu",
            "hidden_size": image.width,
            "image_size": resolution,
            "intermediate_size": 4 * image.width,
            "layer_norm_eps": 1e-5,
            "num_attention_heads": image.heads,
            "num_channels": 3,
            "num_hidden_layers": image.layers,
            "patch_size": image.patch,
        }),
    ];
    for tower in &mut towers {
        tower["projection_dim"] = json!(image.projection);
    }
    let [text, vision] = towers;
    json!({
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": image.projection,
        "text_config": text,
        "vision_config": vision,
    })
}

fn widths(first: u32, multiples: &[u32]) -> Vec<u32> {
    multiples.iter().map(|multiple| first * multiple).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::public::agree::agree;

    #[test]
    fn a_clip_is_written_as_both_towers_read_it() {
        for size in crate::size::NAMES {
            let text = format!(
                "name = \"x\"\n[data]\ndataset = \"file:///d\"\nresolution = 56\nprompt_drop = 0\n\
                 [model]\narchitecture = \"clip\"\nsize = \"{size}\"\n\
                 [train]\nsteps = 1\nglobal_batch = 1\nmicro_batch = 1\n"
            );
            let job = crate::job::parse_training("job.toml", &text).unwrap();
            let clip = job.model.architecture.clip().unwrap();
            let written = config("clip", &job.model, 56).unwrap();
            let text = crate::public::config::text(&written, true).unwrap();
            assert_eq!(text, clip.text_layout());
            let image = crate::public::config::image(&written).unwrap();
            assert_eq!(image, clip.image_layout(56));
        }
    }

    #[test]
    fn what_is_written_is_read_back_for_every_size() {
        for size in crate::size::NAMES {
            let text = format!(
                "name = \"x\"\n[data]\ndataset = \"file:///d\"\nresolution = 64\n\
                 [model]\narchitecture = \"retrinet\"\nsize = \"{size}\"\ninit = \"file:///b\"\n\
                 [train]\nsteps = 1\nglobal_batch = 1\nmicro_batch = 1\n"
            );
            let model = crate::job::parse("job.toml", &text, None)
                .unwrap()
                .training()
                .unwrap()
                .model
                .clone();
            for part in crate::public::base::PARTS {
                let text = config(part.name, &model, 64).unwrap();
                agree(part.name, &text, &model).unwrap();
            }
            let text = config("text_encoder", &model, 64).unwrap();
            let text = crate::public::config::text(&text, false).unwrap();
            assert_eq!(text, model.architecture.text_encoder().unwrap().into());
        }
    }
}
