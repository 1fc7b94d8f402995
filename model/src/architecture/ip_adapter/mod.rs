//! IP-Adapter, one of the paper's four peers: tokens of the references' image embeddings are a
//! second context of each attention to the text. Only the adapter trains.

mod adapter;
mod weights;

pub use adapter::Adapter;
pub(crate) use weights::load;

use super::interface::{Architecture, Network, SampleLosses, SampleOptions, TensorOptions};
use crate::batch::kept;
use crate::component::Prefixes;
use crate::diffusion::{self, LatentDiffusion};
use crate::error::ModelError;
use crate::parameter::{Parameters, Scope};
use crate::public::Source;
use crate::unet::{ImageContext, UNet, UNetInputs};
use crate::vision::Tower;
use image::RgbImage;
use model_data::example::Example;
use proto::layout::UNetLayout;
use proto::spec::{Component, TrainWork};
use std::path::Path;
use tch::{Kind, Tensor};

pub(crate) struct IpAdapter(pub(crate) proto::architecture::IpAdapter);

impl Architecture for IpAdapter {
    fn prefixes(&self) -> Prefixes {
        Prefixes(&[
            ("autoencoder.", Component::Autoencoder),
            ("text_encoder.", Component::TextEncoder),
            ("image_encoder.", Component::ImageEncoder),
            ("unet.time_embed.", Component::Encoder),
            ("unet.input_blocks.", Component::Encoder),
            ("unet.middle_block.", Component::Middle),
            ("unet.out", Component::Decoder),
            ("ip_adapter.", Component::Adapter),
        ])
    }

    fn terms(&self) -> &'static [&'static str] {
        &diffusion::PLAIN_TERMS
    }

    /// Keys and values begin as copies of those of the text.
    fn derived(&self) -> &'static [&'static str] {
        &["ip_adapter.ip_adapter."]
    }

    fn build(
        &self,
        scope: &Scope<'_>,
        spec: &TrainWork,
        options: TensorOptions,
    ) -> Result<Box<dyn Network>, ModelError> {
        let job = &self.0;
        let layout = UNetLayout::from(&job.diffusion.unet);
        let embedding = job.image_encoder.projection.into();
        let (diffusion, unet) = LatentDiffusion::with_unet(scope, &job.diffusion, spec, options)?;
        Ok(Box::new(IpAdapterNetwork {
            diffusion,
            unet,
            image: Tower::new(scope, &job.image_encoder),
            adapter: Adapter::new(&scope.sub("ip_adapter"), &layout, embedding),
            references: job.references.count as usize,
        }))
    }

    fn initialize(
        &self,
        parameters: &Parameters,
        own: Option<(&Path, &Source)>,
    ) -> Result<(), ModelError> {
        weights::initialize(parameters, &(&self.0.diffusion.unet).into(), own)
    }
}

#[derive(Debug)]
struct IpAdapterNetwork {
    diffusion: LatentDiffusion,
    unet: UNet,
    image: Tower,
    adapter: Adapter,
    /// References per example in training.
    references: usize,
}

impl IpAdapterNetwork {
    /// Embeddings of the references, [B, N, projection].
    fn embeddings(&self, examples: &[Example], count: usize) -> Result<Tensor, ModelError> {
        let options = (self.diffusion.dtype(), self.diffusion.device());
        let embeddings = self.image.references(examples, count, options)?;
        Ok(embeddings.unflatten(0, [examples.len() as i64, count as i64]))
    }

    fn predict(
        &self,
        latents: &Tensor,
        timesteps: &Tensor,
        text: &Tensor,
        image: &[ImageContext],
    ) -> Tensor {
        let latents = latents.to_kind(self.diffusion.dtype());
        let inputs = UNetInputs {
            image,
            ..UNetInputs::new(&latents, timesteps, text)
        };
        self.unet.forward(&inputs).to_kind(Kind::Float)
    }
}

impl Network for IpAdapterNetwork {
    fn losses(&mut self, examples: &[Example]) -> Result<SampleLosses, ModelError> {
        let batch = self.diffusion.batch(examples, Some(self.references))?;
        let mut embeddings = self.embeddings(examples, self.references)?;
        if let Some(kept) = kept(&batch, embeddings.device()) {
            // The embedding becomes zero, not its tokens, which are then the norm's bias.
            embeddings = &embeddings * kept.squeeze_dim(3).to_kind(embeddings.kind());
        }
        let (batch, _) = batch.split_references();
        let latents = self.diffusion.training_latents(&batch).targets;
        let noisy = self.diffusion.noisy(&batch, &latents);
        let text = self.diffusion.text_states(&batch.prompts);
        let timesteps = self.diffusion.timesteps(&batch.timesteps);
        let image = self.adapter.context(&self.adapter.tokens(&embeddings), 1.0);
        let predicted = self.predict(&noisy.latents, &timesteps, &text, &image);
        Ok(self.diffusion.plain_losses(&batch, &noisy, &predicted))
    }

    /// Accepts any number of references.
    fn sample(
        &mut self,
        example: &Example,
        options: &SampleOptions,
    ) -> Result<RgbImage, ModelError> {
        let examples = std::slice::from_ref(example);
        let embeddings = self.embeddings(examples, example.references.len())?;
        let batch = self.diffusion.batch(examples, None)?;
        let guidance = options.guided();
        let prompts = guidance.prompts(&batch.prompts, &options.negative_prompt);
        let text = self.diffusion.text_states(&prompts);
        let tokens = self.adapter.tokens(&embeddings);
        let without = self.adapter.tokens(&embeddings.zeros_like());
        let scale = options.knobs.image_scale.unwrap_or(1.0);
        let both = guidance.halves(&tokens, &without);
        let image = self.adapter.context(&both, scale);
        let image_without = self.adapter.context(&without, scale);
        self.diffusion
            .sample(example, options, |latents, timesteps| {
                let predicted = self.predict(latents, timesteps, &text, &image);
                guidance.guided(predicted, || {
                    let text = text.narrow(0, 0, 1);
                    self.predict(latents, timesteps, &text, &image_without)
                })
            })
    }
}
