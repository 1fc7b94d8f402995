//! AdamW with decoupled weight decay (Loshchilov and Hutter 2019) over a sorted list of parameters,
//! with a learning rate for each component, clipping by the global norm, and an exponential moving
//! average of the weights. The state is accessible because checkpoints contain it. Called by the
//! trainer.
//!
//! libtorch's fused kernels are not available through tch, so parameters and moments are stored in
//! a few large flat tensors. The layers' weights are views of them, and an update takes ten
//! operations for each flat tensor instead of each weight.

use crate::component::Prefixes;
use crate::error::ModelError;
use proto::spec::{Component, Decay, Optimizer as OptimizerSpec, Train};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// A chunk is complete when it has at least this many values: large enough to save calls, small
/// enough for the cache.
const CHUNK_VALUES: i64 = 1 << 20;
/// The number of values that a CPU updates at once, so that the data of an update stay in a core's
/// cache. A GPU updates whole chunks.
const SLICE_VALUES: i64 = 1 << 17;

/// See the module's header.
#[derive(Debug)]
pub struct AdamW {
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    weight_decay: f64,
    clip: Option<f64>,
    ema: Option<f64>,
    rates: LearningRates,
    chunks: Vec<Chunk>,
}

/// Consecutive parameters of one component, flattened. `parameters` and the layers' weights are
/// views of `values`.
#[derive(Debug)]
struct Chunk {
    component: Component,
    parameters: Vec<(String, Tensor)>,
    values: Tensor,
    average: Tensor,
    average_square: Tensor,
    /// Moving average of the values, if the job enables it.
    ema: Option<Tensor>,
}

/// The step that an update completes, and the scale of its gradients.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateStep {
    /// 1-based; determines the learning rate.
    pub step: u64,
    /// The number of updates including this one, for the moments' bias correction. It is less than
    /// `step` if steps were skipped.
    pub count: u64,
    /// L2 norm of the whole gradient, without the loss scale.
    pub gradient_norm: f64,
    /// The factor by which the parameters' gradients are too large.
    pub loss_scale: f64,
}

/// The result of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateReport {
    /// L2 norm of the whole gradient before clipping.
    pub gradient_norm: f64,
    /// The learning rate of components without their own.
    pub learning_rate: f64,
    /// The number of skipped steps so far, including this one if it was skipped. The gradient norm
    /// of a skipped step is reported as 0.
    pub skipped_steps: u64,
    /// The factor for the next step's loss before its backward pass.
    pub loss_scale: f64,
}

/// The learning rate schedule, a pure function of the step.
#[derive(Debug, Clone)]
pub struct LearningRates {
    base: f64,
    by_component: BTreeMap<Component, f64>,
    warmup: u64,
    decay: Decay,
    steps: u64,
}

impl LearningRates {
    #[must_use]
    pub fn new(train: &Train) -> Self {
        Self {
            base: train.learning_rate,
            by_component: train.learning_rates.clone(),
            warmup: train.warmup,
            decay: train.decay,
            steps: train.steps,
        }
    }

    /// The learning rate of a component (None: of components without their own) for the update that
    /// completes `step`, 1-based.
    #[must_use]
    pub fn at(&self, step: u64, component: Option<Component>) -> f64 {
        let own = component.and_then(|component| self.by_component.get(&component));
        own.copied().unwrap_or(self.base) * self.factor(step)
    }

