//! CLIP's image tower with its projection (notes 5.1) and Hugging Face weight names: images -> the
//! embeddings that CLIP-I and CLIP-T compare.

use crate::clip::Transformer;
use crate::error::ModelError;
use crate::layer::{LayerNorm, Linear, to_tokens};
use crate::parameter::{Init, Scope};
use image::RgbImage;
use model_data::example::Example;
use proto::layout::{Colours, ImageLayout};
use proto::spec::ImageEncoderConfig;
use tch::{Device, Kind, Tensor};

/// Images [B, 3, H, W] in [0, 1] -> the input of an image encoder, which expects these colours.
pub(crate) fn normalize_colours(images: &Tensor, colours: &Colours) -> Tensor {
    let channels = |values: [f32; 3]| {
        Tensor::from_slice(&values)
            .view([1, 3, 1, 1])
            .to_device(images.device())
    };
    (images - channels(colours.means)) / channels(colours.deviations)
}

/// Pixels of images of one side, row by row -> [B, 3, side, side] in [0, 1].
pub(crate) fn unit_pixels(bytes: &[u8], side: i64, device: Device) -> Tensor {
    let pixels = Tensor::from_slice(bytes)
        .view([-1, side, side, 3])
        .to_device(device)
        .permute([0, 3, 1, 2])
        .contiguous()
        .to_kind(Kind::Float);
    pixels / 255.0
}

/// The views of all references of a batch as CLIP's input, [B * N, 3, side, side]; the references
/// of one example are adjacent.
///
/// # Errors
/// A reference without a view of this side; an example with another number of references.
fn views(
    examples: &[Example],
    references: usize,
    side: i64,
    device: Device,
) -> Result<Tensor, ModelError> {
    let views = examples.iter().flat_map(|example| {
        let references = example.references.iter().take(references);
        references.map(|it| (example.position, it.view.as_ref()))
    });
    normalized(views, "view of a reference", side, device)
}

/// The views of the targets of a batch as CLIP's input, [B, 3, side, side].
///
/// # Errors
/// A target without a view of this side.
fn target_views(examples: &[Example], side: i64, device: Device) -> Result<Tensor, ModelError> {
    let views = examples.iter();
    let views = views.map(|example| (example.position, example.target_view.as_ref()));
    normalized(views, "view of the target", side, device)
}

fn normalized<'a>(
    views: impl Iterator<Item = (u64, Option<&'a RgbImage>)>,
    field: &'static str,
    side: i64,
    device: Device,
) -> Result<Tensor, ModelError> {
    let mut bytes = Vec::new();
    for (position, view) in views {
        let size = view.map(RgbImage::dimensions);
        match view {
            Some(view) if size == Some((side as u32, side as u32)) => {
                bytes.extend_from_slice(view.as_raw());
            }
            _ => {
                return Err(ModelError::Example {
                    position,
                    field,
                    found: size.map_or("missing".to_owned(), |(w, h)| format!("{w}x{h} pixels")),
                    expected: format!("the image encoder reads {side}x{side} pixels"),
                });
            }
        }
    }
    let pixels = unit_pixels(&bytes, side, device);
    Ok(normalize_colours(&pixels, &Colours::CLIP))
}

/// The image tower of a model, and what it reads of examples.
#[derive(Debug)]
pub(crate) struct Tower {
    encoder: ImageEncoder,
    /// Side of its images.
    side: i64,
}

impl Tower {
    pub(crate) fn new(scope: &Scope<'_>, config: &ImageEncoderConfig) -> Self {
        let layout = ImageLayout::from(config);
        Self {
            encoder: ImageEncoder::new(&scope.sub("image_encoder"), &layout),
            side: layout.side,
        }
    }

    /// Embeddings of the first `count` references of each example, [B * N, projection].
    ///
    /// # Errors
    /// As [`views`].
    pub(crate) fn references(
        &self,
        examples: &[Example],
        count: usize,
        options: (Kind, Device),
    ) -> Result<Tensor, ModelError> {
        let views = views(examples, count, self.side, options.1)?;
        Ok(self.encoder.forward(&views.to_kind(options.0)))
    }

    /// Embeddings of the targets, [B, projection].
    ///
    /// # Errors
    /// As [`target_views`].
    pub(crate) fn targets(
        &self,
        examples: &[Example],
        options: (Kind, Device),
    ) -> Result<Tensor, ModelError> {
        let views = target_views(examples, self.side, options.1)?;
        Ok(self.encoder.forward(&views.to_kind(options.0)))
    }

    /// The embedding of an image whose normalized values are zero, [1, projection].
    pub(crate) fn nothing(&self, options: (Kind, Device)) -> Tensor {
        let zeros = Tensor::zeros([1, 3, self.side, self.side], options);
        self.encoder.forward(&zeros)
    }
}

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
