//! Attention: the multi-head kernel, the U-Net's spatial transformer (notes 3.1), and RetriNet's
//! bare cross-attention from target to references (notes 3.4). Probabilities are never
//! materialised: libtorch's fused kernel computes all of it.

use crate::layer::{GroupNorm, LayerNorm, Linear, PointConv, to_map, to_tokens};
use crate::parameter::Scope;
use tch::{Kind, Tensor};

/// Scaled dot-product attention of [batch, tokens, heads * d] queries, keys and values -> [batch,
/// query tokens, heads * d].
pub fn attend(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    heads: i64,
    causal: bool,
) -> Tensor {
    let split = |xs: &Tensor| xs.unflatten(2, [heads, -1]).transpose(1, 2);
    let (queries, keys, values) = (split(queries), split(keys), split(values));
    let mask: Option<Tensor> = None;
    let out = Tensor::scaled_dot_product_attention(
        &queries, &keys, &values, mask, 0.0, causal, None, false,
    );
    out.transpose(1, 2).flatten(2, 3)
}

/// CompVis `CrossAttention`: queries from one sequence, keys and values from another (or the same).
#[derive(Debug)]
pub struct CrossAttention {
    queries: Linear,
    keys: Linear,
    values: Linear,
    out: Linear,
    heads: i64,
}

impl CrossAttention {
    /// `width` of the queries and the output, `context_width` of keys' and values' source.
    #[must_use]
    pub fn new(scope: &Scope<'_>, width: i64, context_width: i64, heads: i64) -> Self {
        Self {
            queries: Linear::unbiased(&scope.sub("to_q"), width, width),
            keys: Linear::unbiased(&scope.sub("to_k"), context_width, width),
            values: Linear::unbiased(&scope.sub("to_v"), context_width, width),
            out: Linear::new(&scope.sub("to_out").sub(0), width, width),
            heads,
        }
    }

    /// Attention probabilities, [batch, heads, q, kv]: to look at. [`Self::forward`] never holds
    /// them.
    pub fn probabilities(&self, xs: &Tensor, context: &Tensor) -> Tensor {
        let split = |xs: Tensor| xs.unflatten(2, [self.heads, -1]).transpose(1, 2);
        let (queries, keys) = (
            split(self.queries.forward(xs)),
            split(self.keys.forward(context)),
        );
        let scale = (queries.size()[3] as f64).sqrt().recip();
        (queries.matmul(&keys.transpose(2, 3)) * scale).softmax(-1, Kind::Float)
    }

    /// [batch, q, width] and [batch, kv, context_width] -> [batch, q, width]. `image`: keys and
    /// values [batch, tokens, width] that the same queries attend to as well.
    pub fn forward(&self, xs: &Tensor, context: &Tensor, image: Option<[&Tensor; 2]>) -> Tensor {
        let (queries, keys) = (self.queries.forward(xs), self.keys.forward(context));
        let values = self.values.forward(context);
        let found = attend(&queries, &keys, &values, self.heads, false);
        let found = match image {
            Some([keys, values]) => found + attend(&queries, keys, values, self.heads, false),
            None => found,
        };
        self.out.forward(&found)
    }
}

/// Linear to 2 x 4C, value half times the exact GELU of the gate half, linear back to C.
#[derive(Debug)]
struct FeedForward {
    wide: Linear,
    out: Linear,
}

impl FeedForward {
    fn new(scope: &Scope<'_>, width: i64) -> Self {
        let net = scope.sub("net");
        Self {
            wide: Linear::new(&net.sub(0).sub("proj"), width, 8 * width),
            out: Linear::new(&net.sub(2), 4 * width, width),
        }
    }

    fn forward(&self, xs: &Tensor) -> Tensor {
        let halves = self.wide.forward(xs).chunk(2, -1);
        self.out.forward(&(&halves[0] * halves[1].gelu("none")))
    }
}

/// CompVis `BasicTransformerBlock`: self-attention, attention to the text, feed-forward, each
/// pre-normed with a residual.
#[derive(Debug)]
struct TransformerBlock {
    norm1: LayerNorm,
    attention1: CrossAttention,
    norm2: LayerNorm,
    attention2: CrossAttention,
    norm3: LayerNorm,
    feed_forward: FeedForward,
}

