//! The `config.json` of Kandinsky 2.2's networks, as `diffusers` writes them.

use super::{Fields, Found};
use crate::layout::{ImageUNetLayout, MovqLayout, PriorLayout};
use serde_json::json;

/// Reads the `config.json` of a `PriorTransformer`.
///
/// # Errors
/// The first field that is not supported.
pub fn prior(text: &str) -> Found<PriorLayout> {
    let mut fields = Fields::parse(text)?;
    fields.class("_class_name", &["PriorTransformer"])?;
    let heads = fields.count("num_attention_heads", 32)?;
    let head = fields.count("attention_head_dim", 64)?;
    let layout = PriorLayout {
        width: heads * head,
        layers: fields.count("num_layers", 20)? as usize,
        heads,
        tokens: fields.count("num_embeddings", 77)?,
        embedding: fields.count("embedding_dim", 768)?,
    };
    let supported = [
        ("additional_embeddings", json!(4)),
        ("time_embed_act_fn", json!("silu")),
        ("added_emb_type", json!("prd")),
        ("encoder_hid_proj_type", json!("linear")),
        ("time_embed_dim", json!(layout.width)),
        ("embedding_proj_dim", json!(layout.embedding)),
        ("clip_embed_dim", json!(layout.embedding)),
    ];
    fields.finish(&supported, &["dropout"])?;
    Ok(layout)
}

const DOWN: [&str; 2] = ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"];
const UP: [&str; 2] = ["ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"];

/// The block types of a U-Net with this many levels, of which all but the first attend: encoder and
/// decoder, in the order of the config.
#[must_use]
pub fn image_unet_blocks(levels: usize) -> [Vec<&'static str>; 2] {
    let down = (0..levels).map(|level| DOWN[usize::from(level > 0)]);
    let up = (0..levels).rev().map(|level| UP[usize::from(level > 0)]);
    [down.collect(), up.collect()]
}

/// The block types of a MoVQ with this many levels: encoder and decoder.
#[must_use]
pub fn movq_blocks(levels: usize) -> [Vec<&'static str>; 2] {
    let down = |level: usize| match level + 1 == levels {
        true => "AttnDownEncoderBlock2D",
        false => "DownEncoderBlock2D",
    };
    let up = |level: usize| match level {
        0 => "AttnUpDecoderBlock2D",
        _ => "UpDecoderBlock2D",
    };
    [
        (0..levels).map(down).collect(),
        (0..levels).map(up).collect(),
    ]
}

fn blocks(fields: &mut Fields, expected: [Vec<&'static str>; 2]) -> Found<()> {
    let names = ["down_block_types", "up_block_types"];
    for (field, expected) in names.into_iter().zip(expected) {
        let found = fields.strings(field, &[])?;
        if found != expected {
            return Err(fields.fault(field, &json!(found), format!("{expected:?} is expected")));
        }
    }
    Ok(())
}

/// Reads the `config.json` of the `UNet2DConditionModel` of Kandinsky 2.2's decoder.
///
/// # Errors
/// The first field that is not supported.
pub fn image_unet(text: &str) -> Found<ImageUNetLayout> {
    let mut fields = Fields::parse(text)?;
    fields.class("_class_name", &["UNet2DConditionModel"])?;
    let widths = fields.widths(&[320, 640, 1280, 1280])?;
    blocks(&mut fields, image_unet_blocks(widths.len()))?;
    let layout = ImageUNetLayout {
        res_blocks: fields.res_blocks(widths.len(), 2)?,
        head_channels: fields.count("attention_head_dim", 8)?,
        context_dim: fields.count("cross_attention_dim", 1280)?,
        tokens: i64::from(crate::architecture::IMAGE_TOKENS),
        embedding: fields.count("encoder_hid_dim", 1280)?,
        latent_channels: fields.count("in_channels", 4)?,
        norm_groups: fields.count("norm_num_groups", 32)?,
        widths,
    };
    let indivisible =
        |width: &&i64| **width % layout.norm_groups != 0 || **width % layout.head_channels != 0;
    if let Some(width) = layout.widths.iter().skip(1).find(indivisible) {
        let expected = "a multiple of norm_num_groups and of attention_head_dim is expected";
        return Err(fields.fault("block_out_channels", &json!(width), expected));
    }
    // `finish` ignores null and false, but here they would remove a layer.
    for (field, known) in [
        ("encoder_hid_dim_type", "image_proj"),
        ("addition_embed_type", "image"),
        ("resnet_time_scale_shift", "scale_shift"),
    ] {
        let value = fields.take(field).unwrap_or_default();
        if value != known {
            return Err(fields.fault(field, &value, format!("{known:?} is expected")));
        }
    }
    let supported = [
        ("act_fn", json!("silu")),
        ("out_channels", json!(2 * layout.latent_channels)),
        ("mid_block_type", json!("UNetMidBlock2DSimpleCrossAttn")),
        ("mid_block_scale_factor", json!(1)),
        ("resnet_out_scale_factor", json!(1)),
        ("norm_eps", json!(1e-5)),
        ("flip_sin_to_cos", json!(true)),
        ("freq_shift", json!(0)),
        ("downsample_padding", json!(1)),
        ("conv_in_kernel", json!(3)),
        ("conv_out_kernel", json!(3)),
        ("time_embedding_type", json!("positional")),
        ("attention_type", json!("default")),
        ("transformer_layers_per_block", json!(1)),
        ("resnet_skip_time_act", json!(false)),
    ];
    let ignored = [
        "addition_embed_type_num_heads",
        "dropout",
        "sample_size",
        "upcast_attention",
        "use_linear_projection",
    ];
    fields.finish(&supported, &ignored)?;
    Ok(layout)
}

/// Reads the `config.json` of a `VQModel` with spatial norms.
///
/// # Errors
/// The first field that is not supported.
pub fn movq(text: &str) -> Found<MovqLayout> {
    let mut fields = Fields::parse(text)?;
    fields.class("_class_name", &["VQModel"])?;
    let widths = fields.widths(&[64])?;
    blocks(&mut fields, movq_blocks(widths.len()))?;
    let norm = fields.take("norm_type").unwrap_or_default();
    if norm != "spatial" {
        return Err(fields.fault("norm_type", &norm, "\"spatial\" is expected"));
    }
    let layout = MovqLayout {
        res_blocks: fields.res_blocks(widths.len(), 1)?,
        latent_channels: fields.count("latent_channels", 3)?,
        codes: fields.count("num_vq_embeddings", 256)?,
        norm_groups: fields.count("norm_num_groups", 32)?,
        widths,
    };
    let supported = [
        ("act_fn", json!("silu")),
        ("in_channels", json!(3)),
        ("out_channels", json!(3)),
        ("vq_embed_dim", json!(layout.latent_channels)),
        ("mid_block_add_attention", json!(true)),
        ("lookup_from_codebook", json!(false)),
    ];
    if fields.remaining.get("mid_block_add_attention") == Some(&json!(false)) {
        let field = "mid_block_add_attention";
        return Err(fields.fault(field, &json!(false), "only true is supported"));
    }
    // Kandinsky's training and pipeline do not scale latents.
    fields.finish(
        &supported,
        &["sample_size", "scaling_factor", "force_upcast"],
    )?;
    Ok(layout)
}
