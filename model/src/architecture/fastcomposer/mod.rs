//! FastComposer, one of the paper's four peers: the embedding of an object's image is fused into
//! the text state of its subject's word. The U-Net, the fusion and the end of the image encoder
//! train.

mod fusion;
mod loss;

pub use fusion::Fusion;
pub use loss::{latent_mask, localization};

use super::interface::{Architecture, Network, SampleLosses, SampleOptions, TensorOptions};
use crate::batch::Batch;
use crate::component::Prefixes;
use crate::diffusion::LatentDiffusion;
use crate::error::ModelError;
use crate::noise::{Purpose, uniform};
use crate::parameter::{Parameters, Scope};
use crate::public::Source;
use crate::sampler::Guidance;
use crate::unet::{Columns, UNet, UNetInputs};
use crate::vision::Tower;
use fusion::token_index;
use image::RgbImage;
use model_data::example::Example;
use proto::architecture::{POSTFUSE, TRAINED_LAYERS};
use proto::layout::UNetLayout;
use proto::spec::{Component, TrainWork};
use std::path::Path;
use tch::{Kind, Tensor};

/// Objects of a sample.
const OBJECTS: usize = 1;
/// The mean squared error of the noise, and the localization without its weight.
const TERMS: [&str; 2] = ["noise", "localization"];
/// Default of the knob alpha, its pipeline's.
const ALPHA: f64 = 0.7;

pub(crate) struct FastComposer(pub(crate) proto::architecture::FastComposer);

impl Architecture for FastComposer {
    fn prefixes(&self) -> Prefixes {
        let layers = self.0.image_encoder.layers;
        let trained = layers.saturating_sub(TRAINED_LAYERS)..layers;
        let mut table: Vec<(&'static str, Component)> = trained
            .map(|layer| {
                let prefix = format!("image_encoder.vision_model.encoder.layers.{layer}.");
                // A few bytes for each model that a process builds.
                (&*prefix.leak(), Component::ImageEncoderEnd)
            })
            .collect();
        table.extend([
            ("autoencoder.", Component::Autoencoder),
            ("text_encoder.", Component::TextEncoder),
            ("image_encoder.", Component::ImageEncoder),
            ("postfuse_module.", Component::Fusion),
            ("unet.time_embed.", Component::Encoder),
            ("unet.input_blocks.", Component::Encoder),
            ("unet.middle_block.", Component::Middle),
            ("unet.out", Component::Decoder),
        ]);
        Prefixes(table.leak())
    }

    fn terms(&self) -> &'static [&'static str] {
        &TERMS
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
        Ok(Box::new(FastComposerNetwork {
            diffusion,
            unet,
            image: Tower::new(scope, &job.image_encoder),
            fusion: Fusion::new(&scope.sub(POSTFUSE), layout.context_dim),
            layout,
            job: job.clone(),
        }))
    }

    /// Without weights of its own the fusion keeps its random values, as in its authors' code.
    fn initialize(
        &self,
        parameters: &Parameters,
        own: Option<(&Path, &Source)>,
    ) -> Result<(), ModelError> {
        let Some((_, source)) = own else {
            return Ok(());
        };
        let prefix = format!("{POSTFUSE}.");
        let named = |name: &str| vec![name.to_owned(), format!("{prefix}{name}")];
        let whole = source.any_with_prefix(&prefix);
        let expected = |name: &str| !whole || name.starts_with(&prefix);
        source
            .load(&parameters.under(&prefix), named, expected)
            .map(drop)
    }
}

#[derive(Debug)]
struct FastComposerNetwork {
    diffusion: LatentDiffusion,
    unet: UNet,
    image: Tower,
    fusion: Fusion,
    layout: UNetLayout,
    job: proto::architecture::FastComposer,
}

/// The text of a batch with its subjects, and where they are.
struct Subjects {
    /// Before fusion, [B, tokens, width].
    plain: Tensor,
    /// After fusion.
    fused: Tensor,
    /// The tokens of fused subjects.
    positions: Vec<Option<usize>>,
}

impl FastComposerNetwork {
    /// `dropped` marks the examples whose object is not fused.
    fn subjects(
        &self,
        examples: &[Example],
        prompts: &[String],
        dropped: &[bool],
    ) -> Result<Subjects, ModelError> {
        let (plain, positions) = self.diffusion.subject_states(prompts, &self.job.subjects);
        let kept = positions.into_iter().zip(dropped);
        let positions: Vec<Option<usize>> = kept
            .map(|(position, dropped)| position.filter(|_| !dropped))
            .collect();
        let options = (self.diffusion.dtype(), self.diffusion.device());
        let embeddings = self.image.references(examples, OBJECTS, options)?;
        Ok(Subjects {
            fused: self.fusion.forward(&plain, &embeddings, &positions),
            plain,
            positions,
        })
    }

