//! ControlNet, one of the paper's four peers: the reference, on its pad, is the hint of a branch
//! whose residuals the U-Net adds.

mod branch;
mod weights;

pub use branch::{Control, ControlBranch, predict};
pub(crate) use weights::load;

use super::interface::{Architecture, Network, SampleLosses, SampleOptions, TensorOptions};
use crate::batch::kept;
use crate::component::Prefixes;
use crate::diffusion::{self, LatentDiffusion};
use crate::error::ModelError;
use crate::parameter::{Parameters, Scope};
use crate::public::Source;
use crate::unet::{UNet, UNetInputs};
use image::RgbImage;
use model_data::example::Example;
use proto::knobs::Knobs;
use proto::layout::{UNetLayout, hint_widths};
use proto::spec::{Component, TrainWork};
use std::path::Path;
use tch::{Kind, Tensor};

/// References of a sample: its hint.
const HINTS: usize = 1;

pub(crate) struct ControlNet(pub(crate) proto::architecture::ControlNet);

impl Architecture for ControlNet {
    fn prefixes(&self) -> Prefixes {
        Prefixes(&[
            ("autoencoder.", Component::Autoencoder),
            ("text_encoder.", Component::TextEncoder),
            ("unet.time_embed.", Component::Encoder),
            ("unet.input_blocks.", Component::Encoder),
            ("unet.middle_block.", Component::Middle),
            ("unet.out", Component::Decoder),
            ("controlnet.", Component::Control),
        ])
    }

    fn terms(&self) -> &'static [&'static str] {
        &diffusion::PLAIN_TERMS
    }

    /// Everything but the hint's convolutions and the zero convolutions is a copy of the U-Net.
    fn derived(&self) -> &'static [&'static str] {
        &weights::COPIES
    }

    fn build(
        &self,
        scope: &Scope<'_>,
        spec: &TrainWork,
        options: TensorOptions,
    ) -> Result<Box<dyn Network>, ModelError> {
        let job = &self.0.diffusion;
        let layout = UNetLayout::from(&job.unet);
        let hint = hint_widths(job.autoencoder.factor());
        let (diffusion, unet) = LatentDiffusion::with_unet(scope, job, spec, options)?;
        Ok(Box::new(ControlNetNetwork {
            diffusion,
            unet,
            branch: ControlBranch::new(&scope.sub("controlnet"), &layout, &hint),
        }))
    }

    fn initialize(
        &self,
        parameters: &Parameters,
        own: Option<(&Path, &Source)>,
    ) -> Result<(), ModelError> {
        weights::initialize(parameters, &self.0.diffusion, own)
    }
}

#[derive(Debug)]
struct ControlNetNetwork {
    diffusion: LatentDiffusion,
    unet: UNet,
    branch: ControlBranch,
}

impl ControlNetNetwork {
    /// The hints of a batch in the networks' dtype, [B, 3, S, S] in [0, 1].
    fn hints(&self, images: &Tensor) -> Tensor {
        ((images + 1.0) / 2.0).to_kind(self.diffusion.dtype())
    }
}

impl Network for ControlNetNetwork {
    fn losses(&mut self, examples: &[Example]) -> Result<SampleLosses, ModelError> {
        let batch = self.diffusion.batch(examples, Some(HINTS))?;
        let (batch, hints) = batch.split_references();
        let latents = self.diffusion.training_latents(&batch).targets;
        let noisy = self.diffusion.noisy(&batch, &latents);
        let text = self.diffusion.text_states(&batch.prompts);
        let timesteps = self.diffusion.timesteps(&batch.timesteps);
        let latents = noisy.latents.to_kind(self.diffusion.dtype());
        let hint = self.hints(&hints);
        let kept = kept(&batch, latents.device());
        let control = Control {
            hint: &hint,
            scales: &vec![1.0; self.branch.outputs()],
            kept: kept.as_ref(),
        };
        let inputs = UNetInputs::new(&latents, &timesteps, &text);
        let predicted = predict(&self.unet, &self.branch, &inputs, &control);
        let predicted = predicted.to_kind(Kind::Float);
        Ok(self.diffusion.plain_losses(&batch, &noisy, &predicted))
    }

    fn sample(
        &mut self,
        example: &Example,
        options: &SampleOptions,
    ) -> Result<RgbImage, ModelError> {
        let examples = std::slice::from_ref(example);
        let batch = self.diffusion.batch(examples, Some(HINTS))?;
        let (batch, hints) = batch.split_references();
        let guidance = options.guided();
        let prompts = guidance.prompts(&batch.prompts, &options.negative_prompt);
        let text = self.diffusion.text_states(&prompts);
        let hint = self.hints(&hints);
        let scales = scales(&options.knobs, self.branch.outputs());
        let guess = options.knobs.guess_mode.unwrap_or(false);
        let conditional = Tensor::from_slice(&[0f32, 1.0])
            .view([2, 1, 1, 1])
            .to_device(hint.device());
        let control = Control {
            hint: &hint,
            scales: &scales,
            kept: (guess && guidance.has_halves()).then_some(&conditional),
        };
        self.diffusion
            .sample(example, options, |latents, timesteps| {
                let latents = latents.to_kind(self.diffusion.dtype());
                let inputs = UNetInputs::new(&latents, timesteps, &text);
                let predicted = predict(&self.unet, &self.branch, &inputs, &control);
                guidance.guided(predicted.to_kind(Kind::Float), || {
                    let text = text.narrow(0, 0, 1);
                    let inputs = UNetInputs::new(&latents, timesteps, &text);
                    self.unet.forward(&inputs).to_kind(Kind::Float)
                })
            })
    }
}

/// The factor of each of the branch's outputs.
fn scales(knobs: &Knobs, outputs: usize) -> Vec<f64> {
    let given = knobs.control_scales.as_deref().unwrap_or(&[1.0]);
    let guess = knobs.guess_mode.unwrap_or(false);
    (0..outputs)
        .map(|i| {
            let scale = given.get(i).or(given.first()).copied().unwrap_or(1.0);
            // From 0.1 to 1, evenly in the exponent.
            let exponent = i as f64 / (outputs - 1) as f64 - 1.0;
            if guess {
                scale * 10f64.powf(exponent)
            } else {
                scale
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_one_for_all_or_one_for_each_and_guess_mode_fades_them() {
        let knobs = |scales: Option<Vec<f64>>, guess| Knobs {
            control_scales: scales,
            guess_mode: Some(guess),
            ..Knobs::default()
        };
        assert_eq!(scales(&knobs(None, false), 3), [1.0, 1.0, 1.0]);
        assert_eq!(scales(&knobs(Some(vec![0.5]), false), 3), [0.5, 0.5, 0.5]);
        let each = vec![0.1, 0.2, 0.3];
        assert_eq!(scales(&knobs(Some(each.clone()), false), 3), each);
        let guessed = scales(&knobs(None, true), 13);
        // torch.logspace(-1, 0, 13)
        for (i, expected) in [(0, 0.1), (6, 0.316_227_766), (12, 1.0)] {
            assert!((guessed[i] - expected).abs() < 1e-9, "{guessed:?}");
        }
    }
}
