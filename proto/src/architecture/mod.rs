//! The architectures that a job can train. Each has a file with its part of job.toml, its
//! components, the components frozen by default, its base weights, and what sampling supports. Only
//! this file distinguishes between architectures; all other code uses [`Architecture`] and
//! [`ArchitectureSpec`].

mod autoencoder;
pub(crate) mod config;
mod controlnet;
mod diffusion;
mod facts;
mod fastcomposer;
pub(crate) mod fields;
mod ip_adapter;
pub(crate) mod references;
mod retrinet;
mod text_to_image;
mod view;

pub use autoencoder::Autoencoder;
pub use controlnet::{ControlNet, OWN_PART as CONTROLNET};
pub use diffusion::{Diffusion, Latents, Noise, NoiseKind, Objective, Prediction};
pub use facts::{Defaults, Facts, Sampling};
pub use fastcomposer::{FastComposer, OWN_PART as POSTFUSE, TRAINED_LAYERS};
pub use ip_adapter::{IpAdapter, OWN_PART as IP_ADAPTER, TOKENS as IP_ADAPTER_TOKENS};
pub use references::References;
pub use retrinet::{OWN_FILE as RETRINET, Retrinet};
pub use text_to_image::TextToImage;
pub use view::{ImageView, ViewConfig, ViewKind};

use crate::job::faults::Faults;
use crate::knobs::Knob;
use crate::sample::SampleWork;
use config::{
    AutoencoderConfig, Component, ImageEncoderConfig, Retrieval, TextEncoderConfig, UNetConfig,
};
use fields::{Fields, Written};
use serde::{Deserialize, Serialize};

/// The name of an architecture, `model.architecture` in job.toml.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Architecture {
    /// The autoencoder alone, the first half of a base model.
    Autoencoder,
    /// A text-to-image U-Net with its text encoder, trained with a given autoencoder; the second
    /// half of a base model.
    TextToImage,
    /// The paper's model, trained from a given base model.
    Retrinet,
    /// A peer of the paper: a U-Net that is controlled by a copy of its encoder.
    #[serde(rename = "controlnet")]
    ControlNet,
    /// A peer of the paper: tokens of an image embedding as a second context.
    IpAdapter,
    /// A peer of the paper: an image embedding fused into the word for its subject.
    #[serde(rename = "fastcomposer")]
    FastComposer,
}

/// An architecture with everything that it reads from job.toml.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArchitectureSpec {
    Autoencoder(Autoencoder),
    TextToImage(TextToImage),
    Retrinet(Retrinet),
    #[serde(rename = "controlnet")]
    ControlNet(ControlNet),
    IpAdapter(IpAdapter),
    #[serde(rename = "fastcomposer")]
    FastComposer(FastComposer),
}

impl Architecture {
    pub const ALL: [Self; 6] = [
        Self::Autoencoder,
        Self::TextToImage,
        Self::Retrinet,
        Self::ControlNet,
        Self::IpAdapter,
        Self::FastComposer,
    ];

    #[must_use]
    pub fn facts(self) -> &'static Facts {
        match self {
            Self::Autoencoder => &autoencoder::FACTS,
            Self::TextToImage => &text_to_image::FACTS,
            Self::Retrinet => &retrinet::FACTS,
            Self::ControlNet => &controlnet::FACTS,
            Self::IpAdapter => &ip_adapter::FACTS,
            Self::FastComposer => &fastcomposer::FACTS,
        }
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        self.facts().name
    }

    #[must_use]
    pub fn components(self) -> &'static [Component] {
        self.facts().components
    }

    #[must_use]
    pub fn frozen_by_default(self) -> &'static [Component] {
        self.facts().frozen_by_default
    }

    /// Takes the architecture's fields from those of job.toml.
    pub(crate) fn read(self, fields: &mut Fields, faults: &mut Faults) -> ArchitectureSpec {
        match self {
            Self::Autoencoder => ArchitectureSpec::Autoencoder(Autoencoder::read(fields)),
            Self::TextToImage => ArchitectureSpec::TextToImage(TextToImage::read(fields, faults)),
            Self::Retrinet => ArchitectureSpec::Retrinet(Retrinet::read(fields, faults)),
            Self::ControlNet => ArchitectureSpec::ControlNet(ControlNet::read(fields, faults)),
            Self::IpAdapter => ArchitectureSpec::IpAdapter(IpAdapter::read(fields, faults)),
            Self::FastComposer => ArchitectureSpec::FastComposer(FastComposer::read(fields, faults)),
        }
    }

    /// Why a field that it does not read has no effect.
    pub(crate) fn why_unused(self, field: &str) -> String {
        match self {
            Self::Autoencoder => autoencoder::why_unused(field),
            Self::TextToImage => text_to_image::why_unused(field),
            Self::Retrinet => retrinet::why_unused(field),
            Self::ControlNet => controlnet::why_unused(field),
            Self::IpAdapter => ip_adapter::why_unused(field),
            Self::FastComposer => fastcomposer::why_unused(field),
        }
    }
}