    fn factor(&self, step: u64) -> f64 {
        if step < self.warmup {
            return step as f64 / self.warmup as f64;
        }
        match self.decay {
            Decay::Constant => 1.0,
            Decay::Cosine => {
                let length = self.steps.saturating_sub(self.warmup).max(1);
                let progress = (step - self.warmup).min(length) as f64 / length as f64;
                0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
        }
    }
}

impl AdamW {
    /// Moves the parameters into flat tensors: afterwards the given tensors are views of these,
    /// with the same values. `parameters` are sorted by name; `prefixes` map names to components.
    #[must_use]
    pub fn new(parameters: &[(String, Tensor)], prefixes: Prefixes, train: &Train) -> Self {
        let OptimizerSpec::AdamW {
            beta1,
            beta2,
            epsilon,
            weight_decay,
        } = train.optimizer;
        let new_chunk = |parameters: Vec<(String, Tensor)>| {
            let component = prefixes.component_of(&parameters[0].0);
            Chunk::new(component, parameters, train.ema.is_some())
        };
        let mut chunks = Vec::new();
        let mut open: Vec<(String, Tensor)> = Vec::new();
        let values =
            |open: &[(String, Tensor)]| open.iter().map(|(_, t)| t.numel() as i64).sum::<i64>();
        for (name, tensor) in parameters {
            // A large parameter gets its own chunk, so that its gradient needs no concatenation.
            let full = values(&open) >= CHUNK_VALUES || tensor.numel() as i64 >= CHUNK_VALUES;
            let component = |name: &str| prefixes.component_of(name);
            if open
                .last()
                .is_some_and(|(last, _)| full || component(last) != component(name))
            {
                chunks.push(new_chunk(std::mem::take(&mut open)));
            }
            open.push((name.clone(), tensor.shallow_clone()));
        }
        if !open.is_empty() {
            chunks.push(new_chunk(open));
        }
        let rates = LearningRates::new(train);
        Self {
            beta1,
            beta2,
            epsilon,
            weight_decay,
            clip: train.clip,
            ema: train.ema,
            rates,
            chunks,
        }
    }

    /// L2 norm of the whole gradient, summed in fp64. To save memory, the flat gradients are not
    /// stored; they are concatenated again for the update.
    ///
    /// # Errors
    /// A parameter without a gradient.
    pub fn norm(&self, step: u64) -> Result<f64, ModelError> {
        tch::no_grad(|| {
            let squares = self.chunks.iter().map(|chunk| {
                let norm = chunk.gradient(step)?.norm();
                Ok(norm.to_kind(Kind::Double).square())
            });
            let squares = squares.collect::<Result<Vec<_>, ModelError>>()?;
            Ok(Tensor::stack(&squares, 0)
                .sum(Kind::Double)
                .sqrt()
                .double_value(&[]))
        })
    }

    /// Clips the parameters' gradients and updates the parameters.
    ///
    /// # Errors
    /// A parameter without a gradient.
    pub fn update(&mut self, update: UpdateStep) -> Result<(), ModelError> {
        tch::no_grad(|| {
            let clip = self
                .clip
                .map_or(1.0, |clip| (clip / (update.gradient_norm + 1e-6)).min(1.0));
            let factor = clip / update.loss_scale;
            for index in 0..self.chunks.len() {
                let gradient = self.chunks[index].gradient(update.step)?;
                let gradient = if factor < 1.0 {
                    gradient * factor
                } else {
                    gradient
                };
                self.update_chunk(index, &gradient, update);
            }
            Ok(())
        })
    }

    /// The learning rate at `step` of components without their own.
    #[must_use]
    pub fn learning_rate(&self, step: u64) -> f64 {
        self.rates.at(step, None)
    }

    fn update_chunk(&mut self, index: usize, gradient: &Tensor, update: UpdateStep) {
        let chunk = &self.chunks[index];
        let rate = self.rates.at(update.step, Some(chunk.component));
        let (length, on_cpu) = (gradient.numel() as i64, gradient.device() == Device::Cpu);
        let slice_length = if on_cpu { SLICE_VALUES } else { length.max(1) };
        let mut start = 0;
        while start < length {
            let slice = |flat: &Tensor| flat.narrow(0, start, slice_length.min(length - start));
            self.update_slice(chunk, &slice, gradient, rate, update.count as f64);
            start += slice_length;
        }
    }

