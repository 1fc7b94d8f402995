//! The architectures that a job can train. Each has a file with its part of job.toml, its
//! components, the components frozen by default, its base weights, and what sampling supports. Only
//! this file distinguishes between architectures; all other code uses [`Architecture`] and
//! [`ArchitectureSpec`].

mod autoencoder;
mod clip;
pub(crate) mod config;
mod controlnet;
mod diffusion;
mod facts;
mod fastcomposer;
pub(crate) mod fields;
mod ip_adapter;
mod kandinsky_decoder;
mod kandinsky_prior;
pub(crate) mod references;
mod retrinet;
mod text_to_image;
mod view;

pub use autoencoder::{Autoencoder, Reconstruction};
pub use clip::Clip;
pub use controlnet::{ControlNet, OWN_PART as CONTROLNET};
pub use diffusion::{Diffusion, Latents, Noise, NoiseKind, Objective, Prediction};
pub use facts::{Defaults, Facts, Sampling};
pub use fastcomposer::{FastComposer, OWN_PART as POSTFUSE, TRAINED_LAYERS};
pub use ip_adapter::{IpAdapter, OWN_PART as IP_ADAPTER, TOKENS as IP_ADAPTER_TOKENS};
pub use kandinsky_decoder::{DecoderVariant, IMAGE_TOKENS, KandinskyDecoder, UNCLIP};
pub use kandinsky_prior::{KandinskyPrior, PRIOR, PriorConfig};
pub use references::References;
pub use retrinet::{OWN_FILE as RETRINET, Retrinet};
pub use text_to_image::TextToImage;
pub use view::{ImageView, ViewConfig, ViewKind};

use crate::job::faults::Faults;
use crate::knobs::{Knob, Knobs};
use crate::sample::SampleWork;
use config::{
    AutoencoderConfig, Component, ImageEncoderConfig, LossWeighting, Retrieval, TextEncoderConfig,
    UNetConfig,
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
    /// A text tower and an image tower, for scores and for models with image embeddings.
    Clip,
    /// A peer of the paper: a U-Net that is controlled by a copy of its encoder.
    #[serde(rename = "controlnet")]
    ControlNet,
    /// A peer of the paper: tokens of an image embedding as a second context.
    IpAdapter,
    /// A peer of the paper: an image embedding fused into the word for its subject.
    #[serde(rename = "fastcomposer")]
    FastComposer,
    /// A peer of the paper, its first half: from a prompt to an image embedding.
    KandinskyPrior,
    /// A peer of the paper, its second half: a U-Net that draws an image embedding.
    KandinskyDecoder,
}

/// An architecture with everything that it reads from job.toml.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArchitectureSpec {
    Autoencoder(Autoencoder),
    TextToImage(TextToImage),
    Retrinet(Retrinet),
    Clip(Clip),
    #[serde(rename = "controlnet")]
    ControlNet(ControlNet),
    IpAdapter(IpAdapter),
    #[serde(rename = "fastcomposer")]
    FastComposer(FastComposer),
    KandinskyPrior(KandinskyPrior),
    KandinskyDecoder(KandinskyDecoder),
}

impl Architecture {
    pub const ALL: [Self; 9] = [
        Self::Autoencoder,
        Self::TextToImage,
        Self::Retrinet,
        Self::Clip,
        Self::ControlNet,
        Self::IpAdapter,
        Self::FastComposer,
        Self::KandinskyPrior,
        Self::KandinskyDecoder,
    ];

