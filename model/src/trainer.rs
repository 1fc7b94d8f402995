//! One rank's model: builds the architecture of a job, runs forward passes, updates weights,
//! samples images. The face that the rank process uses. It never talks to other ranks: gradients
//! are reduced by the caller between `forward` and `update`. One OS thread owns it. It knows
//! architectures by their trait alone.

use crate::architecture;
use crate::architecture::interface::{AttentionMap, Network, Place, SampleLosses, SampleOptions};
use crate::device::dtype;
use crate::error::{ModelError, guarded};
use crate::guard::{Guard, Trouble};
use crate::init::{InitWeights, load_init};
use crate::optimizer::{AdamW, UpdateReport};
use crate::parameter::Parameters;
use crate::schedule::NoiseSchedule;
use crate::weights::{self, NamedTensors};
use model_data::example::{Concept, Example};
use proto::spec::TrainWork;
use std::collections::BTreeMap;
use std::fmt;
use tch::{Device, Kind, Tensor};

/// See the module's header.
pub struct Trainer {
    /// Of the architecture.
    name: &'static str,
    terms: &'static [&'static str],
    network: Box<dyn Network>,
    parameters: Parameters,
    /// Trainable parameters, sorted by name.
    trained: Vec<(String, Tensor)>,
    optimizer: AdamW,
    guard: Guard,
    schedule: NoiseSchedule,
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

/// Loss of one micro-batch: sums over its samples, divided by the global batch, so that those of a
/// step add up to a mean.
#[derive(Debug)]
pub struct MicroBatchLoss {
    /// What to call `f_backward` on: the loss times the loss scale.
    pub loss: Tensor,
    /// The value of the loss.
    pub total: f64,
    /// The values of its terms, in the order of [`Trainer::loss_terms`].
    pub terms: Vec<f64>,
    /// Samples, by their place in the micro-batch, whose own loss is not finite. The values leave
    /// them out; `loss` does not.
    pub nonfinite: Vec<usize>,
}

impl Trainer {
    /// Builds the architecture of `spec.model` with weights from `init`, or random ones from the
    /// job's seed. A RetriNet takes encoder, decoder and retrieval encoder from the base U-Net and
    /// answers like it until its first update.
    ///
    /// # Errors Base weights that are missing, unreadable or do not fit; an autoencoder to be trained inside
    /// a diffusion model.
    pub fn new(
        spec: &TrainWork,
        init: Option<&InitWeights>,
        device: Device,
    ) -> Result<Self, ModelError> {
        guarded("building the model", || Self::build(spec, init, device))
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
        // 1. build, without drawing random values where files or copies follow
        let mut parameters = Parameters::seeded(spec.data.seed, device)
            .recomputing(&model.activation_checkpointing, prefixes);
        let from_files = init.iter().flat_map(|init| init.keys());
        for component in from_files {
            parameters = parameters.awaiting(format!("{component}."));
        }
        for prefix in architecture.derived() {
            parameters = parameters.awaiting((*prefix).to_owned());
        }
        let network = architecture.build(&parameters.root(), spec, Place { dtype, device })?;
        // 2. base weights, and what is made from them
        let init_digest = match init {
            Some(init) => Some(load_init(architecture, &parameters, model, init)?),
            None => architecture.initialize(&parameters, None).map(|()| None)?,
        };
        // 3. what moves
        let mut trained: Vec<(String, Tensor)> = parameters.tensors().into_iter().collect();
        trained.retain(|(name, tensor)| {
            let frozen = model.freeze.contains(&prefixes.component_of(name));
            if frozen {
                narrow(tensor, dtype);
            }
            !frozen
        });
        let optimizer = AdamW::new(&trained, prefixes, &spec.train);
        for (_, tensor) in &trained {
            let _ = tensor.set_requires_grad(true);
        }
        let noise = model.architecture.diffusion().map(|it| it.noise);
        Ok(Self {
            name: model.architecture.facts().name,
            terms: architecture.terms(),
            network,
            parameters,
            trained,
            optimizer,
            guard: Guard::new(&spec.train),
            schedule: NoiseSchedule::new(&noise.unwrap_or_default()),
            init_digest,
            step: 0,
        })
    }

