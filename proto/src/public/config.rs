//! Reads the `config.json` of public weights. Every field that changes the arithmetic is either
//! supported or rejected by name. Fields about training, of other classes and of older releases are
//! ignored.

mod bert;
mod kandinsky;
mod preprocessor;

pub use bert::{bert, mean_pooling, sentence_tokens};
pub use kandinsky::{image_unet, image_unet_blocks, movq, movq_blocks, prior};
pub use preprocessor::preprocessor;

use crate::layout::{
    Activation, AutoencoderLayout, CLIP_END, CLIP_VOCABULARY, Frequencies, ImageLayout, TextLayout,
    TransformerLayout, UNetLayout,
};
use serde_json::{Map, Value, json};

/// A field that is invalid or that our networks do not support.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("is not a JSON object: {0}")]
    Json(String),
    #[error("{field} is {value}; {expected}")]
    Field {
        field: String,
        value: String,
        expected: String,
    },
}

type Found<T> = Result<T, ConfigError>;

/// A JSON object whose fields are taken one by one, so that the remaining ones can be checked.
pub(super) struct Fields {
    remaining: Map<String, Value>,
    /// Prefix of field names in messages, for instance "text_config.".
    prefix: String,
}

impl Fields {
    pub(super) fn parse(text: &str) -> Found<Self> {
        let value: Value =
            serde_json::from_str(text).map_err(|error| ConfigError::Json(error.to_string()))?;
        let Value::Object(remaining) = value else {
            return Err(ConfigError::Json(format!("it is {value}")));
        };
        Ok(Self {
            remaining,
            prefix: String::new(),
        })
    }

    /// Takes the nested object with this name; None if there is none.
    fn inner(&mut self, name: &str) -> Option<Self> {
        match self.remaining.remove(name)? {
            Value::Object(remaining) => Some(Self {
                remaining,
                prefix: format!("{}{name}.", self.prefix),
            }),
            _ => None,
        }
    }

    pub(super) fn fault(
        &self,
        field: &str,
        value: &Value,
        expected: impl Into<String>,
    ) -> ConfigError {
        ConfigError::Field {
            field: format!("{}{field}", self.prefix),
            value: value.to_string(),
            expected: expected.into(),
        }
    }

    /// Takes a value; null counts as absent.
    pub(super) fn take(&mut self, field: &str) -> Option<Value> {
        self.remaining
            .remove(field)
            .filter(|value| !value.is_null())
    }

    /// Rejects weights of another network class. A file without a class name is accepted.
    pub(super) fn class(&mut self, field: &str, known: &[&str]) -> Found<()> {
        let Some(value) = self.take(field) else {
            return Ok(());
        };
        match value.as_str() {
            Some(name) if known.contains(&name) => Ok(()),
            _ => Err(self.fault(field, &value, format!("{:?} is expected", known[0]))),
        }
    }

    fn count(&mut self, field: &str, default: i64) -> Found<i64> {
        let Some(value) = self.take(field) else {
            return Ok(default);
        };
        value
            .as_i64()
            .filter(|count| (1..=1 << 20).contains(count))
            .ok_or_else(|| {
                self.fault(
                    field,
                    &value,
                    "a whole number from 1 to 1048576 is expected",
                )
            })
    }

    fn number(&mut self, field: &str, default: f64) -> Found<f64> {
        let Some(value) = self.take(field) else {
            return Ok(default);
        };
        value
            .as_f64()
            .ok_or_else(|| self.fault(field, &value, "a number is expected"))
    }

    fn flag(&mut self, field: &str, default: bool) -> Found<bool> {
        let Some(value) = self.take(field) else {
            return Ok(default);
        };
        value
            .as_bool()
            .ok_or_else(|| self.fault(field, &value, "true or false is expected"))
    }

    fn strings(&mut self, field: &str, default: &[&str]) -> Found<Vec<String>> {
        let value = self.take(field).unwrap_or_else(|| json!(default));
        let strings = value.as_array().and_then(|all| {
            all.iter()
                .map(|it| it.as_str().map(str::to_owned))
                .collect()
        });
        strings.ok_or_else(|| self.fault(field, &value, "a list of strings is expected"))
    }

