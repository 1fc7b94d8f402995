//! Samplers that add noise in each step, as in `diffusers`: DDPM, which Kandinsky's decoder uses,
//! and UnCLIP's, which its prior uses. Coefficients are f64; the caller runs the network and
//! provides the noise.

use crate::error::ModelError;
use crate::schedule::NoiseSchedule;
use tch::Tensor;

/// What the network predicts, and which time steps it is asked at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ancestral {
    /// `DDPMScheduler`: the noise, at leading time steps, with the smaller fixed variance.
    Ddpm,
    /// `UnCLIPScheduler`: the clean sample, limited to plus or minus `clip`, at time steps from the
    /// last to the first.
    Unclip { clip: f64 },
}

/// One sampling run.
#[derive(Debug)]
pub struct AncestralSampler {
    method: Ancestral,
    schedule: NoiseSchedule,
    timesteps: Vec<usize>,
    /// Distance between DDPM's time steps.
    ratio: usize,
}

impl AncestralSampler {
    /// # Errors
    /// Zero steps, or more than the schedule has; a single one for UnCLIP.
    pub fn new(schedule: NoiseSchedule, method: Ancestral, steps: u32) -> Result<Self, ModelError> {
        let length = schedule.timesteps();
        let least = match method {
            Ancestral::Ddpm => 1,
            Ancestral::Unclip { .. } => 2,
        };
        let max = length as u32;
        if !(least..=max).contains(&steps) {
            return Err(ModelError::SamplingSteps { steps, max });
        }
        let count = steps as usize;
        let ratio = length / count;
        let timesteps = match method {
            Ancestral::Ddpm => (0..count).rev().map(|i| i * ratio).collect(),
            Ancestral::Unclip { .. } => {
                let spacing = (length - 1) as f64 / (count - 1) as f64;
                let point = |i: usize| (i as f64 * spacing).round_ties_even() as usize;
                (0..count).rev().map(point).collect()
            }
        };
        Ok(Self {
            method,
            schedule,
            timesteps,
            ratio,
        })
    }

    /// The time step of each call, descending.
    #[must_use]
    pub fn timesteps(&self) -> &[usize] {
        &self.timesteps
    }

    /// Keeps the last steps alone, for a run that begins with a noisy sample instead of noise.
    pub fn keep_last(&mut self, steps: usize) {
        self.timesteps
            .drain(..self.timesteps.len().saturating_sub(steps));
    }

    /// alpha and sigma of a sample at call `i`, for noise that is added before it.
    #[must_use]
    pub fn alpha_sigma(&self, i: usize) -> (f64, f64) {
        self.schedule.alpha_sigma(self.timesteps[i])
    }

    /// The sample after call `i`. `noise` is not used at time step 0.
    pub fn advance(&self, i: usize, sample: &Tensor, predicted: &Tensor, noise: &Tensor) -> Tensor {
        let timestep = self.timesteps[i];
        let previous = match self.method {
            Ancestral::Ddpm => timestep.checked_sub(self.ratio),
            Ancestral::Unclip { .. } => match self.timesteps.get(i + 1) {
                Some(next) => Some(*next),
                None => timestep.checked_sub(1),
            },
        };
        let current = self.schedule.alphas_cumprod(timestep);
        let before = previous.map_or(1.0, |it| self.schedule.alphas_cumprod(it));
        let (alpha, rest) = (current / before, 1.0 - current);
        let beta = 1.0 - alpha;
        let clean = match self.method {
            Ancestral::Ddpm => (sample - predicted * rest.sqrt()) / current.sqrt(),
            Ancestral::Unclip { clip } => predicted.clamp(-clip, clip),
        };
        let next =
            clean * (before.sqrt() * beta / rest) + sample * (alpha.sqrt() * (1.0 - before) / rest);
        if timestep == 0 {
            return next;
        }
        let variance = ((1.0 - before) / rest * beta).max(1e-20);
        next + noise * variance.sqrt()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn time_steps_are_those_of_diffusers() {
        let steps = |method, count| {
            let sampler = AncestralSampler::new(NoiseSchedule::default(), method, count);
            sampler.map(|it| it.timesteps().to_vec())
        };
        let ddpm = steps(Ancestral::Ddpm, 100).unwrap();
        assert_eq!((ddpm[0], ddpm[1], ddpm[99]), (990, 980, 0));
        let unclip = Ancestral::Unclip { clip: 10.0 };
        let found = steps(unclip, 25).unwrap();
        assert_eq!(
            (found[0], found[1], found[23], found[24]),
            (999, 957, 42, 0)
        );
        assert!(steps(unclip, 1).is_err() && steps(Ancestral::Ddpm, 0).is_err());
        let mut sampler = AncestralSampler::new(NoiseSchedule::default(), unclip, 25).unwrap();
        sampler.keep_last(2);
        assert_eq!(sampler.timesteps(), [42, 0]);
    }
}
