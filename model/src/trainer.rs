//! One rank's model: builds the architecture of a job, runs forward passes, updates weights, draws pictures.
//! The face that the rank process uses. It never talks to other ranks: gradients are reduced by the caller
//! between `forward` and `update`. One OS thread owns it.

use crate::autoencoder::Autoencoder;
use crate::batch::{Batch, BatchShape, masks, to_images};
use crate::device::numbers;
use crate::diffusion::{AttentionMap, Diffusion, SampleOptions};
use crate::error::{ModelError, guarded};
use crate::guard::{Guard, Trouble};
use crate::init::{InitWeights, copy_encoder, load_init};
use crate::loss::{Masks, noise_loss, picture_loss};
use crate::noise::{self, Purpose};
use crate::optimizer::{AdamW, UpdateReport};
use crate::parameter::Parameters;
use crate::schedule::NoiseSchedule;
use crate::weights::{self, NamedTensors};
use model_data::example::{Concept, Example};
use proto::spec::{Architecture, Component, TrainWork, Train};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// See the module's header.
#[derive(Debug)]
pub struct Trainer {
    spec: TrainWork,
    device: Device,
    network: Network,
    parameters: Parameters,
    /// Trainable parameters, sorted by name.
    trained: Vec<(String, Tensor)>,
    optimizer: AdamW,
    guard: Guard,
    schedule: NoiseSchedule,
    init_digest: Option<String>,
    step: u64,
}

#[derive(Debug)]
enum Network {
    Autoencoder(Box<Autoencoder>),
    Diffusion(Box<Diffusion>),
}

/// Loss of one micro-batch: sums over its samples, divided by the global batch, so that those of a step add
/// up to a mean.
#[derive(Debug)]
pub struct MicroBatchLoss {
    /// What to call `f_backward` on: the loss times the loss scale.
    pub loss: Tensor,
    /// The value of the loss.
    pub total: f64,
    /// Equation 3's first term (an autoencoder's reconstruction term), weighted by noise level.
    pub target: f64,
    /// Equation 3's second term before lambda, weighted by noise level; 0 for an autoencoder.
    pub face: f64,
    /// Samples, by their place in the micro-batch, whose own loss is not finite. The three figures leave them out;
    /// `loss` does not.
    pub nonfinite: Vec<usize>,
}

/// The component that a full parameter name belongs to. Names are made by the networks: a prefix that is not
/// known here is a mistake of ours.
pub(crate) fn component_of(name: &str) -> Component {
    const PREFIXES: [(&str, Component); 9] = [
        ("autoencoder.", Component::Autoencoder),
        ("text_encoder.", Component::TextEncoder),
        ("unet.time_embed.", Component::Encoder),
        ("unet.input_blocks.", Component::Encoder),
        ("unet.middle_block.", Component::Middle),
        ("unet.out", Component::Decoder),
        ("retrieval.", Component::RetrievalEncoder),
        ("cross_attention.", Component::CrossAttention),
        ("zero_convs.", Component::CrossAttention),
    ];
    let found = PREFIXES.iter().find(|(prefix, _)| name.starts_with(prefix));
    found
        .map(|(_, component)| *component)
        .expect("every network's prefix is in the table")
}

impl Trainer {
    /// Builds the architecture of `spec.model` with weights from `init`, or random ones from the job's seed.
    /// A RetriNet takes encoder, decoder and retrieval encoder from the base U-Net and answers like it until
    /// its first update.
    ///
    /// # Errors Base weights that are missing, unreadable or do not fit; an autoencoder to be trained inside
    /// a diffusion model.
    pub fn new(spec: &TrainWork, init: Option<&InitWeights>, device: Device) -> Result<Self, ModelError> {
        guarded("building the model", || Self::build(spec, init, device))
    }

