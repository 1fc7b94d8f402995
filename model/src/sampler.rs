//! DDIM with leading time steps, offset 1 and eta 0 (notes 5.4), and classifier-free guidance. The
//! coefficients are pure numbers; the network that predicts noise is the caller's.

use crate::error::ModelError;
use crate::schedule::{NoiseSchedule, TIMESTEPS};
use tch::Tensor;

const OFFSET: usize = 1;

/// The time steps of one drawing and the move from each to the next.
#[derive(Debug, Clone)]
pub struct Sampler {
    schedule: NoiseSchedule,
    ratio: usize,
    steps: usize,
}

/// x_prev = `latents` * x + `noise` * predicted noise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Move {
    pub latents: f64,
    pub noise: f64,
}

impl Sampler {
    /// # Errors
    /// No steps, or so many that the first would lie past the schedule's end.
    pub fn new(steps: u32) -> Result<Self, ModelError> {
        let max = TIMESTEPS / (OFFSET + 1);
        if steps == 0 || steps as usize > max {
            return Err(ModelError::SamplingSteps {
                steps,
                max: max as u32,
            });
        }
        let steps = steps as usize;
        Ok(Self {
            schedule: NoiseSchedule::default(),
            ratio: TIMESTEPS / steps,
            steps,
        })
    }

    /// Descending, the noisiest first.
    pub fn timesteps(&self) -> impl Iterator<Item = usize> {
        let ratio = self.ratio;
        (0..self.steps).rev().map(move |k| ratio * k + OFFSET)
    }

    /// How to get from the latents at `timestep` to those one step earlier.
    #[must_use]
    pub fn step(&self, timestep: usize) -> Move {
        let (signal, noise) = self.schedule.mix(timestep);
        // The last step ends at abar(0), not at 1 (set_alpha_to_one false).
        let (signal_next, noise_next) = self.schedule.mix(timestep.saturating_sub(self.ratio));
        let latents = signal_next / signal;
        Move {
            latents,
            noise: noise_next - latents * noise,
        }
    }
}

/// e_u + scale * (e_c - e_u) from a prediction with the unconditional half first: [2 * batch, ...] -> [batch,
/// ...].
pub fn guide(predicted: &Tensor, scale: f64) -> Tensor {
    let halves = predicted.chunk(2, 0);
    &halves[0] + (&halves[1] - &halves[0]) * scale
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn fifty_steps_are_981_to_1() {
        let steps: Vec<usize> = Sampler::new(50).unwrap().timesteps().collect();
        assert_eq!((steps.len(), steps[0], steps[1], steps[49]), (50, 981, 961, 1));
    }

    #[test]
    fn the_true_noise_leads_back_to_the_signal() {
        let sampler = Sampler::new(10).unwrap();
        let schedule = NoiseSchedule::default();
        let (signal, noise) = (0.7, -1.3);
        let (a, b) = schedule.mix(901);
        let mut x = a * signal + b * noise;
        for timestep in sampler.timesteps() {
            let step = sampler.step(timestep);
            x = step.latents * x + step.noise * noise;
        }
        let (a, b) = schedule.mix(0);
        assert!((x - (a * signal + b * noise)).abs() < 1e-12);
    }

    #[test]
    fn impossible_step_counts_are_refused() {
        assert!(Sampler::new(0).is_err());
        assert!(Sampler::new(500).is_ok());
        assert_eq!(
            Sampler::new(501).unwrap_err().to_string(),
            "501 sampling steps; there must be 1 to 500"
        );
    }

    #[test]
    fn guidance_of_one_is_the_conditional_branch() {
        let both = Tensor::from_slice(&[1f32, 2., 5., 8.]);
        assert_eq!(Vec::<f32>::try_from(guide(&both, 1.0)).unwrap(), [5., 8.]);
        assert_eq!(Vec::<f32>::try_from(guide(&both, 2.0)).unwrap(), [9., 14.]);
    }
}
