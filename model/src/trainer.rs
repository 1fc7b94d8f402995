//! The model of one rank and the interface for the rank process: builds the architecture of a job,
//! runs forward passes, updates weights and samples images. It does not communicate with other
//! ranks; the caller reduces gradients between `forward` and `update`. One OS thread owns it. It
//! uses architectures only through their trait.

use crate::architecture;
use crate::architecture::interface::{
    AttentionMap, Network, SampleLosses, SampleOptions, TensorOptions,
};
use crate::device::dtype;
use crate::error::{ModelError, catch_panic};
use crate::init::{InitWeights, load_init};
use crate::nonfinite::{Nonfinite, NonfiniteGuard};
use crate::optimizer::{AdamW, UpdateReport, UpdateStep};
use crate::parameter::Parameters;
use crate::schedule::NoiseSchedule;
use crate::validation;
use crate::weights::{self, NamedTensors};
use model_data::example::{Concept, Example};
use proto::message::VALIDATION;
use proto::spec::{LossWeighting, TrainWork};
use std::collections::BTreeMap;
use std::fmt;
use tch::{Device, Kind, Tensor};

/// See the module's header.
pub struct Trainer {
    /// The name of the architecture.
    name: &'static str,
    terms: &'static [&'static str],
    network: Box<dyn Network>,
    parameters: Parameters,
    /// Trainable parameters, sorted by name.
    trained: Vec<(String, Tensor)>,
    optimizer: AdamW,
    guard: NonfiniteGuard,
    schedule: NoiseSchedule,
    /// None for a model without noise levels.
    loss_weighting: Option<LossWeighting>,
    init_digest: Option<String>,
    step: u64,
}

impl fmt::Debug for Trainer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trainer")
            .field("architecture", &self.name)
            .field("step", &self.step)
            .finish_non_exhaustive()
    }
}

/// The loss of one micro-batch: a sum over its samples, divided by the global batch size, so that
/// the losses of a step's micro-batches add up to a mean.
#[derive(Debug)]
pub struct MicroBatchLoss {
    /// The loss times the loss scale; call `f_backward` on it.
    pub loss: Tensor,
    /// The value of the loss.
    pub total: f64,
    /// The values of its terms, in the order of [`Trainer::loss_terms`].
    pub terms: Vec<f64>,
    /// Indices in the micro-batch of the samples whose loss is not finite. `total` and `terms`
    /// exclude them; `loss` does not.
    pub nonfinite: Vec<usize>,
}

impl Trainer {
    /// Builds the architecture of `spec.model` with weights from `init`, or with random ones from
    /// the job's seed. A RetriNet takes encoder, decoder and retrieval encoder from the base U-Net
    /// and has the same outputs until its first update.
    ///
    /// # Errors
    /// Base weights that are missing, unreadable or do not match the job; a diffusion job that
    /// would train the autoencoder.
    pub fn new(
        spec: &TrainWork,
        init: Option<&InitWeights>,
        device: Device,
    ) -> Result<Self, ModelError> {
        catch_panic("building the model", || Self::build(spec, init, device))
    }

    fn build(
        spec: &TrainWork,
        init: Option<&InitWeights>,
        device: Device,
    ) -> Result<Self, ModelError> {
        let model = &spec.model;
        let architecture = architecture::of(&model.architecture);
        let architecture = architecture.as_ref();
        let prefixes = architecture.prefixes();
        let dtype = dtype(spec.train.precision);
        // 1. build the networks, without random initialization where weights are loaded or copied
        let mut parameters = Parameters::seeded(spec.data.seed, device)
            .checkpointing(&model.activation_checkpointing, prefixes);
        let from_files = init.iter().flat_map(|init| init.keys());
        for component in from_files {
            parameters = parameters.skip_init(format!("{component}."));
        }
        for prefix in architecture.derived() {
            parameters = parameters.skip_init((*prefix).to_owned());
        }
        let options = TensorOptions { dtype, device };
        let network = architecture.build(&parameters.root(), spec, options)?;
        // 2. load the base weights and initialize the parameters that are derived from them
        let init_digest = match init {
            Some(init) => Some(load_init(architecture, &parameters, model, init)?),
            None => architecture.initialize(&parameters, None).map(|()| None)?,
        };
        // 3. the trainable parameters and their optimizer
        let mut trained: Vec<(String, Tensor)> = parameters.tensors().into_iter().collect();
        trained.retain(|(name, tensor)| {
            let frozen = model.freeze.contains(&prefixes.component_of(name));
            if frozen {
                cast_frozen(tensor, dtype);
            }
            !frozen
        });
        let optimizer = AdamW::new(&trained, prefixes, &spec.train);
        for (_, tensor) in &trained {
            let _ = tensor.set_requires_grad(true);
        }
        Ok(Self {
            name: model.architecture.facts().name,
            terms: architecture.terms(),
            network,
            parameters,
            trained,
            optimizer,
            guard: NonfiniteGuard::new(&spec.train),
            schedule: NoiseSchedule::new(&model.architecture.noise().unwrap_or_default()),
            loss_weighting: model.architecture.loss_weighting(),
            init_digest,
            step: 0,
        })
    }

