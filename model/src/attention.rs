//! Attention: the multi-head kernel, the U-Net's spatial transformer (notes 3.1), and RetriNet's
//! cross-attention from target to references (notes 3.4). Forward passes use libtorch's fused
//! kernel, which never materializes the attention probabilities, except where it is slow.

use crate::layer::{GroupNorm, GroupNormOptions, LayerNorm, Linear, PointConv, to_map, to_tokens};
use crate::parameter::Scope;
use tch::{Device, Kind, Tensor};

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
    let scores = heads * queries.size()[2] * keys.size()[2];
    let is_half = queries.kind() != Kind::Float;
    let out = if is_half && queries.device() == Device::Cpu && scores <= EXPLICIT_SCORES {
        attend_explicitly(&queries, &keys, &values, causal)
    } else {
        let mask: Option<Tensor> = None;
        Tensor::scaled_dot_product_attention(
            &queries, &keys, &values, mask, 0.0, causal, None, false,
        )
    };
    out.transpose(1, 2).flatten(2, 3)
}

/// On a CPU, libtorch's fused kernel is two to six times slower in half precision than these
/// operations, at the small sizes. Above this number of scores of one image the memory that they
/// take counts more: SD 1.5 at 384 pixels has 42 million.
const EXPLICIT_SCORES: i64 = 1 << 20;

/// Attention of [batch, heads, tokens, d], with the probabilities in memory.
fn attend_explicitly(queries: &Tensor, keys: &Tensor, values: &Tensor, causal: bool) -> Tensor {
    let size = queries.size();
    let scale = (size[3] as f64).sqrt().recip();
    let mut scores = (queries * scale).matmul(&keys.transpose(2, 3));
    if causal {
        let options = (scores.kind(), scores.device());
        let future = Tensor::full([size[2], keys.size()[2]], f64::NEG_INFINITY, options);
        scores += future.triu(1);
    }
    scores.softmax(-1, None).matmul(values)
}

/// CompVis `CrossAttention`: queries from one sequence, keys and values from another or the same.
#[derive(Debug)]
pub struct CrossAttention {
    queries: Linear,
    keys: Linear,
    values: Linear,
    out: Linear,
    heads: i64,
}

impl CrossAttention {
    /// `width` is that of the queries and the output, `context_width` that of the context.
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

    /// Attention probabilities for inspection, [batch, heads, q, kv]. [`Self::forward`] does not
    /// materialize them.
    pub fn probabilities(&self, xs: &Tensor, context: &Tensor) -> Tensor {
        let split = |xs: Tensor| xs.unflatten(2, [self.heads, -1]).transpose(1, 2);
        let (queries, keys) = (
            split(self.queries.forward(xs)),
            split(self.keys.forward(context)),
        );
        let scale = (queries.size()[3] as f64).sqrt().recip();
        (queries.matmul(&keys.transpose(2, 3)) * scale).softmax(-1, Kind::Float)
    }

    /// The attention probabilities of one token for each sample, fp32, [batch, heads, q]. `token`
    /// is [batch].
    pub fn column(&self, xs: &Tensor, context: &Tensor, token: &Tensor) -> Tensor {
        let all = self.probabilities(xs, context);
        let size = all.size();
        let index = token
            .view([-1, 1, 1, 1])
            .expand([size[0], size[1], size[2], 1], false);
        all.gather(3, &index, false).squeeze_dim(3)
    }

    /// [batch, q, width] and [batch, kv, context_width] -> [batch, q, width]. `image` holds further
    /// keys and values, [batch, tokens, width]; the attention to them is added to the output.
    pub fn forward(&self, xs: &Tensor, context: &Tensor, image: Option<[&Tensor; 2]>) -> Tensor {
        let (queries, keys) = (self.queries.forward(xs), self.keys.forward(context));
        let values = self.values.forward(context);
        let attended = attend(&queries, &keys, &values, self.heads, false);
        let attended = match image {
            Some([keys, values]) => attended + attend(&queries, keys, values, self.heads, false),
            None => attended,
        };
        self.out.forward(&attended)
    }
}

/// GEGLU feed-forward: linear to 2 x 4C, value half times the exact GELU of the gate half, linear
/// back to C.
#[derive(Debug)]
struct FeedForward {
    expand: Linear,
    out: Linear,
}

impl FeedForward {
    fn new(scope: &Scope<'_>, width: i64) -> Self {
        let net = scope.sub("net");
        Self {
            expand: Linear::new(&net.sub(0).sub("proj"), width, 8 * width),
            out: Linear::new(&net.sub(2), 4 * width, width),
        }
    }