    /// One number for all levels, or a list with one for each.
    fn by_level(&mut self, field: &str, levels: usize, default: i64) -> Found<Vec<i64>> {
        let value = self.take(field).unwrap_or_else(|| json!(default));
        let counts = match &value {
            Value::Array(all) => all.iter().map(Value::as_i64).collect(),
            single => Some(vec![single.as_i64().unwrap_or(0); levels]),
        };
        counts
            .filter(|counts: &Vec<i64>| {
                counts.len() == levels && counts.iter().all(|it| (1..=1 << 20).contains(it))
            })
            .ok_or_else(|| {
                self.fault(
                    field,
                    &value,
                    format!("a positive number, or a list of {levels}, is expected"),
                )
            })
    }

    fn widths(&mut self, default: &[i64]) -> Found<Vec<i64>> {
        const FIELD: &str = "block_out_channels";
        let value = self.take(FIELD).unwrap_or_else(|| json!(default));
        let widths: Option<Vec<i64>> = value
            .as_array()
            .and_then(|all| all.iter().map(Value::as_i64).collect());
        widths
            .filter(|all| {
                (1..=8).contains(&all.len()) && all.iter().all(|it| (1..=1 << 16).contains(it))
            })
            .ok_or_else(|| self.fault(FIELD, &value, "a list of 1 to 8 widths is expected"))
    }

    /// The number of residual blocks, which must be the same on each level.
    fn res_blocks(&mut self, levels: usize, default: i64) -> Found<usize> {
        const FIELD: &str = "layers_per_block";
        let value = self.remaining.get(FIELD).cloned().unwrap_or_default();
        let counts = self.by_level(FIELD, levels, default)?;
        if counts.iter().any(|count| *count != counts[0]) {
            return Err(self.fault(FIELD, &value, "the same number on every level is expected"));
        }
        Ok(counts[0] as usize)
    }

    /// Rejects remaining fields, unless they are off (null, false), have the one supported value,
    /// or are known not to change results.
    fn finish(self, supported: &[(&str, Value)], ignored: &[&str]) -> Found<()> {
        for (field, value) in &self.remaining {
            if field.starts_with('_') || ignored.contains(&field.as_str()) || off(value) {
                continue;
            }
            match supported.iter().find(|(name, _)| name == field) {
                Some((_, known)) if same(known, value) => {}
                Some((_, known)) => {
                    return Err(self.fault(field, value, format!("only {known} is supported")));
                }
                None => {
                    return Err(self.fault(
                        field,
                        value,
                        "this field is unknown; it is only ignored if it is null or false",
                    ));
                }
            }
        }
        Ok(())
    }
}

fn off(value: &Value) -> bool {
    matches!(value, Value::Null | Value::Bool(false))
}

/// Whether the values are equal, where 1 equals 1.0.
fn same(known: &Value, value: &Value) -> bool {
    known == value
        || known
            .as_f64()
            .is_some_and(|known| value.as_f64() == Some(known))
}

/// Reads the `config.json` of a `UNet2DConditionModel`.
///
/// # Errors
/// The first field that is not supported.
pub fn unet(text: &str) -> Found<UNetLayout> {
    let mut fields = Fields::parse(text)?;
    fields.class("_class_name", &["UNet2DConditionModel"])?;
    let layout = unet_layout(&mut fields, attends)?;
    fields.finish(&unet_supported(), &UNET_IGNORED)?;
    Ok(layout)
}

/// Reads the `config.json` of a `ControlNetModel`. Also returns the widths of the convolutions that
/// read the hint.
///
/// # Errors
/// The first field that is not supported.
pub fn controlnet(text: &str) -> Found<(UNetLayout, Vec<i64>)> {
    let mut fields = Fields::parse(text)?;
    fields.class("_class_name", &["ControlNetModel"])?;
    let layout = unet_layout(&mut fields, attends_in_encoder)?;
    const HINT: &str = "conditioning_embedding_out_channels";
    let value = fields
        .take(HINT)
        .unwrap_or_else(|| json!([16, 32, 96, 256]));
    let hint: Option<Vec<i64>> = value
        .as_array()
        .and_then(|all| all.iter().map(Value::as_i64).collect());
    let Some(hint) = hint.filter(|all| (1..=8).contains(&all.len())) else {
        return Err(fields.fault(HINT, &value, "a list of 1 to 8 widths is expected"));
    };
    let mut supported = unet_supported().to_vec();
    supported.extend([
        ("conditioning_channels", json!(3)),
        ("controlnet_conditioning_channel_order", json!("rgb")),
    ]);
    fields.finish(&supported, &UNET_IGNORED)?;
    Ok((layout, hint))
}

