//! A small CLIP (Radford et al. 2021): a text tower and an image tower, trained so that each image
//! of a micro-batch is nearer to its own prompt than to the others'. The comparison stays within a
//! micro-batch, so that its loss does not depend on how many ranks share a step, and exact sums
//! hold.

use super::interface::{Architecture, Network, SampleLosses, SampleOptions, TensorOptions};
use crate::batch::{Batch, BatchShape};
use crate::clip::unit;
use crate::component::Prefixes;
use crate::error::ModelError;
use crate::parameter::{Init, Scope};
use crate::text::{TextEncoder, token_ids};
use crate::vision::{ImageEncoder, normalize_colours};
use image::RgbImage;
use model_data::example::Example;
use model_data::prompt::Prompts;
use proto::layout::Colours;
use proto::spec::{Component, TrainWork};
use tch::{Kind, Tensor};

/// The logarithm of the scale of similarities, at first and at most, as in the paper of CLIP.
const FIRST_SCALE: f64 = 2.6593;
const LAST_SCALE: f64 = 4.6052;

pub(crate) struct Clip(pub(crate) proto::architecture::Clip);

impl Architecture for Clip {
    fn prefixes(&self) -> Prefixes {
        Prefixes(&[
            ("clip.text_", Component::TextEncoder),
            ("clip.vis", Component::ImageEncoder),
            ("clip.logit_scale", Component::ImageEncoder),
        ])
    }

    /// `misses` is the fraction of prompts that are nearer to another image of the micro-batch than
    /// to their own. It has no part in the total.
    fn terms(&self) -> &'static [&'static str] {
        &["contrast", "misses"]
    }

    fn build(
        &self,
        scope: &Scope<'_>,
        spec: &TrainWork,
        options: TensorOptions,
    ) -> Result<Box<dyn Network>, ModelError> {
        let scope = scope.sub("clip");
        let scale = Init::Constant(FIRST_SCALE);
        Ok(Box::new(ClipNetwork {
            text: TextEncoder::new(&scope, &self.0.text_layout()),
            image: ImageEncoder::new(&scope, &self.0.image_layout()),
            scale: scope.parameter("logit_scale", &[], scale),
            prompts: Prompts::new(self.0.text_encoder.tokens),
            shape: BatchShape {
                resolution: spec.data.resolution,
                references: Some(0),
                timesteps: spec.model.architecture.timesteps() as usize,
            },
            options,
        }))
    }
}

#[derive(Debug)]
struct ClipNetwork {
    text: TextEncoder,
    image: ImageEncoder,
    /// The logarithm of the factor of all similarities.
    scale: Tensor,
    prompts: Prompts,
    shape: BatchShape,
    options: TensorOptions,
}

impl ClipNetwork {
    /// Unit vectors of images [B, 3, S, S] in [-1, 1]: [B, projection], fp32.
    fn images(&self, images: &Tensor) -> Tensor {
        let normalized = normalize_colours(&((images + 1.0) * 0.5), &Colours::CLIP);
        unit(&self.image.forward(&normalized.to_kind(self.options.dtype)))
    }

    /// Unit vectors of texts: [texts, projection], fp32.
    fn texts(&self, texts: &[String]) -> Tensor {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let ids = token_ids(&self.prompts, &texts, self.options.device);
        let states = self.text.forward(&ids, self.options.dtype);
        let embedded = self.text.project(&self.text.pool(&ids, &states));
        unit(&embedded.expect("the text tower of a CLIP has a projection"))
    }
}

impl Network for ClipNetwork {
    /// For each example, the mean of two cross-entropies: of its prompt among the prompts of the
    /// micro-batch, and of its image among the images. Equal prompts count as one, so that none is
    /// punished for being like its twin.
    fn losses(&mut self, examples: &[Example]) -> Result<SampleLosses, ModelError> {
        let batch = Batch::new(examples, self.shape, self.options.device)?;
        let (images, texts) = (self.images(&batch.images), self.texts(&batch.prompts));
        let scale = self.scale.clamp_max(LAST_SCALE).exp();
        let similarities = images.matmul(&texts.transpose(0, 1)) * scale;
        let equal = equal_prompts(&batch.prompts).to_device(self.options.device);
        let contrast =
            (own(&similarities, &equal) + own(&similarities.transpose(0, 1), &equal)) * 0.5;
        let best = similarities.detach().argmax(0, true);
        let misses = 1.0 - equal.gather(0, &best, false).squeeze_dim(0);
        Ok(SampleLosses {
            total: contrast.shallow_clone(),
            terms: vec![contrast, misses],
        })
    }

    fn sample(&mut self, _: &Example, _: &SampleOptions) -> Result<RgbImage, ModelError> {
        Err(ModelError::Unsupported {
            architecture: "clip",
            feature: "sampling of images",
        })
    }
}

/// The cross-entropy of each row of [B, B]: minus the logarithm of the probability of the columns
/// that are equal to the row's own.
fn own(similarities: &Tensor, equal: &Tensor) -> Tensor {
    let logarithms = similarities.log_softmax(1, Kind::Float);
    let others = equal.eq(0.0);
    let owned = logarithms.masked_fill(&others, f64::NEG_INFINITY);
    -owned.logsumexp([1i64].as_slice(), false)
}

/// [B, B]: 1 where two prompts are the same text, 0 elsewhere.
fn equal_prompts(prompts: &[String]) -> Tensor {
    let rows = prompts.iter();
    let values: Vec<f32> = rows
        .flat_map(|row| prompts.iter().map(move |column| f32::from(row == column)))
        .collect();
    let count = prompts.len() as i64;
    Tensor::from_slice(&values).view([count, count])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor).unwrap()
    }

    #[test]
    fn an_image_that_is_like_its_own_prompt_alone_costs_nothing() {
        let prompts = ["a", "b", "a"].map(str::to_owned);
        let equal = equal_prompts(&prompts);
        assert_eq!(
            values(&equal.flatten(0, 1)),
            [1., 0., 1., 0., 1., 0., 1., 0., 1.]
        );
        let certain = &equal * 100.0;
        assert!(
            values(&own(&certain, &equal))
                .iter()
                .all(|it| it.abs() < 1e-6)
        );
        // Nothing told apart: one prompt of three for "b", two of three for "a".
        let blind = values(&own(&(&equal * 0.0), &equal));
        let expected = [1.5f32.ln(), 3f32.ln(), 1.5f32.ln()].map(|it| it.max(0.0));
        for (found, expected) in blind.iter().zip([expected[0], expected[1], expected[2]]) {
            assert!((found - expected).abs() < 1e-6, "{blind:?}");
        }
    }
}
