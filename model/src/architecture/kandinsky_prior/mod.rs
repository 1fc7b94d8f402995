//! Kandinsky 2.2's prior, the first half of one of the paper's four peers: it learns to predict the
//! image embedding of a target from its prompt. The decoder's images use it to move the embedding
//! of a reference towards a prompt.

mod text;
pub(crate) mod transformer;

pub use text::PriorPrompts;
pub use transformer::{Prior, PriorText};

use super::interface::{Architecture, Network, SampleLosses, SampleOptions, TensorOptions};
use crate::component::Prefixes;
use crate::diffusion::PLAIN_TERMS;
use crate::error::ModelError;
use crate::noise::{self, Purpose};
use crate::parameter::Scope;
use crate::schedule::NoiseSchedule;
use crate::vision::Tower;
use image::RgbImage;
use model_data::example::Example;
use proto::architecture::KandinskyPrior as Job;
use proto::spec::{Component, TrainWork};
use tch::{Kind, Tensor};

pub(crate) struct KandinskyPrior(pub(crate) Job);

impl Architecture for KandinskyPrior {
    fn prefixes(&self) -> Prefixes {
        Prefixes(&[
            ("text_encoder.", Component::TextEncoder),
            ("image_encoder.", Component::ImageEncoder),
            // The statistics of the image encoder's embeddings, which are never trained.
            ("prior.clip_", Component::ImageEncoder),
            ("prior.", Component::Prior),
        ])
    }

    fn terms(&self) -> &'static [&'static str] {
        &PLAIN_TERMS
    }

    fn build(
        &self,
        scope: &Scope<'_>,
        _spec: &TrainWork,
        options: TensorOptions,
    ) -> Result<Box<dyn Network>, ModelError> {
        let job = &self.0;
        let (text, image) = (&job.text_encoder, &job.image_encoder);
        Ok(Box::new(PriorNetwork {
            prompts: PriorPrompts::new(scope, &job.prior.text_layout(text, image)),
            image: Tower::new(scope, image),
            prior: Prior::new(&scope.sub("prior"), &job.prior.layout(text, image)),
            schedule: NoiseSchedule::new(&Job::NOISE),
            job: job.clone(),
            options,
        }))
    }
}

#[derive(Debug)]
struct PriorNetwork {
    prompts: PriorPrompts,
    image: Tower,
    prior: Prior,
    schedule: NoiseSchedule,
    job: Job,
    options: TensorOptions,
}

impl Network for PriorNetwork {
    /// The mean squared error of the target's whitened embedding, which the network predicts from
    /// a noisy one.
    fn losses(&mut self, examples: &[Example]) -> Result<SampleLosses, ModelError> {
        let TensorOptions { dtype, device } = self.options;
        for example in examples {
            if example.timestep as usize >= self.schedule.timesteps() {
                return Err(ModelError::Example {
                    position: example.position,
                    field: "timestep",
                    found: example.timestep.to_string(),
                    expected: format!("it must be below {}", self.schedule.timesteps()),
                });
            }
        }
        let embeddings = self.image.targets(examples, (dtype, device))?;
        let clean = self.prior.whiten(&embeddings.to_kind(Kind::Float));
        let seeds: Vec<u64> = examples.iter().map(|it| it.noise_seed).collect();
        let noise = noise::normal(&seeds, Purpose::Target, &clean.size()[1..], device);
        let by_timestep = |value: &dyn Fn(usize) -> f64| {
            let values: Vec<f32> = examples
                .iter()
                .map(|it| value(it.timestep as usize) as f32)
                .collect();
            Tensor::from_slice(&values).to_device(device)
        };
        let alpha = by_timestep(&|timestep| self.schedule.alpha_sigma(timestep).0);
        let sigma = by_timestep(&|timestep| self.schedule.alpha_sigma(timestep).1);
        let noisy = &clean * alpha.unsqueeze(1) + noise * sigma.unsqueeze(1);
        let timesteps: Vec<i64> = examples.iter().map(|it| it.timestep.into()).collect();
        let timesteps = Tensor::from_slice(&timesteps).to_device(device);
        let prompts: Vec<&str> = examples.iter().map(|it| it.prompt.as_str()).collect();
        let text = self.prompts.encode(&prompts, dtype, device);
        let predicted = self
            .prior
            .forward(&noisy.to_kind(dtype), &timesteps, &text.as_input());
        let error = (predicted.to_kind(Kind::Float) - clean).square();
        let weights =
            by_timestep(&|timestep| self.schedule.loss_weight(timestep, self.job.loss_weighting));
        let total = error.mean_dim(1i64, false, None) * weights;
        Ok(SampleLosses {
            terms: vec![total.shallow_clone()],
            total,
        })
    }

    fn sample(
        &mut self,
        _example: &Example,
        _options: &SampleOptions,
    ) -> Result<RgbImage, ModelError> {
        Err(ModelError::Unsupported {
            architecture: "a kandinsky-prior",
            feature: "images; a kandinsky-decoder draws its embeddings",
        })
    }
}
