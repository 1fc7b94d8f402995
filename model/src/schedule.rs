//! The noise schedule (notes 5.3) and what is derived from it: pure numbers, no tensors but those
//! that a prediction is turned into. Called by the architectures (noise levels, loss weights) and
//! the sampler.

use proto::architecture::{Noise, NoiseKind, Prediction};
use proto::spec::LossWeighting;
use tch::Tensor;

/// The product of (1 - beta) up to each time step ("abar"), and what a model on this schedule
/// predicts.
#[derive(Debug, Clone, PartialEq)]
pub struct NoiseSchedule {
    alphas_cumprod: Vec<f64>,
    prediction: Prediction,
}

/// beta of every time step.
#[must_use]
pub fn betas(noise: &Noise) -> Vec<f64> {
    let (steps, start, end) = (noise.steps as usize, noise.beta_start, noise.beta_end);
    let fraction = |timestep: usize| timestep as f64 / (steps - 1) as f64;
    (0..steps)
        .map(|timestep| match noise.kind {
            NoiseKind::ScaledLinear => {
                let (first, last) = (start.sqrt(), end.sqrt());
                (first + (last - first) * fraction(timestep)).powi(2)
            }
            NoiseKind::Linear => start + (end - start) * fraction(timestep),
            NoiseKind::Cosine => {
                let [here, next] =
                    [timestep, timestep + 1].map(|it| cosine(it as f64 / steps as f64));
                (1.0 - next / here).min(0.999)
            }
        })
        .collect()
}

