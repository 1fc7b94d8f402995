//! The time step as the U-Net sees it: sines and cosines, then a small network (notes 3.1). Called by the
//! U-Net.

use crate::layer::Linear;
use crate::parameter::Scope;
use tch::{Kind, Tensor};

/// Sinusoidal embedding of time steps: [batch] -> [batch, width], cosines first; frequency i is 10000^(-i /
/// (width/2)).
pub fn timestep_embedding(timesteps: &Tensor, width: i64) -> Tensor {
    let half = width / 2;
    let frequencies: Vec<f32> = (0..half)
        .map(|i| (-(10_000f64.ln()) * i as f64 / half as f64).exp() as f32)
        .collect();
    let frequencies = Tensor::from_slice(&frequencies).to_device(timesteps.device());
    let angles = timesteps.to_kind(Kind::Float).unsqueeze(1) * frequencies.unsqueeze(0);
    Tensor::cat(&[angles.cos(), angles.sin()], 1)
}

/// `time_embed` of the CompVis U-Net: Linear, SiLU, Linear.
#[derive(Debug)]
pub struct TimeEmbedding {
    width: i64,
    first: Linear,
    second: Linear,
}

impl TimeEmbedding {
    /// Input width C, output width 4C.
    #[must_use]
    pub fn new(scope: &Scope<'_>, width: i64) -> Self {
        Self {
            width,
            first: Linear::new(&scope.sub(0), width, 4 * width),
            second: Linear::new(&scope.sub(2), 4 * width, 4 * width),
        }
    }

    /// [batch] time steps -> [batch, 4C].
    pub fn forward(&self, timesteps: &Tensor) -> Tensor {
        self.second.forward(
            &self
                .first
                .forward(&timestep_embedding(timesteps, self.width))
                .silu(),
        )
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn step_zero_is_ones_then_zeros_and_the_first_frequency_is_one() {
        let embedding = timestep_embedding(&Tensor::from_slice(&[0i64, 3]), 8);
        assert_eq!(embedding.size(), [2, 8]);
        assert_eq!(
            Vec::<f32>::try_from(embedding.get(0)).unwrap(),
            [1., 1., 1., 1., 0., 0., 0., 0.]
        );
        assert!((embedding.double_value(&[1, 0]) - 3f64.cos()).abs() < 1e-6);
        assert!((embedding.double_value(&[1, 4]) - 3f64.sin()).abs() < 1e-6);
    }
}
