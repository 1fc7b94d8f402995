//! A text-to-image U-Net with its text encoder, on a pretrained autoencoder: the second half of a
//! base model.

use super::interface::{Architecture, Network, SampleLosses, SampleOptions, TensorOptions};
use crate::component::Prefixes;
use crate::diffusion::{self, LatentDiffusion};
use crate::error::ModelError;
use crate::parameter::Scope;
use crate::sampler::Guidance;
use crate::unet::{UNet, UNetInputs};
use image::RgbImage;
use model_data::example::Example;
use proto::spec::{Component, TrainWork};
use tch::{Kind, Tensor};

pub(crate) struct TextToImage(pub(crate) proto::architecture::TextToImage);

impl Architecture for TextToImage {
    fn prefixes(&self) -> Prefixes {
        Prefixes(&[
            ("autoencoder.", Component::Autoencoder),
            ("text_encoder.", Component::TextEncoder),
            ("unet.time_embed.", Component::Encoder),
            ("unet.input_blocks.", Component::Encoder),
            ("unet.middle_block.", Component::Middle),
            ("unet.out", Component::Decoder),
        ])
    }

    fn terms(&self) -> &'static [&'static str] {
        &diffusion::TERMS
    }

    fn build(
        &self,
        scope: &Scope<'_>,
        spec: &TrainWork,
        options: TensorOptions,
    ) -> Result<Box<dyn Network>, ModelError> {
        let job = &self.0.diffusion;
        let (diffusion, unet) = LatentDiffusion::with_unet(scope, job, spec, options)?;
        Ok(Box::new(TextToImageNetwork { diffusion, unet }))
    }
}

#[derive(Debug)]
struct TextToImageNetwork {
    diffusion: LatentDiffusion,
    unet: UNet,
}

impl TextToImageNetwork {
    /// The prediction for latents [batch, c, h, w] with text states of one or two branches.
    fn predict(&self, latents: &Tensor, timesteps: &Tensor, text: &Tensor) -> Tensor {
        let latents = latents.to_kind(self.diffusion.dtype());
        let inputs = UNetInputs::new(&latents, timesteps, text);
        self.unet.forward(&inputs).to_kind(Kind::Float)
    }
}

impl Network for TextToImageNetwork {
    fn losses(&mut self, examples: &[Example]) -> Result<SampleLosses, ModelError> {
        let batch = self.diffusion.batch(examples, Some(0))?;
        let latents = self.diffusion.training_latents(&batch).targets;
        let noisy = self.diffusion.noisy(&batch, &latents);
        let text = self.diffusion.text_states(&batch.prompts);
        let timesteps = self.diffusion.timesteps(&batch.timesteps);
        let predicted = self.predict(&noisy.latents, &timesteps, &text);
        Ok(self.diffusion.losses(&batch, examples, &noisy, &predicted))
    }

    fn reconstruct(&mut self, example: &Example) -> Result<Option<RgbImage>, ModelError> {
        self.diffusion.reconstruct(example).map(Some)
    }

    fn sample(
        &mut self,
        example: &Example,
        options: &SampleOptions,
    ) -> Result<RgbImage, ModelError> {
        let batch = self
            .diffusion
            .batch(std::slice::from_ref(example), Some(0))?;
        let guidance = Guidance {
            scale: options.guidance,
            // It has no references.
            reference_scale: 1.0,
        };
        let prompts = guidance.prompts(&batch.prompts, &options.negative_prompt);
        let text = self.diffusion.text_states(&prompts);
        self.diffusion
            .sample(example, options, |latents, timesteps| {
                let predict = || self.predict(latents, timesteps, &text);
                guidance.guided(predict(), predict)
            })
    }
}
