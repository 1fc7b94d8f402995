//! The noise schedule of Stable Diffusion (notes 5.3) and what is derived from it: pure numbers, no tensors.
//! Called by the trainer (noise levels, loss weights) and the sampler.

use proto::spec::LossWeighting;

/// Training time steps, 0..1000.
pub const TIMESTEPS: usize = 1000;
const BETA_FIRST: f64 = 0.00085;
const BETA_LAST: f64 = 0.012;

/// The product of (1 - beta) up to each time step ("abar").
#[derive(Debug, Clone, PartialEq)]
pub struct NoiseSchedule {
    kept: Vec<f64>,
}

/// beta of a time step: linear in the square root ("scaled linear").
#[must_use]
pub fn beta(timestep: usize) -> f64 {
    let (first, last) = (BETA_FIRST.sqrt(), BETA_LAST.sqrt());
    let share = timestep as f64 / (TIMESTEPS - 1) as f64;
    (first + (last - first) * share).powi(2)
}

impl Default for NoiseSchedule {
    fn default() -> Self {
        let kept = (0..TIMESTEPS).scan(1.0, |product, timestep| {
            *product *= 1.0 - beta(timestep);
            Some(*product)
        });
        Self { kept: kept.collect() }
    }
}

impl NoiseSchedule {
    /// abar: the share of the signal's variance that is left at a time step below [`TIMESTEPS`].
    #[must_use]
    pub fn kept(&self, timestep: usize) -> f64 {
        self.kept[timestep]
    }

    /// (sqrt(abar), sqrt(1 - abar)): z_t is the first times the latent plus the second times the noise.
    #[must_use]
    pub fn mix(&self, timestep: usize) -> (f64, f64) {
        (self.kept[timestep].sqrt(), (1.0 - self.kept[timestep]).sqrt())
    }

    /// How much a sample at this time step counts in the loss.
    #[must_use]
    pub fn loss_weight(&self, timestep: usize, weighting: LossWeighting) -> f64 {
        let snr = self.kept[timestep] / (1.0 - self.kept[timestep]);
        match weighting {
            LossWeighting::Epsilon => 1.0,
            LossWeighting::MinSnr => snr.min(5.0) / snr,
            LossWeighting::Noise => snr.recip().clamp(0.5, 20.0),
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
        for (timestep, expected, kept, sigma) in anchors {
            assert!((beta(timestep) - expected).abs() < 6e-9, "beta {timestep}");
            let found = schedule.kept(timestep);
            assert!((found - kept).abs() < 6e-9, "abar {timestep}: {found}");
            assert!(
                (((1.0 - found) / found).sqrt() - sigma).abs() < 6e-7,
                "sigma {timestep}"
            );
        }
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
}
