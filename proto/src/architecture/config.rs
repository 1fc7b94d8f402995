//! Configurations of networks, and the choices inside them. Plain data, used by the architectures
//! in this folder.

use super::fields::Fields;
use crate::job::faults::Faults;
use serde::{Deserialize, Serialize};

/// A component of a model that can be frozen and has its own learning rate. `Encoder` includes the
/// time embedding; `CrossAttention` includes the zero convolutions ("conjunction network" on the
/// authors' page). `Control` is ControlNet's whole branch with its own time embedding, `Adapter` is
/// what brings an image embedding into a U-Net (IP-Adapter's projection and attentions, and
/// Kandinsky's projections), `Prior` is Kandinsky's prior, `Fusion` what FastComposer adds to the
/// text encoder; `ImageEncoderEnd` is the part of a CLIP image tower that FastComposer trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Component {
    Autoencoder,
    TextEncoder,
    Encoder,
    Middle,
    Decoder,
    RetrievalEncoder,
    CrossAttention,
    Control,
    ImageEncoder,
    ImageEncoderEnd,
    Adapter,
    Fusion,
    Prior,
}

/// The U-Net in CompVis block layout (notes 3.1). SD 1.5: 320, [1,2,4,4], 2, [0,1,2], 8, 768, 4.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UNetConfig {
    /// Width of the first level.
    pub channels: u32,
    /// Width of level i is `channels * channel_mult[i]`; level i works at latent side / 2^i.
    pub channel_mult: Vec<u32>,
    /// Residual blocks per encoder level; the decoder has one more.
    pub res_blocks: u32,
    /// Levels that have spatial transformers.
    pub attention_levels: Vec<u32>,
    /// Attention heads at every level; divides every attended width.
    pub heads: u32,
    /// Width of the text states.
    pub context_dim: u32,
    /// Channels in and out; equals the autoencoder's latent channels.
    pub latent_channels: u32,
    /// Groups of every group norm; divides every width.
    pub norm_groups: u32,
}

/// AutoencoderKL (notes 5.2). SD 1.5: 128, [1,2,4,4], 2, 4, 0.18215, 32.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AutoencoderConfig {
    pub channels: u32,
    /// One entry per level; the latent side is resolution / 2^(levels - 1).
    pub channel_mult: Vec<u32>,
    pub res_blocks: u32,
    pub latent_channels: u32,
    /// Latents are multiplied by this before the U-Net sees them, so that their variance is near 1.
    pub scaling_factor: f64,
    pub norm_groups: u32,
}

impl AutoencoderConfig {
    /// Pixels per latent cell, along one side.
    #[must_use]
    pub fn factor(&self) -> u32 {
        1 << (self.channel_mult.len() - 1)
    }
}

/// CLIP's text transformer with CLIP's vocabulary (49,408 tokens, notes 5.1). SD 1.5: 768, 12, 12,
/// 77.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextEncoderConfig {
    pub width: u32,
    pub layers: u32,
    pub heads: u32,
    /// Prompts are truncated or padded to this many tokens, including begin and end.
    pub tokens: u32,
}

/// CLIP's image tower with its projection (notes 5.1). ViT-H/14 of IP-Adapter: 1280, 32, 16, 5120,
/// 1024, 224, 14, gelu.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageEncoderConfig {
    pub width: u32,
    pub layers: u32,
    pub heads: u32,
    /// Hidden width of the feed-forward networks.
    pub mlp_width: u32,
    /// Width of the embedding.
    pub projection: u32,
    /// Side of its square images, in pixels.
    pub side: u32,
    /// Side of a patch, in pixels.
    pub patch: u32,
    pub activation: ClipActivation,
}

/// The activation of a CLIP tower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClipActivation {
    /// x * sigmoid(1.702 x), as in OpenAI's CLIP.
    QuickGelu,
    /// The exact GELU.
    Gelu,
}

impl ImageEncoderConfig {
    /// `of_size` has the values of the job's size, which job.toml may override.
    pub(super) fn read(
        fields: &mut Fields,
        of_size: fn(&str) -> Self,
        faults: &mut Faults,
    ) -> Self {
        let config = Self::of(of_size(fields.size()), fields);
        faults.count("model.image_encoder.side", config.side, 1024);
        config.check(config.side.max(1), faults);
        config
    }

    /// `base` with the fields of job.toml.
    pub(super) fn of(base: Self, fields: &mut Fields) -> Self {
        let mut number = |name: &str, default: u32| {
            let field = format!("model.image_encoder.{name}");
            fields.written(&field).unwrap_or(default)
        };
        Self {
            width: number("width", base.width),
            layers: number("layers", base.layers),
            heads: number("heads", base.heads),
            mlp_width: number("mlp_width", base.mlp_width),
            projection: number("projection", base.projection),
            side: number("side", base.side),
            patch: number("patch", base.patch),
            activation: fields
                .written("model.image_encoder.activation")
                .unwrap_or(base.activation),
        }
    }

    /// Checks all but the side. `max_patch` is the largest side of a patch.
    pub(super) fn check(&self, max_patch: u32, faults: &mut Faults) {
        for (name, value, max) in [
            ("width", self.width, 8192),
            ("layers", self.layers, 128),
            ("mlp_width", self.mlp_width, 65_536),
            ("projection", self.projection, 8192),
            ("patch", self.patch, max_patch),
        ] {
            faults.count(&format!("model.image_encoder.{name}"), value, max);
        }
        let divides = self.heads > 0 && self.width.is_multiple_of(self.heads);
        faults.need(divides, "model.image_encoder.heads", || {
            format!(
                "is {}; it must divide model.image_encoder.width, which is {}",
                self.heads, self.width
            )
        });
    }
}

/// Design choices of RetriNet's retrieval block that the paper leaves open (notes 3.5). The
/// defaults are ours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Retrieval {
    pub attend: Attend,
    pub time: RetrievalTime,
}

/// Which of the encoder's blocks attend to the references.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attend {
    /// 12 cross-attentions at the size of SD 1.5.
    #[default]
    EveryBlock,
    /// The last block of each level with residual blocks: 4.
    EveryLevel,
}

/// The time step that is passed to the retrieval encoder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RetrievalTime {
    /// The time step of the target.
    #[default]
    Target,
    Zero,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossWeighting {
    /// The unweighted loss of the prediction; with epsilon prediction, the paper's.
    Epsilon,
    /// min(snr, 5) / snr (Hang et al. 2023).
    MinSnr,
    /// (1 - abar) / abar, clipped to [0.5, 20]. Emphasizes high noise levels, which determine
    /// colours and thereby identity.
    Noise,
}
