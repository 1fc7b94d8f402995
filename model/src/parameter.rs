//! Named parameters of a model: where layers get their weights from when they are built. Never a
//! file, never an update; used by every network and by the trainer. In place of `tch::nn::VarStore`
//! because that one keeps a hash map (its order differs from run to run) and draws initial values
//! from a process-wide generator.

use proto::spec::Component;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

use crate::component::Prefixes;
use crate::noise::{fill_normal, fill_uniform};

/// How a parameter begins when no base weights are given.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    Zeros,
    Ones,
    /// Uniform in plus or minus 1/sqrt(fan in), the usual start of linear layers and convolutions.
    /// Fan in is the product of all dimensions save the first.
    FanIn,
    /// Normal with this standard deviation.
    Normal(f64),
}

/// What the values of new parameters are.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Values {
    /// By each layer's [`Init`]; a parameter's values depend on the seed and its name only.
    Seeded(u64),
    /// One shared zero that only looks as large as the parameter: for counting models too large to
    /// hold.
    Shapes,
}

/// All parameters of a model by their full dotted name, sorted.
#[derive(Debug)]
pub struct Parameters {
    device: Device,
    values: Values,
    /// Prefixes whose values will come from files.
    awaited: Vec<String>,
    /// Whose blocks forget their activations and are computed again.
    checkpointed: Option<(Vec<Component>, Prefixes)>,
    tensors: RefCell<BTreeMap<String, Tensor>>,
}

impl Parameters {
    /// Parameters that start with random values; the same seed and names give the same bits on any
    /// device.
    #[must_use]
    pub fn seeded(seed: u64, device: Device) -> Self {
        Self::with(Values::Seeded(seed), device)
    }

    /// Spends no time on first values of parameters under this prefix: they start as zeros, and
    /// files follow.
    #[must_use]
    pub fn awaiting(mut self, prefix: String) -> Self {
        self.awaited.push(prefix);
        self
    }

    /// Blocks of these components forget their activations after the forward pass and are computed
    /// again for the backward pass.
    #[must_use]
    pub fn recomputing(mut self, components: &[Component], prefixes: Prefixes) -> Self {
        self.checkpointed = (!components.is_empty()).then(|| (components.to_vec(), prefixes));
        self
    }

    /// Parameters with shapes and no memory of their own. Good for [`Self::count`] and nothing
    /// else.
    #[must_use]
    pub fn shapes() -> Self {
        Self::with(Values::Shapes, Device::Cpu)
    }

    fn with(values: Values, device: Device) -> Self {
        Self {
            device,
            values,
            awaited: Vec::new(),
            checkpointed: None,
            tensors: RefCell::new(BTreeMap::new()),
        }
    }

