//! The common parts of latent diffusion models: the autoencoder and its latents, text states, noise
//! levels, equation 3 and the sampling loop. The architectures that use it provide the network that
//! predicts the noise.

use crate::architecture::interface::{SampleLosses, SampleOptions, TensorOptions};
use crate::autoencoder::{Autoencoder, Moments};
use crate::batch::{Batch, BatchShape, masks, to_images};
use crate::error::ModelError;
use crate::latent::LatentCache;
use crate::loss::{Masks, noise_loss};
use crate::movq::Movq;
use crate::noise::{self, Purpose};
use crate::parameter::Scope;
use crate::sampler::Sampler;
use crate::schedule::NoiseSchedule;
use crate::text::{TextEncoder, token_ids};
use crate::unet::UNet;
use image::RgbImage;
use model_data::example::{Concept, Example};
use model_data::prompt::Prompts;
use proto::architecture::{Diffusion, Latents as Posterior, Objective, Prediction};
use proto::layout::{AutoencoderLayout, MovqLayout};
use proto::spec::{Component, TrainWork};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// The terms of [`LatentDiffusion::losses`]: the first term of equation 3, and the second without
/// its factor lambda; both are weighted by noise level.
pub(crate) const TERMS: [&str; 2] = ["target", "face"];

/// The term of [`LatentDiffusion::plain_losses`].
pub(crate) const PLAIN_TERMS: [&str; 1] = ["noise"];

/// The autoencoder of a latent diffusion model.
#[derive(Debug)]
pub(crate) enum Coder {
    Kl(Box<Autoencoder>),
    /// Kandinsky's, which has no posterior.
    Movq(Box<Movq>),
}

impl Coder {
    pub(crate) fn kl(scope: &Scope<'_>, layout: &AutoencoderLayout) -> Self {
        Self::Kl(Box::new(Autoencoder::new(scope, layout)))
    }

    pub(crate) fn movq(scope: &Scope<'_>, layout: &MovqLayout) -> Self {
        Self::Movq(Box::new(Movq::new(scope, layout)))
    }

    /// [`Encoded`] as one tensor.
    fn encode(&self, images: &Tensor, posterior: Posterior) -> Tensor {
        match (self, posterior) {
            (Self::Movq(movq), _) => movq.encode(images),
            (Self::Kl(kl), Posterior::Mean) => kl.encode(images).mean,
            (Self::Kl(kl), Posterior::Sample) => {
                let moments = kl.encode(images);
                Tensor::cat(&[moments.mean, moments.log_variance], 1)
            }
        }
    }

    fn decode(&self, latents: &Tensor) -> Tensor {
        match self {
            Self::Kl(kl) => kl.decode(latents),
            Self::Movq(movq) => movq.decode(latents),
        }
    }
}

/// See the module's header.
#[derive(Debug)]
pub(crate) struct LatentDiffusion {
    coder: Coder,
    /// None: its U-Net does not read text.
    text: Option<TextEncoder>,
    prompts: Prompts,
    schedule: NoiseSchedule,
    objective: Objective,
    /// What training encodes images to.
    posterior: Posterior,
    /// Pixels per latent cell, along one side.
    factor: i64,
    /// Latents are multiplied by this before the U-Net sees them.
    scaling: f64,
    /// Side of every image, in pixels.
    resolution: u32,
    /// [c, h, w] of a latent.
    latent_shape: [i64; 3],
    /// Cached states of concept words and of the empty prompt; used only if the text encoder is
    /// frozen.
    text_cache: BTreeMap<String, Tensor>,
    text_frozen: bool,
    /// None: latents are not cached.
    latent_cache: Option<LatentCache>,
    options: TensorOptions,
}

/// The scaled latents of a batch: targets [B, c, h, w] and references [B * N, c, h, w].
#[derive(Debug)]
pub(crate) struct Latents {
    pub(crate) targets: Tensor,
    pub(crate) references: Tensor,
}

/// Noisy latents of the targets, and the expected prediction (epsilon or v), both [B, c, h, w].
#[derive(Debug)]
pub(crate) struct Noisy {
    pub(crate) latents: Tensor,
    pub(crate) expected: Tensor,
}

