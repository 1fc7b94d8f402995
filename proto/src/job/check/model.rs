//! `[model]`: the named sizes and their overrides, frozen components, and activation checkpointing.
//! Called by [`super::check`].

use super::data::absolute;
use super::kebab;
use crate::architecture::Facts;
use crate::architecture::fields::{Fields, Networks};
use crate::job::Origin;
use crate::job::faults::Faults;
use crate::job::raw::{AutoencoderToml, ImageEncoderToml, ModelToml, TextEncoderToml, UNetToml};
use crate::location::nearest;
use crate::size;
use crate::spec::{
    AutoencoderConfig, Component, ImageEncoderConfig, Model, TextEncoderConfig, UNetConfig,
};
use std::path::Path;
use toml::Table;

/// `written` holds the tables of job.toml that architectures read.
pub(super) fn model(
    raw: &ModelToml,
    written: &Table,
    (directory, origin): (Option<&Path>, Origin),
    faults: &mut Faults,
) -> Model {
    let (kind, facts) = (raw.architecture, raw.architecture.facts());
    let mut fields = Fields::new(written, networks(raw, faults), origin);
    let architecture = kind.read(&mut fields, faults);
    fields.reject_unused(facts.name, |field| kind.why_unused(field), faults);
    let freeze = freeze(raw, facts, faults);
    Model {
        architecture,
        init: raw
            .init
            .as_ref()
            .map(|init| absolute("model.init", init, directory, faults)),
        activation_checkpointing: checkpointed(raw, facts, &freeze, faults),
        freeze,
    }
}

/// The networks of the named size with the overrides of job.toml.
fn networks(raw: &ModelToml, faults: &mut Faults) -> Networks {
    let mut size = raw.size.as_deref().unwrap_or("small");
    if size::named(size).is_none() {
        let hint = nearest(size, &size::NAMES)
            .map(|it| format!("; did you mean {it:?}?"))
            .unwrap_or_default();
        faults.add(
            "model.size",
            format!(
                "is {size:?}; it must be one of {}{hint}",
                size::NAMES.join(", ")
            ),
        );
        size = "small";
    }
    let (unet, autoencoder, text_encoder) = size::named(size).expect("the size was checked");
    let image_encoder = size::image_encoder(size).expect("every size has one");
    Networks {
        unet: unet_over(unet, &raw.unet),
        autoencoder: autoencoder_over(autoencoder, &raw.autoencoder),
        text_encoder: text_over(text_encoder, &raw.text_encoder),
        image_encoder: image_over(image_encoder, &raw.image_encoder),
    }
}

fn freeze(raw: &ModelToml, facts: &Facts, faults: &mut Faults) -> Vec<Component> {
    let mut freeze = raw
        .freeze
        .clone()
        .unwrap_or_else(|| facts.frozen_by_default.to_vec());
    freeze.sort();
    freeze.dedup();
    for component in &freeze {
        let known = facts.components.contains(component);
        faults.need(known, "model.freeze", || {
            unknown_component(*component, facts)
        });
    }
    for component in facts.always_frozen {
        faults.need(freeze.contains(component), "model.freeze", || {
            let (freeze, component) = (listed(&freeze), kebab(component));
            format!(
                "is [{freeze}], without {component}; the noise loss cannot train {component}, so \
                it must be frozen"
            )
        });
    }
    let some_train = facts.components.iter().any(|it| !freeze.contains(it));
    faults.need(some_train, "model.freeze", || {
        let trainable = facts
            .components
            .iter()
            .filter(|it| !facts.always_frozen.contains(it));
        format!(
            "names every component, so nothing is left to train; leave out at least one of {}",
            listed(trainable)
        )
    });
    freeze
}

fn unknown_component(component: Component, facts: &Facts) -> String {
    format!(
        "names {}, which {} does not have; it has {}",
        kebab(&component),
        facts.name,
        listed(facts.components)
    )
}

fn listed<'a>(components: impl IntoIterator<Item = &'a Component>) -> String {
    let words: Vec<String> = components.into_iter().map(kebab).collect();
    words.join(", ")
}

/// Only components that a gradient passes through store activations: the trained ones, and the
/// decoder, through which the gradient reaches the trained components before it.
fn checkpointed(
    raw: &ModelToml,
    facts: &Facts,
    freeze: &[Component],
    faults: &mut Faults,
) -> Vec<Component> {
    let mut components = raw.activation_checkpointing.clone().unwrap_or_default();
    components.sort();
    components.dedup();
    let field = "model.activation_checkpointing";
    for component in &components {
        let known = facts.components.contains(component);
        faults.need(known, field, || unknown_component(*component, facts));
        let has_gradient = !freeze.contains(component) || *component == Component::Decoder;
        faults.need(!known || has_gradient, field, || {
            format!(
                "names {}, which is frozen and stores no activations: leave it out",
                kebab(component)
            )
        });
    }
    components
}

fn unet_over(base: UNetConfig, raw: &UNetToml) -> UNetConfig {
    UNetConfig {
        channels: raw.channels.unwrap_or(base.channels),
        channel_mult: raw.channel_mult.clone().unwrap_or(base.channel_mult),
        res_blocks: raw.res_blocks.unwrap_or(base.res_blocks),
        attention_levels: raw
            .attention_levels
            .clone()
            .unwrap_or(base.attention_levels),
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

fn image_over(base: ImageEncoderConfig, raw: &ImageEncoderToml) -> ImageEncoderConfig {
    ImageEncoderConfig {
        width: raw.width.unwrap_or(base.width),
        layers: raw.layers.unwrap_or(base.layers),
        heads: raw.heads.unwrap_or(base.heads),
        patch: raw.patch.unwrap_or(base.patch),
        projection: raw.projection.unwrap_or(base.projection),
    }
}