    /// What the model is trained and sampled on; Stable Diffusion's where it sees no noise.
    #[must_use]
    pub fn noise_schedule(&self) -> &NoiseSchedule {
        &self.schedule
    }

    /// The names of the loss's terms, in the order of [`MicroBatchLoss::terms`].
    #[must_use]
    pub fn loss_terms(&self) -> &'static [&'static str] {
        self.terms
    }

    /// Trainable parameters sorted by name: what the Reducer sees, always in this order.
    pub fn parameters(&self) -> &[(String, Tensor)] {
        &self.trained
    }

    /// SHA-256 over the base weights' files, None when the job began from random weights.
    #[must_use]
    pub fn init_digest(&self) -> Option<String> {
        self.init_digest.clone()
    }

    /// Whether anything that is not trained, and so is in no checkpoint, comes from the base
    /// weights.
    #[must_use]
    pub fn rests_on_base(&self) -> bool {
        self.init_digest.is_some() && self.trained.len() < self.parameters.tensors().len()
    }

    /// The last step that `update` completed or `load_state` set; 0 before the first.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Zeroes gradients in place, because the Reducer may hold views of them, and makes those that
    /// do not exist yet.
    pub fn zero_gradients(&mut self) {
        let missing = self.trained.iter().map(|(_, parameter)| parameter);
        // One by one, so that at no time there is more than one copy too many.
        for parameter in missing.filter(|parameter| !parameter.grad().defined()) {
            (parameter * parameter.zeros_like())
                .sum(Kind::Float)
                .backward();
        }
        for (_, parameter) in &self.trained {
            let _ = parameter.grad().zero_();
        }
    }

    /// Forward pass of one micro-batch. Backward is the caller's: `loss.loss.f_backward()`.
    ///
    /// # Errors
    /// An example that does not fit the job; a failure inside libtorch.
    pub fn forward(
        &mut self,
        examples: &[Example],
        global_batch: u32,
    ) -> Result<MicroBatchLoss, ModelError> {
        guarded("the forward pass", || {
            let losses = rows(self.network.losses(examples)?) / f64::from(global_batch);
            let sums = losses.sum_dim_intlist(1i64, false, Kind::Float);
            let loss = match self.guard.loss_scale() {
                1.0 => sums.get(0),
                scale => sums.get(0) * scale,
            };
            // One transfer for all figures.
            let sums = sums.detach().to_device(Device::Cpu);
            let sums: Vec<f64> = (0..sums.size()[0])
                .map(|row| sums.double_value(&[row]))
                .collect();
            let (nonfinite, sums) = if sums.iter().all(|sum| sum.is_finite()) {
                (Vec::new(), sums)
            } else {
                finite_part(&losses)
            };
            Ok(MicroBatchLoss {
                loss,
                total: sums[0],
                terms: sums[1..].to_vec(),
                nonfinite,
            })
        })
    }

    /// Clips, then updates with the learning rates of `step`, the 1-based step that this update
    /// completes. Gradients are read from the parameters. Where their norm is not finite the step
    /// ends as in [`Self::skip`].
    ///
    /// # Errors
    /// A missing gradient, or what [`Self::skip`] says; nothing is changed then.
    pub fn update(&mut self, step: u64) -> Result<UpdateReport, ModelError> {
        let scale = self.guard.loss_scale();
        let norm = guarded("the gradient's norm", || self.optimizer.norm(step))? / scale;
        if !norm.is_finite() {
            return self.leave_out(step, Trouble::Gradient(norm));
        }
        let count = step.saturating_sub(self.guard.skipped());
        guarded("the update", || {
            self.optimizer.update((norm, scale), step, count)
        })?;
        self.guard.good();
        Ok(self.updated(step, norm))
    }

    /// Ends a step of which some sample's loss is not finite: no weight, no moment changes. All
    /// ranks must call it for the same step.
    ///
    /// # Errors
    /// The job says that such a step ends it, or too many in a row were skipped.
    pub fn skip(&mut self, step: u64) -> Result<UpdateReport, ModelError> {
        self.leave_out(step, Trouble::Loss)
    }

    /// What [`MicroBatchLoss::loss`] is multiplied with: a power of two, 1 except in fp16.
    #[must_use]
    pub fn loss_scale(&self) -> f64 {
        self.guard.loss_scale()
    }

    fn leave_out(&mut self, step: u64, trouble: Trouble) -> Result<UpdateReport, ModelError> {
        self.guard.bad(trouble)?;
        Ok(self.updated(step, 0.0))
    }

    fn updated(&mut self, step: u64, gradient_norm: f64) -> UpdateReport {
        self.step = step;
        UpdateReport {
            gradient_norm,
            learning_rate: self.optimizer.learning_rate(step),
            skipped_steps: self.guard.skipped(),
            loss_scale: self.guard.loss_scale(),
        }
    }

    /// Everything that a checkpoint holds, sorted by name: `weights/NAME` for trained weights,
    /// `optimizer/NAME/exp_avg` and `optimizer/NAME/exp_avg_sq`; where steps may be skipped,
    /// `guard/…` with their counts; where the weights are averaged, `ema/NAME`. The tensors are the
    /// live ones: copy before the next update.
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

    /// Takes over the state of a checkpoint that was made after `step` updates.
    ///
    /// # Errors
    /// A tensor that is missing, does not belong here or has another shape; nothing is changed
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

    /// The trained weights become what their moving averages are, where the job keeps any: for
    /// drawing and exporting, not for training on.
    pub fn take_averages(&mut self) {
        self.optimizer.take_averages();
    }

    /// The model's weights by the file they belong in: `autoencoder`, `text_encoder` and `unet` as
    /// [`InitWeights`] wants them; a RetriNet's own parts under `retrieval`, `cross_attention` and
    /// `zero_convs`.
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

    /// Samples one image for each example from its prompt, references (of which there may be any
    /// number) and concepts. An autoencoder gives back the targets as it sees them. An image does
    /// not depend on the others that are asked for.
    ///
    /// # Errors
    /// An example that does not fit the job; a number of steps that the schedule does not have.
    pub fn sample(
        &mut self,
        examples: &[Example],
        options: &SampleOptions,
    ) -> Result<Vec<image::RgbImage>, ModelError> {
        // One at a time: what a kernel does with an image can depend on how many there are beside
        // it.
        let images = examples.iter().map(|example| {
            guarded("drawing pictures", || {
                tch::no_grad(|| self.network.sample(example, options))
            })
        });
        images.collect()
    }

    /// Where the retrieval encoder finds a word in a reference image at a time step, block by
    /// block.
    ///
    /// # Errors
    /// An image of another size than the job's; a model without references.
    pub fn attention(
        &mut self,
        reference: &image::RgbImage,
        word: Concept,
        timestep: usize,
    ) -> Result<Vec<AttentionMap>, ModelError> {
        let found = guarded("looking at attention", || {
            tch::no_grad(|| self.network.attention(reference, word, timestep))
        })?;
        found.ok_or(ModelError::Unsupported {
            architecture: self.name,
            request: "attend to references",
        })
    }
}

