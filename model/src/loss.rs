//! Equation 3 of the paper on latents, and the autoencoder's reconstruction loss. Mean reduction as
//! the paper writes it: a masked term is divided by the number of all values, whatever the mask's
//! size (notes 3.7). Losses are per sample, so that the trainer can weight them.

use crate::autoencoder::Moments;
use proto::architecture::Reconstruction;
use tch::{Kind, Tensor};

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
/// plus the edge loss and the posterior's KL divergence with their weights. This loss is our own
/// choice; the paper takes its autoencoder from Stable Diffusion.
#[must_use]
pub fn image_loss(
    decoded: &Tensor,
    images: &Tensor,
    moments: &Moments,
    weights: Reconstruction,
) -> ImageLoss {
    let difference = decoded - images;
    let reconstruction = mean_per_sample(&(difference.abs() + difference.square() * 0.5));
    let mut total = &reconstruction + moments.divergence() * weights.kl_loss_weight;
    if weights.edge_loss_weight != 0.0 {
        total += edge_loss(&difference) * weights.edge_loss_weight;
    }
    ImageLoss {
        total,
        reconstruction,
    }
}

/// The mean absolute difference between horizontal and between vertical neighbours of [batch, c, h,
/// w]: [batch]. Applied to a difference of images, it is the error of their outlines.
fn edge_loss(difference: &Tensor) -> Tensor {
    let along = |dimension: i64| {
        let length = difference.size()[dimension as usize] - 1;
        let step =
            difference.narrow(dimension, 1, length) - difference.narrow(dimension, 0, length);
        mean_per_sample(&step.abs())
    };
    (along(2) + along(3)) * 0.5
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
    fn the_edge_loss_is_the_mean_change_between_neighbours() {
        let image = Tensor::from_slice(&[0f32, 1., 3., 0., 1., 3.]).view([1, 1, 2, 3]);
        // Horizontal steps 1, 2, 1, 2; vertical steps 0, 0, 0.
        assert_eq!(edge_loss(&image).double_value(&[0]), 0.75);
        assert_eq!(edge_loss(&(&image + 5.0)).double_value(&[0]), 0.75);
    }

    #[test]
    fn the_terms_of_an_image_have_their_weights() {
        let options = (Kind::Float, Device::Cpu);
        let images = Tensor::zeros([1, 1, 2, 3], options);
        let decoded = Tensor::from_slice(&[0f32, 1., 3., 0., 1., 3.]).view([1, 1, 2, 3]);
        let moments = Moments {
            mean: Tensor::full([1, 1, 1, 1], 2.0, options),
            log_variance: Tensor::zeros([1, 1, 1, 1], options),
        };
        let total = |edge_loss_weight, kl_loss_weight| {
            let weights = Reconstruction {
                edge_loss_weight,
                kl_loss_weight,
            };
            let loss = image_loss(&decoded, &images, &moments, weights);
            (loss.total - loss.reconstruction).double_value(&[0])
        };
        assert_eq!(total(0.0, 0.0), 0.0);
        assert_eq!(total(2.0, 0.0), 1.5);
        // The divergence is half the squared mean.
        assert_eq!(total(0.0, 0.5), 1.0);
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
