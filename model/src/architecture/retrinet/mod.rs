//! The paper's model: the text-to-image U-Net of a base model, with residuals on its skip
//! connections that a retrieval block computes from reference images.

mod block;
mod weights;

pub use block::{Conditions, References, RetrievalBlock, predict};
pub(crate) use weights::load;

use super::interface::{
    Architecture, AttentionMap, Network, SampleLosses, SampleOptions, TensorOptions,
};
use crate::batch::{Batch, kept};
use crate::component::Prefixes;
use crate::diffusion::{self, LatentDiffusion, Latents};
use crate::error::ModelError;
use crate::parameter::{Parameters, Scope};
use crate::public::Source;
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

    /// The retrieval encoder is initialized as a copy of the U-Net's encoder.
    fn derived(&self) -> &'static [&'static str] {
        &["retrieval."]
    }

    fn build(
        &self,
        scope: &Scope<'_>,
        spec: &TrainWork,
        options: TensorOptions,
    ) -> Result<Box<dyn Network>, ModelError> {
        let job = &self.0;
        let layout = UNetLayout::from(&job.diffusion.unet);
        let (diffusion, unet) = LatentDiffusion::with_unet(scope, &job.diffusion, spec, options)?;
        Ok(Box::new(RetrinetNetwork {
            diffusion,
            unet,
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
struct RetrinetNetwork {
    diffusion: LatentDiffusion,
    unet: UNet,
    block: RetrievalBlock,
    /// References per example in training.
    references: usize,
}

impl RetrinetNetwork {
    /// The conditions of the prediction for a batch. `prompts` may contain several branches of the
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
                per_target: batch.references,
                kept: None,
                features: None,
            }),
        }
    }

    fn predict(&self, latents: &Tensor, conditions: &Conditions) -> Tensor {
        let latents = latents.to_kind(self.diffusion.dtype());
        predict(&self.unet, &self.block, &latents, conditions).to_kind(Kind::Float)
    }
}

impl Network for RetrinetNetwork {
    fn losses(&mut self, examples: &[Example]) -> Result<SampleLosses, ModelError> {
        let batch = self.diffusion.batch(examples, Some(self.references))?;
        let latents = self.diffusion.training_latents(&batch);
        let noisy = self.diffusion.noisy(&batch, &latents.targets);
        let mut conditions = self.conditions(&batch, &latents, &batch.prompts);
        if let Some(references) = &mut conditions.references {
            references.kept = kept(&batch, noisy.latents.device());
        }
        let predicted = self.predict(&noisy.latents, &conditions);
        Ok(self.diffusion.losses(&batch, examples, &noisy, &predicted))
    }

    fn reconstruct(&mut self, example: &Example) -> Result<Option<RgbImage>, ModelError> {
        self.diffusion.reconstruct(example).map(Some)
    }

    /// Accepts any number of references.
    fn sample(
        &mut self,
        example: &Example,
        options: &SampleOptions,
    ) -> Result<RgbImage, ModelError> {
        let batch = self.diffusion.batch(std::slice::from_ref(example), None)?;
        let guidance = options.guided();
        let prompts = guidance.prompts(&batch.prompts, &options.negative_prompt);
        let latents = self.diffusion.latents(&batch);
        let mut conditions = self.conditions(&batch, &latents, &prompts);
        if let Some(references) = &mut conditions.references {
            references.features = self.block.constant_features(&self.unet, references);
        }
        let mut unconditional = Conditions {
            timesteps: conditions.timesteps.shallow_clone(),
            text: self
                .diffusion
                .text_states(std::slice::from_ref(&options.negative_prompt)),
            references: None,
        };
        self.diffusion
            .sample(example, options, |latents, timesteps| {
                conditions.timesteps = timesteps.shallow_clone();
                let predicted = self.predict(latents, &conditions);
                guidance.guided(predicted, || {
                    unconditional.timesteps = timesteps.shallow_clone();
                    self.predict(latents, &unconditional)
                })
            })
    }

    /// The retrieval encoder's attention probabilities from the cells of a reference to a word,
    /// averaged over the heads.
    fn attention(
        &mut self,
        reference: &RgbImage,
        word: Concept,
        timestep: usize,
    ) -> Result<Option<Vec<AttentionMap>>, ModelError> {
        let batch = self
            .diffusion
            .batch(&[as_target(reference, timestep)], Some(0))?;
        let latents = self.diffusion.latents(&batch);
        let words = self.diffusion.text_states(&[word.word().to_owned()]);
        let dtype = self.diffusion.dtype();
        let references = References {
            latents: latents.targets.to_kind(dtype),
            words,
            per_target: 1,
            kept: None,
            features: None,
        };
        let timesteps = self.diffusion.timesteps(&batch.timesteps);
        let time = self
            .unet
            .embed_time(&self.block.timesteps(&timesteps), dtype);
        let attention = self.block.attention(&references, &time);
        let maps = attention.into_iter().map(|found| {
            // Token 0 is the start token, token 1 the word.
            let word = found
                .probabilities
                .select(3, 1)
                .mean_dim(1i64, false, Kind::Float);
            let word = word.flatten(0, 1).to_device(Device::Cpu);
            AttentionMap {
                block: found.block,
                width: found.width as u32,
                values: Vec::try_from(word).expect("the tensor is one-dimensional"),
            }
        });
        Ok(Some(maps.collect()))
    }
}