/// Keeps a weight that never moves in the dtype that it is used in. Vectors are a thousandth of all
/// and stay fp32, which norms compute in.
fn narrow(tensor: &Tensor, dtype: Kind) {
    if tensor.dim() > 1 && dtype != Kind::Float {
        let mut alias = tensor.shallow_clone();
        alias.set_data(&tensor.to_kind(dtype));
    }
}

/// Row 0 the total, then the terms: [1 + terms, B].
fn rows(losses: SampleLosses) -> Tensor {
    let rows: Vec<Tensor> = std::iter::once(losses.total).chain(losses.terms).collect();
    Tensor::stack(&rows, 0)
}

/// Which samples' losses are not finite, and the sums of all rows over the others. When all are
/// finite and only their sum is not, all are named.
fn finite_part(losses: &Tensor) -> (Vec<usize>, Vec<f64>) {
    let losses = losses.detach().to_device(Device::Cpu);
    let rows = losses.size()[0];
    let value = |row: i64, sample: usize| losses.double_value(&[row, sample as i64]);
    let finite = |sample: &usize| (0..rows).all(|row| value(row, *sample).is_finite());
    let samples = 0..losses.size()[1] as usize;
    let (good, bad): (Vec<usize>, Vec<usize>) = samples.partition(finite);
    if bad.is_empty() {
        return (good, vec![0.0; rows as usize]);
    }
    let sum = |row| good.iter().map(|sample| value(row, *sample)).sum();
    let sums = (0..rows).map(sum).collect();
    (bad, sums)
}
