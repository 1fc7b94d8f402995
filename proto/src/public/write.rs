//! Writes the `config.json` that `diffusers` and `transformers` need for our weights. The inverse
//! of [`super::config`]. Pure.

use super::config::{image_unet_blocks, movq_blocks};
use crate::architecture::{
    CONTROLNET, Clip, IP_ADAPTER, KandinskyDecoder, POSTFUSE, PRIOR, PriorConfig, UNCLIP,
};
use crate::layout::{CLIP_END, CLIP_VOCABULARY, hint_widths};
use crate::spec::{
    AutoencoderConfig, ClipActivation, ImageEncoderConfig, Model, TextEncoderConfig, UNetConfig,
};
use serde_json::{Value, json};

/// The release of diffusers that defines these fields; newer releases read them too.
pub(super) const DIFFUSERS: &str = "0.42.1";

/// The config of a component ("autoencoder", "text_encoder", "unet", …) of a model that works at
/// `resolution` pixels; None: its architecture has no such component.
#[must_use]
pub fn config(component: &str, model: &Model, resolution: u32) -> Option<String> {
    let architecture = &model.architecture;
    let factor = architecture
        .autoencoder()
        .map_or(1, AutoencoderConfig::factor);
    let config = match (component, architecture.kandinsky()) {
        ("autoencoder", Some(job)) => movq(job, resolution),
        ("unet", Some(job)) => image_unet(job, resolution / factor),
        ("autoencoder", None) => autoencoder(architecture.autoencoder()?, resolution),
        ("text_encoder", _) => {
            let config = architecture.text_encoder()?;
            let images = architecture.image_encoder();
            match (architecture.prior(), images) {
                (Some(prior), Some(images)) => prior_text(config, prior, images),
                _ => text(config),
            }
        }
        ("clip", _) => clip(architecture.clip()?),
        ("image_encoder", _) => image(architecture.image_encoder()?),
        (PRIOR, _) => prior(
            architecture.prior()?,
            architecture.text_encoder()?,
            architecture.image_encoder()?,
        ),
        (IP_ADAPTER | POSTFUSE | UNCLIP, _) => return None,
        (CONTROLNET, _) => controlnet(architecture.unet()?, factor),
        _ => unet(architecture.unet()?, resolution / factor),
    };
    Some(format!("{config:#}\n"))
}

/// The configs of a decoder of the variant `unclip-sd15` as the pipeline of Kandinsky 2.2 expects
/// its networks: the U-Net, which holds the projections of the image embedding and has channels for
/// a variance, and the autoencoder as a `VQModel`. None: the model is another.
#[must_use]
pub fn unclip(model: &Model, resolution: u32) -> Option<[String; 2]> {
    let architecture = &model.architecture;
    let is_unclip = architecture.facts().own_file == Some(UNCLIP);
    if !is_unclip || architecture.kandinsky().is_some() {
        return None;
    }
    let (config, autoencoder) = (architecture.unet()?, architecture.autoencoder()?);
    let mut drawer = unet(config, resolution / autoencoder.factor());
    drawer["addition_embed_type"] = json!("image");
    drawer["encoder_hid_dim"] = json!(architecture.image_encoder()?.projection);
    drawer["encoder_hid_dim_type"] = json!("image_proj");
    drawer["out_channels"] = json!(2 * config.latent_channels);
    let mut movq = self::autoencoder(autoencoder, resolution);
    movq["_class_name"] = json!("VQModel");
    // Latents are scaled by its weights.
    movq["scaling_factor"] = json!(1.0);
    movq["norm_type"] = json!("group");
    movq["num_vq_embeddings"] = json!(1);
    movq["vq_embed_dim"] = json!(autoencoder.latent_channels);
    Some([drawer, movq].map(|config| format!("{config:#}\n")))
}

fn movq(job: &KandinskyDecoder, resolution: u32) -> Value {
    let layout = job.movq_layout();
    let [down, up] = movq_blocks(layout.widths.len());
    json!({
        "_class_name": "VQModel",
        "_diffusers_version": DIFFUSERS,
        "act_fn": "silu",
        "block_out_channels": layout.widths,
        "down_block_types": down,
        "in_channels": 3,
        "latent_channels": layout.latent_channels,
        "layers_per_block": layout.res_blocks,
        "norm_num_groups": layout.norm_groups,
        "norm_type": "spatial",
        "num_vq_embeddings": layout.codes,
        "out_channels": 3,
        "sample_size": resolution,
        "scaling_factor": 0.18215,
        "up_block_types": up,
        "vq_embed_dim": layout.latent_channels,
    })
}