/// Fields that have no effect on the result. A linear projection is a 1x1 convolution on tokens.
/// Upcasting has no effect in fp32.
const UNET_IGNORED: [&str; 5] = [
    "addition_embed_type_num_heads",
    "dropout",
    "sample_size",
    "upcast_attention",
    "use_linear_projection",
];

/// Fields of which only one value is supported.
fn unet_supported() -> [(&'static str, Value); 11] {
    [
        ("act_fn", json!("silu")),
        ("attention_type", json!("default")),
        ("conv_in_kernel", json!(3)),
        ("conv_out_kernel", json!(3)),
        ("downsample_padding", json!(1)),
        ("mid_block_scale_factor", json!(1)),
        ("mid_block_type", json!("UNetMidBlock2DCrossAttn")),
        ("resnet_out_scale_factor", json!(1)),
        ("resnet_time_scale_shift", json!("default")),
        ("time_embedding_type", json!("positional")),
        ("transformer_layers_per_block", json!(1)),
    ]
}

/// `attends` reads which levels attend.
fn unet_layout(
    fields: &mut Fields,
    attends: impl FnOnce(&mut Fields, usize) -> Found<Vec<bool>>,
) -> Found<UNetLayout> {
    let widths = fields.widths(&[320, 640, 1280, 1280])?;
    let levels = widths.len();
    let attends = attends(fields, levels)?;
    // The field's name is a historical mistake: it holds the number of heads, and diffusers rejects
    // num_attention_heads.
    let heads = fields.by_level("attention_head_dim", levels, 8)?;
    let norm_groups = fields.count("norm_num_groups", 32)?;
    for (level, width) in widths.iter().enumerate() {
        if width % norm_groups != 0 || width % heads[level] != 0 {
            let expected = format!(
                "every width must be a multiple of norm_num_groups ({norm_groups}) and of the \
                level's heads ({heads:?})"
            );
            return Err(fields.fault("block_out_channels", &json!(widths), expected));
        }
    }
    if widths[0] % 2 != 0 {
        return Err(fields.fault(
            "block_out_channels",
            &json!(widths),
            "the first width must be even for the time step's embedding",
        ));
    }
    Ok(UNetLayout {
        res_blocks: fields.res_blocks(levels, 2)?,
        context_dim: fields.count("cross_attention_dim", 1280)?,
        in_channels: fields.count("in_channels", 4)?,
        out_channels: fields.count("out_channels", 4)?,
        norm_groups,
        norm_epsilon: fields.number("norm_eps", 1e-5)?,
        frequencies: Frequencies {
            cosines_first: fields.flag("flip_sin_to_cos", true)?,
            shift: fields.number("freq_shift", 0.0)?,
        },
        widths,
        attends,
        heads,
    })
}

/// Which levels have one of two kinds of blocks, the second.
fn of_kind(
    fields: &mut Fields,
    field: &str,
    kinds: [&str; 2],
    default: &[&str],
    levels: usize,
) -> Found<Vec<bool>> {
    let blocks = fields.strings(field, default)?;
    let second: Option<Vec<bool>> = blocks
        .iter()
        .map(|block| Some(kinds.iter().position(|kind| kind == block)? == 1))
        .collect();
    second.filter(|all| all.len() == levels).ok_or_else(|| {
        fields.fault(
            field,
            &json!(blocks),
            format!("one of {kinds:?} for each of {levels} levels is expected"),
        )
    })
}

fn attends_in_encoder(fields: &mut Fields, levels: usize) -> Found<Vec<bool>> {
    const DOWN: [&str; 2] = ["DownBlock2D", "CrossAttnDownBlock2D"];
    let default = [DOWN[1], DOWN[1], DOWN[1], DOWN[0]];
    of_kind(fields, "down_block_types", DOWN, &default, levels)
}

fn attends(fields: &mut Fields, levels: usize) -> Found<Vec<bool>> {
    const UP: [&str; 2] = ["UpBlock2D", "CrossAttnUpBlock2D"];
    let down = attends_in_encoder(fields, levels)?;
    let default = [UP[0], UP[1], UP[1], UP[1]];
    let up = of_kind(fields, "up_block_types", UP, &default, levels)?;
    if !down.iter().eq(up.iter().rev()) {
        return Err(fields.fault(
            "up_block_types",
            &json!(up),
            "the decoder must have attention on the same levels as the encoder",
        ));
    }
    Ok(down)
}

/// Reads the `config.json` of an `AutoencoderKL`.
///
/// # Errors
/// The first field that is not supported.
pub fn autoencoder(text: &str) -> Found<AutoencoderLayout> {
    let mut fields = Fields::parse(text)?;
    fields.class("_class_name", &["AutoencoderKL"])?;
    let widths = fields.widths(&[64])?;
    let levels = widths.len();
    for (field, kind) in [
        ("down_block_types", "DownEncoderBlock2D"),
        ("up_block_types", "UpDecoderBlock2D"),
    ] {
        let blocks = fields.strings(field, &vec![kind; levels])?;
        if blocks.len() != levels || blocks.iter().any(|block| block != kind) {
            return Err(fields.fault(
                field,
                &json!(blocks),
                format!("{kind:?} for each of {levels} levels is expected"),
            ));
        }
    }
    let norm_groups = fields.count("norm_num_groups", 32)?;
    if widths.iter().any(|width| width % norm_groups != 0) {
        let expected = format!("every width must be a multiple of norm_num_groups ({norm_groups})");
        return Err(fields.fault("block_out_channels", &json!(widths), expected));
    }
    let layout = AutoencoderLayout {
        res_blocks: fields.res_blocks(levels, 1)?,
        latent_channels: fields.count("latent_channels", 4)?,
        norm_groups,
        widths,
    };
    let supported = [
        ("act_fn", json!("silu")),
        ("in_channels", json!(3)),
        ("out_channels", json!(3)),
        ("mid_block_add_attention", json!(true)),
        ("use_post_quant_conv", json!(true)),
        ("use_quant_conv", json!(true)),
    ];
    // `finish` ignores false, but here it would remove a layer.
    for field in [
        "mid_block_add_attention",
        "use_post_quant_conv",
        "use_quant_conv",
    ] {
        if fields.remaining.get(field) == Some(&json!(false)) {
            return Err(fields.fault(field, &json!(false), "only true is supported"));
        }
    }
    // These do not affect the computation inside the autoencoder.
    let ignored = ["force_upcast", "sample_size", "scaling_factor"];
    fields.finish(&supported, &ignored)?;
    Ok(layout)
}

/// The factor by which an `AutoencoderKL`'s latents are scaled before the U-Net. Older files do not
/// name it; all of these have Stable Diffusion's, which is the default of `diffusers`.
///
/// # Errors
/// The factor is not a number.
pub fn scaling_factor(text: &str) -> Found<f64> {
    Fields::parse(text)?.number("scaling_factor", 0.18215)
}

/// Reads the `config.json` of a `CLIPTextModel`, or the text part of a `CLIPModel`'s. `projected`:
/// whether the weights contain a projection.
///
/// # Errors
/// The first field that is not supported.
pub fn text(text: &str, projected: bool) -> Found<TextLayout> {
    let mut whole = Fields::parse(text)?;
    whole.class("model_type", &["clip_text_model", "clip"])?;
    let common = whole.take("projection_dim");
    let mut fields = whole.inner("text_config").unwrap_or(whole);
    let own = fields.count("projection_dim", 512)?;
    let projection = common.and_then(|value| value.as_i64()).unwrap_or(own);
    let transformer = transformer(&mut fields, [512, 2048, 12, 8])?;
    Ok(TextLayout {
        vocabulary: fields.count("vocab_size", CLIP_VOCABULARY)?,
        tokens: fields.count("max_position_embeddings", 77)?,
        // Older files have 2 instead of the id of the end token.
        end: Some(fields.count("eos_token_id", CLIP_END)?).filter(|end| *end != 2),
        projection: projected.then_some(projection),
        transformer,
    })
}

/// Reads the `config.json` of a `CLIPVisionModelWithProjection`, or the image part of a
/// `CLIPModel`'s.
///
/// # Errors
/// The first field that is not supported.
pub fn image(text: &str) -> Found<ImageLayout> {
    let mut whole = Fields::parse(text)?;
    whole.class("model_type", &["clip_vision_model", "clip"])?;
    let common = whole.take("projection_dim");
    let mut fields = whole.inner("vision_config").unwrap_or(whole);
    let own = fields.count("projection_dim", 512)?;
    let transformer = transformer(&mut fields, [768, 3072, 12, 12])?;
    let channels = fields.count("num_channels", 3)?;
    if channels != 3 {
        return Err(fields.fault("num_channels", &json!(channels), "3 is expected"));
    }
    let (side, patch) = (
        fields.count("image_size", 224)?,
        fields.count("patch_size", 32)?,
    );
    if patch > side {
        return Err(fields.fault(
            "patch_size",
            &json!(patch),
            format!("at most image_size ({side}) is expected"),
        ));
    }
    Ok(ImageLayout {
        side,
        patch,
        projection: common.and_then(|value| value.as_i64()).unwrap_or(own),
        transformer,
    })
}

fn transformer(
    fields: &mut Fields,
    [width, mlp_width, layers, heads]: [i64; 4],
) -> Found<TransformerLayout> {
    let activation = fields
        .take("hidden_act")
        .unwrap_or_else(|| json!("quick_gelu"));
    let layout = TransformerLayout {
        width: fields.count("hidden_size", width)?,
        mlp_width: fields.count("intermediate_size", mlp_width)?,
        layers: fields.count("num_hidden_layers", layers)? as usize,
        heads: fields.count("num_attention_heads", heads)?,
        activation: match activation.as_str() {
            Some("quick_gelu") => Activation::QuickGelu,
            Some("gelu") => Activation::Gelu,
            _ => {
                return Err(fields.fault(
                    "hidden_act",
                    &activation,
                    "\"quick_gelu\" or \"gelu\" is expected",
                ));
            }
        },
        norm_epsilon: fields.number("layer_norm_eps", 1e-5)?,
    };
    if layout.width % layout.heads != 0 {
        let expected = format!("a divisor of hidden_size ({}) is expected", layout.width);
        return Err(fields.fault("num_attention_heads", &json!(layout.heads), expected));
    }
    Ok(layout)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::size;

    /// The `config.json` of the U-Net of Stable Diffusion 1.5 (notes 3.1, 5.1, 5.2).
    const SD15_UNET: &str = r#"{"_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.6.0", "act_fn": "silu", "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": false,
        "cross_attention_dim": 768, "down_block_types": ["CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"], "downsample_padding": 1,
        "flip_sin_to_cos": true, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
        "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4,
        "sample_size": 64, "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]}"#;

    #[test]
    fn stable_diffusion_s_own_files_say_what_our_size_says() {
        let (our_unet, our_autoencoder, our_text) = size::named("sd15").unwrap();
        assert_eq!(unet(SD15_UNET).unwrap(), UNetLayout::from(&our_unet));
        let vae = r#"{"act_fn": "silu", "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D",
            "DownEncoderBlock2D"], "in_channels": 3, "latent_channels": 4, "layers_per_block": 2,
            "norm_num_groups": 32, "out_channels": 3, "sample_size": 512,
            "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D",
            "UpDecoderBlock2D"]}"#;
        assert_eq!(
            autoencoder(vae).unwrap(),
            AutoencoderLayout::from(&our_autoencoder)
        );
        let clip = r#"{"attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 2,
            "hidden_act": "quick_gelu", "hidden_size": 768, "intermediate_size": 3072,
            "layer_norm_eps": 1e-05, "max_position_embeddings": 77, "num_attention_heads": 12,
            "num_hidden_layers": 12, "vocab_size": 49408, "projection_dim": 768}"#;
        let expected = TextLayout {
            end: None,
            ..TextLayout::from(&our_text)
        };
        assert_eq!(text(clip, false).unwrap(), expected);
    }

    #[test]
    fn fields_change_the_layout() {
        let changed = |field: &str, value: Value| {
            let mut config: Map<String, Value> = serde_json::from_str(SD15_UNET).unwrap();
            config.insert(field.to_owned(), value);
            unet(&Value::Object(config).to_string())
        };
        assert_eq!(
            changed("attention_head_dim", json!([5, 10, 20, 20]))
                .unwrap()
                .heads,
            [5, 10, 20, 20]
        );
        assert_eq!(changed("norm_eps", json!(1e-6)).unwrap().norm_epsilon, 1e-6);
        assert_eq!(
            changed("freq_shift", json!(1)).unwrap().frequencies.shift,
            1.0
        );
        assert!(
            !changed("flip_sin_to_cos", json!(false))
                .unwrap()
                .frequencies
                .cosines_first
        );
        assert_eq!(changed("in_channels", json!(9)).unwrap().in_channels, 9);
        assert_eq!(changed("class_embed_type", json!(null)), unet(SD15_UNET));
    }

    #[test]
    fn unsupported_values_are_rejected_by_name() {
        let refused = |field: &str, value: Value| {
            let mut config: Map<String, Value> = serde_json::from_str(SD15_UNET).unwrap();
            config.insert(field.to_owned(), value);
            unet(&Value::Object(config).to_string())
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            refused("act_fn", json!("mish")),
            "act_fn is \"mish\"; only \"silu\" is supported"
        );
        assert_eq!(
            refused("class_embed_type", json!("timestep")),
            "class_embed_type is \"timestep\"; this field is unknown; it is only ignored if it is \
            null or false"
        );
        assert_eq!(
            refused("layers_per_block", json!([1, 2, 2, 2])),
            "layers_per_block is [1,2,2,2]; the same number on every level is expected"
        );
        assert!(
            refused("norm_num_groups", json!(30))
                .starts_with("block_out_channels is [320,640,1280,1280]; every width")
        );
        assert!(refused("block_out_channels", json!([])).contains("1 to 8 widths"));
        assert!(
            refused("block_out_channels", json!([0, 640, 1280, 1280])).contains("1 to 8 widths")
        );
        assert!(
            refused("down_block_types", json!(["DownBlock2D"])).contains("for each of 4 levels")
        );
        assert!(
            refused(
                "up_block_types",
                json!(["CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"])
            )
            .contains("encoder")
        );
        assert!(refused("attention_head_dim", json!(0)).contains("positive"));
        assert!(
            unet("[]")
                .unwrap_err()
                .to_string()
                .contains("not a JSON object")
        );
        assert!(
            autoencoder(r#"{"use_quant_conv": false}"#)
                .unwrap_err()
                .to_string()
                .contains("use_quant_conv is false")
        );
        assert!(
            text(r#"{"hidden_act": "relu"}"#, false)
                .unwrap_err()
                .to_string()
                .contains("hidden_act is \"relu\"")
        );
        assert!(
            text(r#"{"num_attention_heads": 7}"#, false)
                .unwrap_err()
                .to_string()
                .contains("a divisor of hidden_size (512)")
        );
    }

    #[test]
    fn a_clip_model_holds_both_towers() {
        let both = r#"{"projection_dim": 24, "text_config": {"hidden_size": 32,
            "num_attention_heads": 4, "eos_token_id": 49407}, "vision_config": {"hidden_size": 48,
            "num_attention_heads": 4, "image_size": 28, "patch_size": 7}}"#;
        let text = text(both, true).unwrap();
        assert_eq!(
            (text.transformer.width, text.projection, text.end),
            (32, Some(24), Some(CLIP_END))
        );
        let image = image(both).unwrap();
        assert_eq!(
            (
                image.transformer.width,
                image.side,
                image.patch,
                image.projection
            ),
            (48, 28, 7, 24)
        );
    }
}
