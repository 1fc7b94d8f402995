//! What a job trains: one file for each architecture with its part of job.toml, its components,
//! what is frozen when job.toml does not say, its base weights, and what sampling may ask of it.
//! This file is the only one that tells them apart; everybody else asks [`Architecture`] and
//! [`ArchitectureSpec`].

mod autoencoder;
pub(crate) mod config;
mod diffusion;
mod facts;
pub(crate) mod fields;
pub(crate) mod references;
mod retrinet;
mod text_to_image;

pub use autoencoder::Autoencoder;
pub use diffusion::{Diffusion, Noise, NoiseKind, Objective, Prediction};
pub use facts::{Facts, Sampling};
pub use references::References;
pub use retrinet::{OWN_FILE as RETRINET, Retrinet};
pub use text_to_image::TextToImage;

use crate::job::faults::Faults;
use config::{AutoencoderConfig, Component, Retrieval, TextEncoderConfig, UNetConfig};
use fields::{Fields, Written};
use serde::{Deserialize, Serialize};

/// The name of an architecture, `model.architecture` in job.toml.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Architecture {
    /// The autoencoder alone: the first half of a base model.
    Autoencoder,
    /// A text-to-image U-Net with its text encoder, on a given autoencoder: the second half of a
    /// base model.
    TextToImage,
    /// The paper's model, on a given base model.
    Retrinet,
}

/// An architecture with everything that it reads from job.toml.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArchitectureSpec {
    Autoencoder(Autoencoder),
    TextToImage(TextToImage),
    Retrinet(Retrinet),
}

impl Architecture {
    pub const ALL: [Self; 3] = [Self::Autoencoder, Self::TextToImage, Self::Retrinet];

    #[must_use]
    pub fn facts(self) -> &'static Facts {
        match self {
            Self::Autoencoder => &autoencoder::FACTS,
            Self::TextToImage => &text_to_image::FACTS,
            Self::Retrinet => &retrinet::FACTS,
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

    /// Takes its fields out of what is written.
    pub(crate) fn read(self, fields: &mut Fields, faults: &mut Faults) -> ArchitectureSpec {
        match self {
            Self::Autoencoder => ArchitectureSpec::Autoencoder(Autoencoder::read(fields)),
            Self::TextToImage => ArchitectureSpec::TextToImage(TextToImage::read(fields, faults)),
            Self::Retrinet => ArchitectureSpec::Retrinet(Retrinet::read(fields, faults)),
        }
    }

    /// Why a field that it does not read means nothing.
    pub(crate) fn lacks(self, field: &str) -> String {
        match self {
            Self::Autoencoder => autoencoder::lacks(field),
            Self::TextToImage => text_to_image::lacks(field),
            Self::Retrinet => retrinet::lacks(field),
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
        }
    }

    pub fn autoencoder_mut(&mut self) -> &mut AutoencoderConfig {
        match self {
            Self::Autoencoder(it) => &mut it.autoencoder,
            Self::TextToImage(it) => &mut it.diffusion.autoencoder,
            Self::Retrinet(it) => &mut it.diffusion.autoencoder,
        }
    }

    /// The latent diffusion model that it is or contains.
    #[must_use]
    pub fn diffusion(&self) -> Option<&Diffusion> {
        match self {
            Self::Autoencoder(_) => None,
            Self::TextToImage(it) => Some(&it.diffusion),
            Self::Retrinet(it) => Some(&it.diffusion),
        }
    }

    pub fn diffusion_mut(&mut self) -> Option<&mut Diffusion> {
        match self {
            Self::Autoencoder(_) => None,
            Self::TextToImage(it) => Some(&mut it.diffusion),
            Self::Retrinet(it) => Some(&mut it.diffusion),
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

    /// Noise levels of its examples.
    #[must_use]
    pub fn timesteps(&self) -> u32 {
        let noise = self.diffusion().map(|it| it.noise);
        noise.unwrap_or_default().steps
    }

    #[must_use]
    pub fn retrieval(&self) -> Option<Retrieval> {
        match self {
            Self::Autoencoder(_) | Self::TextToImage(_) => None,
            Self::Retrinet(it) => Some(it.retrieval),
        }
    }

    /// How its references are chosen and cut; None: it is shown none.
    #[must_use]
    pub fn references(&self) -> Option<&References> {
        match self {
            Self::Autoencoder(_) | Self::TextToImage(_) => None,
            Self::Retrinet(it) => Some(&it.references),
        }
    }

    pub fn references_mut(&mut self) -> Option<&mut References> {
        match self {
            Self::Autoencoder(_) | Self::TextToImage(_) => None,
            Self::Retrinet(it) => Some(&mut it.references),
        }
    }

    /// All its fields, in the tables of job.toml.
    pub(crate) fn write(&self, written: &mut Written) {
        written.put("model.autoencoder", self.autoencoder());
        if let Some(diffusion) = self.diffusion() {
            diffusion.write(written);
        }
        if let Some(references) = self.references() {
            references.write(written);
        }
        if let Some(retrieval) = self.retrieval() {
            written.put("model.retrieval", retrieval);
        }
    }
}