/// abar of the cosine schedule at a fraction of its length.
fn cosine(at: f64) -> f64 {
    ((at + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2)
        .cos()
        .powi(2)
}

impl Default for NoiseSchedule {
    /// Stable Diffusion's.
    fn default() -> Self {
        Self::new(&Noise::default())
    }
}

impl NoiseSchedule {
    #[must_use]
    pub fn new(noise: &Noise) -> Self {
        let alphas_cumprod = betas(noise).into_iter().scan(1.0, |product, beta| {
            *product *= 1.0 - beta;
            Some(*product)
        });
        Self {
            alphas_cumprod: alphas_cumprod.collect(),
            prediction: noise.prediction,
        }
    }

    /// Time steps are below this.
    #[must_use]
    pub fn timesteps(&self) -> usize {
        self.alphas_cumprod.len()
    }

    /// abar: the fraction of the signal's variance that is left at a time step.
    #[must_use]
    pub fn alphas_cumprod(&self, timestep: usize) -> f64 {
        self.alphas_cumprod[timestep]
    }

    /// (sqrt(abar), sqrt(1 - abar)): z_t is the first times the latent plus the second times the
    /// noise.
    #[must_use]
    pub fn mix(&self, timestep: usize) -> (f64, f64) {
        (
            self.alphas_cumprod[timestep].sqrt(),
            (1.0 - self.alphas_cumprod[timestep]).sqrt(),
        )
    }

    #[must_use]
    pub fn prediction(&self) -> Prediction {
        self.prediction
    }

    /// The noise that a model says is in latents, from what it predicted for them at a time step.
    pub fn noise_in(&self, timestep: usize, latents: &Tensor, predicted: &Tensor) -> Tensor {
        match self.prediction {
            Prediction::Epsilon => predicted.shallow_clone(),
            Prediction::V => {
                let (signal, level) = self.mix(timestep);
                predicted * signal + latents * level
            }
        }
    }

    /// How much a sample at this time step counts in the loss, which is a mean square of what is
    /// predicted. All but [`LossWeighting::Epsilon`], which weighs nothing, weigh the error of the
    /// noise: one of v is larger by 1 / abar.
    #[must_use]
    pub fn loss_weight(&self, timestep: usize, weighting: LossWeighting) -> f64 {
        let alphas_cumprod = self.alphas_cumprod[timestep];
        let snr = alphas_cumprod / (1.0 - alphas_cumprod);
        let weight = match weighting {
            LossWeighting::Epsilon => return 1.0,
            LossWeighting::MinSnr => snr.min(5.0) / snr,
            LossWeighting::Noise => snr.recip().clamp(0.5, 20.0),
        };
        match self.prediction {
            Prediction::Epsilon => weight,
            Prediction::V => weight * alphas_cumprod,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_of_notes_5_3() {
        let schedule = NoiseSchedule::default();
        let anchors = [
            (0, 0.000_850_00, 0.999_150_00, 0.029_167),
            (1, 0.000_854_70, 0.998_296_03, 0.041_314),
            (100, 0.001_383_97, 0.894_223_48, 0.343_931),
            (500, 0.004_814_95, 0.276_332_68, 1.618_279),
            (999, 0.012_000_00, 0.004_660_10, 14.614_641),
        ];
        let betas = betas(&Noise::default());
        for (timestep, expected, alphas_cumprod, sigma) in anchors {
            assert!((betas[timestep] - expected).abs() < 6e-9, "beta {timestep}");
            let found = schedule.alphas_cumprod(timestep);
            assert!(
                (found - alphas_cumprod).abs() < 6e-9,
                "abar {timestep}: {found}"
            );
            assert!(
                (((1.0 - found) / found).sqrt() - sigma).abs() < 6e-7,
                "sigma {timestep}"
            );
        }
    }

    #[test]
    fn other_kinds_by_hand() {
        let of = |kind, steps| Noise {
            kind,
            steps,
            beta_start: 0.1,
            beta_end: 0.3,
            ..Noise::default()
        };
        let linear = betas(&of(NoiseKind::Linear, 11));
        assert!((linear[5] - 0.2).abs() < 1e-15 && linear.len() == 11);
        let schedule = NoiseSchedule::new(&of(NoiseKind::Linear, 11));
        assert!((schedule.alphas_cumprod(1) - 0.9 * 0.88).abs() < 1e-15);
        let cosine = NoiseSchedule::new(&of(NoiseKind::Cosine, 1000));
        // cos(pi / 4 * (0.5 + 0.008) / 0.504)^2 over cos(pi / 2 * 0.008 / 1.008)^2
        assert!(
            (cosine.alphas_cumprod(499) - 0.493_843).abs() < 1e-5,
            "{}",
            cosine.alphas_cumprod(499)
        );
        assert!(cosine.alphas_cumprod(999) > 0.0 && cosine.alphas_cumprod(999) < 1e-6);
        assert_eq!(betas(&of(NoiseKind::Cosine, 1000))[999], 0.999);
    }

    #[test]
    fn loss_weights_by_hand() {
        let schedule = NoiseSchedule::default();
        let at = |timestep, weighting| schedule.loss_weight(timestep, weighting);
        assert_eq!(at(700, LossWeighting::Epsilon), 1.0);
        // abar(0) = 0.99915: snr 1175.47, so 5 / 1175.47.
        assert!((at(0, LossWeighting::MinSnr) - 5.0 * 0.00085 / 0.99915).abs() < 1e-12);
        assert_eq!(at(999, LossWeighting::MinSnr), 1.0);
        assert_eq!(at(0, LossWeighting::Noise), 0.5);
        assert_eq!(at(999, LossWeighting::Noise), 20.0);
        assert!((at(500, LossWeighting::Noise) - 1.618_279f64.powi(2)).abs() < 1e-4);
    }

    #[test]
    fn v_says_the_same_noise_and_the_same_latents_as_epsilon() {
        let of = |prediction| {
            NoiseSchedule::new(&Noise {
                prediction,
                ..Noise::default()
            })
        };
        let (epsilon, v) = (of(Prediction::Epsilon), of(Prediction::V));
        let (latents, noise) = (Tensor::from(0.7f64), Tensor::from(-1.3f64));
        for timestep in [0, 200, 500, 999] {
            let (signal, level) = v.mix(timestep);
            let noisy = &latents * signal + &noise * level;
            let velocity = &noise * signal - &latents * level;
            let found = v.noise_in(timestep, &noisy, &velocity);
            let plain = epsilon.noise_in(timestep, &noisy, &noise);
            assert!((found.double_value(&[]) - plain.double_value(&[])).abs() < 1e-12);
            let back = (noisy - found * level) / signal;
            assert!(
                (back.double_value(&[]) - 0.7).abs() < 1e-12,
                "time step {timestep}"
            );
        }
    }

    #[test]
    fn with_v_min_snr_is_what_its_paper_says() {
        let noise = Noise {
            prediction: Prediction::V,
            ..Noise::default()
        };
        let schedule = NoiseSchedule::new(&noise);
        for timestep in [0, 200, 500, 999] {
            let snr = schedule.alphas_cumprod(timestep) / (1.0 - schedule.alphas_cumprod(timestep));
            let found = schedule.loss_weight(timestep, LossWeighting::MinSnr);
            assert!((found - snr.min(5.0) / (snr + 1.0)).abs() < 1e-12);
        }
        assert_eq!(schedule.loss_weight(500, LossWeighting::Epsilon), 1.0);
    }
}
