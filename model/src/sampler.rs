//! How noise becomes a latent: DDIM, PNDM and DPM-Solver++(2M) as `diffusers` has them (notes 5.4),
//! and classifier-free guidance. All numbers are f64; the network that predicts noise is the
//! caller's.

use crate::error::ModelError;
use crate::schedule::NoiseSchedule;
use proto::sample::SampleMethod;
use tch::Tensor;

/// Where leading time steps begin, as in Stable Diffusion's configuration.
const OFFSET: usize = 1;

/// One drawing: which time steps the network is asked at, and how its answers move the latents.
#[derive(Debug)]
pub struct Sampler {
    method: SampleMethod,
    schedule: NoiseSchedule,
    timesteps: Vec<usize>,
    /// Distance of leading time steps.
    ratio: usize,
    /// What earlier predictions said, oldest first: noise for PNDM, the picture for DPM-Solver++.
    history: Vec<Tensor>,
    /// PNDM's latents before its first step, which it does twice.
    before: Option<Tensor>,
}

impl Sampler {
    /// # Errors
    /// No steps, or so many that the first would lie past the schedule's end.
    pub fn new(
        schedule: NoiseSchedule,
        method: SampleMethod,
        steps: u32,
    ) -> Result<Self, ModelError> {
        let length = schedule.timesteps();
        let max = method.steps_max_of(length as u32);
        if !(1..=max).contains(&steps) {
            return Err(ModelError::SamplingSteps { steps, max });
        }
        let steps = steps as usize;
        let ratio = length / steps;
        let leading = (0..steps).rev().map(|k| ratio * k + OFFSET);
        let timesteps = match method {
            SampleMethod::Ddim => leading.collect(),
            // The second one comes twice.
            SampleMethod::Pndm => leading
                .enumerate()
                .flat_map(|(i, timestep)| std::iter::repeat_n(timestep, if i == 1 { 2 } else { 1 }))
                .collect(),
            SampleMethod::DpmSolver => evenly(length, steps),
        };
        Ok(Self {
            method,
            schedule,
            timesteps,
            ratio,
            history: Vec::new(),
            before: None,
        })
    }

    /// Descending, the noisiest first; PNDM asks once more than there are steps.
    #[must_use]
    pub fn timesteps(&self) -> &[usize] {
        &self.timesteps
    }

    /// The latents after call `i`, from those before it and what the network predicted for them at
    /// `timesteps()[i]`, noise or v as the schedule has it. Calls come in order.
    pub fn advance(&mut self, i: usize, latents: &Tensor, predicted: &Tensor) -> Tensor {
        let noise = &self
            .schedule
            .noise_in(self.timesteps[i], latents, predicted);
        match self.method {
            SampleMethod::Ddim => self.ddim(self.timesteps[i], latents, noise),
            SampleMethod::Pndm => self.pndm(i, latents, noise),
            SampleMethod::DpmSolver => self.dpm_solver(i, latents, noise),
        }
    }

    fn ddim(&self, timestep: usize, latents: &Tensor, noise: &Tensor) -> Tensor {
        let (signal, level) = self.schedule.mix(timestep);
        // The last step ends at abar(0), not at 1 (set_alpha_to_one false).
        let (signal_next, level_next) = self.schedule.mix(timestep.saturating_sub(self.ratio));
        let alpha = signal_next / signal;
        latents * alpha + noise * (level_next - alpha * level)
    }

    /// Linear multistep over the last four predictions (skip_prk).
    fn pndm(&mut self, i: usize, latents: &Tensor, noise: &Tensor) -> Tensor {
        let timestep = self.timesteps[i];
        if i == 1 {
            // The first step again, with the mean of what was predicted at its two ends.
            let mean = (noise + &self.history[0]) / 2.0;
            let before = self.before.take().expect("call 0 keeps its latents");
            return self.transfer(&before, &mean, timestep + self.ratio);
        }
        self.history.push(noise.shallow_clone());
        if self.history.len() > 4 {
            let _ = self.history.remove(0);
        }
        let weights: &[f64] = match self.history.len() {
            1 => &[1.0],
            2 => &[-1.0, 3.0],
            3 => &[5.0, -16.0, 23.0],
            _ => &[-9.0, 37.0, -59.0, 55.0],
        };
        let terms = self
            .history
            .iter()
            .zip(weights)
            .map(|(noise, weight)| noise * *weight);
        let sum = terms
            .reduce(|sum, term| sum + term)
            .expect("there is one at least");
        if i == 0 {
            self.before = Some(latents.shallow_clone());
        }
        self.transfer(latents, &(sum / weights.iter().sum::<f64>()), timestep)
    }

