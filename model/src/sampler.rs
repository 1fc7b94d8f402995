//! Samplers (DDIM, PNDM, DPM-Solver++(2M) and DDPM as in `diffusers`, notes 5.4) and
//! classifier-free guidance. Coefficients are f64; the caller runs the network.

use crate::ancestral::{Ancestral, AncestralSampler};
use crate::error::ModelError;
use crate::noise::{self, Purpose};
use crate::schedule::NoiseSchedule;
use proto::sample::SampleMethod;
use tch::Tensor;

/// Offset of leading time steps, `steps_offset` in Stable Diffusion's scheduler configuration.
const STEPS_OFFSET: usize = 1;

/// The state of one sampling run: the time steps at which the network is called, and the update of
/// the latents after each call.
#[derive(Debug)]
pub struct Sampler {
    method: SampleMethod,
    schedule: NoiseSchedule,
    timesteps: Vec<usize>,
    /// Distance between leading time steps.
    step_ratio: usize,
    /// Earlier predictions, oldest first: noise for PNDM, the denoised image for DPM-Solver++.
    history: Vec<Tensor>,
    /// PNDM's initial latents; it repeats its first step.
    initial: Option<Tensor>,
    /// DDPM's own steps.
    ancestral: Option<AncestralSampler>,
    /// Seeds the noise that DDPM adds in its steps.
    seed: u64,
}

