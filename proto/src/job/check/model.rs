//! [model]: the named sizes and what overrides them, and which components may be frozen or computed again. Called by
//! [`super::check`].

use super::data::absolute;
use super::{Faults, kebab};
use crate::job::raw::{AutoencoderToml, ModelToml, TextEncoderToml, UNetToml};
use crate::place::nearest;
use crate::size;
use crate::spec::{
    Architecture, AutoencoderConfig, Component, Model, Retrieval, TextEncoderConfig, UNetConfig,
};
use std::path::Path;

pub(super) fn model(raw: &ModelToml, directory: Option<&Path>, faults: &mut Faults) -> Model {
    let size = raw.size.as_deref().unwrap_or("small");
    let (unet, autoencoder, text_encoder) = size::named(size).unwrap_or_else(|| {
        let hint = nearest(size, &size::NAMES)
            .map(|it| format!("; did you mean {it:?}?"))
            .unwrap_or_default();
        faults.add(
            "model.size",
            format!("is {size:?}; it must be one of {}{hint}", size::NAMES.join(", ")),
        );
        size::named("small").expect("the default size exists")
    });
    let architecture = raw.architecture;
    let mut freeze = raw
        .freeze
        .clone()
        .unwrap_or_else(|| architecture.frozen_by_default().to_vec());
    freeze.sort();
    freeze.dedup();
    for component in &freeze {
        faults.need(
            architecture.components().contains(component),
            "model.freeze",
            || foreign(*component, architecture),
        );
    }
    faults.need(
        architecture == Architecture::Autoencoder || freeze.contains(&Component::Autoencoder),
        "model.freeze",
        || {
            format!(
                "is [{}], without autoencoder; the noise loss cannot train it, so it must be named",
                listed(&freeze)
            )
        },
    );
    faults.need(
        architecture.components().iter().any(|it| !freeze.contains(it)),
        "model.freeze",
        || {
            format!(
                "names every component, so nothing is left to train; leave out at least one of {}",
                listed(architecture.components().iter().filter(|it| {
                    architecture == Architecture::Autoencoder || **it != Component::Autoencoder
                }))
            )
        },
    );
    Model {
        architecture,
        unet: unet_over(unet, &raw.unet),
        autoencoder: autoencoder_over(autoencoder, &raw.autoencoder),
        text_encoder: text_over(text_encoder, &raw.text_encoder),
        init: raw
            .init
            .as_ref()
            .map(|init| absolute("model.init", init, directory, faults)),
        activation_checkpointing: checkpointed(raw, &freeze, faults),
        retrieval: retrieval(raw, faults),
        freeze,
    }
}

fn foreign(component: Component, architecture: Architecture) -> String {
    format!(
        "names {}, which {} does not have; it has {}",
        kebab(&component),
        kebab(&architecture),
        listed(architecture.components())
    )
}

fn listed<'a>(components: impl IntoIterator<Item = &'a Component>) -> String {
    let words: Vec<String> = components.into_iter().map(kebab).collect();
    words.join(", ")
}

/// Only what a gradient passes through keeps activations: what is trained, and the decoder, through which it reaches all
/// that is trained before it.
fn checkpointed(raw: &ModelToml, freeze: &[Component], faults: &mut Faults) -> Vec<Component> {
    let mut components = raw.activation_checkpointing.clone().unwrap_or_default();
    components.sort();
    components.dedup();
    let field = "model.activation_checkpointing";
    for component in &components {
        let known = raw.architecture.components().contains(component);
        faults.need(known, field, || foreign(*component, raw.architecture));
        let passed = !freeze.contains(component) || *component == Component::Decoder;
        faults.need(!known || passed, field, || {
            format!(
                "names {}, which is frozen and keeps no activations: leave it out",
                kebab(component)
            )
        });
    }
    components
}

fn retrieval(raw: &ModelToml, faults: &mut Faults) -> Retrieval {
    let given = raw.retrieval.unwrap_or_default();
    let fits = raw.architecture == Architecture::Retrinet || given == Retrieval::default();
    faults.need(fits, "model.retrieval", || {
        format!(
            "is for retrinet; {} has no retrieval block: leave it out",
            kebab(&raw.architecture)
        )
    });
    given
}

fn unet_over(base: UNetConfig, raw: &UNetToml) -> UNetConfig {
    UNetConfig {
        channels: raw.channels.unwrap_or(base.channels),
        channel_mult: raw.channel_mult.clone().unwrap_or(base.channel_mult),
        res_blocks: raw.res_blocks.unwrap_or(base.res_blocks),
        attention_levels: raw.attention_levels.clone().unwrap_or(base.attention_levels),
        heads: raw.heads.unwrap_or(base.heads),
        context_dim: raw.context_dim.unwrap_or(base.context_dim),
        latent_channels: raw.latent_channels.unwrap_or(base.latent_channels),
        norm_groups: raw.norm_groups.unwrap_or(base.norm_groups),
    }
}

fn autoencoder_over(base: AutoencoderConfig, raw: &AutoencoderToml) -> AutoencoderConfig {
    AutoencoderConfig {
        channels: raw.channels.unwrap_or(base.channels),
        channel_mult: raw.channel_mult.clone().unwrap_or(base.channel_mult),
        res_blocks: raw.res_blocks.unwrap_or(base.res_blocks),
        latent_channels: raw.latent_channels.unwrap_or(base.latent_channels),
        scaling_factor: raw.scaling_factor.unwrap_or(base.scaling_factor),
        norm_groups: raw.norm_groups.unwrap_or(base.norm_groups),
    }
}

fn text_over(base: TextEncoderConfig, raw: &TextEncoderToml) -> TextEncoderConfig {
    TextEncoderConfig {
        width: raw.width.unwrap_or(base.width),
        layers: raw.layers.unwrap_or(base.layers),
        heads: raw.heads.unwrap_or(base.heads),
        tokens: raw.tokens.unwrap_or(base.tokens),
    }
}