    /// PNDM's equation 9, from a time step to the one `ratio` before it.
    fn transfer(&self, latents: &Tensor, noise: &Tensor, timestep: usize) -> Tensor {
        let alpha = self.schedule.alphas_cumprod(timestep);
        let next = self
            .schedule
            .alphas_cumprod(timestep.saturating_sub(self.ratio));
        let denominator = alpha * (1.0 - next).sqrt() + (alpha * (1.0 - alpha) * next).sqrt();
        latents * (next / alpha).sqrt() - noise * ((next - alpha) / denominator)
    }

    /// Second order (midpoint); first order for the first step and the last.
    fn dpm_solver(&mut self, i: usize, latents: &Tensor, noise: &Tensor) -> Tensor {
        let here = self.level(i);
        let image = (latents - noise * here.sigma) / here.alpha;
        let moved = match self.timesteps.get(i + 1) {
            // No noise is left after the last step.
            None => image.shallow_clone(),
            Some(_) => {
                let next = self.level(i + 1);
                let h = next.lambda - here.lambda;
                let step = next.alpha * (-h).exp_m1();
                let first = latents * (next.sigma / here.sigma) - &image * step;
                match self.history.last() {
                    None => first,
                    Some(earlier) => {
                        let r = (here.lambda - self.level(i - 1).lambda) / h;
                        first - (&image - earlier) * (0.5 * step / r)
                    }
                }
            }
        };
        self.history = vec![image];
        moved
    }

    fn level(&self, i: usize) -> Level {
        let (alpha, sigma) = self.schedule.mix(self.timesteps[i]);
        Level {
            alpha,
            sigma,
            lambda: (alpha / sigma).ln(),
        }
    }
}

/// Shares of signal and noise at a time step, and the half log of their ratio squared.
struct Level {
    alpha: f64,
    sigma: f64,
    lambda: f64,
}

/// `steps` + 1 points from the last time step to 0, without the 0.
fn evenly(length: usize, steps: usize) -> Vec<usize> {
    let last = length - 1;
    let between = last as f64 / steps as f64;
    // The product first, as numpy's linspace has it: halves must come out as halves.
    let at = |k: usize| {
        if k == steps {
            last
        } else {
            (k as f64 * between).round_ties_even() as usize
        }
    };
    (1..=steps).rev().map(at).collect()
}

/// e_u + scale * (e_c - e_u) from a prediction with the unconditional half first: [2 * batch, ...]
/// -> [batch, ...].
pub fn guide(predicted: &Tensor, scale: f64) -> Tensor {
    let halves = predicted.chunk(2, 0);
    &halves[0] + (&halves[1] - &halves[0]) * scale
}