impl Sampler {
    /// # Errors
    /// Zero steps, or so many that the first time step would be past the end of the schedule.
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
        let ancestral = (method == SampleMethod::Ddpm)
            .then(|| AncestralSampler::new(schedule.clone(), Ancestral::Ddpm, steps))
            .transpose()?;
        let steps = steps as usize;
        let step_ratio = length / steps;
        let leading = (0..steps).rev().map(|k| step_ratio * k + STEPS_OFFSET);
        let timesteps = match method {
            SampleMethod::Ddim => leading.collect(),
            // PNDM uses the second time step twice.
            SampleMethod::Pndm => leading
                .enumerate()
                .flat_map(|(i, timestep)| std::iter::repeat_n(timestep, if i == 1 { 2 } else { 1 }))
                .collect(),
            SampleMethod::DpmSolver => linspace_timesteps(length, steps),
            SampleMethod::Ddpm => {
                let steps = ancestral.as_ref().map(AncestralSampler::timesteps);
                steps.unwrap_or_default().to_vec()
            }
        };
        Ok(Self {
            method,
            schedule,
            timesteps,
            step_ratio,
            history: Vec::new(),
            initial: None,
            ancestral,
            seed: 0,
        })
    }

    /// Seeds the noise that DDPM adds; the other methods add none.
    #[must_use]
    pub fn seeded(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// The time step of each call, descending. PNDM has one more than the number of steps.
    #[must_use]
    pub fn timesteps(&self) -> &[usize] {
        &self.timesteps
    }

    /// The latents after call `i`, from the latents before it and the network's prediction for them
    /// at `timesteps()[i]` (epsilon or v, depending on the schedule). Calls must be in order.
    pub fn advance(&mut self, i: usize, latents: &Tensor, predicted: &Tensor) -> Tensor {
        let noise = &self
            .schedule
            .predicted_noise(self.timesteps[i], latents, predicted);
        match self.method {
            SampleMethod::Ddim => self.ddim(self.timesteps[i], latents, noise),
            SampleMethod::Pndm => self.pndm(i, latents, noise),
            SampleMethod::DpmSolver => self.dpm_solver(i, latents, noise),
            SampleMethod::Ddpm => self.ddpm(i, latents, noise),
        }
    }

    fn ddpm(&self, i: usize, latents: &Tensor, noise: &Tensor) -> Tensor {
        let sampler = self.ancestral.as_ref().expect("DDPM has steps of its own");
        // Each step has a stream of its own.
        let seed = self.seed ^ (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let (size, device) = (latents.size(), latents.device());
        let fresh = noise::normal(&[seed], Purpose::Step, &size, device).get(0);
        sampler.advance(i, latents, noise, &fresh.to_kind(latents.kind()))
    }

    fn ddim(&self, timestep: usize, latents: &Tensor, noise: &Tensor) -> Tensor {
        let (alpha, sigma) = self.schedule.alpha_sigma(timestep);
        // The last step ends at abar(0), not at 1 (`set_alpha_to_one` is false).
        let next_timestep = timestep.saturating_sub(self.step_ratio);
        let (next_alpha, next_sigma) = self.schedule.alpha_sigma(next_timestep);
        let factor = next_alpha / alpha;
        latents * factor + noise * (next_sigma - factor * sigma)
    }

    /// Linear multistep over the last four predictions (`skip_prk_steps`).
    fn pndm(&mut self, i: usize, latents: &Tensor, noise: &Tensor) -> Tensor {
        let timestep = self.timesteps[i];
        if i == 1 {
            // Repeats the first step with the mean of the predictions at its two ends.
            let mean = (noise + &self.history[0]) / 2.0;
            let initial = self.initial.take().expect("call 0 stores its latents");
            return self.transfer(&initial, &mean, timestep + self.step_ratio);
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
            .expect("the history is not empty");
        if i == 0 {
            self.initial = Some(latents.shallow_clone());
        }
        self.transfer(latents, &(sum / weights.iter().sum::<f64>()), timestep)
    }

    /// Equation 9 of PNDM: from a time step to the one `step_ratio` before it.
    fn transfer(&self, latents: &Tensor, noise: &Tensor, timestep: usize) -> Tensor {
        let alpha = self.schedule.alphas_cumprod(timestep);
        let next = self
            .schedule
            .alphas_cumprod(timestep.saturating_sub(self.step_ratio));
        let denominator = alpha * (1.0 - next).sqrt() + (alpha * (1.0 - alpha) * next).sqrt();
        latents * (next / alpha).sqrt() - noise * ((next - alpha) / denominator)
    }

    /// Second order (midpoint); first order in the first and the last step.
    fn dpm_solver(&mut self, i: usize, latents: &Tensor, noise: &Tensor) -> Tensor {
        let current = self.noise_level(i);
        let image = (latents - noise * current.sigma) / current.alpha;
        let next_latents = match self.timesteps.get(i + 1) {
            // The last step removes all noise.
            None => image.shallow_clone(),
            Some(_) => {
                let next = self.noise_level(i + 1);
                let h = next.lambda - current.lambda;
                let step = next.alpha * (-h).exp_m1();
                let first = latents * (next.sigma / current.sigma) - &image * step;
                match self.history.last() {
                    None => first,
                    Some(earlier) => {
                        let r = (current.lambda - self.noise_level(i - 1).lambda) / h;
                        first - (&image - earlier) * (0.5 * step / r)
                    }
                }
            }
        };
        self.history = vec![image];
        next_latents
    }

    fn noise_level(&self, i: usize) -> NoiseLevel {
        let (alpha, sigma) = self.schedule.alpha_sigma(self.timesteps[i]);
        NoiseLevel {
            alpha,
            sigma,
            lambda: (alpha / sigma).ln(),
        }
    }
}

/// The scales of signal and noise at a time step, and the half log-SNR, ln(alpha / sigma).
struct NoiseLevel {
    alpha: f64,
    sigma: f64,
    lambda: f64,
}

/// `steps` + 1 evenly spaced points from the last time step to 0, without the 0.
fn linspace_timesteps(length: usize, steps: usize) -> Vec<usize> {
    let last = length - 1;
    let spacing = last as f64 / steps as f64;
    // Multiply before rounding, as numpy's linspace does, so that halves round in the same way.
    let point = |k: usize| {
        if k == steps {
            last
        } else {
            (k as f64 * spacing).round_ties_even() as usize
        }
    };
    (1..=steps).rev().map(point).collect()
}

/// Classifier-free guidance, e_u + scale * (e_c - e_u), of a prediction with the unconditional half
/// first: [2 * batch, ...] -> [batch, ...].
pub fn guide(predicted: &Tensor, scale: f64) -> Tensor {
    let halves = predicted.chunk(2, 0);
    &halves[0] + (&halves[1] - &halves[0]) * scale
}

/// Guidance by two conditions with separate scales (InstructPix2Pix, equation 3): e_0 +
/// reference_scale * (e_u - e_0) + scale * (e_c - e_u). `unconditional` is e_0, predicted without
/// prompt and references; `predicted` is as in [`guide`], with the references in both halves.
pub fn guide_by_references(
    unconditional: &Tensor,
    predicted: &Tensor,
    scale: f64,
    reference_scale: f64,
) -> Tensor {
    let unprompted = predicted.chunk(2, 0).swap_remove(0);
    guide(predicted, scale) + (unprompted - unconditional) * (reference_scale - 1.0)
}

/// How the predictions of a step become one: by classifier-free guidance, and by guidance by the
/// references. A scale of 1 is no guidance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guidance {
    pub scale: f64,
    pub reference_scale: f64,
}

impl Guidance {
    #[must_use]
    pub fn by_references(self) -> bool {
        self.reference_scale != 1.0
    }

    /// Whether a prediction has two halves, of which the first is for the negative prompt.
    #[must_use]
    pub fn has_halves(self) -> bool {
        self.scale != 1.0 || self.by_references()
    }

    /// The prompts of a batch's prediction.
    #[must_use]
    pub fn prompts(self, prompts: &[String], negative: &str) -> Vec<String> {
        let negative = self.has_halves().then(|| negative.to_owned());
        negative
            .into_iter()
            .chain(prompts.iter().cloned())
            .collect()
    }

    /// The images' conditions of a batch's prediction: `with` references, and in a half of its own
    /// `without`. With guidance by references both halves see them; a third prediction does not.
    pub fn halves(self, with: &Tensor, without: &Tensor) -> Tensor {
        match (self.has_halves(), self.by_references()) {
            (false, _) => with.shallow_clone(),
            (true, false) => Tensor::cat(&[without, with], 0),
            (true, true) => Tensor::cat(&[with, with], 0),
        }
    }

    /// The guided prediction. With guidance by references both halves of `predicted` see them, and
    /// `unconditional` is the prediction without prompt and references; it is not called otherwise.
    pub fn guided(self, predicted: Tensor, unconditional: impl FnOnce() -> Tensor) -> Tensor {
        if self.by_references() {
            let without = unconditional();
            guide_by_references(&without, &predicted, self.scale, self.reference_scale)
        } else if self.has_halves() {
            guide(&predicted, self.scale)
        } else {
            predicted
        }
    }
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
            let (alpha, sigma) = schedule.alpha_sigma(sampler.timesteps()[0]);
            let mut x = &signal * alpha + &noise * sigma;
            for i in 0..sampler.timesteps().len() {
                x = sampler.advance(i, &x, &noise);
            }
            // DPM-Solver++ ends without noise, the others at abar(0).
            let (alpha, sigma) = if method == DpmSolver {
                (1.0, 0.0)
            } else {
                schedule.alpha_sigma(0)
            };
            let expected = 0.7 * alpha - 1.3 * sigma;
            assert!(
                (x.double_value(&[]) - expected).abs() < 1e-12,
                "{method:?}: {x}"
            );
        }
    }

    /// Uses an ideal model of a single data point, which predicts the exact noise of any latent.
    #[test]
    fn v_and_epsilon_of_an_ideal_model_give_the_same_latents_on_every_schedule() {
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
                        let (alpha, sigma) = schedule.alpha_sigma(sampler.timesteps()[i]);
                        let noise = (&x - latent * alpha) / sigma;
                        let predicted = match prediction {
                            Prediction::Epsilon => noise,
                            Prediction::V => noise * alpha - latent * sigma,
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
            "501 sampling steps requested; the schedule allows 1 to 500"
        );
    }

    #[test]
    fn guidance_of_one_is_the_conditional_branch() {
        let both = Tensor::from_slice(&[1f32, 2., 5., 8.]);
        assert_eq!(Vec::<f32>::try_from(guide(&both, 1.0)).unwrap(), [5., 8.]);
        assert_eq!(Vec::<f32>::try_from(guide(&both, 2.0)).unwrap(), [9., 14.]);
    }

    #[test]
    fn without_guidance_a_prediction_is_what_it_is_and_nothing_else_is_predicted() {
        let both = Tensor::from_slice(&[1f32, 2., 5., 8.]);
        let guided = |scale, reference_scale, unconditional: Option<Tensor>| {
            let guidance = Guidance {
                scale,
                reference_scale,
            };
            let guided = guidance.guided(both.shallow_clone(), || unconditional.unwrap());
            Vec::<f32>::try_from(guided).unwrap()
        };
        assert_eq!(guided(1.0, 1.0, None), [1., 2., 5., 8.]);
        assert_eq!(guided(2.0, 1.0, None), [9., 14.]);
        let without = Tensor::from_slice(&[0f32, 1.]);
        assert_eq!(guided(2.0, 3.0, Some(without)), [11., 16.]);
        let prompts = |scale| {
            let guidance = Guidance {
                scale,
                reference_scale: 1.0,
            };
            guidance.prompts(&["a".to_owned()], "bad")
        };
        assert_eq!(
            (prompts(1.0), prompts(2.0)),
            (vec!["a".into()], vec!["bad".into(), "a".into()])
        );
    }

    #[test]
    fn each_condition_has_its_own_scale() {
        let (unconditional, both) = (
            Tensor::from_slice(&[0f32, 1.]),
            Tensor::from_slice(&[1f32, 2., 5., 8.]),
        );
        let guided = |scale, reference_scale| {
            let guided = guide_by_references(&unconditional, &both, scale, reference_scale);
            Vec::<f32>::try_from(guided).unwrap()
        };
        assert_eq!(guided(1.0, 1.0), [5., 8.], "the prediction under both");
        assert_eq!(guided(0.0, 0.0), [0., 1.], "under neither");
        assert_eq!(guided(0.0, 1.0), [1., 2.], "under the references alone");
        assert_eq!(guided(2.0, 3.0), [11., 16.]);
    }
}
