//! The interface between the trainer and the architectures. Each architecture is a folder beside
//! this file; [`super`] lists them.

use crate::component::Prefixes;
use crate::error::ModelError;
use crate::parameter::{Parameters, Scope};
use crate::public::Source;
use crate::sampler::Guidance;
use image::RgbImage;
use model_data::example::{Concept, Example};
use proto::knobs::Knobs;
use proto::sample::SampleMethod;
use proto::spec::TrainWork;
use std::fmt::Debug;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// The architecture of a job's model, before any network is built.
pub(crate) trait Architecture {
    /// The components by the prefixes of their parameters' names. The prefixes cover every
    /// parameter that [`Self::build`] creates.
    fn prefixes(&self) -> Prefixes;

    /// The names of the loss terms, in the order of [`SampleLosses::terms`].
    fn terms(&self) -> &'static [&'static str];

    /// Name prefixes of the parameters that [`Self::initialize`] sets; their random initialization
    /// is skipped.
    fn derived(&self) -> &'static [&'static str] {
        &[]
    }

    /// Components that base weights must have beyond those that its facts require.
    fn required(&self) -> &'static [&'static str] {
        &[]
    }

    /// Builds the networks inside `scope`.
    ///
    /// # Errors
    /// The architecture cannot train this job.
    fn build(
        &self,
        scope: &Scope<'_>,
        spec: &TrainWork,
        options: TensorOptions,
    ) -> Result<Box<dyn Network>, ModelError>;

    /// Initializes the parameters that no base model has, after the base weights are loaded. `own`
    /// is the architecture's own file among the base weights, if any.
    ///
    /// # Errors
    /// A file that does not match the job.
    fn initialize(
        &self,
        _parameters: &Parameters,
        _own: Option<(&Path, &Source)>,
    ) -> Result<(), ModelError> {
        Ok(())
    }
}

/// The networks of a model.
pub(crate) trait Network: Debug {
    /// The loss of each example of a micro-batch, with its autograd graph.
    ///
    /// # Errors
    /// An example that does not match the job.
    fn losses(&mut self, examples: &[Example]) -> Result<SampleLosses, ModelError>;

    /// Samples one image for an example from its conditions (prompt, references, concepts) and the
    /// seed. Called under `no_grad`.
    ///
    /// # Errors
    /// An example that does not match the job; more steps than the noise schedule allows.
    fn sample(
        &mut self,
        example: &Example,
        options: &SampleOptions,
    ) -> Result<RgbImage, ModelError>;

    /// The example's target through the autoencoder alone: the best that the model could draw. None
    /// if sampling does nothing else. Called under `no_grad`.
    ///
    /// # Errors
    /// An example that does not match the job.
    fn reconstruct(&mut self, _example: &Example) -> Result<Option<RgbImage>, ModelError> {
        Ok(None)
    }

    /// Attention maps of a word over a reference image at a time step, one for each block; None if
    /// the model has no references. Called under `no_grad`.
    ///
    /// # Errors
    /// An image of a different size than the job's.
    fn attention(
        &mut self,
        _reference: &RgbImage,
        _word: Concept,
        _timestep: usize,
    ) -> Result<Option<Vec<AttentionMap>>, ModelError> {
        Ok(None)
    }
}

/// The losses of a micro-batch of B examples. Each tensor is [B] and not divided by the batch size.
#[derive(Debug)]
pub(crate) struct SampleLosses {
    /// The loss that is minimized.
    pub(crate) total: Tensor,
    /// The terms of the total, in the order of [`Architecture::terms`].
    pub(crate) terms: Vec<Tensor>,
}

/// The dtype and device of the networks' computations. Latents, noise, predictions and losses are
/// fp32 outside of the networks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TensorOptions {
    pub(crate) dtype: Kind,
    pub(crate) device: Device,
}

/// How images are sampled.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleOptions {
    pub method: SampleMethod,
    /// 1 to 500.
    pub steps: u32,
    /// Scale of classifier-free guidance; 1 disables it.
    pub guidance: f64,
    /// Scale of guidance by the references, if the architecture has them. 1 disables it; larger
    /// values move further away from the prediction without prompt and references.
    pub reference_guidance: f64,
    /// The text of the unconditional branch of classifier-free guidance, and of the prediction
    /// without references; usually empty.
    pub negative_prompt: String,
    /// Settings of single architectures.
    pub knobs: Knobs,
    /// Together with the example's position, determines the initial noise of an image.
    pub seed: u64,
}

impl SampleOptions {
    /// How its images are guided.
    pub(crate) fn guided(&self) -> Guidance {
        Guidance {
            scale: self.guidance,
            reference_scale: self.reference_guidance,
        }
    }

    /// The noise seed of the example at a position. A bijection of positions, so that no two
    /// examples share noise.
    pub(crate) fn noise_seed(&self, position: u64) -> u64 {
        position.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.seed
    }
}

/// The attention of an input block of the retrieval encoder to a word, over a reference image.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionMap {
    /// Index of the input block, as in CompVis.
    pub block: usize,
    /// The number of columns.
    pub width: u32,
    /// Attention probabilities, row by row.
    pub values: Vec<f32>,
}
