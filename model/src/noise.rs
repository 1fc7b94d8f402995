//! Random numbers for tensors, made on the host by a counter-based generator: the same on any
//! device, at any world size (law 2). Never libtorch's own generators. Called by the trainer, the
//! sampler and parameter initialisation.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Tensor};

/// What a stream of one seed is for. The numbers are part of the meaning of a seed: never change
/// one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The noise that is added to a target's latents, or that a picture is drawn from.
    Target = 0,
    /// The autoencoder's draw from its posterior.
    Posterior = 1,
}

/// Standard normal noise of shape [seeds, shape...], one independent stream for each seed.
pub fn normal(seeds: &[u64], purpose: Purpose, shape: &[i64], device: Device) -> Tensor {
    let each = shape.iter().product::<i64>() as usize;
    let mut values = vec![0f32; each * seeds.len()];
    for (seed, chunk) in seeds.iter().zip(values.chunks_exact_mut(each.max(1))) {
        let mut random = ChaCha8Rng::seed_from_u64(*seed);
        random.set_stream(purpose as u64);
        fill_normal(&mut random, chunk);
    }
    let full: Vec<i64> = std::iter::once(seeds.len() as i64)
        .chain(shape.iter().copied())
        .collect();
    Tensor::from_slice(&values)
        .view(full.as_slice())
        .to_device(device)
}

/// Standard normal values by Box and Muller's transform, two for each pair of uniform numbers.
pub(crate) fn fill_normal(random: &mut ChaCha8Rng, values: &mut [f32]) {
    for pair in values.chunks_mut(2) {
        // 1 - u lies in (0, 1], so that the logarithm is finite.
        let radius = (-2.0 * (1.0 - unit(random)).ln()).sqrt();
        let (sine, cosine) = (std::f64::consts::TAU * unit(random)).sin_cos();
        pair[0] = (radius * cosine) as f32;
        if let Some(second) = pair.get_mut(1) {
            *second = (radius * sine) as f32;
        }
    }
}

/// Uniform values in [-bound, bound).
pub(crate) fn fill_uniform(random: &mut ChaCha8Rng, values: &mut [f32], bound: f32) {
    for value in values {
        *value = ((random.next_u32() >> 8) as f32 / (1u32 << 23) as f32 - 1.0) * bound;
    }
}

/// Uniform in [0, 1) with 53 bits.
fn unit(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
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