    /// Masks of the figures of targets, [B, 1, S, S], 0 or 1; zero for samples without an object.
    fn figures(&self, examples: &[Example], has: &Tensor) -> Result<Tensor, ModelError> {
        let mut bytes = Vec::new();
        for example in examples {
            let Some(mask) = &example.figure_mask else {
                return Err(ModelError::Example {
                    position: example.position,
                    field: "mask of the figure",
                    found: "missing".to_owned(),
                    expected: "fastcomposer's losses need it".to_owned(),
                });
            };
            bytes.extend_from_slice(mask.as_raw());
        }
        let side = i64::from(examples.first().map_or(0, |it| it.target.width()));
        let masks = Tensor::from_slice(&bytes)
            .view([-1, 1, side, side])
            .to_device(self.diffusion.device())
            .ge(128)
            .to_kind(Kind::Float);
        Ok(masks * has.view([-1, 1, 1, 1]))
    }

    /// Whether this micro-batch's error counts the figures alone. Its authors draw once for each
    /// device's batch, which a micro-batch is.
    fn counts_figures_alone(&self, batch: &Batch) -> bool {
        let seed = batch.noise_seeds.first().copied().unwrap_or(0);
        uniform(seed, Purpose::LossMask) < self.job.mask_loss
    }
}

impl Network for FastComposerNetwork {
    fn losses(&mut self, examples: &[Example]) -> Result<SampleLosses, ModelError> {
        let batch = self.diffusion.batch(examples, Some(OBJECTS))?;
        let (batch, _) = batch.split_references();
        let latents = self.diffusion.training_latents(&batch).targets;
        let noisy = self.diffusion.noisy(&batch, &latents);
        let subjects = self.subjects(examples, &batch.prompts, &batch.references_dropped)?;
        let has: Vec<f32> = subjects
            .positions
            .iter()
            .map(|it| f32::from(u8::from(it.is_some())))
            .collect();
        let has = Tensor::from_slice(&has).to_device(self.diffusion.device());
        let figures = self.figures(examples, &has)?;
        let timesteps = self.diffusion.timesteps(&batch.timesteps);
        let token = token_index(&subjects.positions, &subjects.fused);
        let columns = Columns::below_first_level(token, &self.layout);
        let latents = noisy.latents.to_kind(self.diffusion.dtype());
        let inputs = UNetInputs {
            columns: Some(&columns),
            ..UNetInputs::new(&latents, &timesteps, &subjects.fused)
        };
        let predicted = self.unet.forward(&inputs).to_kind(Kind::Float);
        let mut difference = predicted - &noisy.expected;
        if self.counts_figures_alone(&batch) {
            difference = &difference * latent_mask(&figures, &difference);
        }
        let weights = self.diffusion.loss_weights(&batch);
        let noise = difference.square().flatten(1, -1);
        let noise = noise.mean_dim(1i64, false, Kind::Float) * &weights;
        let localization = localization(&columns.into_found(), &figures, &has) * weights;
        Ok(SampleLosses {
            total: &noise + &localization * self.job.localization,
            terms: vec![noise, localization],
        })
    }

    /// The first steps see the plain prompt, the others the subject.
    fn sample(
        &mut self,
        example: &Example,
        options: &SampleOptions,
    ) -> Result<RgbImage, ModelError> {
        let examples = std::slice::from_ref(example);
        let batch = self.diffusion.batch(examples, Some(OBJECTS))?;
        let subjects = self.subjects(examples, &batch.prompts, &[false])?;
        if subjects.positions == [None] {
            return Err(ModelError::Example {
                position: example.position,
                field: "prompt",
                found: format!("{:?}", example.prompt),
                expected: format!(
                    "among its first 77 tokens must be one of the tags {}, which the reference is \
                    fused into",
                    self.job.subjects.join(", ")
                ),
            });
        }
        let guidance = Guidance {
            scale: options.guidance,
            // Its subject is a word of the prompt.
            reference_scale: 1.0,
        };
        let negative = std::slice::from_ref(&options.negative_prompt);
        let negative = self.diffusion.text_states(negative);
        let (plain, fused) = (
            guidance.halves(&subjects.plain, &negative),
            guidance.halves(&subjects.fused, &negative),
        );
        let alpha = options.knobs.alpha.unwrap_or(ALPHA);
        let plain_until = ((1.0 - alpha) * f64::from(options.steps)).floor() as u32;
        let mut step = 0;
        self.diffusion
            .sample(example, options, |latents, timesteps| {
                // Its authors compare with <=, so one step more than the fraction is plain.
                let text = if step <= plain_until { &plain } else { &fused };
                step += 1;
                let latents = latents.to_kind(self.diffusion.dtype());
                let inputs = UNetInputs::new(&latents, timesteps, text);
                let predict = || self.unet.forward(&inputs).to_kind(Kind::Float);
                guidance.guided(predict(), predict)
            })
    }
}
