//! What the trainer knows of an architecture. One folder beside this file implements each;
//! [`super`] lists them.

use crate::component::Prefixes;
use crate::error::ModelError;
use crate::parameter::{Parameters, Scope};
use crate::public::Source;
use image::RgbImage;
use model_data::example::{Concept, Example};
use proto::sample::SampleMethod;
use proto::spec::TrainWork;
use std::fmt::Debug;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// A kind of model, before anything of it is built: what a job says of it.
pub(crate) trait Architecture {
    /// Its components by the beginnings of their parameters' names; they cover every parameter that
    /// [`Self::build`] makes.
    fn prefixes(&self) -> Prefixes;

    /// The terms of its loss, in the order of [`SampleLosses::terms`].
    fn terms(&self) -> &'static [&'static str];

    /// Beginnings of the names of parameters whose first values [`Self::initialize`] sets: no time
    /// is spent on random ones.
    fn derived(&self) -> &'static [&'static str] {
        &[]
    }

    /// Builds the networks inside `scope`.
    ///
    /// # Errors
    /// A job that this architecture cannot train.
    fn build(
        &self,
        scope: &Scope<'_>,
        spec: &TrainWork,
        place: Place,
    ) -> Result<Box<dyn Network>, ModelError>;

    /// Gives their first values to the parameters that no base model has, after the base weights
    /// are loaded: from `own`, the architecture's own file among base weights, where there is one.
    ///
    /// # Errors
    /// A file that does not fit.
    fn initialize(
        &self,
        _parameters: &Parameters,
        _own: Option<(&Path, &Source)>,
    ) -> Result<(), ModelError> {
        Ok(())
    }
}

/// A model that is built.
pub(crate) trait Network: Debug {
    /// The loss of each example of a micro-batch, with its graph.
    ///
    /// # Errors
    /// An example that does not fit the job.
    fn losses(&mut self, examples: &[Example]) -> Result<SampleLosses, ModelError>;

    /// One image for an example, from its conditions (prompt, references, concepts) and the seed.
    /// Called without gradients.
    ///
    /// # Errors
    /// An example that does not fit the job; a number of steps that the noise schedule does not
    /// have.
    fn sample(
        &mut self,
        example: &Example,
        options: &SampleOptions,
    ) -> Result<RgbImage, ModelError>;

    /// Where the model finds a word in a reference image at a time step, block by block; None: it
    /// has no references. Called without gradients.
    ///
    /// # Errors
    /// An image of another size than the job's.
    fn attention(
        &mut self,
        _reference: &RgbImage,
        _word: Concept,
        _timestep: usize,
    ) -> Result<Option<Vec<AttentionMap>>, ModelError> {
        Ok(None)
    }
}

/// The losses of a micro-batch of B examples, each tensor [B] and not divided by anything.
#[derive(Debug)]
pub(crate) struct SampleLosses {
    /// What is trained on.
    pub(crate) total: Tensor,
    /// The parts that the total is made of, in the order of [`Architecture::terms`].
    pub(crate) terms: Vec<Tensor>,
}

/// Where and in which dtype networks compute. Latents, noise, predictions and losses are fp32
/// outside of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) dtype: Kind,
    pub(crate) device: Device,
}

/// How images are sampled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleOptions {
    pub method: SampleMethod,
    /// 1 to 500.
    pub steps: u32,
    /// Scale of classifier-free guidance; 1 samples with the prompt alone.
    pub guidance: f64,
    /// Scale of guidance by the references, where the architecture has them: 1 takes them as in
    /// training, more moves further away from what would be predicted without prompt and
    /// references.
    pub reference_guidance: f64,
    /// With an example's position it fixes the noise that an image begins from.
    pub seed: u64,
}

impl SampleOptions {
    /// The seed of the noise for the example at a position: a bijection, so that neighbours share
    /// no noise.
    pub(crate) fn noise_seed(&self, position: u64) -> u64 {
        position.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.seed
    }
}

/// Where an input block of the retrieval encoder finds a word in a reference.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionMap {
    /// CompVis' number.
    pub block: usize,
    /// Columns of a row.
    pub width: u32,
    /// Row by row.
    pub values: Vec<f32>,
}
