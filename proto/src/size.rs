//! Named model sizes: the configurations behind `size = "…"` in job.toml.

use crate::architecture::PriorConfig;
use crate::architecture::config::{
    AutoencoderConfig, ClipActivation, ImageEncoderConfig, TextEncoderConfig, UNetConfig,
};

/// The sizes of Stable Diffusion's networks, smallest first.
pub const NAMES: [&str; 3] = ["tiny", "small", "sd15"];
/// The published size of Kandinsky 2.2.
pub const KANDINSKY: &str = "kandinsky-2.2";
/// All sizes that [`named`] supports.
pub const ALL: [&str; 4] = ["tiny", "small", "sd15", KANDINSKY];

/// The configurations of a size; None if there is no such size.
#[must_use]
pub fn named(size: &str) -> Option<(UNetConfig, AutoencoderConfig, TextEncoderConfig)> {
    match size {
        "tiny" => Some(tiny()),
        "small" => Some(small()),
        "sd15" => Some(sd15()),
        KANDINSKY => Some(kandinsky()),
        _ => None,
    }
}

/// The image tower of a CLIP that trains here: at full size ViT-L/14, whose text tower is Stable
/// Diffusion's. Its images have the job's side.
pub(crate) fn clip_vit(size: &str) -> ImageEncoderConfig {
    let (width, layers, heads, patch, projection) = match size {
        "tiny" => (16, 1, 2, 8, 16),
        "small" => (96, 3, 4, 8, 96),
        _ => return vit_l(size),
    };
    ImageEncoderConfig {
        width,
        layers,
        heads,
        mlp_width: 4 * width,
        projection,
        side: 64,
        patch,
        activation: ClipActivation::QuickGelu,
    }
}

/// The image encoder of IP-Adapter: at full size OpenCLIP's ViT-H/14 (notes 4.3).
pub(crate) fn vit_h(size: &str) -> ImageEncoderConfig {
    match size {
        "tiny" => tiny_vit(24, ClipActivation::Gelu),
        "small" => small_vit(),
        _ => ImageEncoderConfig {
            width: 1280,
            layers: 32,
            heads: 16,
            mlp_width: 5120,
            projection: 1024,
            side: 224,
            patch: 14,
            activation: ClipActivation::Gelu,
        },
    }
}

/// The image encoder of FastComposer: at full size OpenAI's ViT-L/14 (notes 4.1). Its embedding is
/// as wide as the size's text states.
pub(crate) fn vit_l(size: &str) -> ImageEncoderConfig {
    match size {
        "tiny" => tiny_vit(16, ClipActivation::QuickGelu),
        "small" => small_vit(),
        _ => ImageEncoderConfig {
            width: 1024,
            layers: 24,
            heads: 16,
            mlp_width: 4096,
            projection: 768,
            side: 224,
            patch: 14,
            activation: ClipActivation::QuickGelu,
        },
    }
}

/// The image encoder of Kandinsky: at its published size OpenCLIP's ViT-bigG/14, else that of
/// FastComposer.
pub(crate) fn kandinsky_vit(size: &str) -> ImageEncoderConfig {
    match size {
        KANDINSKY => ImageEncoderConfig {
            width: 1664,
            layers: 48,
            heads: 16,
            mlp_width: 8192,
            projection: 1280,
            side: 224,
            patch: 14,
            activation: ClipActivation::Gelu,
        },
        _ => vit_l(size),
    }
}

/// Kandinsky's prior.
pub(crate) fn prior(size: &str) -> PriorConfig {
    let (width, layers, heads) = match size {
        "tiny" => (16, 2, 2),
        "small" => (64, 4, 4),
        _ => (2048, 20, 32),
    };
    PriorConfig {
        width,
        layers,
        heads,
        text_projection: size == KANDINSKY,
    }
}

/// Kandinsky's autoencoder. Its norms have 32 groups at every size.
pub(crate) fn movq(size: &str) -> AutoencoderConfig {
    let (channels, channel_mult, res_blocks) = match size {
        "tiny" => (32, vec![1, 1, 2], 1),
        "small" => (32, vec![1, 2, 4], 1),
        _ => return kandinsky().1,
    };
    AutoencoderConfig {
        channels,
        channel_mult,
        res_blocks,
        latent_channels: 4,
        scaling_factor: 1.0,
        norm_groups: 32,
    }
}

/// Kandinsky 2.2 (notes 4.4). The heads are those of level 1; all have 64 channels.
fn kandinsky() -> (UNetConfig, AutoencoderConfig, TextEncoderConfig) {
    (
        UNetConfig {
            channels: 384,
            channel_mult: vec![1, 2, 3, 4],
            res_blocks: 3,
            attention_levels: vec![1, 2, 3],
            heads: 12,
            context_dim: 768,
            latent_channels: 4,
            norm_groups: 32,
        },
        AutoencoderConfig {
            channels: 128,
            channel_mult: vec![1, 2, 2, 4],
            res_blocks: 2,
            latent_channels: 4,
            scaling_factor: 1.0,
            norm_groups: 32,
        },
        TextEncoderConfig {
            width: 1280,
            layers: 32,
            heads: 20,
            tokens: 77,
        },
    )
}

fn tiny_vit(projection: u32, activation: ClipActivation) -> ImageEncoderConfig {
    ImageEncoderConfig {
        width: 16,
        layers: 3,
        heads: 2,
        mlp_width: 32,
        projection,
        side: 28,
        patch: 7,
        activation,
    }
}

/// The image tower of deploy/jobs/clip.toml, so that every peer of size small can take it. Its
/// embedding is as wide as the size's text states, which FastComposer and Kandinsky's prior need.
fn small_vit() -> ImageEncoderConfig {
    ImageEncoderConfig {
        projection: 48,
        ..clip_vit("small")
    }
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