    fn build(spec: &TrainWork, init: Option<&InitWeights>, device: Device) -> Result<Self, ModelError> {
        let model = &spec.model;
        let frozen = |component: Component| model.freeze.contains(&component);
        if model.architecture != Architecture::Autoencoder && !frozen(Component::Autoencoder) {
            return Err(ModelError::Config {
                field: "freeze",
                value: format!("{:?}", model.freeze),
                expected: "the noise loss cannot train the autoencoder: freeze it".to_owned(),
            });
        }
        // 1. build, without drawing random values where files follow
        let mut parameters =
            Parameters::seeded(spec.data.seed, device).recomputing(&model.activation_checkpointing);
        let awaited = init
            .iter()
            .flat_map(|init| init.keys().map(String::as_str))
            .chain(["retrieval"]);
        for component in awaited {
            parameters = parameters.awaiting(format!("{component}."));
        }
        let network = if model.architecture == Architecture::Autoencoder {
            let scope = parameters.root().sub("autoencoder");
            Network::Autoencoder(Box::new(Autoencoder::new(&scope, &(&model.autoencoder).into())))
        } else {
            let text_frozen = frozen(Component::TextEncoder);
            let place = (numbers(spec.train.precision), device);
            let cache = spec.train.latent_cache_mib as usize * (1 << 20);
            let diffusion = Diffusion::new(&parameters.root(), model, text_frozen, place).caching(cache);
            Network::Diffusion(Box::new(diffusion))
        };
        // 2. base weights; the retrieval encoder begins as a copy unless it is there already
        let init_digest = match init {
            Some(init) => Some(load_init(&parameters, model, init)?),
            None => copy_encoder(&parameters).map(|()| None)?,
        };
        // 3. what moves
        let mut trained: Vec<(String, Tensor)> = parameters.tensors().into_iter().collect();
        trained.retain(|(name, tensor)| {
            let frozen = frozen(component_of(name));
            if frozen {
                narrow(tensor, numbers(spec.train.precision));
            }
            !frozen
        });
        let optimizer = AdamW::new(&trained, &spec.train);
        for (_, tensor) in &trained {
            let _ = tensor.set_requires_grad(true);
        }
        let schedule = NoiseSchedule::default();
        Ok(Self {
            spec: spec.clone(),
            device,
            network,
            parameters,
            trained,
            optimizer,
            guard: Guard::new(&spec.train),
            schedule,
            init_digest,
            step: 0,
        })
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

    /// Whether anything that is not trained, and so is in no checkpoint, comes from the base weights.
    #[must_use]
    pub fn rests_on_base(&self) -> bool {
        self.init_digest.is_some() && self.trained.len() < self.parameters.tensors().len()
    }

    /// The last step that `update` completed or `load_state` set; 0 before the first.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Zeroes gradients in place, because the Reducer may hold views of them, and makes those that do not
    /// exist yet.
    pub fn zero_gradients(&mut self) {
        let missing = self.trained.iter().map(|(_, parameter)| parameter);
        // One by one, so that at no time there is more than one copy too many.
        for parameter in missing.filter(|parameter| !parameter.grad().defined()) {
            (parameter * parameter.zeros_like()).sum(Kind::Float).backward();
        }
        for (_, parameter) in &self.trained {
            let _ = parameter.grad().zero_();
        }
    }

    /// Forward pass of one micro-batch. Backward is the caller's: `loss.loss.f_backward()`.
    ///
    /// # Errors
    /// An example that does not fit the job; a failure inside libtorch.
    pub fn forward(&mut self, examples: &[Example], global_batch: u32) -> Result<MicroBatchLoss, ModelError> {
        guarded("the forward pass", || {
            let batch = Batch::new(examples, self.batch_shape(), self.device)?;
            let terms = match &mut self.network {
                Network::Autoencoder(autoencoder) => {
                    autoencoder_terms(autoencoder, &batch, numbers(self.spec.train.precision))
                }
                Network::Diffusion(diffusion) => {
                    let (target, face) = masks(examples, self.device);
                    let factor = i64::from(self.spec.model.autoencoder.factor());
                    let masks =
                        Masks::at_latents(&target, &face, factor, self.spec.train.target_mask_threshold);
                    diffusion_terms(diffusion, &batch, &masks, &self.schedule, &self.spec.train)
                }
            };
            let terms = terms / f64::from(global_batch);
            let sums = terms.sum_dim_intlist(1i64, false, Kind::Float);
            let loss = match self.guard.loss_scale() {
                1.0 => sums.get(0),
                scale => sums.get(0) * scale,
            };
            // One transfer for all three figures.
            let sums = sums.detach().to_device(Device::Cpu);
            let sums = [0, 1, 2].map(|row| sums.double_value(&[row]));
            let (nonfinite, sums) = if sums.iter().all(|sum| sum.is_finite()) {
                (Vec::new(), sums)
            } else {
                finite_part(&terms)
            };
            Ok(MicroBatchLoss {
                loss,
                total: sums[0],
                target: sums[1],
                face: sums[2],
                nonfinite,
            })
        })
    }

    /// Clips, then updates with the learning rates of `step`, the 1-based step that this update completes.
    /// Gradients are read from the parameters. Where their norm is not finite the step ends as in [`Self::skip`].
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
        guarded("the update", || self.optimizer.update((norm, scale), step, count))?;
        self.guard.good();
        Ok(self.updated(step, norm))
    }

