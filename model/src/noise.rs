//! Random tensors from a counter-based generator on the host, so that values are the same on every
//! device and at every world size. libtorch's own generators are not used. Called by the
//! architectures, the sampling loop and parameter initialization.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Tensor};

/// The use of a random stream; selects one of the independent streams of a seed. The discriminants
/// are part of what a seed means and must never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The noise that is added to a target's latents, and the initial noise of a sampled image.
    Target = 0,
    /// Sampling from the autoencoder's posterior.
    Posterior = 1,
    /// Whether a micro-batch's loss counts the figure alone.
    LossMask = 2,
    /// What a sampler adds in a step.
    Step = 3,
    /// The noise that is added to an embedding before a prior moves it.
    Prior = 4,
    /// What the prior's sampler adds in its steps.
    PriorStep = 5,
}

/// Standard normal noise of shape [seeds, shape...], with an independent stream for each seed.
pub fn normal(seeds: &[u64], purpose: Purpose, shape: &[i64], device: Device) -> Tensor {
    let per_seed = shape.iter().product::<i64>() as usize;
    let mut values = vec![0f32; per_seed * seeds.len()];
    for (seed, chunk) in seeds.iter().zip(values.chunks_exact_mut(per_seed.max(1))) {
        let mut rng = ChaCha8Rng::seed_from_u64(*seed);
        rng.set_stream(purpose as u64);
        fill_normal(&mut rng, chunk);
    }
    let batched: Vec<i64> = std::iter::once(seeds.len() as i64)
        .chain(shape.iter().copied())
        .collect();
    Tensor::from_slice(&values)
        .view(batched.as_slice())
        .to_device(device)
}

/// A uniform value in [0, 1).
pub(crate) fn uniform(seed: u64, purpose: Purpose) -> f64 {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(purpose as u64);
    unit(&mut rng)
}

/// Standard normal values by the Box-Muller transform, two for each pair of uniform values.
pub(crate) fn fill_normal(rng: &mut ChaCha8Rng, values: &mut [f32]) {
    for pair in values.chunks_mut(2) {
        // 1 - u lies in (0, 1], so that the logarithm is finite.
        let radius = (-2.0 * (1.0 - unit(rng)).ln()).sqrt();
        let (sine, cosine) = (std::f64::consts::TAU * unit(rng)).sin_cos();
        pair[0] = (radius * cosine) as f32;
        if let Some(second) = pair.get_mut(1) {
            *second = (radius * sine) as f32;
        }
    }
}

/// Uniform values in [-bound, bound).
pub(crate) fn fill_uniform(rng: &mut ChaCha8Rng, values: &mut [f32], bound: f32) {
    for value in values {
        *value = ((rng.next_u32() >> 8) as f32 / (1u32 << 23) as f32 - 1.0) * bound;
    }
}

/// Uniform in [0, 1) with 53 bits.
fn unit(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_has_the_moments_of_a_standard_normal() {
        let noise = normal(&[1], Purpose::Target, &[200_000], Device::Cpu);
        let mean = noise.mean(None).double_value(&[]);
        let variance = (&noise * &noise).mean(None).double_value(&[]);
        let fourth = noise.pow_tensor_scalar(4).mean(None).double_value(&[]);
        assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.02 && (fourth - 3.0).abs() < 0.1);
    }

    #[test]
    fn a_sample_s_noise_does_not_depend_on_its_neighbours() {
        let both = normal(&[3, 4], Purpose::Target, &[2, 3], Device::Cpu);
        let alone = normal(&[4], Purpose::Target, &[2, 3], Device::Cpu);
        assert!(both.get(1).equal(&alone.get(0)));
        let other = normal(&[4], Purpose::Posterior, &[2, 3], Device::Cpu);
        assert!(!other.equal(&alone));
    }
}