    /// Where layers without a prefix are built.
    #[must_use]
    pub fn root(&self) -> Scope<'_> {
        Scope {
            parameters: self,
            prefix: String::new(),
        }
    }

    #[must_use]
    pub fn device(&self) -> Device {
        self.device
    }

    /// Every parameter, sorted by name; the tensors are the layers' own, not copies.
    #[must_use]
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        self.tensors
            .borrow()
            .iter()
            .map(|(name, t)| (name.clone(), t.shallow_clone()))
            .collect()
    }

    /// Parameters under a prefix ("unet."), by the rest of their names.
    #[must_use]
    pub fn under(&self, prefix: &str) -> BTreeMap<String, Tensor> {
        let tensors = self.tensors.borrow();
        let named = tensors.iter().filter_map(|(name, tensor)| {
            let rest = name.strip_prefix(prefix)?;
            Some((rest.to_owned(), tensor.shallow_clone()))
        });
        named.collect()
    }

    /// Number of values in all parameters.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.tensors
            .borrow()
            .values()
            .map(|t| t.size().iter().product::<i64>() as u64)
            .sum()
    }

    fn make(&self, name: &str, shape: &[i64], init: Init) -> Tensor {
        let on_cpu = (Kind::Float, Device::Cpu);
        let awaited = self.awaited.iter().any(|prefix| name.starts_with(prefix));
        match (self.values, if awaited { Init::Zeros } else { init }) {
            (Values::Shapes, _) => Tensor::zeros([1], on_cpu).expand(shape, false),
            (_, Init::Zeros) => Tensor::zeros(shape, (Kind::Float, self.device)),
            (_, Init::Ones) => Tensor::ones(shape, (Kind::Float, self.device)),
            (Values::Seeded(seed), Init::FanIn | Init::Normal(_)) => {
                let mut values = vec![0f32; shape.iter().product::<i64>() as usize];
                let mut random = stream(seed, name);
                if let Init::Normal(deviation) = init {
                    fill_normal(&mut random, &mut values);
                    values.iter_mut().for_each(|v| *v *= deviation as f32);
                } else {
                    let fan_in = shape[1..].iter().product::<i64>() as f64;
                    fill_uniform(&mut random, &mut values, fan_in.sqrt().recip() as f32);
                }
                // A view would keep what it was made of for as long as it lives, whatever its own
                // data become.
                let tensor = Tensor::empty(shape, (Kind::Float, self.device));
                tch::no_grad(|| tensor.view(-1).copy_(&Tensor::from_slice(&values)));
                tensor
            }
        }
    }
}

/// The random stream of one parameter's first values.
fn stream(seed: u64, name: &str) -> ChaCha8Rng {
    let mut hash = Sha256::new();
    hash.update(b"retri parameter 1");
    hash.update(seed.to_le_bytes());
    hash.update(name.as_bytes());
    ChaCha8Rng::from_seed(hash.finalize().into())
}

/// A dotted prefix inside [`Parameters`]: the place where a layer takes its weights.
#[derive(Debug, Clone)]
pub struct Scope<'a> {
    parameters: &'a Parameters,
    prefix: String,
}

impl Scope<'_> {
    /// A scope one name deeper.
    #[must_use]
    pub fn sub(&self, name: impl std::fmt::Display) -> Self {
        Self {
            parameters: self.parameters,
            prefix: format!("{}{name}.", self.prefix),
        }
    }

    /// The parameters made under this prefix so far, sorted by name.
    pub(crate) fn made(&self) -> Vec<Tensor> {
        self.parameters.under(&self.prefix).into_values().collect()
    }

    /// Whether blocks built here are to be computed again.
    pub(crate) fn recomputes(&self) -> bool {
        let checkpointed = self.parameters.checkpointed.as_ref();
        checkpointed.is_some_and(|(components, prefixes)| {
            components.contains(&prefixes.component_of(&self.prefix))
        })
    }

    /// A new parameter of this shape.
    ///
    /// # Panics
    /// When the name is taken: two layers would share weights by mistake.
    pub fn parameter(&self, name: &str, shape: &[i64], init: Init) -> Tensor {
        let name = format!("{}{name}", self.prefix);
        let tensor = self.parameters.make(&name, shape, init);
        let known = self
            .parameters
            .tensors
            .borrow_mut()
            .insert(name.clone(), tensor.shallow_clone());
        assert!(known.is_none(), "parameter {name:?} is made twice");
        tensor
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_parameter_is_no_view_of_what_it_was_made_of() {
        // Only views refuse this.
        let owns = |tensor: &Tensor| tensor.shallow_clone().f_detach_().is_ok();
        assert!(!owns(
            &Tensor::zeros([6], (Kind::Float, Device::Cpu)).view([2, 3])
        ));
        for parameters in [
            Parameters::seeded(1, Device::Cpu),
            Parameters::seeded(1, Device::Cpu).awaiting("layer".into()),
        ] {
            let layer = parameters.root().sub("layer");
            for init in [Init::Zeros, Init::Ones, Init::FanIn, Init::Normal(0.1)] {
                let tensor = layer.parameter(&format!("{init:?}"), &[2, 3], init);
                assert!(owns(&tensor), "{init:?}");
            }
        }
    }
}
