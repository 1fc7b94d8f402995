//! What latent diffusion models have in common, whatever predicts their noise: the autoencoder and
//! its latents, text states, noise levels, equation 3 and the sampling loop. Called by the
//! architectures that are built on it.

use crate::architecture::interface::{Place, SampleLosses, SampleOptions};
use crate::autoencoder::Autoencoder;
use crate::batch::{Batch, BatchShape, masks, to_images};
use crate::error::ModelError;
use crate::latent::LatentCache;
use crate::loss::{Masks, noise_loss};
use crate::noise::{self, Purpose};
use crate::parameter::Scope;
use crate::sampler::Sampler;
use crate::schedule::NoiseSchedule;
use crate::text::{TextEncoder, token_ids};
use image::RgbImage;
use model_data::example::{Concept, Example};
use model_data::prompt::Prompts;
use proto::architecture::{Diffusion, Objective, Prediction};
use proto::spec::{Component, TrainWork};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// The terms of [`LatentDiffusion::losses`]: equation 3's first, and its second before lambda, both
/// weighted by noise level.
pub(crate) const TERMS: [&str; 2] = ["target", "face"];

/// See the module's header.
#[derive(Debug)]
pub(crate) struct LatentDiffusion {
    autoencoder: Autoencoder,
    text: TextEncoder,
    prompts: Prompts,
    schedule: NoiseSchedule,
    objective: Objective,
    /// Pixels per latent cell, along one side.
    factor: i64,
    /// Latents are multiplied by this before the U-Net sees them.
    scaling: f64,
    /// Side of every image, in pixels.
    resolution: u32,
    /// [c, h, w] of a latent.
    latent: [i64; 3],
    /// States of concept words and of the empty prompt; used only while the text encoder is frozen.
    known: BTreeMap<String, Tensor>,
    text_frozen: bool,
    /// None: every image is encoded every time.
    cache: Option<LatentCache>,
    place: Place,
}

/// A batch's latents, scaled: targets [B, c, h, w] and references [B * N, c, h, w].
#[derive(Debug)]
pub(crate) struct Latents {
    pub(crate) targets: Tensor,
    pub(crate) references: Tensor,
}

/// Targets with noise, and what is to be predicted of them, both [B, c, h, w].
#[derive(Debug)]
pub(crate) struct Noisy {
    pub(crate) latents: Tensor,
    answer: Tensor,
}

impl LatentDiffusion {
    /// Builds the autoencoder and the text encoder of `job` inside `scope`.
    ///
    /// # Errors
    /// A job that would train the autoencoder.
    pub(crate) fn new(
        scope: &Scope<'_>,
        job: &Diffusion,
        spec: &TrainWork,
        place: Place,
    ) -> Result<Self, ModelError> {
        let (model, train) = (&spec.model, &spec.train);
        let frozen = |component: Component| model.freeze.contains(&component);
        if !frozen(Component::Autoencoder) {
            return Err(ModelError::Config {
                field: "freeze",
                value: format!("{:?}", model.freeze),
                expected: "the noise loss cannot train the autoencoder: freeze it".to_owned(),
            });
        }
        let cache_bytes = train.latent_cache_mib as usize * (1 << 20);
        let side = i64::from(spec.data.resolution / job.autoencoder.factor());
        Ok(Self {
            autoencoder: Autoencoder::new(&scope.sub("autoencoder"), &(&job.autoencoder).into()),
            text: TextEncoder::new(&scope.sub("text_encoder"), &(&job.text_encoder).into()),
            prompts: Prompts::new(job.text_encoder.tokens),
            schedule: NoiseSchedule::new(&job.noise),
            objective: job.objective,
            factor: i64::from(job.autoencoder.factor()),
            scaling: job.autoencoder.scaling_factor,
            resolution: spec.data.resolution,
            latent: [i64::from(job.autoencoder.latent_channels), side, side],
            known: BTreeMap::new(),
            text_frozen: frozen(Component::TextEncoder),
            cache: (cache_bytes > 0).then(|| LatentCache::new(cache_bytes)),
            place,
        })
    }

    /// What the networks compute in.
    pub(crate) fn dtype(&self) -> Kind {
        self.place.dtype
    }

    /// Examples with so many references each; None: as many as the first example has.
    ///
    /// # Errors
    /// An example that does not fit the job.
    pub(crate) fn batch(
        &self,
        examples: &[Example],
        references: Option<usize>,
    ) -> Result<Batch, ModelError> {
        let shape = BatchShape {
            resolution: self.resolution,
            references,
            timesteps: self.schedule.timesteps(),
        };
        Batch::new(examples, shape, self.place.device)
    }

    /// Of all images of a batch; what is known already is not encoded. The posterior's mean, not a
    /// sample from it: the simplest that is the same on every device.
    pub(crate) fn latents(&mut self, batch: &Batch) -> Latents {
        let images = batch.images.to_kind(self.place.dtype);
        let company = images.size()[0] > 1;
        let encode = |images: &Tensor| encode(&self.autoencoder, images, company);
        let mean = match &mut self.cache {
            Some(cache) => cache.encode(&images, &batch.keys, encode),
            None => encode(&images),
        };
        let latents = mean.to_kind(Kind::Float) * self.scaling;
        let rest = latents.size()[0] - batch.count;
        Latents {
            targets: latents.narrow(0, 0, batch.count),
            references: latents.narrow(0, batch.count, rest),
        }
    }

