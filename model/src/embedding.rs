//! The U-Net's time embedding: a sinusoidal embedding, then a small MLP (notes 3.1).

use crate::layer::Linear;
use crate::parameter::Scope;
use proto::layout::Frequencies;
use tch::{Kind, Tensor};

/// Sinusoidal embedding of time steps: [batch] -> [batch, width]; width is even.
pub fn timestep_embedding(timesteps: &Tensor, width: i64, frequencies: Frequencies) -> Tensor {
    let half = width / 2;
    let scale = 10_000f64.ln() / (half as f64 - frequencies.shift);
    let values: Vec<f32> = (0..half)
        .map(|i| (-scale * i as f64).exp() as f32)
        .collect();
    let values = Tensor::from_slice(&values).to_device(timesteps.device());
    let angles = timesteps.to_kind(Kind::Float).unsqueeze(1) * values.unsqueeze(0);
    let (cosines, sines) = (angles.cos(), angles.sin());
    if frequencies.cosines_first {
        Tensor::cat(&[cosines, sines], 1)
    } else {
        Tensor::cat(&[sines, cosines], 1)
    }
}

/// `time_embed` of the CompVis U-Net: Linear, SiLU, Linear.
#[derive(Debug)]
pub struct TimeEmbedding {
    width: i64,
    frequencies: Frequencies,
    first: Linear,
    second: Linear,
}

impl TimeEmbedding {
    /// Input width C, output width 4C.
    #[must_use]
    pub fn new(scope: &Scope<'_>, width: i64, frequencies: Frequencies) -> Self {
        Self {
            width,
            frequencies,
            first: Linear::new(&scope.sub(0), width, 4 * width),
            second: Linear::new(&scope.sub(2), 4 * width, 4 * width),
        }
    }

    /// [batch] time steps -> [batch, 4C].
    pub fn forward(&self, timesteps: &Tensor) -> Tensor {
        let embedded = timestep_embedding(timesteps, self.width, self.frequencies);
        self.second.forward(&self.first.forward(&embedded).silu())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn step_zero_is_ones_then_zeros_and_the_first_frequency_is_one() {
        let embedding =
            timestep_embedding(&Tensor::from_slice(&[0i64, 3]), 8, Frequencies::default());
        assert_eq!(embedding.size(), [2, 8]);
        assert_eq!(
            Vec::<f32>::try_from(embedding.get(0)).unwrap(),
            [1., 1., 1., 1., 0., 0., 0., 0.]
        );
        assert!((embedding.double_value(&[1, 0]) - 3f64.cos()).abs() < 1e-6);
        assert!((embedding.double_value(&[1, 4]) - 3f64.sin()).abs() < 1e-6);
    }
}
