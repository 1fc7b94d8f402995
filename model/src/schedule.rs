//! The noise schedule (notes 5.3) and the values derived from it, in f64. Tensors occur only where
//! a prediction is converted to noise. Used by the architectures (noise levels, loss weights) and
//! the sampler.

use proto::architecture::{Noise, NoiseKind, Prediction};
use proto::spec::LossWeighting;
use tch::Tensor;

/// The cumulative product of (1 - beta) at each time step ("abar"), and the prediction type of a
/// model on this schedule.
#[derive(Debug, Clone, PartialEq)]
pub struct NoiseSchedule {
    alphas_cumprod: Vec<f64>,
    prediction: Prediction,
}

/// Beta of every time step.
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
                let [current, next] =
                    [timestep, timestep + 1].map(|it| cosine_alpha_bar(it as f64 / steps as f64));
                (1.0 - next / current).min(0.999)
            }
        })
        .collect()
}

/// abar of the cosine schedule at a fraction of its length.
fn cosine_alpha_bar(fraction: f64) -> f64 {
    ((fraction + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2)
        .cos()
        .powi(2)
}

impl Default for NoiseSchedule {
    /// Stable Diffusion's schedule.
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

    /// The number of time steps.
    #[must_use]
    pub fn timesteps(&self) -> usize {
        self.alphas_cumprod.len()
    }

    /// abar: the fraction of the signal's variance that remains at a time step.
    #[must_use]
    pub fn alphas_cumprod(&self, timestep: usize) -> f64 {
        self.alphas_cumprod[timestep]
    }

    /// (alpha, sigma) = (sqrt(abar), sqrt(1 - abar)), so that z_t = alpha * latent + sigma * noise.
    #[must_use]
    pub fn alpha_sigma(&self, timestep: usize) -> (f64, f64) {
        (
            self.alphas_cumprod[timestep].sqrt(),
            (1.0 - self.alphas_cumprod[timestep]).sqrt(),
        )
    }

    #[must_use]
    pub fn prediction(&self) -> Prediction {
        self.prediction
    }

    /// The predicted noise in `latents`, from the model's output (epsilon or v) at a time step.
    pub fn predicted_noise(&self, timestep: usize, latents: &Tensor, output: &Tensor) -> Tensor {
        match self.prediction {
            Prediction::Epsilon => output.shallow_clone(),
            Prediction::V => {
                let (alpha, sigma) = self.alpha_sigma(timestep);
                output * alpha + latents * sigma
            }
        }
    }

    /// The loss weight of a sample at this time step. The loss is the mean squared error of the
    /// model's output. [`LossWeighting::Epsilon`] is always 1. The others are weights for the error
    /// of the noise; the squared error of v is larger by 1 / abar.
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
    fn linear_and_cosine_schedules_match_hand_computed_values() {
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
    fn loss_weights_match_hand_computed_values() {
        let schedule = NoiseSchedule::default();
        let at = |timestep, weighting| schedule.loss_weight(timestep, weighting);
        assert_eq!(at(700, LossWeighting::Epsilon), 1.0);
        // abar(0) = 0.99915, so the SNR is 1175.47 and the weight 5 / 1175.47.
        assert!((at(0, LossWeighting::MinSnr) - 5.0 * 0.00085 / 0.99915).abs() < 1e-12);
        assert_eq!(at(999, LossWeighting::MinSnr), 1.0);
        assert_eq!(at(0, LossWeighting::Noise), 0.5);
        assert_eq!(at(999, LossWeighting::Noise), 20.0);
        assert!((at(500, LossWeighting::Noise) - 1.618_279f64.powi(2)).abs() < 1e-4);
    }

    #[test]
    fn v_gives_the_same_noise_and_the_same_latents_as_epsilon() {
        let of = |prediction| {
            NoiseSchedule::new(&Noise {
                prediction,
                ..Noise::default()
            })
        };
        let (epsilon, v) = (of(Prediction::Epsilon), of(Prediction::V));
        let (latents, noise) = (Tensor::from(0.7f64), Tensor::from(-1.3f64));
        for timestep in [0, 200, 500, 999] {
            let (alpha, sigma) = v.alpha_sigma(timestep);
            let noisy = &latents * alpha + &noise * sigma;
            let velocity = &noise * alpha - &latents * sigma;
            let found = v.predicted_noise(timestep, &noisy, &velocity);
            let expected = epsilon.predicted_noise(timestep, &noisy, &noise);
            assert!((found.double_value(&[]) - expected.double_value(&[])).abs() < 1e-12);
            let denoised = (noisy - found * sigma) / alpha;
            assert!(
                (denoised.double_value(&[]) - 0.7).abs() < 1e-12,
                "time step {timestep}"
            );
        }
    }

    #[test]
    fn with_v_min_snr_is_as_in_its_paper() {
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