    /// The noise schedule of training and sampling; Stable Diffusion's for a model without one.
    #[must_use]
    pub fn noise_schedule(&self) -> &NoiseSchedule {
        &self.schedule
    }

    /// The names of the loss terms, in the order of [`MicroBatchLoss::terms`].
    #[must_use]
    pub fn loss_terms(&self) -> &'static [&'static str] {
        self.terms
    }

    /// Trainable parameters sorted by name. The Reducer gets them in this order.
    pub fn parameters(&self) -> &[(String, Tensor)] {
        &self.trained
    }

    /// SHA-256 over the files of the base weights; None if the job started from random weights.
    #[must_use]
    pub fn init_digest(&self) -> Option<String> {
        self.init_digest.clone()
    }

    /// True if any frozen parameters, which checkpoints do not contain, come from the base weights.
    #[must_use]
    pub fn rests_on_base(&self) -> bool {
        self.init_digest.is_some() && self.trained.len() < self.parameters.tensors().len()
    }

    /// The last step that `update` completed or `load_state` set; 0 before the first.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Zeroes gradients in place, because the Reducer may hold views of them, and creates missing
    /// ones.
    pub fn zero_gradients(&mut self) {
        let missing = self.trained.iter().map(|(_, parameter)| parameter);
        // One by one, so that there is at most one temporary copy at a time.
        for parameter in missing.filter(|parameter| !parameter.grad().defined()) {
            (parameter * parameter.zeros_like())
                .sum(Kind::Float)
                .backward();
        }
        for (_, parameter) in &self.trained {
            let _ = parameter.grad().zero_();
        }
    }

    /// Forward pass of one micro-batch. The caller runs the backward pass,
    /// `loss.loss.f_backward()`.
    ///
    /// # Errors
    /// An example that does not match the job; a failure in libtorch.
    pub fn forward(
        &mut self,
        examples: &[Example],
        global_batch: u32,
    ) -> Result<MicroBatchLoss, ModelError> {
        catch_panic("running the forward pass", || {
            let losses = stack_losses(self.network.losses(examples)?) / f64::from(global_batch);
            let sums = losses.sum_dim_intlist(1i64, false, Kind::Float);
            let loss = match self.guard.loss_scale() {
                1.0 => sums.get(0),
                scale => sums.get(0) * scale,
            };
            // A single device-to-host transfer for all values.
            let sums = sums.detach().to_device(Device::Cpu);
            let sums: Vec<f64> = (0..sums.size()[0])
                .map(|row| sums.double_value(&[row]))
                .collect();
            let (nonfinite, sums) = if sums.iter().all(|sum| sum.is_finite()) {
                (Vec::new(), sums)
            } else {
                sum_finite(&losses)
            };
            Ok(MicroBatchLoss {
                loss,
                total: sums[0],
                terms: sums[1..].to_vec(),
                nonfinite,
            })
        })
    }

    /// The names of the values of [`Self::validate`]: `validation`, then `validation_TERM` for each
    /// loss term. With a single term it is `validation`.
    #[must_use]
    pub fn validation_terms(&self) -> Vec<String> {
        let terms = self.terms.iter().map(|term| format!("{VALIDATION}_{term}"));
        let terms = terms.filter(|_| 1 < self.terms.len());
        std::iter::once(VALIDATION.to_owned())
            .chain(terms)
            .collect()
    }

    /// The time steps at which each validation sample is measured; empty for a model without noise
    /// levels.
    #[must_use]
    pub fn validation_timesteps(&self) -> Vec<u32> {
        match self.loss_weighting {
            Some(_) => validation::timesteps(self.schedule.timesteps()),
            None => Vec::new(),
        }
    }

    /// The losses of the examples at their time steps, summed over the examples, in the order of
    /// [`Self::validation_terms`]. They are not weighted by noise level: equation 3 as the paper
    /// writes it. For an autoencoder, its reconstruction. Changes no state.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn validate(&mut self, examples: &[Example]) -> Result<Vec<f64>, ModelError> {
        let losses = catch_panic("computing the validation loss", || {
            let losses = tch::no_grad(|| self.network.losses(examples))?;
            Ok(stack_losses(losses).to_device(Device::Cpu))
        })?;
        let rows = losses.size()[0];
        // A single term is the loss without what only regularizes.
        let first = if rows == 2 { 1 } else { 0 };
        let sum = |row: i64| {
            let values = (0i64..).zip(examples).map(|(column, example)| {
                let weight = self.loss_weighting.map_or(1.0, |weighting| {
                    self.schedule
                        .loss_weight(example.timestep as usize, weighting)
                });
                losses.double_value(&[row, column]) / weight
            });
            values.sum()
        };
        Ok((first..rows).map(sum).collect())
    }

    /// Clips the parameters' gradients, then updates with the learning rates of `step`, the 1-based
    /// step that this update completes. If the gradient norm is not finite, the step is skipped as
    /// in [`Self::skip`].
    ///
    /// # Errors
    /// A missing gradient, or as [`Self::skip`]; nothing is changed then.
    pub fn update(&mut self, step: u64) -> Result<UpdateReport, ModelError> {
        let loss_scale = self.guard.loss_scale();
        let norm = catch_panic("computing the gradient norm", || self.optimizer.norm(step))?;
        let gradient_norm = norm / loss_scale;
        if !gradient_norm.is_finite() {
            return self.skip_update(step, Nonfinite::Gradient(gradient_norm));
        }
        let update = UpdateStep {
            step,
            count: step.saturating_sub(self.guard.skipped()),
            gradient_norm,
            loss_scale,
        };
        catch_panic("updating the weights", || self.optimizer.update(update))?;
        self.guard.record_update();
        Ok(self.complete_step(step, gradient_norm))
    }

    /// Completes a step in which some sample's loss is not finite, without changing weights or
    /// moments. All ranks must call it for the same step.
    ///
    /// # Errors
    /// The job does not allow skipped steps, or too many steps in a row were skipped.
    pub fn skip(&mut self, step: u64) -> Result<UpdateReport, ModelError> {
        self.skip_update(step, Nonfinite::Loss)
    }

    /// The factor of [`MicroBatchLoss::loss`]: a power of two, 1 except in fp16.
    #[must_use]
    pub fn loss_scale(&self) -> f64 {
        self.guard.loss_scale()
    }

    fn skip_update(&mut self, step: u64, cause: Nonfinite) -> Result<UpdateReport, ModelError> {
        self.guard.record_nonfinite(cause)?;
        Ok(self.complete_step(step, 0.0))
    }

    fn complete_step(&mut self, step: u64, gradient_norm: f64) -> UpdateReport {
        self.step = step;
        UpdateReport {
            gradient_norm,
            learning_rate: self.optimizer.learning_rate(step),
            skipped_steps: self.guard.skipped(),
            loss_scale: self.guard.loss_scale(),
        }
    }

    /// The contents of a checkpoint, sorted by name: `weights/NAME` for trained weights,
    /// `optimizer/NAME/exp_avg` and `optimizer/NAME/exp_avg_sq`; if steps may be skipped, `guard/…`
    /// with their counts and the loss scale; with moving averages, `ema/NAME`. The tensors share
    /// storage with the trainer: copy them before the next update.
    #[must_use]
    pub fn state(&self) -> Vec<(String, Tensor)> {
        self.live_state().into_iter().collect()
    }

    fn live_state(&self) -> NamedTensors {
        let weights = self
            .trained
            .iter()
            .map(|(name, t)| (format!("weights/{name}"), t.detach()));
        let moments = self.optimizer.moments().into_iter();
        let guard = self.guard.state().into_iter();
        let averages = self.optimizer.averages().into_iter();
        weights
            .chain(moments.map(|(name, tensor)| (format!("optimizer/{name}"), tensor)))
            .chain(guard.map(|(name, tensor)| (format!("guard/{name}"), tensor)))
            .chain(averages.map(|(name, tensor)| (format!("ema/{name}"), tensor)))
            .collect()
    }

    /// Loads the state of a checkpoint of step `step`.
    ///
    /// # Errors
    /// A tensor that is missing, unexpected, of the wrong shape or not finite; nothing is changed
    /// then.
    pub fn load_state(
        &mut self,
        tensors: &BTreeMap<String, Tensor>,
        step: u64,
    ) -> Result<(), ModelError> {
        weights::load(
            &format!("the checkpoint of step {step}"),
            tensors,
            &self.live_state(),
        )?;
        self.step = step;
        Ok(())
    }

    /// Replaces the trained weights by their moving averages, if the job enables them. For sampling
    /// and export; do not continue training afterwards.
    pub fn take_averages(&mut self) {
        self.optimizer.take_averages();
    }

    /// The model's weights by file: `autoencoder`, `text_encoder` and `unet` as in [`InitWeights`];
    /// the weights that only a RetriNet has under `retrieval`, `cross_attention` and `zero_convs`.
    #[must_use]
    pub fn export(&self) -> BTreeMap<String, NamedTensors> {
        let mut files: BTreeMap<String, NamedTensors> = BTreeMap::new();
        for (name, tensor) in self.parameters.tensors() {
            if let Some((file, rest)) = name.split_once('.') {
                files
                    .entry(file.to_owned())
                    .or_default()
                    .insert(rest.to_owned(), tensor.detach());
            }
        }
        files
    }

    /// Samples one image for each example from its prompt, concepts and any number of references.
    /// An autoencoder returns its reconstructions of the targets. An image does not depend on the
    /// other examples.
    ///
    /// # Errors
    /// An example that does not match the job; more steps than the schedule allows.
    pub fn sample(
        &mut self,
        examples: &[Example],
        options: &SampleOptions,
    ) -> Result<Vec<image::RgbImage>, ModelError> {
        // One at a time, because a kernel's result for an image can depend on the batch size.
        let images = examples.iter().map(|example| {
            catch_panic("sampling images", || {
                tch::no_grad(|| self.network.sample(example, options))
            })
        });
        images.collect()
    }

    /// The example's target through the autoencoder alone: the best that the model could draw. None
    /// for an autoencoder, which samples nothing else.
    ///
    /// # Errors
    /// An example that does not match the job.
    pub fn reconstruct(
        &mut self,
        example: &Example,
    ) -> Result<Option<image::RgbImage>, ModelError> {
        catch_panic("reconstructing an image", || {
            tch::no_grad(|| self.network.reconstruct(example))
        })
    }

    /// The retrieval encoder's attention maps of a word over a reference image at a time step, one
    /// for each block.
    ///
    /// # Errors
    /// An image of a different size than the job's; a model without references.
    pub fn attention(
        &mut self,
        reference: &image::RgbImage,
        word: Concept,
        timestep: usize,
    ) -> Result<Vec<AttentionMap>, ModelError> {
        let maps = catch_panic("computing attention maps", || {
            tch::no_grad(|| self.network.attention(reference, word, timestep))
        })?;
        maps.ok_or(ModelError::Unsupported {
            architecture: self.name,
            feature: "attention to references",
        })
    }
}