    fn update_slice(
        &self,
        chunk: &Chunk,
        slice: &dyn Fn(&Tensor) -> Tensor,
        gradient: &Tensor,
        rate: f64,
        count: f64,
    ) {
        let (gradient, mut values) = (slice(gradient), slice(&chunk.values));
        let mut average = slice(&chunk.average);
        let mut average_square = slice(&chunk.average_square);
        // 1. moments
        let _ = average.lerp_(&gradient, 1.0 - self.beta1);
        let _ = average_square.lerp_(&gradient.square(), 1.0 - self.beta2);
        // 2. decoupled weight decay
        let _ = values.g_mul_scalar_(1.0 - rate * self.weight_decay);
        // 3. the update with bias-corrected moments
        let correction = (1.0 - self.beta2.powf(count)).sqrt();
        let mut denominator = average_square.sqrt();
        let _ = denominator.g_mul_scalar_(correction.recip());
        let _ = denominator.g_add_scalar_(self.epsilon);
        let mut change = average.divide(&denominator);
        let _ = change.g_mul_scalar_(rate / (1.0 - self.beta1.powf(count)));
        let _ = values.g_sub_(&change);
        // 4. the moving average, with a smaller decay at first, so that the initial weights do not
        //    dominate it for long
        if let (Some(ema), Some(decay)) = (&chunk.ema, self.ema) {
            let decay = decay.min((1.0 + count) / (10.0 + count));
            let _ = slice(ema).lerp_(&values, 1.0 - decay);
        }
    }

    /// The moving averages by parameter, sorted; empty if they are disabled.
    #[must_use]
    pub fn averages(&self) -> Vec<(String, Tensor)> {
        let mut averages = Vec::new();
        for chunk in &self.chunks {
            let views = chunk.ema.iter().flat_map(|ema| chunk.split(ema));
            let names = chunk.parameters.iter().map(|(name, _)| name.clone());
            averages.extend(names.zip(views));
        }
        averages
    }

    /// Copies the moving averages into the parameters, if they are enabled.
    pub fn take_averages(&mut self) {
        tch::no_grad(|| {
            for chunk in &mut self.chunks {
                if let Some(ema) = &chunk.ema {
                    chunk.values.copy_(ema);
                }
            }
        });
    }

    /// The moments by parameter: ("NAME/exp_avg", view), ("NAME/exp_avg_sq", view), sorted.
    #[must_use]
    pub fn moments(&self) -> Vec<(String, Tensor)> {
        let mut moments = Vec::new();
        for chunk in &self.chunks {
            let averages = chunk.split(&chunk.average);
            let squares = chunk.split(&chunk.average_square);
            for (((name, _), average), square) in chunk.parameters.iter().zip(averages).zip(squares)
            {
                moments.push((format!("{name}/exp_avg"), average));
                moments.push((format!("{name}/exp_avg_sq"), square));
            }
        }
        moments
    }
}

impl Chunk {
    fn new(component: Component, mut parameters: Vec<(String, Tensor)>, averaged: bool) -> Self {
        let (values, views) = tch::no_grad(|| {
            let flats: Vec<Tensor> = parameters
                .iter()
                .map(|(_, t)| t.detach().flatten(0, -1))
                .collect();
            let values = Tensor::cat(&flats, 0);
            let views = split(&values, &parameters);
            (values, views)
        });
        for ((_, parameter), view) in parameters.iter_mut().zip(&views) {
            parameter.set_data(view);
        }
        Self {
            component,
            average: values.zeros_like(),
            average_square: values.zeros_like(),
            ema: averaged.then(|| values.copy()),
            values,
            parameters,
        }
    }

    fn split(&self, flat: &Tensor) -> Vec<Tensor> {
        split(flat, &self.parameters)
    }

