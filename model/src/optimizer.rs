//! AdamW with decoupled weight decay (Loshchilov and Hutter 2019) over a sorted list of parameters,
//! a learning rate for each component, clipping by the global norm, and the weights' moving
//! average. The state is visible, because checkpoints hold it. Called by the trainer.
//!
//! libtorch's fused kernels are not reachable through tch, so parameters and moments live in a few
//! large flat tensors of which the layers' weights are views: an update is ten operations for each
//! of these, not for each weight.

use crate::component::Prefixes;
use crate::error::ModelError;
use proto::spec::{Component, Decay, Optimizer as OptimizerSpec, Train};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// A flat tensor is closed when it has this many values: large enough to save calls, small enough
/// to stay near the cache.
const CHUNK_VALUES: i64 = 1 << 20;
/// What a CPU updates in one go, so that all that an update reads and writes stays near a core. A
/// GPU takes whole chunks.
const SLICE_VALUES: i64 = 1 << 17;

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

/// Neighbouring parameters of one component, flat. `parameters` and the layers see views of
/// `values`.
#[derive(Debug)]
struct Chunk {
    component: Component,
    parameters: Vec<(String, Tensor)>,
    values: Tensor,
    average: Tensor,
    average_square: Tensor,
    /// Of the values, where the job keeps one.
    ema: Option<Tensor>,
}

/// What one update did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateReport {
    /// L2 norm of the whole gradient before clipping.
    pub gradient_norm: f64,
    /// The learning rate of components without one of their own.
    pub learning_rate: f64,
    /// Steps so far whose update was left out, this one included if it was; its norm is given as 0
    /// then.
    pub skipped_steps: u64,
    /// What the next step's loss is multiplied with before its gradient is taken.
    pub loss_scale: f64,
}

/// The learning rate of every step: a pure function.
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

    /// The rate of a component (None: of those without their own) for the update that completes
    /// `step`, 1-based.
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
                let share = (step - self.warmup).min(length) as f64 / length as f64;
                0.5 * (1.0 + (std::f64::consts::PI * share).cos())
            }
        }
    }
}

impl AdamW {
    /// Takes parameters over: afterwards the given tensors are views of the optimizer's flat ones,
    /// with the same values. `parameters` are sorted by name; `prefixes` say which component each
    /// belongs to.
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
            // A large one stays by itself: its gradient needs no joining.
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

    /// L2 norm of the whole gradient, summed in fp64. Nothing is held twice: each chunk is joined
    /// again for its update.
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

    /// One update from the parameters' gradients, which are `scale` times what they should be and
    /// whose norm would be `norm` then. `step` is the 1-based step that it completes, `count` says
    /// how many updates there are with it: less where steps were skipped.
    ///
    /// # Errors
    /// A parameter without a gradient.
    pub fn update(
        &mut self,
        (norm, scale): (f64, f64),
        step: u64,
        count: u64,
    ) -> Result<(), ModelError> {
        tch::no_grad(|| {
            let clip = self
                .clip
                .map_or(1.0, |clip| (clip / (norm + 1e-6)).min(1.0));
            let factor = clip / scale;
            for index in 0..self.chunks.len() {
                let gradient = self.chunks[index].gradient(step)?;
                let gradient = if factor < 1.0 {
                    gradient * factor
                } else {
                    gradient
                };
                self.update_chunk(index, &gradient, step, count);
            }
            Ok(())
        })
    }

    /// The learning rate of `step` of components without one of their own.
    #[must_use]
    pub fn learning_rate(&self, step: u64) -> f64 {
        self.rates.at(step, None)
    }

    fn update_chunk(&mut self, index: usize, gradient: &Tensor, step: u64, count: u64) {
        let chunk = &self.chunks[index];
        let rate = self.rates.at(step, Some(chunk.component));
        let (length, on_cpu) = (gradient.numel() as i64, gradient.device() == Device::Cpu);
        let slice = if on_cpu { SLICE_VALUES } else { length.max(1) };
        let mut start = 0;
        while start < length {
            let part = |whole: &Tensor| whole.narrow(0, start, slice.min(length - start));
            self.update_slice(chunk, &part, gradient, (rate, count as f64));
            start += slice;
        }
    }

    fn update_slice(
        &self,
        chunk: &Chunk,
        part: &dyn Fn(&Tensor) -> Tensor,
        gradient: &Tensor,
        (rate, count): (f64, f64),
    ) {
        let (gradient, mut values) = (part(gradient), part(&chunk.values));
        let (mut average, mut average_square) = (part(&chunk.average), part(&chunk.average_square));
        // 1. moments
        let _ = average.lerp_(&gradient, 1.0 - self.beta1);
        let _ = average_square.lerp_(&gradient.square(), 1.0 - self.beta2);
        // 2. weight decay, apart from the gradient
        let _ = values.g_mul_scalar_(1.0 - rate * self.weight_decay);
        // 3. the step, with the moments' bias taken out
        let correction = (1.0 - self.beta2.powf(count)).sqrt();
        let mut denominator = average_square.sqrt();
        let _ = denominator.g_mul_scalar_(correction.recip());
        let _ = denominator.g_add_scalar_(self.epsilon);
        let mut change = average.divide(&denominator);
        let _ = change.g_mul_scalar_(rate / (1.0 - self.beta1.powf(count)));
        let _ = values.g_sub_(&change);
        // 4. the moving average; at first it forgets faster, or the first weights would stay in it
        //    for long
        if let (Some(ema), Some(decay)) = (&chunk.ema, self.ema) {
            let decay = decay.min((1.0 + count) / (10.0 + count));
            let _ = part(ema).lerp_(&values, 1.0 - decay);
        }
    }

    /// The moving average by parameter, sorted; empty where there is none.
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

    /// The parameters become what their moving averages are, where there are any.
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
            [alone] => alone.shallow_clone(),
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
        // A step past the end does not rise again.
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
