//! Trains only the autoencoder, the first half of a base model. Its inputs are images, without
//! prompts or noise levels.

use super::interface::{Architecture, Network, SampleLosses, SampleOptions, TensorOptions};
use crate::autoencoder::Autoencoder as AutoencoderKl;
use crate::batch::{Batch, BatchShape, to_images};
use crate::component::Prefixes;
use crate::error::ModelError;
use crate::loss::image_loss;
use crate::parameter::Scope;
use image::RgbImage;
use model_data::example::Example;
use proto::architecture::Reconstruction;
use proto::spec::{Component, TrainWork};
use tch::{Kind, Tensor};

pub(crate) struct Autoencoder(pub(crate) proto::architecture::Autoencoder);

impl Architecture for Autoencoder {
    fn prefixes(&self) -> Prefixes {
        Prefixes(&[
            ("autoencoder.encoder.", Component::Encoder),
            ("autoencoder.quant_conv.", Component::Encoder),
            ("autoencoder.", Component::Autoencoder),
        ])
    }

    fn terms(&self) -> &'static [&'static str] {
        &["reconstruction"]
    }

    fn build(
        &self,
        scope: &Scope<'_>,
        spec: &TrainWork,
        options: TensorOptions,
    ) -> Result<Box<dyn Network>, ModelError> {
        let layout = (&self.0.autoencoder).into();
        Ok(Box::new(AutoencoderNetwork {
            autoencoder: AutoencoderKl::new(&scope.sub("autoencoder"), &layout),
            // None: as many references as the first example has.
            shape: BatchShape {
                resolution: spec.data.resolution,
                references: None,
                timesteps: spec.model.architecture.timesteps() as usize,
            },
            weights: self.0.reconstruction,
            options,
        }))
    }
}

#[derive(Debug)]
struct AutoencoderNetwork {
    autoencoder: AutoencoderKl,
    shape: BatchShape,
    weights: Reconstruction,
    options: TensorOptions,
}

impl Network for AutoencoderNetwork {
    /// The mean loss over an example's images, including its references.
    fn losses(&mut self, examples: &[Example]) -> Result<SampleLosses, ModelError> {
        let batch = Batch::new(examples, self.shape, self.options.device)?;
        let images = batch.images.to_kind(self.options.dtype);
        let moments = self.autoencoder.encode(&images).fp32();
        let latents =
            moments.sample(&batch.posterior_noise(&moments.mean.size(), moments.mean.device()));
        let decoded = self
            .autoencoder
            .decode(&latents.to_kind(self.options.dtype));
        let decoded = decoded.to_kind(Kind::Float);
        let loss = image_loss(&decoded, &batch.images, &moments, self.weights);
        Ok(SampleLosses {
            total: mean_per_example(&batch, &loss.total),
            terms: vec![mean_per_example(&batch, &loss.reconstruction)],
        })
    }

    /// The reconstruction of the target.
    fn sample(&mut self, example: &Example, _: &SampleOptions) -> Result<RgbImage, ModelError> {
        let batch = Batch::new(
            std::slice::from_ref(example),
            self.shape,
            self.options.device,
        )?;
        let target = batch.images.narrow(0, 0, 1).to_kind(self.options.dtype);
        let decoded = self
            .autoencoder
            .decode(&self.autoencoder.encode(&target).mean);
        Ok(to_images(&decoded.to_kind(Kind::Float)).swap_remove(0))
    }
}

/// [B * (1 + N)] -> [B].
fn mean_per_example(batch: &Batch, losses: &Tensor) -> Tensor {
    let targets = losses.narrow(0, 0, batch.count);
    let references = losses.narrow(0, batch.count, batch.count * batch.references);
    let references = references
        .view([batch.count, batch.references])
        .sum_dim_intlist(1i64, false, Kind::Float);
    (targets + references) / (1 + batch.references) as f64
}
