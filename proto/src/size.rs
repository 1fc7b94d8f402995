//! Named model sizes: the configurations behind `size = "…"` in job.toml.

use crate::architecture::config::{
    AutoencoderConfig, ImageEncoderConfig, TextEncoderConfig, UNetConfig,
};

/// All sizes that [`named`] supports, smallest first.
pub const NAMES: [&str; 3] = ["tiny", "small", "sd15"];

/// The configurations of a size; None if there is no such size.
#[must_use]
pub fn named(size: &str) -> Option<(UNetConfig, AutoencoderConfig, TextEncoderConfig)> {
    match size {
        "tiny" => Some(tiny()),
        "small" => Some(small()),
        "sd15" => Some(sd15()),
        _ => None,
    }
}

/// The image tower of a CLIP of this size; None if there is no such size.
#[must_use]
pub fn image_encoder(size: &str) -> Option<ImageEncoderConfig> {
    let [width, layers, heads, patch, projection] = match size {
        "tiny" => [16, 1, 2, 8, 16],
        "small" => [96, 3, 4, 8, 96],
        // ViT-L/14, whose text tower is Stable Diffusion's.
        "sd15" => [1024, 24, 16, 14, 768],
        _ => return None,
    };
    Some(ImageEncoderConfig {
        width,
        layers,
        heads,
        patch,
        projection,
    })
}

/// For tests, at 32 pixels.
fn tiny() -> (UNetConfig, AutoencoderConfig, TextEncoderConfig) {
    (
        UNetConfig {
            channels: 16,
            channel_mult: vec![1, 2],
            res_blocks: 1,
            attention_levels: vec![1],
            heads: 2,
            context_dim: 16,
            latent_channels: 4,
            norm_groups: 8,
        },
        AutoencoderConfig {
            channels: 8,
            channel_mult: vec![1, 2, 2],
            res_blocks: 1,
            latent_channels: 4,
            scaling_factor: 1.0,
            norm_groups: 8,
        },
        TextEncoderConfig {
            width: 16,
            layers: 1,
            heads: 2,
            tokens: 77,
        },
    )
}

/// For the demo at 64 pixels: latents of 4x16x16; all weights take less than 20 MB in fp16. The
/// autoencoder is narrow at high resolutions, because it encodes three images for each one that the
/// U-Net denoises.
fn small() -> (UNetConfig, AutoencoderConfig, TextEncoderConfig) {
    (
        UNetConfig {
            channels: 48,
            channel_mult: vec![1, 2, 3],
            res_blocks: 1,
            attention_levels: vec![1, 2],
            heads: 4,
            context_dim: 48,
            latent_channels: 4,
            norm_groups: 16,
        },
        AutoencoderConfig {
            channels: 16,
            channel_mult: vec![1, 2, 4],
            res_blocks: 1,
            latent_channels: 4,
            scaling_factor: 0.486,
            norm_groups: 8,
        },
        TextEncoderConfig {
            width: 48,
            layers: 2,
            heads: 4,
            tokens: 77,
        },
    )
}

/// Stable Diffusion 1.5 (notes 3.1, 5.1, 5.2).
fn sd15() -> (UNetConfig, AutoencoderConfig, TextEncoderConfig) {
    (
        UNetConfig {
            channels: 320,
            channel_mult: vec![1, 2, 4, 4],
            res_blocks: 2,
            attention_levels: vec![0, 1, 2],
            heads: 8,
            context_dim: 768,
            latent_channels: 4,
            norm_groups: 32,
        },
        AutoencoderConfig {
            channels: 128,
            channel_mult: vec![1, 2, 4, 4],
            res_blocks: 2,
            latent_channels: 4,
            scaling_factor: 0.18215,
            norm_groups: 32,
        },
        TextEncoderConfig {
            width: 768,
            layers: 12,
            heads: 12,
            tokens: 77,
        },
    )
}