    fn forward(&self, xs: &Tensor) -> Tensor {
        let halves = self.expand.forward(xs).chunk(2, -1);
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

    /// [`Self::forward`], and the attention probabilities of one token of the text.
    fn forward_with_column(
        &self,
        xs: &Tensor,
        context: &Tensor,
        token: &Tensor,
    ) -> (Tensor, Tensor) {
        let normed = self.norm1.forward(xs);
        let xs = xs + self.attention1.forward(&normed, &normed, None);
        let normed = self.norm2.forward(&xs);
        let column = self.attention2.column(&normed, context, token);
        let xs = &xs + self.attention2.forward(&normed, context, None);
        (
            &xs + self.feed_forward.forward(&self.norm3.forward(&xs)),
            column,
        )
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
    proj_in: PointConv,
    block: TransformerBlock,
    proj_out: PointConv,
}

impl SpatialTransformer {
    #[must_use]
    pub fn new(scope: &Scope<'_>, width: i64, context_width: i64, heads: i64, groups: i64) -> Self {
        let epsilon = 1e-6;
        let norm = GroupNormOptions { groups, epsilon };
        Self {
            norm: GroupNorm::new(&scope.sub("norm"), width, norm),
            proj_in: PointConv::new(&scope.sub("proj_in"), width, width),
            block: TransformerBlock::new(
                &scope.sub("transformer_blocks").sub(0),
                width,
                context_width,
                heads,
            ),
            proj_out: PointConv::zero(&scope.sub("proj_out"), width, width),
        }
    }

    /// [batch, width, h, w] and text states [batch, tokens, context_width] -> [batch, width, h, w].
    /// `image` holds further keys and values for the attention to the text, [batch, tokens, width].
    pub fn forward(&self, xs: &Tensor, context: &Tensor, image: Option<[&Tensor; 2]>) -> Tensor {
        // The alias accumulates the gradients of keys and values before they join those of other
        // blocks that use the same states.
        let context = &context.alias();
        let tokens = self.proj_in.tokens(&to_tokens(&self.norm.forward(xs)));
        let tokens = self
            .proj_out
            .tokens(&self.block.forward(&tokens, context, image));
        xs + to_map(&tokens, xs.size()[2])
    }

    /// [`Self::forward`], and the attention probabilities from each cell to one token of the text,
    /// fp32, [batch, heads, h, w]. `token` is [batch].
    pub fn forward_with_column(
        &self,
        xs: &Tensor,
        context: &Tensor,
        token: &Tensor,
    ) -> (Tensor, Tensor) {
        let context = &context.alias();
        let height = xs.size()[2];
        let tokens = self.proj_in.tokens(&to_tokens(&self.norm.forward(xs)));
        let (tokens, column) = self.block.forward_with_column(&tokens, context, token);
        let tokens = self.proj_out.tokens(&tokens);
        (
            xs + to_map(&tokens, height),
            column.unflatten(2, [height, -1]),
        )
    }

    /// Attention probabilities from each cell of [batch, width, h, w] to each token of the text:
    /// [batch, heads, h * w, tokens].
    pub fn probabilities(&self, xs: &Tensor, context: &Tensor) -> Tensor {
        let tokens = self.proj_in.tokens(&to_tokens(&self.norm.forward(xs)));
        self.block.probabilities(&tokens, context)
    }
}

/// One cross-attention of the retrieval block with its zero convolution. Queries come from the
/// target's features, keys and values from those of all references. There is no residual before the
/// zero convolution (notes 3.4; the 3C + 4C^2 parameters before it match the count in the notes).
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

    /// Target features [batch, c, h, w] and reference features [batch * n, c, h, w], with the
    /// references of one target adjacent -> the residual for the target's skip connection, [batch,
    /// c, h, w].
    pub fn forward(&self, target: &Tensor, references: &Tensor) -> Tensor {
        let (batch, height) = (target.size()[0], target.size()[2]);
        let tokens = to_tokens(references);
        let tokens = tokens.reshape([batch, -1, tokens.size()[2]]);
        let queries = self.query_norm.forward(&to_tokens(target));
        let attended =
            self.attention
                .forward(&queries, &self.reference_norm.forward(&tokens), None);
        to_map(&self.zero.tokens(&attended), height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::{Purpose, normal};

    #[test]
    fn explicit_attention_is_that_of_the_fused_kernel() {
        tch::set_num_threads(1);
        let shaped = |seed, tokens| normal(&[seed], Purpose::Target, &[2, tokens, 12], Device::Cpu);
        for (causal, keys) in [(false, 5), (true, 7)] {
            let [queries, keys, values] =
                [(1, 7), (2, keys), (3, keys)].map(|(seed, it)| shaped(seed, it).squeeze_dim(0));
            let fused = attend(&queries, &keys, &values, 3, causal);
            let split = |xs: &Tensor| xs.unflatten(2, [3, -1]).transpose(1, 2);
            let explicit =
                attend_explicitly(&split(&queries), &split(&keys), &split(&values), causal);
            let difference = explicit.transpose(1, 2).flatten(2, 3) - &fused;
            assert!(difference.abs().max().double_value(&[]) < 1e-5);
            let half = |xs: &Tensor| xs.to_kind(Kind::BFloat16);
            let in_half = attend(&half(&queries), &half(&keys), &half(&values), 3, causal);
            let difference = in_half.to_kind(Kind::Float) - fused;
            let largest = difference.abs().max().double_value(&[]);
            assert!((1e-6..0.05).contains(&largest), "{largest}");
        }
    }
}