impl ArchitectureSpec {
    #[must_use]
    pub fn kind(&self) -> Architecture {
        match self {
            Self::Autoencoder(_) => Architecture::Autoencoder,
            Self::TextToImage(_) => Architecture::TextToImage,
            Self::Retrinet(_) => Architecture::Retrinet,
            Self::ControlNet(_) => Architecture::ControlNet,
            Self::IpAdapter(_) => Architecture::IpAdapter,
            Self::FastComposer(_) => Architecture::FastComposer,
        }
    }

    #[must_use]
    pub fn facts(&self) -> &'static Facts {
        self.kind().facts()
    }

    #[must_use]
    pub fn autoencoder(&self) -> &AutoencoderConfig {
        match self {
            Self::Autoencoder(it) => &it.autoencoder,
            Self::TextToImage(it) => &it.diffusion.autoencoder,
            Self::Retrinet(it) => &it.diffusion.autoencoder,
            Self::ControlNet(it) => &it.diffusion.autoencoder,
            Self::IpAdapter(it) => &it.diffusion.autoencoder,
            Self::FastComposer(it) => &it.diffusion.autoencoder,
        }
    }

    pub fn autoencoder_mut(&mut self) -> &mut AutoencoderConfig {
        match self {
            Self::Autoencoder(it) => &mut it.autoencoder,
            Self::TextToImage(it) => &mut it.diffusion.autoencoder,
            Self::Retrinet(it) => &mut it.diffusion.autoencoder,
            Self::ControlNet(it) => &mut it.diffusion.autoencoder,
            Self::IpAdapter(it) => &mut it.diffusion.autoencoder,
            Self::FastComposer(it) => &mut it.diffusion.autoencoder,
        }
    }

    /// The latent diffusion model that it is or contains.
    #[must_use]
    pub fn diffusion(&self) -> Option<&Diffusion> {
        match self {
            Self::Autoencoder(_) => None,
            Self::TextToImage(it) => Some(&it.diffusion),
            Self::Retrinet(it) => Some(&it.diffusion),
            Self::ControlNet(it) => Some(&it.diffusion),
            Self::IpAdapter(it) => Some(&it.diffusion),
            Self::FastComposer(it) => Some(&it.diffusion),
        }
    }

    pub fn diffusion_mut(&mut self) -> Option<&mut Diffusion> {
        match self {
            Self::Autoencoder(_) => None,
            Self::TextToImage(it) => Some(&mut it.diffusion),
            Self::Retrinet(it) => Some(&mut it.diffusion),
            Self::ControlNet(it) => Some(&mut it.diffusion),
            Self::IpAdapter(it) => Some(&mut it.diffusion),
            Self::FastComposer(it) => Some(&mut it.diffusion),
        }
    }

    #[must_use]
    pub fn unet(&self) -> Option<&UNetConfig> {
        self.diffusion().map(|it| &it.unet)
    }

    #[must_use]
    pub fn text_encoder(&self) -> Option<&TextEncoderConfig> {
        self.diffusion().map(|it| &it.text_encoder)
    }

    /// Number of time steps of its noise schedule.
    #[must_use]
    pub fn timesteps(&self) -> u32 {
        let noise = self.diffusion().map(|it| it.noise);
        noise.unwrap_or_default().steps
    }

    #[must_use]
    pub fn retrieval(&self) -> Option<Retrieval> {
        match self {
            Self::Retrinet(it) => Some(it.retrieval),
            _ => None,
        }
    }

    /// How its references are selected and cropped; None if it uses none.
    #[must_use]
    pub fn references(&self) -> Option<&References> {
        match self {
            Self::Autoencoder(_) | Self::TextToImage(_) => None,
            Self::Retrinet(it) => Some(&it.references),
            Self::ControlNet(it) => Some(&it.references),
            Self::IpAdapter(it) => Some(&it.references),
            Self::FastComposer(it) => Some(&it.references),
        }
    }

    pub fn references_mut(&mut self) -> Option<&mut References> {
        match self {
            Self::Autoencoder(_) | Self::TextToImage(_) => None,
            Self::Retrinet(it) => Some(&mut it.references),
            Self::ControlNet(it) => Some(&mut it.references),
            Self::IpAdapter(it) => Some(&mut it.references),
            Self::FastComposer(it) => Some(&mut it.references),
        }
    }

    /// The CLIP image tower that reads its references, if it has one.
    #[must_use]
    pub fn image_encoder(&self) -> Option<ImageEncoderConfig> {
        match self {
            Self::IpAdapter(it) => Some(it.image_encoder),
            Self::FastComposer(it) => Some(it.image_encoder),
            _ => None,
        }
    }

    /// What its image encoder reads of a reference; None without an image encoder.
    #[must_use]
    pub fn view(&self) -> Option<ViewConfig> {
        let kind = match self {
            Self::IpAdapter(it) => ViewKind::Whole(it.view),
            Self::FastComposer(it) => ViewKind::Object {
                augment: it.augment,
                keep: it.object_keep,
            },
            _ => return None,
        };
        let side = self.image_encoder()?.side;
        Some(ViewConfig { kind, side })
    }

    /// Turns off what only training does to references.
    pub fn prepare_for_sampling(&mut self) {
        if let Self::FastComposer(it) = self {
            it.augment = false;
        }
    }

    /// Tags that name a prompt's subject, if it needs one.
    #[must_use]
    pub fn subjects(&self) -> Option<&[String]> {
        match self {
            Self::FastComposer(it) => Some(&it.subjects),
            _ => None,
        }
    }

    /// Why images cannot be sampled as a request says: the field of `[sample]`, and what is wrong
    /// with it. None: they can be.
    #[must_use]
    pub fn refuse(&self, sample: &SampleWork) -> Option<(String, String)> {
        let facts = self.facts();
        let sampling = facts.sampling;
        let unknown = |knob: &Knob| !sampling.knobs.contains(knob);
        if let Some(knob) = sample.knobs.set().into_iter().find(unknown) {
            let known: Vec<&str> = sampling.knobs.iter().map(|it| it.name()).collect();
            let known = match known.as_slice() {
                [] => "it has no knobs".to_owned(),
                known => format!("it has {}", known.join(", ")),
            };
            let why = format!("a {} does not have this knob; {known}", facts.noun);
            return Some((format!("knobs.{}", knob.name()), why));
        }
        let (most, count) = (sampling.references_max, sample.references.len());
        if sampling.references && count > most as usize {
            let why = format!("{count} are named; a {} takes at most {most}", facts.noun);
            return Some(("references".to_owned(), why));
        }
        match self {
            Self::ControlNet(it) => it.refuse(sample),
            _ => None,
        }
    }

    /// All its fields, in the tables of job.toml.
    pub(crate) fn write(&self, written: &mut Written) {
        written.put("model.autoencoder", self.autoencoder());
        if let Some(diffusion) = self.diffusion() {
            diffusion.write(written, self.facts().equation_3);
        }
        if let Some(references) = self.references() {
            references.write(written);
        }
        if let Some(retrieval) = self.retrieval() {
            written.put("model.retrieval", retrieval);
        }
        match self {
            Self::IpAdapter(it) => it.write(written),
            Self::FastComposer(it) => it.write(written),
            _ => {}
        }
    }
}