impl TransformerBlock {
    fn new(scope: &Scope<'_>, width: i64, context_width: i64, heads: i64) -> Self {
        Self {
            norm1: LayerNorm::new(&scope.sub("norm1"), width),
            attention1: CrossAttention::new(&scope.sub("attn1"), width, width, heads),
            norm2: LayerNorm::new(&scope.sub("norm2"), width),
            attention2: CrossAttention::new(&scope.sub("attn2"), width, context_width, heads),
            norm3: LayerNorm::new(&scope.sub("norm3"), width),
            feed_forward: FeedForward::new(&scope.sub("ff"), width),
        }
    }

    fn forward(&self, xs: &Tensor, context: &Tensor, image: Option<[&Tensor; 2]>) -> Tensor {
        let normed = self.norm1.forward(xs);
        let xs = xs + self.attention1.forward(&normed, &normed, None);
        let xs = &xs
            + self
                .attention2
                .forward(&self.norm2.forward(&xs), context, image);
        &xs + self.feed_forward.forward(&self.norm3.forward(&xs))
    }

    /// Probabilities of the attention to the text.
    fn probabilities(&self, xs: &Tensor, context: &Tensor) -> Tensor {
        let normed = self.norm1.forward(xs);
        let xs = xs + self.attention1.forward(&normed, &normed, None);
        self.attention2
            .probabilities(&self.norm2.forward(&xs), context)
    }
}

/// CompVis `SpatialTransformer` of depth 1, with 1x1 convolutions in and out.
#[derive(Debug)]
pub struct SpatialTransformer {
    norm: GroupNorm,
    inward: PointConv,
    block: TransformerBlock,
    outward: PointConv,
}

impl SpatialTransformer {
    #[must_use]
    pub fn new(scope: &Scope<'_>, width: i64, context_width: i64, heads: i64, groups: i64) -> Self {
        Self {
            norm: GroupNorm::new(&scope.sub("norm"), groups, width, 1e-6),
            inward: PointConv::new(&scope.sub("proj_in"), width, width),
            block: TransformerBlock::new(
                &scope.sub("transformer_blocks").sub(0),
                width,
                context_width,
                heads,
            ),
            outward: PointConv::zero(&scope.sub("proj_out"), width, width),
        }
    }

    /// [batch, width, h, w] and text states [batch, tokens, context_width] -> [batch, width, h, w].
    /// `image`: further keys and values for the attention to the text, [batch, tokens, width].
    pub fn forward(&self, xs: &Tensor, context: &Tensor, image: Option<[&Tensor; 2]>) -> Tensor {
        // Keys' and values' gradients are added up here, also where others use the same states.
        let context = &context.alias();
        let tokens = self.inward.tokens(&to_tokens(&self.norm.forward(xs)));
        let tokens = self
            .outward
            .tokens(&self.block.forward(&tokens, context, image));
        xs + to_map(&tokens, xs.size()[2])
    }

    /// How much each cell of [batch, width, h, w] attends to each token of the text: [batch, heads,
    /// h * w, tokens].
    pub fn probabilities(&self, xs: &Tensor, context: &Tensor) -> Tensor {
        let tokens = self.inward.tokens(&to_tokens(&self.norm.forward(xs)));
        self.block.probabilities(&tokens, context)
    }
}

/// One cross-attention of the retrieval block with its zero convolution: queries from the target's
/// features, keys and values from all references'. No residual in front of the zero convolution
/// (notes 3.4; 3C + 4C^2 parameters before it, which is the notes' count).
#[derive(Debug)]
pub struct ReferenceAttention {
    query_norm: LayerNorm,
    reference_norm: LayerNorm,
    attention: CrossAttention,
    zero: PointConv,
}

impl ReferenceAttention {
    #[must_use]
    pub fn new(attention: &Scope<'_>, zero: &Scope<'_>, width: i64, heads: i64) -> Self {
        Self {
            query_norm: LayerNorm::unbiased(&attention.sub("norm_q"), width),
            reference_norm: LayerNorm::unbiased(&attention.sub("norm_kv"), width),
            attention: CrossAttention::new(attention, width, width, heads),
            zero: PointConv::zero(zero, width, width),
        }
    }

    /// Target features [batch, c, h, w] and references' features [batch * n, c, h, w], the
    /// references of one target next to each other -> what is added to the target's skip
    /// connection, [batch, c, h, w].
    pub fn forward(&self, target: &Tensor, references: &Tensor) -> Tensor {
        let (batch, height) = (target.size()[0], target.size()[2]);
        let tokens = to_tokens(references);
        let tokens = tokens.reshape([batch, -1, tokens.size()[2]]);
        let queries = self.query_norm.forward(&to_tokens(target));
        let found = self
            .attention
            .forward(&queries, &self.reference_norm.forward(&tokens), None);
        to_map(&self.zero.tokens(&found), height)
    }
}