impl LatentDiffusion {
    /// [`Self::new`], and the job's U-Net.
    pub(crate) fn with_unet(
        scope: &Scope<'_>,
        job: &Diffusion,
        spec: &TrainWork,
        options: TensorOptions,
    ) -> Result<(Self, UNet), ModelError> {
        let diffusion = Self::new(scope, job, spec, options)?;
        Ok((
            diffusion,
            UNet::new(&scope.sub("unet"), &(&job.unet).into()),
        ))
    }

    /// Builds the autoencoder and the text encoder of `job` inside `scope`.
    ///
    /// # Errors
    /// A job that would train the autoencoder.
    pub(crate) fn new(
        scope: &Scope<'_>,
        job: &Diffusion,
        spec: &TrainWork,
        options: TensorOptions,
    ) -> Result<Self, ModelError> {
        let coder = Coder::kl(&scope.sub("autoencoder"), &(&job.autoencoder).into());
        let text = TextEncoder::new(&scope.sub("text_encoder"), &(&job.text_encoder).into());
        Ok(Self {
            text: Some(text),
            ..Self::without_text(coder, job, spec, options)?
        })
    }

    /// [`Self::new`] for a model whose U-Net does not read text.
    ///
    /// # Errors
    /// A job that would train the autoencoder.
    pub(crate) fn without_text(
        coder: Coder,
        job: &Diffusion,
        spec: &TrainWork,
        options: TensorOptions,
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
            coder,
            text: None,
            prompts: Prompts::new(job.text_encoder.tokens),
            schedule: NoiseSchedule::new(&job.noise),
            objective: job.objective,
            posterior: job.latents,
            factor: i64::from(job.autoencoder.factor()),
            scaling: job.autoencoder.scaling_factor,
            resolution: spec.data.resolution,
            latent_shape: [i64::from(job.autoencoder.latent_channels), side, side],
            text_cache: BTreeMap::new(),
            text_frozen: frozen(Component::TextEncoder),
            latent_cache: (cache_bytes > 0).then(|| LatentCache::new(cache_bytes)),
            options,
        })
    }

    /// The dtype in which the networks compute.
    pub(crate) fn dtype(&self) -> Kind {
        self.options.dtype
    }

    /// A batch with `references` per example; None: as many as the first example has.
    ///
    /// # Errors
    /// An example that does not match the job.
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
        Batch::new(examples, shape, self.options.device)
    }

    /// The latents of all images of a batch for sampling: the means of their posteriors, the
    /// simplest choice that is the same on every device.
    pub(crate) fn latents(&mut self, batch: &Batch) -> Latents {
        let latents = match self.encode(batch) {
            Encoded::Means(means) => means,
            Encoded::Posteriors(moments) => moments.mean,
        };
        self.split(batch, latents)
    }

    /// The latents of all images of a batch for training: as `model.latents` says, the means of
    /// their posteriors, or samples that depend only on each example's noise seed.
    pub(crate) fn training_latents(&mut self, batch: &Batch) -> Latents {
        let latents = match self.encode(batch) {
            Encoded::Means(means) => means,
            Encoded::Posteriors(moments) => {
                let (size, device) = (moments.mean.size(), moments.mean.device());
                moments.sample(&batch.posterior_noise(&size, device))
            }
        };
        self.split(batch, latents)
    }

    /// Encodes all images of a batch that are not cached.
    fn encode(&mut self, batch: &Batch) -> Encoded {
        let images = batch.images.to_kind(self.options.dtype);
        let batched = images.size()[0] > 1;
        let posterior = self.posterior;
        let encode = |images: &Tensor| encode(&self.coder, images, batched, posterior);
        let encoded = match &mut self.latent_cache {
            Some(cache) => cache.encode(&images, &batch.keys, encode),
            None => encode(&images),
        };
        let encoded = encoded.to_kind(Kind::Float);
        match posterior {
            Posterior::Mean => Encoded::Means(encoded),
            Posterior::Sample => {
                let halves = encoded.chunk(2, 1);
                Encoded::Posteriors(Moments {
                    mean: halves[0].shallow_clone(),
                    log_variance: halves[1].shallow_clone(),
                })
            }
        }
    }

    /// Scales latents [B * (1 + N), c, h, w] and separates targets from references.
    fn split(&self, batch: &Batch, latents: Tensor) -> Latents {
        let latents = latents * self.scaling;
        let references = latents.size()[0] - batch.count;
        Latents {
            targets: latents.narrow(0, 0, batch.count),
            references: latents.narrow(0, batch.count, references),
        }
    }

    /// Adds each example's noise to its target's latents at its time step.
    pub(crate) fn noisy(&self, batch: &Batch, targets: &Tensor) -> Noisy {
        let (size, device) = (targets.size(), targets.device());
        let noise = noise::normal(&batch.noise_seeds, Purpose::Target, &size[1..], device);
        let coefficients =
            |value: &dyn Fn(usize) -> f64| self.per_example(batch, value).view([-1, 1, 1, 1]);
        let alpha = coefficients(&|timestep| self.schedule.alpha_sigma(timestep).0);
        let sigma = coefficients(&|timestep| self.schedule.alpha_sigma(timestep).1);
        let expected = match self.schedule.prediction() {
            Prediction::Epsilon => noise.shallow_clone(),
            Prediction::V => &noise * &alpha - targets * &sigma,
        };
        let latents = targets * alpha + &noise * sigma;
        Noisy { latents, expected }
    }

    /// A function of each example's time step, [B].
    fn per_example(&self, batch: &Batch, value: impl Fn(usize) -> f64) -> Tensor {
        let timesteps = batch.timesteps.iter();
        let values: Vec<f32> = timesteps.map(|it| value(*it as usize) as f32).collect();
        Tensor::from_slice(&values).to_device(self.options.device)
    }

    /// Time steps as the input tensor of the networks, [batch].
    pub(crate) fn timesteps(&self, timesteps: &[i64]) -> Tensor {
        Tensor::from_slice(timesteps).to_device(self.options.device)
    }

    /// Equation 3 for the predictions of a batch, with the terms of [`TERMS`].
    pub(crate) fn losses(
        &self,
        batch: &Batch,
        examples: &[Example],
        noisy: &Noisy,
        predicted: &Tensor,
    ) -> SampleLosses {
        let objective = self.objective;
        let (target, face) = masks(examples, self.options.device);
        let threshold = objective.target_mask_threshold;
        let masks = Masks::at_latents(&target, &face, self.factor, threshold);
        let loss = noise_loss(predicted, &noisy.expected, &masks);
        let weight = self.per_example(batch, |timestep| {
            self.schedule
                .loss_weight(timestep, objective.loss_weighting)
        });
        let (target, face) = (loss.target * &weight, loss.face * &weight);
        SampleLosses {
            total: &target + &face * objective.face_loss_weight,
            terms: vec![target, face],
        }
    }

    /// The weight of each example's loss by its time step, [B].
    pub(crate) fn loss_weights(&self, batch: &Batch) -> Tensor {
        self.per_example(batch, |timestep| {
            self.schedule
                .loss_weight(timestep, self.objective.loss_weighting)
        })
    }

    /// The mean squared error over the whole latent, without masks, with the term of
    /// [`PLAIN_TERMS`]: the loss of the paper's peers.
    pub(crate) fn plain_losses(
        &self,
        batch: &Batch,
        noisy: &Noisy,
        predicted: &Tensor,
    ) -> SampleLosses {
        let error = (predicted - &noisy.expected).square();
        let total = error.flatten(1, -1).mean_dim(1i64, false, None) * self.loss_weights(batch);
        SampleLosses {
            terms: vec![total.shallow_clone()],
            total,
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
            let cached: Vec<Tensor> = texts.iter().map(|text| self.cached_state(text)).collect();
            Tensor::stack(&cached, 0)
        } else {
            let ids = token_ids(&self.prompts, &texts, self.options.device);
            self.text().forward(&ids, self.options.dtype)
        };
        let index: Vec<i64> = strings.iter().map(|text| distinct[text.as_str()]).collect();
        states.index_select(
            0,
            &Tensor::from_slice(&index).to_device(self.options.device),
        )
    }

    /// Text states of prompts whose subject an image is fused into, as FastComposer reads them, and
    /// the position of each subject's last token, if it has one.
    pub(crate) fn subject_states(
        &self,
        prompts: &[String],
        subjects: &[String],
    ) -> (Tensor, Vec<Option<usize>>) {
        let read = prompts.iter();
        let (ids, positions): (Vec<_>, Vec<_>) = read
            .map(|prompt| self.prompts.subject_ids(prompt, subjects))
            .unzip();
        let ids = Tensor::from_slice(&ids.concat())
            .view([prompts.len() as i64, self.prompts.tokens() as i64])
            .to_device(self.options.device);
        (self.text().forward(&ids, self.options.dtype), positions)
    }

    fn text(&self) -> &TextEncoder {
        let text = self.text.as_ref();
        text.expect("a model that reads text has a text encoder")
    }

    /// The device of the networks.
    pub(crate) fn device(&self) -> Device {
        self.options.device
    }

    fn cached_state(&mut self, text: &str) -> Tensor {
        if let Some(state) = self.text_cache.get(text) {
            return state.shallow_clone();
        }
        let ids = token_ids(&self.prompts, &[text], self.options.device);
        let state = self.text().forward(&ids, self.options.dtype).get(0);
        self.text_cache
            .insert(text.to_owned(), state.shallow_clone());
        state
    }

    /// Samples one image for an example. `predict` returns the guided prediction for latents [1, c,
    /// h, w] at time steps [1].
    ///
    /// # Errors
    /// More steps than the schedule allows.
    pub(crate) fn sample(
        &self,
        example: &Example,
        options: &SampleOptions,
        mut predict: impl FnMut(&Tensor, &Tensor) -> Tensor,
    ) -> Result<RgbImage, ModelError> {
        let seeds = [options.noise_seed(example.position)];
        let sampler = Sampler::new(self.schedule.clone(), options.method, options.steps)?;
        let mut sampler = sampler.seeded(seeds[0]);
        let device = self.options.device;
        let mut latents = noise::normal(&seeds, Purpose::Target, &self.latent_shape, device);
        for i in 0..sampler.timesteps().len() {
            let timesteps = self.timesteps(&[sampler.timesteps()[i] as i64]);
            let predicted = predict(&latents, &timesteps);
            latents = sampler.advance(i, &latents, &predicted);
        }
        Ok(self.decode(&latents))
    }

    /// An example's target, encoded and decoded.
    ///
    /// # Errors
    /// An example that does not match the job.
    pub(crate) fn reconstruct(&mut self, example: &Example) -> Result<RgbImage, ModelError> {
        let batch = self.batch(std::slice::from_ref(example), Some(0))?;
        let latents = self.latents(&batch).targets;
        Ok(self.decode(&latents))
    }

    /// Scaled latents [1, c, h, w] -> an image.
    fn decode(&self, latents: &Tensor) -> RgbImage {
        let latents = (latents / self.scaling).to_kind(self.options.dtype);
        let images = self.coder.decode(&latents).to_kind(Kind::Float);
        to_images(&images).swap_remove(0)
    }
}

