//! IP-Adapter's own layers (`ip_adapter.py` and `attention_processor.py` of its authors): a
//! projection of an image embedding to tokens, and keys and values of these tokens for each
//! attention to the text. Weight names are those of the published files.

use crate::layer::{LayerNorm, Linear};
use crate::parameter::Scope;
use crate::unet::{ImageContext, transformer_widths};
use proto::architecture::IP_ADAPTER_TOKENS;
use proto::layout::UNetLayout;
use proto::public::names::ip_adapter_number;
use tch::Tensor;

/// See the module's header.
#[derive(Debug)]
pub struct Adapter {
    projection: Linear,
    norm: LayerNorm,
    /// Keys and values of each spatial transformer, in the order of [`transformer_widths`].
    attentions: Vec<[Linear; 2]>,
    context_dim: i64,
}

impl Adapter {
    /// `embedding` is the width of an image embedding.
    #[must_use]
    pub fn new(scope: &Scope<'_>, layout: &UNetLayout, embedding: i64) -> Self {
        let (image, own) = (scope.sub("image_proj"), scope.sub("ip_adapter"));
        let context = layout.context_dim;
        let widths = transformer_widths(layout).into_iter().enumerate();
        let attentions = widths.map(|(transformer, width)| {
            let scope = own.sub(ip_adapter_number(transformer, layout));
            ["to_k_ip", "to_v_ip"].map(|name| Linear::unbiased(&scope.sub(name), context, width))
        });
        Self {
            projection: Linear::new(
                &image.sub("proj"),
                embedding,
                i64::from(IP_ADAPTER_TOKENS) * context,
            ),
            norm: LayerNorm::new(&image.sub("norm"), context),
            attentions: attentions.collect(),
            context_dim: context,
        }
    }

    /// Embeddings [batch, N, embedding] -> tokens [batch, 4 * N, context_dim].
    pub fn tokens(&self, embeddings: &Tensor) -> Tensor {
        let projected = self.projection.forward(embeddings);
        let batch = embeddings.size()[0];
        self.norm
            .forward(&projected.reshape([batch, -1, self.context_dim]))
    }

    /// The further keys and values of each spatial transformer; empty at scale 0, so that the U-Net
    /// is its base bit for bit.
    #[must_use]
    pub fn context(&self, tokens: &Tensor, scale: f64) -> Vec<ImageContext> {
        if scale == 0.0 {
            return Vec::new();
        }
        let context = |[keys, values]: &[Linear; 2]| {
            let values = values.forward(tokens);
            ImageContext {
                keys: keys.forward(tokens),
                values: if scale == 1.0 { values } else { values * scale },
            }
        };
        self.attentions.iter().map(context).collect()
    }
}