/// Guidance by two conditions with a scale of its own each (InstructPix2Pix, equation 3): e_0 +
/// reference_scale * (e_u - e_0) + scale * (e_c - e_u), where `bare` is e_0, predicted without
/// prompt and references, and `predicted` is as for [`guide`], with the references in both halves.
pub fn guide_by_references(
    bare: &Tensor,
    predicted: &Tensor,
    scale: f64,
    reference_scale: f64,
) -> Tensor {
    let wordless = predicted.chunk(2, 0).swap_remove(0);
    guide(predicted, scale) + (wordless - bare) * (reference_scale - 1.0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use SampleMethod::{Ddim, DpmSolver, Pndm};

    #[test]
    fn fifty_steps() {
        let steps = |method| {
            Sampler::new(NoiseSchedule::default(), method, 50)
                .unwrap()
                .timesteps()
                .to_vec()
        };
        let ddim = steps(Ddim);
        assert_eq!((ddim.len(), ddim[0], ddim[1], ddim[49]), (50, 981, 961, 1));
        let pndm = steps(Pndm);
        assert_eq!(
            (pndm.len(), &pndm[..4], pndm[50]),
            (51, &[981, 961, 961, 941][..], 1)
        );
        let dpm = steps(DpmSolver);
        assert_eq!(
            (dpm.len(), dpm[0], dpm[1], dpm[25], dpm[49]),
            (50, 999, 979, 500, 20)
        );
    }

    #[test]
    fn the_true_noise_leads_back_to_the_signal() {
        let schedule = NoiseSchedule::default();
        let (signal, noise) = (Tensor::from(0.7f64), Tensor::from(-1.3f64));
        for method in [Ddim, Pndm, DpmSolver] {
            let mut sampler = Sampler::new(NoiseSchedule::default(), method, 10).unwrap();
            let (a, b) = schedule.mix(sampler.timesteps()[0]);
            let mut x = &signal * a + &noise * b;
            for i in 0..sampler.timesteps().len() {
                x = sampler.advance(i, &x, &noise);
            }
            // DPM-Solver++ ends without noise, the others at abar(0).
            let (a, b) = if method == DpmSolver {
                (1.0, 0.0)
            } else {
                schedule.mix(0)
            };
            let expected = 0.7 * a - 1.3 * b;
            assert!(
                (x.double_value(&[]) - expected).abs() < 1e-12,
                "{method:?}: {x}"
            );
        }
    }

    /// A model that knows the one latent that there is, and the noise of everything that it is
    /// given.
    #[test]
    fn v_and_epsilon_of_a_known_model_lead_the_same_way_on_every_schedule() {
        use proto::architecture::{Noise, NoiseKind, Prediction};
        for (kind, timesteps) in [
            (NoiseKind::ScaledLinear, 1000),
            (NoiseKind::Linear, 200),
            (NoiseKind::Cosine, 1000),
        ] {
            let of = |prediction| {
                let noise = Noise {
                    kind,
                    steps: timesteps,
                    prediction,
                    ..Noise::default()
                };
                NoiseSchedule::new(&noise)
            };
            for method in [Ddim, Pndm, DpmSolver] {
                let trail = |prediction| {
                    let schedule = of(prediction);
                    let mut sampler = Sampler::new(schedule.clone(), method, 10).unwrap();
                    let (latent, mut x) = (0.7, Tensor::from(-1.1f64));
                    let mut trail = Vec::new();
                    for i in 0..sampler.timesteps().len() {
                        let (signal, level) = schedule.mix(sampler.timesteps()[i]);
                        let noise = (&x - latent * signal) / level;
                        let predicted = match prediction {
                            Prediction::Epsilon => noise,
                            Prediction::V => noise * signal - latent * level,
                        };
                        x = sampler.advance(i, &x, &predicted);
                        trail.push(x.double_value(&[]));
                    }
                    trail
                };
                let (epsilon, v) = (trail(Prediction::Epsilon), trail(Prediction::V));
                for (a, b) in epsilon.iter().zip(&v) {
                    assert!(
                        (a - b).abs() < 1e-9,
                        "{kind:?} {method:?}: {epsilon:?} {v:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn one_step_is_possible_and_impossible_counts_are_refused() {
        for method in [Ddim, Pndm, DpmSolver] {
            assert!(Sampler::new(NoiseSchedule::default(), method, 0).is_err());
            let mut sampler = Sampler::new(NoiseSchedule::default(), method, 1).unwrap();
            let x = sampler.advance(0, &Tensor::from(1.0f64), &Tensor::from(0.5f64));
            assert!(x.double_value(&[]).is_finite());
        }
        assert!(Sampler::new(NoiseSchedule::default(), Ddim, 500).is_ok());
        assert_eq!(
            Sampler::new(NoiseSchedule::default(), Ddim, 501)
                .unwrap_err()
                .to_string(),
            "501 sampling steps; there must be 1 to 500"
        );
    }

    #[test]
    fn guidance_of_one_is_the_conditional_branch() {
        let both = Tensor::from_slice(&[1f32, 2., 5., 8.]);
        assert_eq!(Vec::<f32>::try_from(guide(&both, 1.0)).unwrap(), [5., 8.]);
        assert_eq!(Vec::<f32>::try_from(guide(&both, 2.0)).unwrap(), [9., 14.]);
    }

    #[test]
    fn each_condition_has_its_own_scale() {
        let (bare, both) = (
            Tensor::from_slice(&[0f32, 1.]),
            Tensor::from_slice(&[1f32, 2., 5., 8.]),
        );
        let guided = |scale, reference_scale| {
            Vec::<f32>::try_from(guide_by_references(&bare, &both, scale, reference_scale)).unwrap()
        };
        assert_eq!(guided(1.0, 1.0), [5., 8.], "the prediction under both");
        assert_eq!(guided(0.0, 0.0), [0., 1.], "under neither");
        assert_eq!(guided(0.0, 1.0), [1., 2.], "under the references alone");
        assert_eq!(guided(2.0, 3.0), [11., 16.]);
    }
}
