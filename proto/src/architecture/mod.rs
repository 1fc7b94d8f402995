//! The architectures that a job can train. Each has a file with its part of job.toml, its
//! components, the components frozen by default, its base weights, and what sampling supports. Only
//! this file distinguishes between architectures; all other code uses [`Architecture`] and
//! [`ArchitectureSpec`].

mod autoencoder;
mod clip;
pub(crate) mod config;
mod diffusion;
mod facts;
pub(crate) mod fields;
pub(crate) mod references;
mod retrinet;
mod text_to_image;

pub use autoencoder::{Autoencoder, Reconstruction};
pub use clip::Clip;
pub use diffusion::{Diffusion, Latents, Noise, NoiseKind, Objective, Prediction};
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
    /// The autoencoder alone, the first half of a base model.
    Autoencoder,
    /// A text-to-image U-Net with its text encoder, trained with a given autoencoder; the second
    /// half of a base model.
    TextToImage,
    /// The paper's model, trained from a given base model.
    Retrinet,
    /// A text tower and an image tower, for scores and for models with image embeddings.
    Clip,
}

/// An architecture with everything that it reads from job.toml.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArchitectureSpec {
    Autoencoder(Autoencoder),
    TextToImage(TextToImage),
    Retrinet(Retrinet),
    Clip(Clip),
}

impl Architecture {
    pub const ALL: [Self; 4] = [
        Self::Autoencoder,
        Self::TextToImage,
        Self::Retrinet,
        Self::Clip,
    ];

    #[must_use]
    pub fn facts(self) -> &'static Facts {
        match self {
            Self::Autoencoder => &autoencoder::FACTS,
            Self::TextToImage => &text_to_image::FACTS,
            Self::Retrinet => &retrinet::FACTS,
            Self::Clip => &clip::FACTS,
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
            Self::Autoencoder => ArchitectureSpec::Autoencoder(Autoencoder::read(fields, faults)),
            Self::TextToImage => ArchitectureSpec::TextToImage(TextToImage::read(fields, faults)),
            Self::Retrinet => ArchitectureSpec::Retrinet(Retrinet::read(fields, faults)),
            Self::Clip => ArchitectureSpec::Clip(Clip::read(fields, faults)),
        }
    }

    /// Why a field that it does not read has no effect.
    pub(crate) fn why_unused(self, field: &str) -> String {
        match self {
            Self::Autoencoder => autoencoder::why_unused(field),
            Self::TextToImage => text_to_image::why_unused(field),
            Self::Retrinet => retrinet::why_unused(field),
            Self::Clip => clip::why_unused(field),
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
            Self::Clip(_) => Architecture::Clip,
        }
    }

    #[must_use]
    pub fn facts(&self) -> &'static Facts {
        self.kind().facts()
    }

    #[must_use]
    pub fn autoencoder(&self) -> Option<&AutoencoderConfig> {
        match self {
            Self::Autoencoder(it) => Some(&it.autoencoder),
            Self::TextToImage(it) => Some(&it.diffusion.autoencoder),
            Self::Retrinet(it) => Some(&it.diffusion.autoencoder),
            Self::Clip(_) => None,
        }
    }

    pub fn autoencoder_mut(&mut self) -> Option<&mut AutoencoderConfig> {
        match self {
            Self::Autoencoder(it) => Some(&mut it.autoencoder),
            Self::TextToImage(it) => Some(&mut it.diffusion.autoencoder),
            Self::Retrinet(it) => Some(&mut it.diffusion.autoencoder),
            Self::Clip(_) => None,
        }
    }

    #[must_use]
    pub fn clip(&self) -> Option<&Clip> {
        match self {
            Self::Clip(it) => Some(it),
            Self::Autoencoder(_) | Self::TextToImage(_) | Self::Retrinet(_) => None,
        }
    }

    /// The latent diffusion model that it is or contains.
    #[must_use]
    pub fn diffusion(&self) -> Option<&Diffusion> {
        match self {
            Self::Autoencoder(_) | Self::Clip(_) => None,
            Self::TextToImage(it) => Some(&it.diffusion),
            Self::Retrinet(it) => Some(&it.diffusion),
        }
    }

    pub fn diffusion_mut(&mut self) -> Option<&mut Diffusion> {
        match self {
            Self::Autoencoder(_) | Self::Clip(_) => None,
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
        let of_clip = self.clip().map(|it| &it.text_encoder);
        self.diffusion().map(|it| &it.text_encoder).or(of_clip)
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
            Self::Autoencoder(_) | Self::TextToImage(_) | Self::Clip(_) => None,
            Self::Retrinet(it) => Some(it.retrieval),
        }
    }

    /// How its references are selected and cropped; None if it uses none.
    #[must_use]
    pub fn references(&self) -> Option<&References> {
        match self {
            Self::Autoencoder(_) | Self::TextToImage(_) | Self::Clip(_) => None,
            Self::Retrinet(it) => Some(&it.references),
        }
    }

    pub fn references_mut(&mut self) -> Option<&mut References> {
        match self {
            Self::Autoencoder(_) | Self::TextToImage(_) | Self::Clip(_) => None,
            Self::Retrinet(it) => Some(&mut it.references),
        }
    }

    /// All its fields, in the tables of job.toml.
    pub(crate) fn write(&self, written: &mut Written) {
        if let Some(autoencoder) = self.autoencoder() {
            written.put("model.autoencoder", autoencoder);
        }
        if let Some(clip) = self.clip() {
            clip.write(written);
        }
        if let Self::Autoencoder(it) = self {
            it.reconstruction.write(written);
        }
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
