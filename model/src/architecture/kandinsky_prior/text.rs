//! What a prior reads of prompts, and its sampling of an image embedding.

use super::transformer::{Prior, PriorText};
use crate::ancestral::{Ancestral, AncestralSampler};
use crate::error::ModelError;
use crate::noise::{self, Purpose};
use crate::parameter::Scope;
use crate::sampler::guide;
use crate::schedule::NoiseSchedule;
use crate::text::{TextEncoder, token_ids};
use model_data::prompt::Prompts;
use proto::architecture::KandinskyPrior;
use proto::knobs::Knobs;
use proto::layout::{CLIP_END, TextLayout};
use tch::{Device, Kind, Tensor};

/// Predicted embeddings are limited to plus or minus this. The published scheduler's value is not
/// known here; `diffusers`' tests of the pipeline use it.
const CLIP: f64 = 10.0;
/// Default of the knob `prior_guidance`.
const GUIDANCE: f64 = 4.0;

/// The text encoder of a prior.
#[derive(Debug)]
pub struct PriorPrompts {
    text: TextEncoder,
    prompts: Prompts,
}

/// Encoded prompts.
#[derive(Debug)]
pub struct PriorStates {
    /// [batch, tokens, embedding]
    states: Tensor,
    /// [batch, embedding]
    embedding: Tensor,
    /// [batch, tokens]
    mask: Tensor,
}

impl PriorStates {
    #[must_use]
    pub fn as_input(&self) -> PriorText<'_> {
        PriorText {
            states: &self.states,
            embedding: &self.embedding,
            mask: &self.mask,
        }
    }
}

impl PriorPrompts {
    #[must_use]
    pub fn new(scope: &Scope<'_>, layout: &TextLayout) -> Self {
        let tokens = u32::try_from(layout.tokens).unwrap_or(u32::MAX);
        Self {
            text: TextEncoder::new(&scope.sub("text_encoder"), layout),
            prompts: Prompts::new(tokens),
        }
    }

    /// Without a projection, a prompt's embedding is the state of its end token.
    #[must_use]
    pub fn encode(&self, prompts: &[&str], dtype: Kind, device: Device) -> PriorStates {
        let ids = token_ids(&self.prompts, prompts, device);
        let states = self.text.forward(&ids, dtype);
        let pooled = self.text.pool(&ids, &states);
        let ends = ids.eq(CLIP_END).to_kind(Kind::Int64);
        let before = ends.cumsum(1, Kind::Int64) - &ends;
        PriorStates {
            embedding: self.text.project(&pooled).unwrap_or(pooled),
            mask: before.eq(0),
            states,
        }
    }

    /// An embedding [1, embedding] moved towards a prompt: noise is added to it, and the prior
    /// removes it in the last of its steps (`KandinskyV22PriorEmb2EmbPipeline`).
    ///
    /// # Errors
    /// A number of steps that the schedule does not allow.
    pub fn moved(
        &self,
        prior: &Prior,
        embedding: &Tensor,
        [prompt, negative]: [&str; 2],
        knobs: &Knobs,
        seed: u64,
    ) -> Result<Tensor, ModelError> {
        let (dtype, device) = (embedding.kind(), embedding.device());
        let schedule = NoiseSchedule::new(&KandinskyPrior::NOISE);
        let method = Ancestral::Unclip { clip: CLIP };
        let mut sampler = AncestralSampler::new(schedule, method, knobs.prior_steps())?;
        sampler.keep_last(knobs.prior_steps_kept() as usize);
        let guidance = knobs.prior_guidance.unwrap_or(GUIDANCE);
        let guided = guidance != 1.0;
        let prompts: &[&str] = if guided {
            &[negative, prompt]
        } else {
            &[prompt]
        };
        let text = self.encode(prompts, dtype, device);
        let embedding = embedding.to_kind(Kind::Float);
        // The pipeline does not whiten and yet reverses it at the end.
        let start = match knobs.prior_whitened {
            Some(true) => prior.whiten(&embedding),
            _ => embedding,
        };
        let size = start.size();
        let count = sampler.timesteps().len() as i64;
        let width = size[1];
        let initial = noise::normal(&[seed], Purpose::Prior, &[width], device);
        let fresh = noise::normal(&[seed], Purpose::PriorStep, &[count, width], device).get(0);
        let (alpha, sigma) = sampler.alpha_sigma(0);
        let mut xs = start * alpha + initial * sigma;
        for (i, timestep) in sampler.timesteps().iter().enumerate() {
            let batch = prompts.len() as i64;
            let timesteps = Tensor::from_slice(&[*timestep as i64])
                .to_device(device)
                .expand([batch], false);
            let noisy = xs.to_kind(dtype).expand([batch, width], false);
            let predicted = prior.forward(&noisy, &timesteps, &text.as_input());
            let predicted = predicted.to_kind(Kind::Float);
            let predicted = if guided {
                guide(&predicted, guidance)
            } else {
                predicted
            };
            xs = sampler.advance(i, &xs, &predicted, &fresh.get(i as i64).unsqueeze(0));
        }
        Ok(prior.unwhiten(&xs).to_kind(dtype))
    }
}
