//! The paper's model, on a given base model: a text-to-image U-Net whose skip connections take what
//! a retrieval block finds in reference images.

mod block;
mod weights;

pub use block::{Conditions, References, RetrievalBlock, predict};
pub(crate) use weights::load;

use super::interface::{Architecture, AttentionMap, Network, Place, SampleLosses, SampleOptions};
use crate::batch::Batch;
use crate::component::Prefixes;
use crate::diffusion::{self, LatentDiffusion, Latents};
use crate::error::ModelError;
use crate::parameter::{Parameters, Scope};
use crate::public::Source;
use crate::sampler::{guide, guide_by_references};
use crate::unet::UNet;
use image::RgbImage;
use model_data::example::{Concept, Example};
use proto::layout::UNetLayout;
use proto::spec::{Component, TrainWork};
use std::path::Path;
use tch::{Device, Kind, Tensor};

pub(crate) struct Retrinet(pub(crate) proto::architecture::Retrinet);

impl Architecture for Retrinet {
    fn prefixes(&self) -> Prefixes {
        Prefixes(&[
            ("autoencoder.", Component::Autoencoder),
            ("text_encoder.", Component::TextEncoder),
            ("unet.time_embed.", Component::Encoder),
            ("unet.input_blocks.", Component::Encoder),
            ("unet.middle_block.", Component::Middle),
            ("unet.out", Component::Decoder),
            ("retrieval.", Component::RetrievalEncoder),
            ("cross_attention.", Component::CrossAttention),
            ("zero_convs.", Component::CrossAttention),
        ])
    }

    fn terms(&self) -> &'static [&'static str] {
        &diffusion::TERMS
    }

    /// The retrieval encoder begins as the U-Net's encoder.
    fn derived(&self) -> &'static [&'static str] {
        &["retrieval."]
    }

    fn build(
        &self,
        scope: &Scope<'_>,
        spec: &TrainWork,
        place: Place,
    ) -> Result<Box<dyn Network>, ModelError> {
        let job = &self.0;
        let layout = UNetLayout::from(&job.diffusion.unet);
        Ok(Box::new(Built {
            diffusion: LatentDiffusion::new(scope, &job.diffusion, spec, place)?,
            unet: UNet::new(&scope.sub("unet"), &layout),
            block: RetrievalBlock::new(scope, &layout, job.retrieval),
            references: job.references.count as usize,
        }))
    }

    fn initialize(
        &self,
        parameters: &Parameters,
        own: Option<(&Path, &Source)>,
    ) -> Result<(), ModelError> {
        weights::initialize(parameters, self.0.retrieval, own)
    }
}

#[derive(Debug)]
struct Built {
    diffusion: LatentDiffusion,
    unet: UNet,
    block: RetrievalBlock,
    /// Of each example while training.
    references: usize,
}

impl Built {
    /// What the prediction for a batch depends on. `prompts` may hold several branches of the
    /// batch's size.
    fn conditions(&mut self, batch: &Batch, latents: &Latents, prompts: &[String]) -> Conditions {
        let text = self.diffusion.text_states(prompts);
        let words: Vec<String> = batch
            .concepts
            .iter()
            .map(|it| it.word().to_owned())
            .collect();
        let words = self.diffusion.text_states(&words);
        Conditions {
            timesteps: self.diffusion.timesteps(&batch.timesteps),
            text,
            references: Some(References {
                latents: latents.references.to_kind(self.diffusion.dtype()),
                words,
                each: batch.references,
            }),
        }
    }

    fn predict(&self, latents: &Tensor, conditions: &Conditions) -> Tensor {
        let latents = latents.to_kind(self.diffusion.dtype());
        predict(&self.unet, &self.block, &latents, conditions).to_kind(Kind::Float)
    }
}

impl Network for Built {
    fn losses(&mut self, examples: &[Example]) -> Result<SampleLosses, ModelError> {
        let batch = self.diffusion.batch(examples, Some(self.references))?;
        let latents = self.diffusion.latents(&batch);
        let noisy = self.diffusion.noisy(&batch, &latents.targets);
        let conditions = self.conditions(&batch, &latents, &batch.prompts);
        let predicted = self.predict(&noisy.latents, &conditions);
        Ok(self.diffusion.losses(&batch, examples, &noisy, &predicted))
    }

    /// From any number of references.
    fn sample(
        &mut self,
        example: &Example,
        options: &SampleOptions,
    ) -> Result<RgbImage, ModelError> {
        let batch = self.diffusion.batch(std::slice::from_ref(example), None)?;
        let by_references = options.reference_guidance != 1.0;
        let guided = options.guidance != 1.0 || by_references;
        let mut prompts = batch.prompts.clone();
        if guided {
            prompts.insert(0, String::new());
        }
        let latents = self.diffusion.latents(&batch);
        let mut conditions = self.conditions(&batch, &latents, &prompts);
        let mut bare = Conditions {
            timesteps: conditions.timesteps.shallow_clone(),
            text: self.diffusion.text_states(&[String::new()]),
            references: None,
        };
        self.diffusion
            .sample(example, options, |latents, timesteps| {
                conditions.timesteps = timesteps.shallow_clone();
                let predicted = self.predict(latents, &conditions);
                if by_references {
                    bare.timesteps = timesteps.shallow_clone();
                    let bare = self.predict(latents, &bare);
                    let (words, references) = (options.guidance, options.reference_guidance);
                    guide_by_references(&bare, &predicted, words, references)
                } else if guided {
                    guide(&predicted, options.guidance)
                } else {
                    predicted
                }
            })
    }

    /// Attention probabilities that the places of a reference give to a word in the retrieval
    /// encoder, mean over its heads.
    fn attention(
        &mut self,
        reference: &RgbImage,
        word: Concept,
        timestep: usize,
    ) -> Result<Option<Vec<AttentionMap>>, ModelError> {
        let batch = self
            .diffusion
            .batch(&[shown(reference, timestep)], Some(0))?;
        let latents = self.diffusion.latents(&batch);
        let words = self.diffusion.text_states(&[word.word().to_owned()]);
        let dtype = self.diffusion.dtype();
        let references = References {
            latents: latents.targets.to_kind(dtype),
            words,
            each: 1,
        };
        let timesteps = self.diffusion.timesteps(&batch.timesteps);
        let time = self
            .unet
            .embed_time(&self.block.timesteps(&timesteps), dtype);
        let found = self.block.attention(&references, &time);
        let maps = found.into_iter().map(|(block, width, probabilities)| {
            // Token 0 begins the line, token 1 is the word.
            let word = probabilities
                .select(3, 1)
                .mean_dim(1i64, false, Kind::Float);
            let word = word.flatten(0, 1).to_device(Device::Cpu);
            AttentionMap {
                block,
                width: width as u32,
                values: Vec::try_from(word).expect("a line of numbers"),
            }
        });
        Ok(Some(maps.collect()))
    }
}

/// A reference in the place of a target, to be looked at alone.
fn shown(reference: &RgbImage, timestep: usize) -> Example {
    let mask = image::GrayImage::new(reference.width(), reference.height());
    Example {
        position: 0,
        target: reference.clone(),
        target_mask: mask.clone(),
        face_mask: mask,
        references: Vec::new(),
        prompt: String::new(),
        timestep: timestep as u32,
        noise_seed: 0,
    }
}
