//! Expected values from Python libraries, and the weights that both sides compute from names.
#![allow(dead_code, reason = "each test file uses a different part")]

use model::parameter::Parameters;
use model::weights::NamedTensors;
use std::path::Path;
use tch::Tensor;

pub(crate) struct Golden(NamedTensors);

impl Golden {
    /// The file of this name in tests/golden.
    pub(crate) fn read(name: &str) -> Self {
        tch::set_num_threads(1);
        let file = format!("../tests/golden/{name}.safetensors");
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        Self(model::weights::read(&file).unwrap())
    }

    pub(crate) fn get(&self, name: &str) -> &Tensor {
        &self.0[name]
    }

    pub(crate) fn check(&self, name: &str, found: &Tensor) {
        self.check_within(name, found, 1e-4);
    }

    /// `bound` is a fraction of the largest value.
    pub(crate) fn check_within(&self, name: &str, found: &Tensor, bound: f64) {
        let expected = &self.0[name];
        assert_eq!(found.size(), expected.size(), "{name}");
        let largest = expected.abs().max().double_value(&[]);
        let difference = (found - expected).abs().max().double_value(&[]);
        assert!(
            difference < bound * largest,
            "{name}: off by {difference}, largest value {largest}"
        );
    }
}

/// Sets the parameters to the script's values, as `fill` in make_golden.py.
pub(crate) fn fill(parameters: &Parameters) {
    for (name, mut tensor) in parameters.tensors() {
        let shape = tensor.size();
        let fan_in: i64 = shape[1..].iter().product();
        let (scale, shift) = match shape.len() {
            _ if name.contains("embedding") => (0.2, 0.0),
            1 => (0.2, if name.ends_with("weight") { 1.0 } else { 0.0 }),
            _ => ((12.0 / fan_in as f64).sqrt(), 0.0),
        };
        tch::no_grad(|| tensor.copy_(&(values(&name, &shape) * scale + shift)));
    }
}

/// Reproducible values in [-0.5, 0.5), as `unit` in make_golden.py.
pub(crate) fn values(name: &str, shape: &[i64]) -> Tensor {
    let seed = name.bytes().fold(2_166_136_261u32, |seed, byte| {
        (seed ^ u32::from(byte)).wrapping_mul(16_777_619)
    });
    let count: i64 = shape.iter().product();
    let unit = |i: u32| {
        let mut x = i.wrapping_mul(2_654_435_761).wrapping_add(seed);
        x = (x ^ (x >> 15)).wrapping_mul(2_246_822_519);
        x = (x ^ (x >> 13)).wrapping_mul(3_266_489_917);
        (f64::from(x ^ (x >> 16)) / 2f64.powi(32) - 0.5) as f32
    };
    Tensor::from_slice(&(0..count as u32).map(unit).collect::<Vec<f32>>()).view(shape)
}