fn image_unet(job: &KandinskyDecoder, side: u32) -> Value {
    let layout = job.unet_layout();
    let [down, up] = image_unet_blocks(layout.widths.len());
    json!({
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": DIFFUSERS,
        "act_fn": "silu",
        "addition_embed_type": "image",
        // Here it is the number of channels of a head.
        "attention_head_dim": layout.head_channels,
        "block_out_channels": layout.widths,
        "cross_attention_dim": layout.context_dim,
        "down_block_types": down,
        "downsample_padding": 1,
        "encoder_hid_dim": layout.embedding,
        "encoder_hid_dim_type": "image_proj",
        "flip_sin_to_cos": true,
        "freq_shift": 0,
        "in_channels": layout.latent_channels,
        "layers_per_block": layout.res_blocks,
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "norm_eps": 1e-5,
        "norm_num_groups": layout.norm_groups,
        "out_channels": 2 * layout.latent_channels,
        "resnet_time_scale_shift": "scale_shift",
        "sample_size": side,
        "up_block_types": up,
    })
}

fn prior(config: PriorConfig, text: &TextEncoderConfig, image: ImageEncoderConfig) -> Value {
    let layout = config.layout(text, &image);
    json!({
        "_class_name": "PriorTransformer",
        "_diffusers_version": DIFFUSERS,
        "added_emb_type": "prd",
        "additional_embeddings": 4,
        "attention_head_dim": layout.width / layout.heads,
        "dropout": 0.0,
        "embedding_dim": layout.embedding,
        "encoder_hid_proj_type": "linear",
        "num_attention_heads": layout.heads,
        "num_embeddings": layout.tokens,
        "num_layers": layout.layers,
        "time_embed_act_fn": "silu",
    })
}

/// The text encoder of a prior.
fn prior_text(config: &TextEncoderConfig, prior: PriorConfig, image: ImageEncoderConfig) -> Value {
    let mut value = text(config);
    value["hidden_act"] = json!(activation(image.activation));
    value["projection_dim"] = json!(image.projection);
    if prior.text_projection {
        value["architectures"] = json!(["CLIPTextModelWithProjection"]);
    }
    value
}

fn activation(activation: ClipActivation) -> &'static str {
    match activation {
        ClipActivation::QuickGelu => "quick_gelu",
        ClipActivation::Gelu => "gelu",
    }
}

fn controlnet(config: &UNetConfig, factor: u32) -> Value {
    let mut fields = unet(config, 0);
    let fields = fields.as_object_mut().expect("a config is an object");
    for of_unet in ["out_channels", "sample_size", "up_block_types"] {
        fields.remove(of_unet);
    }
    let more = json!({
        "_class_name": "ControlNetModel",
        "conditioning_channels": 3,
        "conditioning_embedding_out_channels": hint_widths(factor),
        "controlnet_conditioning_channel_order": "rgb",
    });
    for (field, value) in more.as_object().into_iter().flatten() {
        fields.insert(field.clone(), value.clone());
    }
    Value::Object(fields.clone())
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

fn image(config: ImageEncoderConfig) -> Value {
    json!({
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "hidden_act": activation(config.activation),
        "hidden_size": config.width,
        "image_size": config.side,
        "intermediate_size": config.mlp_width,
        "layer_norm_eps": 1e-5,
        "num_attention_heads": config.heads,
        "num_channels": 3,
        "num_hidden_layers": config.layers,
        "patch_size": config.patch,
        "projection_dim": config.projection,
    })
}

fn clip(config: &Clip) -> Value {
    let image_encoder = config.image_encoder;
    let (mut texts, images) = (text(&config.text_encoder), image(image_encoder));
    texts["projection_dim"] = json!(image_encoder.projection);
    json!({
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": image_encoder.projection,
        "text_config": texts,
        "vision_config": images,
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
            assert_eq!(image, clip.image_layout());
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
            let text = config(CONTROLNET, &model, 64).unwrap();
            agree(CONTROLNET, &text, &model).unwrap();
            let text = config("text_encoder", &model, 64).unwrap();
            let text = crate::public::config::text(&text, false).unwrap();
            assert_eq!(text, model.architecture.text_encoder().unwrap().into());
        }
    }

    #[test]
    fn kandinsky_s_configs_are_read_back_for_every_size() {
        for size in crate::size::ALL {
            for architecture in ["kandinsky-prior", "kandinsky-decoder"] {
                let text = format!(
                    "name = \"x\"\n[data]\ndataset = \"file:///d\"\nresolution = 64\n\
                     [model]\narchitecture = \"{architecture}\"\nsize = \"{size}\"\n\
                     init = \"file:///b\"\n\
                     [train]\nsteps = 1\nglobal_batch = 1\nmicro_batch = 1\n"
                );
                let model = crate::job::parse_training("job.toml", &text).unwrap().model;
                for (part, _) in model.architecture.facts().base_parts {
                    let text = config(part, &model, 64).unwrap();
                    agree(part, &text, &model).unwrap();
                }
            }
        }
    }
}
