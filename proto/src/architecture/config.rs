//! Configurations of networks, and the choices inside them. Plain data, used by the architectures
//! in this folder.

use serde::{Deserialize, Serialize};

/// A component of a model that can be frozen and has its own learning rate. `Encoder` includes the
/// time embedding; `CrossAttention` includes the zero convolutions ("conjunction network" on the
/// authors' page).
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
    /// CLIP's image tower, with the scale of its similarities.
    ImageEncoder,
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

/// CLIP's image transformer, and the width of the space that it shares with the text transformer
/// (notes 5.1). ViT-L/14: 1024, 24, 16, 14, 768.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageEncoderConfig {
    pub width: u32,
    pub layers: u32,
    pub heads: u32,
    /// Side of a patch in pixels; divides the job's resolution.
    pub patch: u32,
    /// Width of the embeddings of images and of texts.
    pub projection: u32,
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