    /// Targets' latents with each example's own noise at its own time step.
    pub(crate) fn noisy(&self, batch: &Batch, targets: &Tensor) -> Noisy {
        let (size, device) = (targets.size(), targets.device());
        let noise = noise::normal(&batch.noise_seeds, Purpose::Target, &size[1..], device);
        let column = |value: &dyn Fn(usize) -> f64| self.column(batch, value).view([-1, 1, 1, 1]);
        let signal = column(&|timestep| self.schedule.mix(timestep).0);
        let level = column(&|timestep| self.schedule.mix(timestep).1);
        let answer = match self.schedule.prediction() {
            Prediction::Epsilon => noise.shallow_clone(),
            Prediction::V => &noise * &signal - targets * &level,
        };
        let latents = targets * signal + &noise * level;
        Noisy { latents, answer }
    }

    /// A figure of each example's time step, [B].
    fn column(&self, batch: &Batch, value: impl Fn(usize) -> f64) -> Tensor {
        let timesteps = batch.timesteps.iter();
        let values: Vec<f32> = timesteps.map(|it| value(*it as usize) as f32).collect();
        Tensor::from_slice(&values).to_device(self.place.device)
    }

    /// Time steps as the networks take them, [batch].
    pub(crate) fn timesteps(&self, timesteps: &[i64]) -> Tensor {
        Tensor::from_slice(timesteps).to_device(self.place.device)
    }

    /// Equation 3 of what was predicted for a batch, with the terms of [`TERMS`].
    pub(crate) fn losses(
        &self,
        batch: &Batch,
        examples: &[Example],
        noisy: &Noisy,
        predicted: &Tensor,
    ) -> SampleLosses {
        let objective = self.objective;
        let (target, face) = masks(examples, self.place.device);
        let threshold = objective.target_mask_threshold;
        let masks = Masks::at_latents(&target, &face, self.factor, threshold);
        let loss = noise_loss(predicted, &noisy.answer, &masks);
        let weight = self.column(batch, |timestep| {
            self.schedule
                .loss_weight(timestep, objective.loss_weighting)
        });
        let (target, face) = (loss.target * &weight, loss.face * &weight);
        SampleLosses {
            total: &target + &face * objective.face_loss_weight,
            terms: vec![target, face],
        }
    }

    /// Text states [strings, tokens, width]; each distinct string is encoded once.
    pub(crate) fn text_states(&mut self, strings: &[String]) -> Tensor {
        let distinct: BTreeMap<&str, i64> = {
            let mut sorted: Vec<&str> = strings.iter().map(String::as_str).collect();
            sorted.sort_unstable();
            sorted.dedup();
            sorted.into_iter().zip(0..).collect()
        };
        let texts: Vec<&str> = distinct.keys().copied().collect();
        let states = if self.text_frozen && texts.iter().all(|text| is_common(text)) {
            let known: Vec<Tensor> = texts.iter().map(|text| self.known_state(text)).collect();
            Tensor::stack(&known, 0)
        } else {
            let ids = token_ids(&self.prompts, &texts, self.place.device);
            self.text.forward(&ids, self.place.dtype)
        };
        let index: Vec<i64> = strings.iter().map(|text| distinct[text.as_str()]).collect();
        states.index_select(0, &Tensor::from_slice(&index).to_device(self.place.device))
    }

    fn known_state(&mut self, text: &str) -> Tensor {
        if let Some(state) = self.known.get(text) {
            return state.shallow_clone();
        }
        let ids = token_ids(&self.prompts, &[text], self.place.device);
        let state = self.text.forward(&ids, self.place.dtype).get(0);
        self.known.insert(text.to_owned(), state.shallow_clone());
        state
    }

    /// One image for an example; `predict` gives the guided prediction for latents [1, c, h, w] at
    /// time steps [1].
    ///
    /// # Errors
    /// A number of steps that the schedule does not have.
    pub(crate) fn sample(
        &self,
        example: &Example,
        options: &SampleOptions,
        mut predict: impl FnMut(&Tensor, &Tensor) -> Tensor,
    ) -> Result<RgbImage, ModelError> {
        let mut sampler = Sampler::new(self.schedule.clone(), options.method, options.steps)?;
        let seeds = [options.noise_seed(example.position)];
        let mut latents = noise::normal(&seeds, Purpose::Target, &self.latent, self.place.device);
        for i in 0..sampler.timesteps().len() {
            let timesteps = self.timesteps(&[sampler.timesteps()[i] as i64]);
            let predicted = predict(&latents, &timesteps);
            latents = sampler.advance(i, &latents, &predicted);
        }
        let latents = (latents / self.scaling).to_kind(self.place.dtype);
        let images = self.autoencoder.decode(&latents).to_kind(Kind::Float);
        Ok(to_images(&images).swap_remove(0))
    }
}

/// Images of this side and larger are encoded one by one: each is work enough for any device, and
/// five at 384 pixels would take 3 GB for a moment.
const ALONE_SIDE: i64 = 256;

/// The posterior's means of images [P, 3, S, S]. An image's bits do not depend on the others:
/// kernels for a single one sum in another order than those for several, so a small one that is
/// left over from a batch (`company`) is given some.
fn encode(autoencoder: &Autoencoder, images: &Tensor, company: bool) -> Tensor {
    let means = |images: &Tensor| autoencoder.encode(images).mean;
    if images.size()[2] >= ALONE_SIDE {
        let alone: Vec<Tensor> = images.split(1, 0).iter().map(means).collect();
        Tensor::cat(&alone, 0)
    } else if company && images.size()[0] == 1 {
        means(&Tensor::cat(&[images, images], 0)).narrow(0, 0, 1)
    } else {
        means(images)
    }
}

/// Texts that come back in every batch.
fn is_common(text: &str) -> bool {
    text.is_empty() || Concept::ALL.iter().any(|concept| concept.word() == text)
}