/// An example with a reference image as its target and without references.
fn as_target(reference: &RgbImage, timestep: usize) -> Example {
    let mask = image::GrayImage::new(reference.width(), reference.height());
    Example {
        position: 0,
        target: reference.clone(),
        target_mask: mask.clone(),
        face_mask: mask,
        references: Vec::new(),
        figure_mask: None,
        target_view: None,
        references_dropped: false,
        prompt: String::new(),
        timestep: timestep as u32,
        noise_seed: 0,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::parameter::Parameters;
    use proto::spec::{Retrieval, RetrievalTime};

    /// Standard normal values, different for each seed.
    fn normal(seed: u64, shape: &[i64]) -> Tensor {
        use crate::noise::{Purpose, normal};
        normal(&[seed], Purpose::Target, shape, Device::Cpu).squeeze_dim(0)
    }

    /// Training with dropped references must see what guidance by references subtracts.
    #[test]
    fn a_target_whose_references_are_dropped_is_predicted_as_without_references() {
        tch::set_num_threads(1);
        let (config, ..) = proto::size::named("tiny").unwrap();
        let layout = UNetLayout::from(&config);
        let parameters = Parameters::seeded(1, Device::Cpu);
        let scope = parameters.root();
        let unet = UNet::new(&scope.sub("unet"), &layout);
        let block = RetrievalBlock::new(&scope, &layout, Retrieval::default());
        // Zero convolutions and the last layer begin at 0, where nothing can be told apart.
        for (name, mut tensor) in parameters.tensors() {
            if tensor.abs().max().double_value(&[]) == 0.0 && name.ends_with("weight") {
                let values = normal(name.len() as u64, &tensor.size()) * 0.1;
                tch::no_grad(|| tensor.copy_(&values));
            }
        }
        let (channels, width) = (
            i64::from(config.latent_channels),
            i64::from(config.context_dim),
        );
        let latents = normal(1, &[2, channels, 8, 8]);
        let conditions = |references: bool, kept: Option<Tensor>| Conditions {
            timesteps: Tensor::from_slice(&[100i64, 700]),
            text: normal(2, &[2, 7, width]),
            references: references.then(|| References {
                latents: normal(3, &[4, channels, 8, 8]),
                words: normal(4, &[4, 7, width]),
                per_target: 2,
                kept,
                features: None,
            }),
        };
        let predicted = |references, kept: Option<&[f32]>| {
            let kept = kept.map(|kept| Tensor::from_slice(kept).view([-1, 1, 1, 1]));
            let conditions = conditions(references, kept);
            tch::no_grad(|| predict(&unet, &block, &latents, &conditions))
        };
        let (without, with) = (predicted(false, None), predicted(true, None));
        for target in [0, 1] {
            assert!(!without.get(target).equal(&with.get(target)));
        }
        let mixed = predicted(true, Some(&[0.0, 1.0]));
        assert!(mixed.get(0).equal(&without.get(0)));
        assert!(mixed.get(1).equal(&with.get(1)));
        assert!(predicted(true, Some(&[0.0, 0.0])).equal(&without));
        assert!(predicted(true, Some(&[1.0, 1.0])).equal(&with));
    }

    /// Sampling encodes the references once if that changes no bit.
    #[test]
    fn features_that_do_not_depend_on_the_time_step_are_known_before_it() {
        tch::set_num_threads(1);
        let (config, ..) = proto::size::named("tiny").unwrap();
        let layout = UNetLayout::from(&config);
        for time in [RetrievalTime::Target, RetrievalTime::Zero] {
            let parameters = Parameters::seeded(1, Device::Cpu);
            let scope = parameters.root();
            let unet = UNet::new(&scope.sub("unet"), &layout);
            let retrieval = Retrieval {
                time,
                ..Retrieval::default()
            };
            let block = RetrievalBlock::new(&scope, &layout, retrieval);
            for (name, mut tensor) in parameters.tensors() {
                if tensor.abs().max().double_value(&[]) == 0.0 && name.ends_with("weight") {
                    let values = normal(name.len() as u64, &tensor.size()) * 0.1;
                    tch::no_grad(|| tensor.copy_(&values));
                }
            }
            let channels = i64::from(config.latent_channels);
            let width = i64::from(config.context_dim);
            let mut conditions = Conditions {
                timesteps: Tensor::from_slice(&[700i64]),
                text: normal(2, &[1, 7, width]),
                references: Some(References {
                    latents: normal(3, &[2, channels, 8, 8]),
                    words: normal(4, &[2, 7, width]),
                    per_target: 2,
                    kept: None,
                    features: None,
                }),
            };
            let latents = normal(1, &[1, channels, 8, 8]);
            let predicted = |conditions: &Conditions| {
                tch::no_grad(|| predict(&unet, &block, &latents, conditions))
            };
            let expected = predicted(&conditions);
            let references = conditions.references.as_mut().unwrap();
            let known = tch::no_grad(|| block.constant_features(&unet, references));
            assert_eq!(known.is_some(), time == RetrievalTime::Zero);
            references.features = known;
            assert!(predicted(&conditions).equal(&expected));
        }
    }
}
