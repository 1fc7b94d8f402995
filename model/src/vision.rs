//! CLIP's image tower with its projection (notes 5.1) and Hugging Face weight names: images -> the
//! embeddings that CLIP-I and CLIP-T compare.

use crate::clip::Transformer;
use crate::layer::{LayerNorm, Linear, to_tokens};
use crate::parameter::{Init, Scope};
use proto::layout::ImageLayout;
use tch::Tensor;

#[derive(Debug)]
pub struct ImageEncoder {
    class: Tensor,
    patches: Tensor,
    positions: Tensor,
    pre_norm: LayerNorm,
    transformer: Transformer,
    post_norm: LayerNorm,
    projection: Linear,
    patch: i64,
}

impl ImageEncoder {
    #[must_use]
    pub fn new(scope: &Scope<'_>, layout: &ImageLayout) -> Self {
        let (tower, width) = (scope.sub("vision_model"), layout.transformer.width);
        let embeddings = tower.sub("embeddings");
        let tokens = (layout.side / layout.patch).pow(2) + 1;
        // Public files spell the name like this.
        let pre_norm = LayerNorm::new(&tower.sub("pre_layrnorm"), width);
        let post_norm = LayerNorm::new(&tower.sub("post_layernorm"), width);
        Self {
            class: embeddings.parameter("class_embedding", &[width], Init::Normal(0.02)),
            patches: embeddings.sub("patch_embedding").parameter(
                "weight",
                &[width, 3, layout.patch, layout.patch],
                Init::FanIn,
            ),
            positions: embeddings.sub("position_embedding").parameter(
                "weight",
                &[tokens, width],
                Init::Normal(0.02),
            ),
            pre_norm: pre_norm.epsilon(layout.transformer.norm_epsilon),
            transformer: Transformer::new(&tower, &layout.transformer, false),
            post_norm: post_norm.epsilon(layout.transformer.norm_epsilon),
            projection: Linear::unbiased(&scope.sub("visual_projection"), width, layout.projection),
            patch: layout.patch,
        }
    }

    /// Normalized images [batch, 3, side, side] -> embeddings [batch, projection], which are not
    /// scaled to unit length.
    pub fn forward(&self, images: &Tensor) -> Tensor {
        let stride = [self.patch; 2];
        let cast = |tensor: &Tensor| tensor.to_kind(images.kind());
        let patches = images.conv2d(
            &cast(&self.patches),
            None::<&Tensor>,
            stride,
            [0, 0],
            [1, 1],
            1,
        );
        let class = cast(&self.class).expand([patches.size()[0], 1, -1], false);
        let tokens = Tensor::cat(&[class, to_tokens(&patches)], 1) + cast(&self.positions);
        let states = self.transformer.forward(self.pre_norm.forward(&tokens));
        self.projection
            .forward(&self.post_norm.forward(&states.select(1, 0)))
    }
}
