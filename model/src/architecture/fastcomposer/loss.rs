//! FastComposer's losses (`model.py` of its authors), for one object of each sample.

use tch::{Kind, Tensor};

/// Keeps a mean over an empty mask finite.
const EPSILON: f64 = 1e-5;

/// The masks of figures [B, 1, S, S] at the size of latents [.., h, w]: bilinear.
pub fn latent_mask(figures: &Tensor, latents: &Tensor) -> Tensor {
    let size = latents.size();
    figures.upsample_bilinear2d([size[2], size[3]], false, None, None)
}

/// How much more a subject's token is attended to by the background than by the figure, [B]: the
/// mean over layers and heads of the mean attention outside of the figure minus that inside.
/// `columns` are the attention probabilities of the token in each layer, [B, heads, h, w];
/// `figures` are masks [B, 1, S, S] in [0, 1]; `has` is [B], 0 for samples without an object.
pub fn localization(columns: &[Tensor], figures: &Tensor, has: &Tensor) -> Tensor {
    let layers: Vec<Tensor> = columns
        .iter()
        .map(|column| {
            let size = column.size();
            let mask =
                figures.internal_upsample_bilinear2d_aa([size[2], size[3]], false, None, None);
            let mean = |mask: &Tensor| {
                let sum = (column * mask).sum_dim_intlist([2i64, 3].as_slice(), false, Kind::Float);
                let cells = mask.sum_dim_intlist([2i64, 3].as_slice(), false, Kind::Float);
                sum / (cells + EPSILON)
            };
            let difference = mean(&(1 - &mask)) - mean(&mask);
            difference.mean_dim(1i64, false, Kind::Float)
        })
        .collect();
    let over_layers = Tensor::stack(&layers, 0).mean_dim(0i64, false, Kind::Float);
    // Its authors divide by the number of objects plus this.
    over_layers * has / (1.0 + EPSILON)
}
