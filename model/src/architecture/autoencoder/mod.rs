//! The autoencoder alone: the first half of a base model. It sees images, no prompts and no noise
//! levels.

use super::interface::{Architecture, Network, Place, SampleLosses, SampleOptions};
use crate::autoencoder::Autoencoder as Networks;
use crate::batch::{Batch, BatchShape, to_images};
use crate::component::Prefixes;
use crate::error::ModelError;
use crate::loss::image_loss;
use crate::noise::{self, Purpose};
use crate::parameter::Scope;
use image::RgbImage;
use model_data::example::Example;
use proto::spec::{Component, TrainWork};
use tch::{Kind, Tensor};

pub(crate) struct Autoencoder(pub(crate) proto::architecture::Autoencoder);

impl Architecture for Autoencoder {
    fn prefixes(&self) -> Prefixes {
        Prefixes(&[("autoencoder.", Component::Autoencoder)])
    }

    fn terms(&self) -> &'static [&'static str] {
        &["reconstruction"]
    }

    fn build(
        &self,
        scope: &Scope<'_>,
        spec: &TrainWork,
        place: Place,
    ) -> Result<Box<dyn Network>, ModelError> {
        let layout = (&self.0.autoencoder).into();
        Ok(Box::new(Built {
            autoencoder: Networks::new(&scope.sub("autoencoder"), &layout),
            // As many references as the first example has.
            shape: BatchShape {
                resolution: spec.data.resolution,
                references: None,
                timesteps: spec.model.architecture.timesteps() as usize,
            },
            place,
        }))
    }
}

#[derive(Debug)]
struct Built {
    autoencoder: Networks,
    shape: BatchShape,
    place: Place,
}

impl Network for Built {
    /// Means over an example's images, references included.
    fn losses(&mut self, examples: &[Example]) -> Result<SampleLosses, ModelError> {
        let batch = Batch::new(examples, self.shape, self.place.device)?;
        let images = batch.images.to_kind(self.place.dtype);
        let moments = self.autoencoder.encode(&images).fp32();
        let latents = moments.draw(&posterior_noise(&batch, &moments.mean));
        let decoded = self.autoencoder.decode(&latents.to_kind(self.place.dtype));
        let decoded = decoded.to_kind(Kind::Float);
        let loss = image_loss(&decoded, &batch.images, &moments);
        Ok(SampleLosses {
            total: mean_of_each(&batch, &loss.total),
            terms: vec![mean_of_each(&batch, &loss.reconstruction)],
        })
    }

    /// The target as the autoencoder gives it back.
    fn sample(&mut self, example: &Example, _: &SampleOptions) -> Result<RgbImage, ModelError> {
        let batch = Batch::new(std::slice::from_ref(example), self.shape, self.place.device)?;
        let target = batch.images.narrow(0, 0, 1).to_kind(self.place.dtype);
        let seen = self
            .autoencoder
            .decode(&self.autoencoder.encode(&target).mean);
        Ok(to_images(&seen.to_kind(Kind::Float)).swap_remove(0))
    }
}

/// One stream for each example, divided among its images, in the order of the batch's images.
fn posterior_noise(batch: &Batch, mean: &Tensor) -> Tensor {
    let (size, each) = (mean.size(), 1 + batch.references);
    let shape = [each, size[1], size[2], size[3]];
    let noise = noise::normal(
        &batch.noise_seeds,
        Purpose::Posterior,
        &shape,
        mean.device(),
    );
    let noise = noise.transpose(0, 1);
    let target = noise.get(0);
    let rest = noise
        .narrow(0, 1, batch.references)
        .transpose(0, 1)
        .flatten(0, 1);
    Tensor::cat(&[target, rest], 0)
}

/// [B * (1 + N)] -> [B].
fn mean_of_each(batch: &Batch, losses: &Tensor) -> Tensor {
    let own = losses.narrow(0, 0, batch.count);
    let rest = losses.narrow(0, batch.count, batch.count * batch.references);
    let rest = rest
        .view([batch.count, batch.references])
        .sum_dim_intlist(1i64, false, Kind::Float);
    (own + rest) / (1 + batch.references) as f64
}
