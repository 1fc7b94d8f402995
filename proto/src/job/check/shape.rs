//! Shapes of networks: widths, heads, groups, and the image sides that they require. Called by
//! [`super::check`].

use crate::architecture::Diffusion;
use crate::job::faults::Faults;
use crate::spec::{AutoencoderConfig, TextEncoderConfig, TrainWork};

/// Checks widths, heads, groups and resolution.
pub(super) fn shapes(spec: &TrainWork, faults: &mut Faults) {
    let mut side_multiple = 1_u32;
    if let Some(autoencoder) = spec.model.architecture.autoencoder() {
        autoencoder_shapes(autoencoder, faults);
        let factor = autoencoder.channel_mult.len().saturating_sub(1);
        side_multiple <<= factor.min(20);
    }
    if let Some(diffusion) = spec.model.architecture.diffusion() {
        let facts = spec.model.architecture.facts();
        diffusion_shapes(diffusion, facts.attends_to_text, faults);
        side_multiple <<= diffusion.unet.channel_mult.len().saturating_sub(1).min(10);
    } else if let Some(text) = spec.model.architecture.text_encoder() {
        text_shapes(text, faults);
    }
    if let Some(clip) = spec.model.architecture.clip() {
        side_multiple = clip.image_encoder.patch.max(1);
    }
    let resolution = spec.data.resolution;
    faults.need(
        resolution > 0 && resolution.is_multiple_of(side_multiple),
        "data.resolution",
        || format!("is {resolution}; it must be a positive multiple of {side_multiple}"),
    );
}

fn autoencoder_shapes(autoencoder: &AutoencoderConfig, faults: &mut Faults) {
    levels(
        "model.autoencoder",
        autoencoder.channels,
        &autoencoder.channel_mult,
        autoencoder.norm_groups,
        faults,
    );
    faults.count("model.autoencoder.res_blocks", autoencoder.res_blocks, 16);
    faults.count(
        "model.autoencoder.latent_channels",
        autoencoder.latent_channels,
        64,
    );
    let scaling = autoencoder.scaling_factor;
    faults.need(
        scaling.is_finite() && scaling > 0.0,
        "model.autoencoder.scaling_factor",
        || format!("is {scaling}; it must be a number above 0"),
    );
}

fn diffusion_shapes(diffusion: &Diffusion, attends_to_text: bool, faults: &mut Faults) {
    let (unet, text) = (&diffusion.unet, &diffusion.text_encoder);
    levels(
        "model.unet",
        unet.channels,
        &unet.channel_mult,
        unet.norm_groups,
        faults,
    );
    faults.count("model.unet.res_blocks", unet.res_blocks, 16);
    for level in &unet.attention_levels {
        let mult = unet.channel_mult.get(*level as usize);
        faults.need(mult.is_some(), "model.unet.attention_levels", || {
            format!(
                "names level {level}; there are levels 0 to {}",
                unet.channel_mult.len().saturating_sub(1)
            )
        });
    }
    let widths = unet
        .channel_mult
        .iter()
        .map(|mult| unet.channels.saturating_mul(*mult));
    let indivisible = |width: &u32| unet.heads == 0 || !width.is_multiple_of(unet.heads);
    if let Some(width) = widths.into_iter().find(indivisible) {
        faults.add(
            "model.unet.heads",
            format!(
                "is {}; it must divide every width, but does not divide {width}",
                unet.heads
            ),
        );
    }
    faults.need(
        unet.channels.is_multiple_of(2),
        "model.unet.channels",
        || {
            format!(
                "is {}; it must be even for the timestep embedding",
                unet.channels
            )
        },
    );
    faults.need(
        !attends_to_text || unet.context_dim == text.width,
        "model.unet.context_dim",
        || {
            format!(
                "is {}; it must equal model.text_encoder.width, which is {}",
                unet.context_dim, text.width
            )
        },
    );
    let latent_channels = diffusion.autoencoder.latent_channels;
    faults.need(
        unet.latent_channels == latent_channels,
        "model.unet.latent_channels",
        || {
            format!(
                "is {}; it must equal model.autoencoder.latent_channels, which is \
                {latent_channels}",
                unet.latent_channels
            )
        },
    );
    if !attends_to_text {
        faults.count("model.unet.context_dim", unet.context_dim, 8192);
    }
    text_shapes(text, faults);
}

fn text_shapes(text: &TextEncoderConfig, faults: &mut Faults) {
    faults.count("model.text_encoder.width", text.width, 8192);
    faults.count("model.text_encoder.layers", text.layers, 128);
    faults.need(
        text.heads > 0 && text.width.is_multiple_of(text.heads),
        "model.text_encoder.heads",
        || {
            format!(
                "is {}; it must divide model.text_encoder.width, which is {}",
                text.heads, text.width
            )
        },
    );
    faults.need(
        (2..=1024).contains(&text.tokens),
        "model.text_encoder.tokens",
        || format!("is {}; a prompt has 2 to 1024 tokens", text.tokens),
    );
}

fn levels(table: &str, channels: u32, mult: &[u32], groups: u32, faults: &mut Faults) {
    faults.need(
        (1..=8).contains(&mult.len()),
        &format!("{table}.channel_mult"),
        || format!("has {} entries; it must have 1 to 8", mult.len()),
    );
    faults.need(
        (1..=4096).contains(&channels),
        &format!("{table}.channels"),
        || format!("is {channels}; it must lie between 1 and 4096"),
    );
    faults.need(!mult.contains(&0), &format!("{table}.channel_mult"), || {
        "contains 0; every entry must be at least 1".into()
    });
    if let Some(wide) = mult.iter().find(|entry| **entry > 64) {
        faults.add(
            &format!("{table}.channel_mult"),
            format!("contains {wide}; entries must be at most 64"),
        );
    }
    let indivisible = |width: &u32| groups == 0 || !width.is_multiple_of(groups);
    if let Some(width) = mult
        .iter()
        .map(|entry| channels.saturating_mul(*entry))
        .find(indivisible)
    {
        faults.add(
            &format!("{table}.norm_groups"),
            format!("is {groups}; it must divide every width, but does not divide {width}"),
        );
    }
}