/// Images of at least this side are encoded one by one: each is enough work for any device, and
/// five images of 384 pixels would temporarily need 3 GB.
const UNBATCHED_SIDE: i64 = 256;

/// Unscaled latents of a batch, fp32, [B * (1 + N), c, h, w].
enum Encoded {
    Means(Tensor),
    Posteriors(Moments),
}

/// The posterior means of images [P, 3, S, S], or their means and log variances [P, 2c, h, w] if
/// training samples from the posterior. The result for an image must not depend on the other
/// images. Kernels for a batch of one sum in a different order than those for larger batches, so a
/// single small image left over from a batch (`batched`) is duplicated.
fn encode(coder: &Coder, images: &Tensor, batched: bool, posterior: Posterior) -> Tensor {
    let moments = |images: &Tensor| coder.encode(images, posterior);
    if images.size()[2] >= UNBATCHED_SIDE {
        let single: Vec<Tensor> = images.split(1, 0).iter().map(moments).collect();
        Tensor::cat(&single, 0)
    } else if batched && images.size()[0] == 1 {
        moments(&Tensor::cat(&[images, images], 0)).narrow(0, 0, 1)
    } else {
        moments(images)
    }
}

/// True for texts that occur in every batch: the empty prompt and the concept words.
fn is_common(text: &str) -> bool {
    text.is_empty() || Concept::ALL.iter().any(|concept| concept.word() == text)
}