    #[must_use]
    pub fn facts(self) -> &'static Facts {
        match self {
            Self::Autoencoder => &autoencoder::FACTS,
            Self::TextToImage => &text_to_image::FACTS,
            Self::Retrinet => &retrinet::FACTS,
            Self::Clip => &clip::FACTS,
            Self::ControlNet => &controlnet::FACTS,
            Self::IpAdapter => &ip_adapter::FACTS,
            Self::FastComposer => &fastcomposer::FACTS,
            Self::KandinskyPrior => &kandinsky_prior::FACTS,
            Self::KandinskyDecoder => &kandinsky_decoder::FACTS,
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
            Self::ControlNet => ArchitectureSpec::ControlNet(ControlNet::read(fields, faults)),
            Self::IpAdapter => ArchitectureSpec::IpAdapter(IpAdapter::read(fields, faults)),
            Self::FastComposer => {
                ArchitectureSpec::FastComposer(FastComposer::read(fields, faults))
            }
            Self::KandinskyPrior => {
                ArchitectureSpec::KandinskyPrior(KandinskyPrior::read(fields, faults))
            }
            Self::KandinskyDecoder => {
                ArchitectureSpec::KandinskyDecoder(KandinskyDecoder::read(fields, faults))
            }
        }
    }

    /// Why a field that it does not read has no effect.
    pub(crate) fn why_unused(self, field: &str) -> String {
        match self {
            Self::Autoencoder => autoencoder::why_unused(field),
            Self::TextToImage => text_to_image::why_unused(field),
            Self::Retrinet => retrinet::why_unused(field),
            Self::Clip => clip::why_unused(field),
            Self::ControlNet => controlnet::why_unused(field),
            Self::IpAdapter => ip_adapter::why_unused(field),
            Self::FastComposer => fastcomposer::why_unused(field),
            Self::KandinskyPrior => kandinsky_prior::why_unused(field),
            Self::KandinskyDecoder => kandinsky_decoder::why_unused(field),
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
            Self::ControlNet(_) => Architecture::ControlNet,
            Self::IpAdapter(_) => Architecture::IpAdapter,
            Self::FastComposer(_) => Architecture::FastComposer,
            Self::KandinskyPrior(_) => Architecture::KandinskyPrior,
            Self::KandinskyDecoder(_) => Architecture::KandinskyDecoder,
        }
    }

    #[must_use]
    pub fn facts(&self) -> &'static Facts {
        self.kind().facts()
    }

    /// Its autoencoder; None: it works on image embeddings.
    #[must_use]
    pub fn autoencoder(&self) -> Option<&AutoencoderConfig> {
        match self {
            Self::Autoencoder(it) => Some(&it.autoencoder),
            _ => self.diffusion().map(|it| &it.autoencoder),
        }
    }

    pub fn autoencoder_mut(&mut self) -> Option<&mut AutoencoderConfig> {
        match self {
            Self::Autoencoder(it) => Some(&mut it.autoencoder),
            _ => self.diffusion_mut().map(|it| &mut it.autoencoder),
        }
    }

    #[must_use]
    pub fn clip(&self) -> Option<&Clip> {
        match self {
            Self::Clip(it) => Some(it),
            _ => None,
        }
    }

    /// The latent diffusion model that it is or contains.
    #[must_use]
    pub fn diffusion(&self) -> Option<&Diffusion> {
        match self {
            Self::Autoencoder(_) | Self::Clip(_) | Self::KandinskyPrior(_) => None,
            Self::TextToImage(it) => Some(&it.diffusion),
            Self::Retrinet(it) => Some(&it.diffusion),
            Self::ControlNet(it) => Some(&it.diffusion),
            Self::IpAdapter(it) => Some(&it.diffusion),
            Self::FastComposer(it) => Some(&it.diffusion),
            Self::KandinskyDecoder(it) => Some(&it.diffusion),
        }
    }

    pub fn diffusion_mut(&mut self) -> Option<&mut Diffusion> {
        match self {
            Self::Autoencoder(_) | Self::Clip(_) | Self::KandinskyPrior(_) => None,
            Self::TextToImage(it) => Some(&mut it.diffusion),
            Self::Retrinet(it) => Some(&mut it.diffusion),
            Self::ControlNet(it) => Some(&mut it.diffusion),
            Self::IpAdapter(it) => Some(&mut it.diffusion),
            Self::FastComposer(it) => Some(&mut it.diffusion),
            Self::KandinskyDecoder(it) => Some(&mut it.diffusion),
        }
    }

    /// Its noise schedule; None: it has no noise levels.
    #[must_use]
    pub fn noise(&self) -> Option<Noise> {
        match self {
            Self::KandinskyPrior(_) => Some(KandinskyPrior::NOISE),
            _ => self.diffusion().map(|it| it.noise),
        }
    }

    /// The weight of each noise level in its loss; None: it has no noise levels.
    #[must_use]
    pub fn loss_weighting(&self) -> Option<LossWeighting> {
        match self {
            Self::KandinskyPrior(it) => Some(it.loss_weighting),
            _ => self.diffusion().map(|it| it.objective.loss_weighting),
        }
    }

    /// The scales that `coordinator sample` guides with unless told otherwise, by the prompt and by
    /// the references. Stable Diffusion's 7.5 and none; ours are those of a model that predicts v,
    /// as small ones do: 7.5 saturates its colours. By references only if it learned to predict
    /// without them.
    #[must_use]
    pub fn guidance(&self) -> (f64, f64) {
        let noise = self.noise().unwrap_or_default();
        let drops = self.references().is_some_and(|it| it.drop > 0.0);
        match (noise.prediction, self.retrieval()) {
            (Prediction::Epsilon, _) => (7.5, 1.0),
            (Prediction::V, Some(_)) if drops => (1.5, 3.0),
            (Prediction::V, _) => (2.0, 1.0),
        }
    }

    /// Kandinsky's own U-Net and autoencoder, if it has them.
    #[must_use]
    pub fn kandinsky(&self) -> Option<&KandinskyDecoder> {
        match self {
            Self::KandinskyDecoder(it) if it.variant == DecoderVariant::Kandinsky22 => Some(it),
            _ => None,
        }
    }

    /// Kandinsky's prior, if it has one.
    #[must_use]
    pub fn prior(&self) -> Option<PriorConfig> {
        match self {
            Self::KandinskyPrior(it) => Some(it.prior),
            Self::KandinskyDecoder(it) => Some(it.prior),
            _ => None,
        }
    }

    #[must_use]
    pub fn unet(&self) -> Option<&UNetConfig> {
        self.diffusion().map(|it| &it.unet)
    }

    #[must_use]
    pub fn text_encoder(&self) -> Option<&TextEncoderConfig> {
        match self {
            Self::Clip(it) => Some(&it.text_encoder),
            Self::KandinskyPrior(it) => Some(&it.text_encoder),
            _ => self.diffusion().map(|it| &it.text_encoder),
        }
    }

    /// Number of time steps of its noise schedule.
    #[must_use]
    pub fn timesteps(&self) -> u32 {
        self.noise().unwrap_or_default().steps
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
            Self::Autoencoder(_)
            | Self::TextToImage(_)
            | Self::Clip(_)
            | Self::KandinskyPrior(_) => None,
            Self::Retrinet(it) => Some(&it.references),
            Self::ControlNet(it) => Some(&it.references),
            Self::IpAdapter(it) => Some(&it.references),
            Self::FastComposer(it) => Some(&it.references),
            Self::KandinskyDecoder(it) => Some(&it.references),
        }
    }

    pub fn references_mut(&mut self) -> Option<&mut References> {
        match self {
            Self::Autoencoder(_)
            | Self::TextToImage(_)
            | Self::Clip(_)
            | Self::KandinskyPrior(_) => None,
            Self::Retrinet(it) => Some(&mut it.references),
            Self::ControlNet(it) => Some(&mut it.references),
            Self::IpAdapter(it) => Some(&mut it.references),
            Self::FastComposer(it) => Some(&mut it.references),
            Self::KandinskyDecoder(it) => Some(&mut it.references),
        }
    }

    /// The CLIP image tower that reads its references, if it has one.
    #[must_use]
    pub fn image_encoder(&self) -> Option<ImageEncoderConfig> {
        match self {
            Self::IpAdapter(it) => Some(it.image_encoder),
            Self::FastComposer(it) => Some(it.image_encoder),
            Self::KandinskyPrior(it) => Some(it.image_encoder),
            Self::KandinskyDecoder(it) => Some(it.image_encoder),
            _ => None,
        }
    }

    /// What its image encoder reads of a reference or of the target; None without an image encoder.
    #[must_use]
    pub fn view(&self) -> Option<ViewConfig> {
        let kind = match self {
            Self::IpAdapter(it) => ViewKind::Whole(it.view),
            Self::KandinskyPrior(it) => ViewKind::Target(it.view),
            Self::KandinskyDecoder(it) => ViewKind::Whole(it.view),
            Self::FastComposer(it) => ViewKind::Object {
                augment: it.augment,
                keep: it.object_keep,
            },
            _ => return None,
        };
        let side = self.image_encoder()?.side;
        Some(ViewConfig { kind, side })
    }

    /// Turns off what only training does to references, and turns on what only these images need.
    pub fn prepare_for_sampling(&mut self, knobs: &Knobs) {
        match self {
            Self::FastComposer(it) => it.augment = false,
            Self::KandinskyDecoder(it) => it.with_prior = knobs.prior_strength.is_some(),
            _ => {}
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
            Self::KandinskyPrior(it) => it.refuse(sample),
            Self::KandinskyDecoder(it) => it.refuse(sample),
            _ => None,
        }
    }

    /// Why a user's image of this size, which is used whole, cannot be a reference of images of
    /// `side` pixels. None: it can be.
    #[must_use]
    pub fn refuse_size(&self, side: u32, size: (u32, u32)) -> Option<String> {
        match self {
            Self::ControlNet(_) => ControlNet::refuse_size(side, size),
            // They see it on a pad, or through an image encoder.
            _ => None,
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
            Self::KandinskyPrior(it) => it.write(written),
            Self::KandinskyDecoder(it) => it.write(written),
            _ => {}
        }
    }
}
