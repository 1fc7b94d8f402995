//! The named parameters of a model, from which layers take their weights when they are built. Does
//! no file I/O and no updates. Used by every network and by the trainer. `tch::nn::VarStore` is not
//! used because its hash map has a different order in every run and its initial values come from a
//! process-wide generator.

use proto::spec::Component;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

use crate::component::Prefixes;
use crate::noise::{fill_normal, fill_uniform};

/// The initialization of a parameter without base weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    Zeros,
    Ones,
    /// Uniform in plus or minus 1/sqrt(fan in), PyTorch's default for linear layers and
    /// convolutions. Fan in is the product of all dimensions except the first.
    FanIn,
    /// Normal with this standard deviation.
    Normal(f64),
    Constant(f64),
}

/// The values of new parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Values {
    /// By each layer's [`Init`]; a parameter's values depend only on the seed and its name.
    Seeded(u64),
    /// Shapes without storage, like PyTorch's meta device (a zero that is expanded): for counting
    /// the parameters of models that do not fit in memory.
    Shapes,
}

/// All parameters of a model by their full dotted name, sorted.
#[derive(Debug)]
pub struct Parameters {
    device: Device,
    values: Values,
    /// Prefixes of parameters that are loaded or copied later.
    skip_init: Vec<String>,
    /// Components with activation checkpointing.
    checkpointed: Option<(Vec<Component>, Prefixes)>,
    tensors: RefCell<BTreeMap<String, Tensor>>,
}

impl Parameters {
    /// Parameters with random initial values; the same seed and names give the same bits on every
    /// device.
    #[must_use]
    pub fn seeded(seed: u64, device: Device) -> Self {
        Self::new(Values::Seeded(seed), device)
    }

    /// Skips the random initialization of parameters under this prefix: they are zero until they
    /// are loaded or copied.
    #[must_use]
    pub fn skip_init(mut self, prefix: String) -> Self {
        self.skip_init.push(prefix);
        self
    }

    /// Enables activation checkpointing for the blocks of these components.
    #[must_use]
    pub fn checkpointing(mut self, components: &[Component], prefixes: Prefixes) -> Self {
        self.checkpointed = (!components.is_empty()).then(|| (components.to_vec(), prefixes));
        self
    }

    /// Parameters with shapes but no storage, only for [`Self::count`].
    #[must_use]
    pub fn shapes() -> Self {
        Self::new(Values::Shapes, Device::Cpu)
    }

    fn new(values: Values, device: Device) -> Self {
        Self {
            device,
            values,
            skip_init: Vec::new(),
            checkpointed: None,
            tensors: RefCell::new(BTreeMap::new()),
        }
    }

    /// The scope with an empty prefix.
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

    /// Every parameter, sorted by name. The tensors share storage with the layers.
    #[must_use]
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        self.tensors
            .borrow()
            .iter()
            .map(|(name, t)| (name.clone(), t.shallow_clone()))
            .collect()
    }

    /// Parameters under a prefix ("unet."), by their names without it.
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
        let cpu = (Kind::Float, Device::Cpu);
        let skip = self.skip_init.iter().any(|prefix| name.starts_with(prefix));
        match (self.values, if skip { Init::Zeros } else { init }) {
            (Values::Shapes, _) => Tensor::zeros([1], cpu).expand(shape, false),
            (_, Init::Zeros) => Tensor::zeros(shape, (Kind::Float, self.device)),
            (_, Init::Ones) => Tensor::ones(shape, (Kind::Float, self.device)),
            (_, Init::Constant(value)) => Tensor::full(shape, value, (Kind::Float, self.device)),
            (Values::Seeded(seed), Init::FanIn | Init::Normal(_)) => {
                let mut values = vec![0f32; shape.iter().product::<i64>() as usize];
                let mut rng = stream(seed, name);
                if let Init::Normal(deviation) = init {
                    fill_normal(&mut rng, &mut values);
                    values.iter_mut().for_each(|v| *v *= deviation as f32);
                } else {
                    let fan_in = shape[1..].iter().product::<i64>() as f64;
                    fill_uniform(&mut rng, &mut values, fan_in.sqrt().recip() as f32);
                }
                // A view would keep its base tensor alive even after its own data are replaced by
                // `set_data`, so copy into a new tensor.
                let tensor = Tensor::empty(shape, (Kind::Float, self.device));
                tch::no_grad(|| tensor.view(-1).copy_(&Tensor::from_slice(&values)));
                tensor
            }
        }
    }
}

/// The random stream of one parameter's initial values.
fn stream(seed: u64, name: &str) -> ChaCha8Rng {
    let mut hash = Sha256::new();
    hash.update(b"retri parameter 1");
    hash.update(seed.to_le_bytes());
    hash.update(name.as_bytes());
    ChaCha8Rng::from_seed(hash.finalize().into())
}

/// A dotted prefix inside [`Parameters`] under which a layer creates its weights.
#[derive(Debug, Clone)]
pub struct Scope<'a> {
    parameters: &'a Parameters,
    prefix: String,
}

impl Scope<'_> {
    /// The scope with `name` appended to the prefix.
    #[must_use]
    pub fn sub(&self, name: impl std::fmt::Display) -> Self {
        Self {
            parameters: self.parameters,
            prefix: format!("{}{name}.", self.prefix),
        }
    }

    /// The parameters created under this prefix so far, sorted by name.
    pub(crate) fn parameters(&self) -> Vec<Tensor> {
        self.parameters.under(&self.prefix).into_values().collect()
    }

    /// True if activation checkpointing is enabled for blocks built here.
    pub(crate) fn checkpointed(&self) -> bool {
        let checkpointed = self.parameters.checkpointed.as_ref();
        checkpointed.is_some_and(|(components, prefixes)| {
            components.contains(&prefixes.component_of(&self.prefix))
        })
    }

    /// Creates a parameter of this shape.
    ///
    /// # Panics
    /// If the name exists: two layers would share weights by mistake.
    pub fn parameter(&self, name: &str, shape: &[i64], init: Init) -> Tensor {
        let name = format!("{}{name}", self.prefix);
        let tensor = self.parameters.make(&name, shape, init);
        let previous = self
            .parameters
            .tensors
            .borrow_mut()
            .insert(name.clone(), tensor.shallow_clone());
        assert!(previous.is_none(), "parameter {name:?} is created twice");
        tensor
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_parameter_is_not_a_view() {
        // `detach_` fails only on views.
        let owns = |tensor: &Tensor| tensor.shallow_clone().f_detach_().is_ok();
        assert!(!owns(
            &Tensor::zeros([6], (Kind::Float, Device::Cpu)).view([2, 3])
        ));
        for parameters in [
            Parameters::seeded(1, Device::Cpu),
            Parameters::seeded(1, Device::Cpu).skip_init("layer".into()),
        ] {
            let layer = parameters.root().sub("layer");
            for init in [Init::Zeros, Init::Ones, Init::FanIn, Init::Normal(0.1)] {
                let tensor = layer.parameter(&format!("{init:?}"), &[2, 3], init);
                assert!(owns(&tensor), "{init:?}");
            }
        }
    }
}
