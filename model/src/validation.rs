//! What a validation measures: held-out samples at fixed noise levels with fixed noise. The paper
//! names no validation; all choices here are ours. Pure; the losses are computed by
//! [`crate::trainer`].

use model_data::example::Example;

/// Number of noise levels at which a diffusion model is measured.
pub const LEVELS: u32 = 8;

/// The time steps of the noise levels: the middles of [`LEVELS`] equal parts of a schedule.
#[must_use]
pub fn timesteps(of_schedule: usize) -> Vec<u32> {
    let steps = of_schedule as u64;
    let middle = |level: u64| (2 * level + 1) * steps / (2 * u64::from(LEVELS));
    (0..u64::from(LEVELS))
        .map(|level| middle(level) as u32)
        .collect()
}

/// The example at one of the noise levels, with noise of its own at each level.
#[must_use]
pub fn at_level(example: &Example, level: usize, timestep: u32) -> Example {
    // An odd multiplier: the seeds of the levels differ.
    let offset = (level as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Example {
        timestep,
        noise_seed: example.noise_seed.wrapping_add(offset),
        ..example.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_levels_are_the_middles_of_equal_parts() {
        assert_eq!(timesteps(1000), [62, 187, 312, 437, 562, 687, 812, 937]);
        assert_eq!(timesteps(10), [0, 1, 3, 4, 5, 6, 8, 9]);
    }
}
