//! The transformer of CLIP's two towers (notes 5.1), Hugging Face names: pre-normed self-attention
//! and feed-forward blocks. The text tower's is causal, the image tower's is not.

use crate::attention::attend;
use crate::layer::{LayerNorm, Linear};
use crate::parameter::Scope;
use crate::recompute::ActivationCheckpoint;
use proto::layout::{Activation, TransformerLayout};
use tch::Tensor;

/// The blocks, without embeddings before and norm after them.
#[derive(Debug)]
pub struct Transformer {
    blocks: Vec<ActivationCheckpoint<Block>>,
}

impl Transformer {
    /// Weights lie under `encoder.layers.I`.
    #[must_use]
    pub fn new(scope: &Scope<'_>, layout: &TransformerLayout, causal: bool) -> Self {
        let layers = scope.sub("encoder").sub("layers");
        Self {
            blocks: (0..layout.layers)
                .map(|i| {
                    let at = layers.sub(i);
                    let block = Block::new(&at, layout, causal);
                    ActivationCheckpoint::new(&[&at], block)
                })
                .collect(),
        }
    }

    /// [batch, tokens, width] -> the same shape.
    pub fn forward(&self, xs: Tensor) -> Tensor {
        let blocks = self.blocks.iter();
        blocks.fold(xs, |xs, block| {
            block.run([&xs], |block, [xs]| block.forward(xs))
        })
    }
}

#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    queries: Linear,
    keys: Linear,
    values: Linear,
    out: Linear,
    norm2: LayerNorm,
    wide: Linear,
    narrow: Linear,
    heads: i64,
    causal: bool,
    activation: Activation,
}

impl Block {
    fn new(scope: &Scope<'_>, layout: &TransformerLayout, causal: bool) -> Self {
        let width = layout.width;
        let (attention, network) = (scope.sub("self_attn"), scope.sub("mlp"));
        let projection = |name: &str| Linear::new(&attention.sub(name), width, width);
        let norm =
            |name: &str| LayerNorm::new(&scope.sub(name), width).epsilon(layout.norm_epsilon);
        Self {
            norm1: norm("layer_norm1"),
            queries: projection("q_proj"),
            keys: projection("k_proj"),
            values: projection("v_proj"),
            out: projection("out_proj"),
            norm2: norm("layer_norm2"),
            wide: Linear::new(&network.sub("fc1"), width, layout.mlp_width),
            narrow: Linear::new(&network.sub("fc2"), layout.mlp_width, width),
            heads: layout.heads,
            causal,
            activation: layout.activation,
        }
    }

    fn forward(&self, xs: &Tensor) -> Tensor {
        let normed = self.norm1.forward(xs);
        let (queries, keys) = (self.queries.forward(&normed), self.keys.forward(&normed));
        let found = attend(
            &queries,
            &keys,
            &self.values.forward(&normed),
            self.heads,
            self.causal,
        );
        let xs = xs + self.out.forward(&found);
        let wide = self.wide.forward(&self.norm2.forward(&xs));
        let active = match self.activation {
            Activation::QuickGelu => &wide * (&wide * 1.702).sigmoid(),
            Activation::Gelu => wide.gelu("none"),
        };
        xs + self.narrow.forward(&active)
    }
}