    /// Ends a step of which some sample's loss is not finite: no weight, no moment changes. All ranks must call it for
    /// the same step.
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
    /// `optimizer/NAME/exp_avg` and `optimizer/NAME/exp_avg_sq`; where steps may be skipped, `guard/…` with their
    /// counts; where the weights are averaged, `ema/NAME`. The tensors are the live ones: copy before the next update.
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
    /// A tensor that is missing, does not belong here or has another shape; nothing is changed then.
    pub fn load_state(&mut self, tensors: &BTreeMap<String, Tensor>, step: u64) -> Result<(), ModelError> {
        weights::load(
            &format!("the checkpoint of step {step}"),
            tensors,
            &self.live_state(),
        )?;
        self.step = step;
        Ok(())
    }

    /// The trained weights become what their moving averages are, where the job keeps any: for drawing and exporting, not
    /// for training on.
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

    /// Draws one picture for each example from its prompt, references (of which there may be any number) and concepts. An
    /// autoencoder gives back the targets as it sees them. A picture does not depend on the others that are asked for.
    ///
    /// # Errors
    /// An example that does not fit the job; a number of steps that the schedule does not have.
    pub fn sample(
        &mut self,
        examples: &[Example],
        options: &SampleOptions,
    ) -> Result<Vec<image::RgbImage>, ModelError> {
        // One at a time: what a kernel does with a picture can depend on how many there are beside it.
        let alone = examples.chunks(1);
        let drawn = alone.map(|one| guarded("drawing pictures", || tch::no_grad(|| self.draw(one, options))));
        Ok(drawn.collect::<Result<Vec<_>, _>>()?.concat())
    }

    /// Where the retrieval encoder finds a word in a reference picture at a time step, block by block.
    ///
    /// # Errors
    /// A picture of another size than the job's; a model without references.
    pub fn attention(
        &mut self,
        reference: &image::RgbImage,
        word: Concept,
        timestep: usize,
    ) -> Result<Vec<AttentionMap>, ModelError> {
        let mask = image::GrayImage::new(reference.width(), reference.height());
        let example = Example {
            position: 0,
            target: reference.clone(),
            target_mask: mask.clone(),
            face_mask: mask,
            references: Vec::new(),
            prompt: String::new(),
            timestep: timestep as u32,
            noise_seed: 0,
        };
        let shape = BatchShape {
            resolution: self.spec.data.resolution,
            references: Some(0),
        };
        let found = guarded("looking at attention", || {
            let batch = Batch::new(&[example], shape, self.device)?;
            let Network::Diffusion(diffusion) = &mut self.network else {
                return Ok(None);
            };
            Ok(tch::no_grad(|| diffusion.attention(&batch, word)))
        })?;
        let architecture = match self.spec.model.architecture {
            Architecture::Autoencoder => "autoencoder",
            _ => "text-to-image",
        };
        found.ok_or(ModelError::Unsupported {
            architecture,
            wish: "attend to references",
        })
    }

    fn draw(
        &mut self,
        examples: &[Example],
        options: &SampleOptions,
    ) -> Result<Vec<image::RgbImage>, ModelError> {
        let mut shape = self.batch_shape();
        if self.spec.model.architecture == Architecture::Retrinet {
            shape.references = None;
        }
        let batch = Batch::new(examples, shape, self.device)?;
        match &mut self.network {
            Network::Autoencoder(autoencoder) => {
                let targets = batch.pictures.narrow(0, 0, batch.count);
                let targets = targets.to_kind(numbers(self.spec.train.precision));
                let seen = autoencoder.decode(&autoencoder.encode(&targets).mean);
                Ok(to_images(&seen.to_kind(Kind::Float)))
            }
            Network::Diffusion(diffusion) => {
                // A bijection of the position, so that neighbours share no noise.
                let spread = |position: u64| position.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ options.seed;
                let seeds: Vec<u64> = examples.iter().map(|example| spread(example.position)).collect();
                diffusion.draw(&batch, &seeds, options)
            }
        }
    }

    fn batch_shape(&self) -> BatchShape {
        let references = match self.spec.model.architecture {
            Architecture::Autoencoder => None,
            Architecture::TextToImage => Some(0),
            Architecture::Retrinet => Some(self.spec.data.references as usize),
        };
        BatchShape {
            resolution: self.spec.data.resolution,
            references,
        }
    }
}

