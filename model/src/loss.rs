//! Equation 3 of the paper on latents, and the autoencoder's reconstruction loss. Mean reduction as
//! the paper writes it: a masked term is divided by the number of all values, whatever the mask's
//! size (notes 3.7). Losses are per sample, so that the trainer can weight them.

use crate::autoencoder::Moments;
use tch::{Kind, Tensor};

/// Weight of the KL divergence in the autoencoder's loss, per latent value.
const KL_WEIGHT: f64 = 1e-4;

/// Masks of equation 3 at latent resolution, [batch, 1, h, w], values in [0, 1].
#[derive(Debug)]
pub struct Masks {
    /// M_tgt: 1 where the target shows the image, 0 on its padding.
    pub target: Tensor,
    /// M_face: the fraction of each cell that lies in the face box.
    pub face: Tensor,
}

impl Masks {
    /// From masks at image resolution, [batch, 1, H, W] in [0, 1]: mean over each cell of `factor`
    /// by `factor` pixels. The target mask is then binarized at `threshold`; the face mask is not
    /// (notes 8).
    #[must_use]
    pub fn at_latents(target: &Tensor, face: &Tensor, factor: i64, threshold: f64) -> Self {
        let pool =
            |mask: &Tensor| mask.avg_pool2d([factor; 2], [factor; 2], [0, 0], false, true, None);
        Self {
            target: pool(target).gt(threshold).to_kind(Kind::Float),
            face: pool(face),
        }
    }
}

/// The two terms of equation 3 for each sample, both [batch] and neither weighted.
#[derive(Debug)]
pub struct NoiseLoss {
    pub target: Tensor,
    pub face: Tensor,
}

/// L(eps * M, eps_hat * M) for both masks, where L is the mean squared error over all values of a
/// sample.
#[must_use]
pub fn noise_loss(predicted: &Tensor, noise: &Tensor, masks: &Masks) -> NoiseLoss {
    let difference = predicted - noise;
    let term = |mask: &Tensor| mean_per_sample(&(&difference * mask).square());
    NoiseLoss {
        target: term(&masks.target),
        face: term(&masks.face),
    }
}

/// The autoencoder's loss for each image, [batch]: the absolute plus half the squared difference,
/// plus the posterior's KL divergence times 1e-4. This loss is our own choice; the paper takes its
/// autoencoder from Stable Diffusion.
#[must_use]
pub fn image_loss(decoded: &Tensor, images: &Tensor, moments: &Moments) -> ImageLoss {
    let difference = decoded - images;
    let reconstruction = mean_per_sample(&(difference.abs() + difference.square() * 0.5));
    ImageLoss {
        total: &reconstruction + moments.divergence() * KL_WEIGHT,
        reconstruction,
    }
}

/// The result of [`image_loss`], both [batch].
#[derive(Debug)]
pub struct ImageLoss {
    pub total: Tensor,
    pub reconstruction: Tensor,
}

fn mean_per_sample(xs: &Tensor) -> Tensor {
    xs.flatten(1, -1).mean_dim(1i64, false, None)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn masks_are_pooled_and_only_the_target_mask_is_binarized() {
        let target = Tensor::from_slice(&[1f32, 1., 0., 0., 1., 0., 1., 0.]).view([1, 1, 2, 4]);
        let face = Tensor::from_slice(&[1f32, 0., 0., 0., 0., 0., 0., 0.]).view([1, 1, 2, 4]);
        let masks = Masks::at_latents(&target, &face, 2, 0.5);
        assert_eq!(
            Vec::<f32>::try_from(masks.target.flatten(0, -1)).unwrap(),
            [1., 0.]
        );
        assert_eq!(
            Vec::<f32>::try_from(masks.face.flatten(0, -1)).unwrap(),
            [0.25, 0.]
        );
    }

    #[test]
    fn a_masked_term_is_divided_by_all_values() {
        let options = (Kind::Float, Device::Cpu);
        let predicted = Tensor::ones([1, 4, 2, 2], options) * 3.0;
        let noise = Tensor::ones([1, 4, 2, 2], options);
        let face = Tensor::from_slice(&[1f32, 0., 0., 0.]).view([1, 1, 2, 2]);
        let masks = Masks {
            target: Tensor::ones([1, 1, 2, 2], options),
            face,
        };
        let loss = noise_loss(&predicted, &noise, &masks);
        // Difference 2 everywhere: 4 in the mean; a quarter of the cells in the face mask.
        assert_eq!(
            (loss.target.double_value(&[0]), loss.face.double_value(&[0])),
            (4.0, 1.0)
        );
    }
}