/// Stores a frozen weight in the dtype in which it is used. Vectors stay fp32, the dtype of norms;
/// they are only about a thousandth of all values.
fn cast_frozen(tensor: &Tensor, dtype: Kind) {
    if tensor.dim() > 1 && dtype != Kind::Float {
        let mut alias = tensor.shallow_clone();
        alias.set_data(&tensor.to_kind(dtype));
    }
}

/// The total in row 0, then the terms: [1 + terms, B].
fn stack_losses(losses: SampleLosses) -> Tensor {
    let rows: Vec<Tensor> = std::iter::once(losses.total).chain(losses.terms).collect();
    Tensor::stack(&rows, 0)
}

/// The indices of the samples whose losses are not finite, and the sums of all rows over the other
/// samples. If all losses are finite but their sum is not, all samples are returned.
fn sum_finite(losses: &Tensor) -> (Vec<usize>, Vec<f64>) {
    let losses = losses.detach().to_device(Device::Cpu);
    let rows = losses.size()[0];
    let value = |row: i64, sample: usize| losses.double_value(&[row, sample as i64]);
    let finite = |sample: &usize| (0..rows).all(|row| value(row, *sample).is_finite());
    let samples = 0..losses.size()[1] as usize;
    let (finite, nonfinite): (Vec<usize>, Vec<usize>) = samples.partition(finite);
    if nonfinite.is_empty() {
        return (finite, vec![0.0; rows as usize]);
    }
    let sum = |row| finite.iter().map(|sample| value(row, *sample)).sum();
    let sums = (0..rows).map(sum).collect();
    (nonfinite, sums)
}