    /// All gradients, flat, in the order of the parameters.
    fn gradient(&self, step: u64) -> Result<Tensor, ModelError> {
        let mut flats = Vec::with_capacity(self.parameters.len());
        for (name, parameter) in &self.parameters {
            let gradient = parameter.grad();
            if !gradient.defined() {
                return Err(ModelError::NoGradient {
                    step,
                    parameter: name.clone(),
                });
            }
            flats.push(gradient.flatten(0, -1));
        }
        Ok(match flats.as_slice() {
            [single] => single.shallow_clone(),
            several => Tensor::cat(several, 0),
        })
    }
}

/// Views of a flat tensor with the shapes of the parameters.
fn split(flat: &Tensor, parameters: &[(String, Tensor)]) -> Vec<Tensor> {
    let mut start = 0;
    let mut views = Vec::with_capacity(parameters.len());
    for (_, parameter) in parameters {
        let length = parameter.numel() as i64;
        views.push(
            flat.narrow(0, start, length)
                .view(parameter.size().as_slice()),
        );
        start += length;
    }
    views
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn rates(decay: Decay) -> LearningRates {
        let by_component = BTreeMap::from([(Component::Decoder, 0.5)]);
        LearningRates {
            base: 2.0,
            by_component,
            warmup: 10,
            decay,
            steps: 110,
        }
    }

    #[test]
    fn the_rate_rises_from_zero_and_then_stays_or_falls_to_zero() {
        let (constant, cosine) = (rates(Decay::Constant), rates(Decay::Cosine));
        for (step, stays, falls) in [
            (1, 0.2, 0.2),
            (5, 1.0, 1.0),
            (10, 2.0, 2.0),
            (60, 2.0, 1.0),
            (110, 2.0, 0.0),
        ] {
            assert!(
                (constant.at(step, None) - stays).abs() < 1e-12,
                "constant, step {step}"
            );
            assert!(
                (cosine.at(step, None) - falls).abs() < 1e-12,
                "cosine, step {step}"
            );
        }
        // The rate does not rise again after the last step.
        assert!(cosine.at(150, None).abs() < 1e-12);
    }

    #[test]
    fn a_component_may_have_its_own_rate() {
        let rates = rates(Decay::Constant);
        assert_eq!(rates.at(5, Some(Component::Decoder)), 0.25);
        assert_eq!(rates.at(5, Some(Component::Encoder)), 1.0);
    }

    #[test]
    fn chunks_hold_one_component_and_keep_values_and_names() {
        let named = |name: &str, value: f64| {
            (
                name.to_owned(),
                Tensor::full([2, 3], value, (Kind::Float, tch::Device::Cpu)),
            )
        };
        let parameters = [
            named("retrieval.a", 1.0),
            named("retrieval.b", 2.0),
            named("unet.out.0.weight", 3.0),
        ];
        let text = "name = \"a\"\n[data]\ndataset = \"file:///none\"\nresolution = 32\n\
                    [model]\narchitecture = \"autoencoder\"\nsize = \"tiny\"\n\
                    [train]\nsteps = 4\nglobal_batch = 1\nmicro_batch = 1\n";
        let train = proto::job::parse_training("chunks.toml", text)
            .unwrap()
            .train;
        let prefixes = Prefixes(&[
            ("retrieval.", Component::RetrievalEncoder),
            ("unet.out", Component::Decoder),
        ]);
        let optimizer = AdamW::new(&parameters, prefixes, &train);
        let components: Vec<Component> = optimizer
            .chunks
            .iter()
            .map(|chunk| chunk.component)
            .collect();
        assert_eq!(
            components,
            [Component::RetrievalEncoder, Component::Decoder]
        );
        assert_eq!(parameters[1].1.double_value(&[1, 2]), 2.0);
        let names: Vec<String> = optimizer
            .moments()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(
            names[..3],
            [
                "retrieval.a/exp_avg",
                "retrieval.a/exp_avg_sq",
                "retrieval.b/exp_avg"
            ]
        );
    }
}