/// Keeps a weight that never moves in the numbers that it is used in. Vectors are a thousandth of all and stay fp32, which
/// norms compute in.
fn narrow(tensor: &Tensor, numbers: Kind) {
    if tensor.dim() > 1 && numbers != Kind::Float {
        let mut alias = tensor.shallow_clone();
        alias.set_data(&tensor.to_kind(numbers));
    }
}

/// Which samples' losses are not finite, and the sums of the three rows over the others. When all are finite and only
/// their sum is not, all are named.
fn finite_part(terms: &Tensor) -> (Vec<usize>, [f64; 3]) {
    let terms = terms.detach().to_device(Device::Cpu);
    let value = |row: i64, sample: usize| terms.double_value(&[row, sample as i64]);
    let finite = |sample: &usize| (0..3).all(|row| value(row, *sample).is_finite());
    let samples = 0..terms.size()[1] as usize;
    let (good, bad): (Vec<usize>, Vec<usize>) = samples.partition(finite);
    if bad.is_empty() {
        return (good, [0.0; 3]);
    }
    let sums = [0, 1, 2].map(|row| good.iter().map(|sample| value(row, *sample)).sum());
    (bad, sums)
}

/// Rows total, target and face of each sample's loss (equation 3, weighted by noise level): [3, B].
fn diffusion_terms(
    diffusion: &mut Diffusion,
    batch: &Batch,
    masks: &Masks,
    schedule: &NoiseSchedule,
    train: &Train,
) -> Tensor {
    // 1. noisy latents
    let latents = diffusion.latents(batch);
    let (size, device) = (latents.targets.size(), latents.targets.device());
    let noise = noise::normal(&batch.noise_seeds, Purpose::Target, &size[1..], device);
    let column = |value: &dyn Fn(usize) -> f64| {
        let values: Vec<f32> = batch
            .timesteps
            .iter()
            .map(|timestep| value(*timestep as usize) as f32)
            .collect();
        Tensor::from_slice(&values).to_device(device)
    };
    let signal = column(&|timestep| schedule.mix(timestep).0).view([-1, 1, 1, 1]);
    let level = column(&|timestep| schedule.mix(timestep).1).view([-1, 1, 1, 1]);
    let noisy = &latents.targets * signal + &noise * level;
    // 2. prediction
    let conditions = diffusion.conditions(batch, &latents, &batch.prompts);
    let predicted = diffusion.predict(&noisy, &conditions);
    // 3. equation 3
    let loss = noise_loss(&predicted, &noise, masks);
    let weight = column(&|timestep| schedule.loss_weight(timestep, train.loss_weighting));
    let (target, face) = (loss.target * &weight, loss.face * &weight);
    let total = &target + &face * train.face_loss_weight;
    Tensor::stack(&[total, target, face], 0)
}

/// Rows total, reconstruction and zero of each example's loss, mean over its pictures: [3, B].
fn autoencoder_terms(autoencoder: &Autoencoder, batch: &Batch, numbers: Kind) -> Tensor {
    let moments = autoencoder.encode(&batch.pictures.to_kind(numbers)).fp32();
    let size = moments.mean.size();
    // One stream for each example, shared out among its pictures.
    let each = 1 + batch.references;
    let shape = [each, size[1], size[2], size[3]];
    let noise = noise::normal(
        &batch.noise_seeds,
        Purpose::Posterior,
        &shape,
        moments.mean.device(),
    );
    let noise = noise.transpose(0, 1);
    let target = noise.get(0);
    let rest = noise.narrow(0, 1, batch.references).transpose(0, 1).flatten(0, 1);
    let latents = moments.draw(&Tensor::cat(&[target, rest], 0));
    let decoded = autoencoder.decode(&latents.to_kind(numbers)).to_kind(Kind::Float);
    let loss = picture_loss(&decoded, &batch.pictures, &moments);
    let mean = |xs: &Tensor| {
        let own = xs.narrow(0, 0, batch.count);
        let rest = xs.narrow(0, batch.count, batch.count * batch.references);
        let rest = rest
            .view([batch.count, batch.references])
            .sum_dim_intlist(1i64, false, Kind::Float);
        (own + rest) / each as f64
    };
    let total = mean(&loss.total);
    let face = total.zeros_like();
    Tensor::stack(&[total, mean(&loss.reconstruction), face], 0)
}
