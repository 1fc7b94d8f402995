//! The transformer of CLIP's two towers (notes 5.1) with Hugging Face weight names: pre-norm
//! self-attention and MLP blocks. Attention is causal in the text tower only.

use crate::attention::attend;
use crate::layer::{LayerNorm, Linear};
use crate::parameter::Scope;
use crate::recompute::ActivationCheckpoint;
use proto::layout::{Activation, TransformerLayout};
use tch::{Kind, Tensor};

/// The transformer blocks, without the embeddings and the final norm.
#[derive(Debug)]
pub struct Transformer {
    blocks: Vec<ActivationCheckpoint<Block>>,
}

impl Transformer {
    /// Weights are under `encoder.layers.I`.
    #[must_use]
    pub fn new(scope: &Scope<'_>, layout: &TransformerLayout, causal: bool) -> Self {
        let layers = scope.sub("encoder").sub("layers");
        Self {
            blocks: (0..layout.layers)
                .map(|i| {
                    let scope = layers.sub(i);
                    let block = Block::new(&scope, layout, causal);
                    ActivationCheckpoint::new(&[&scope], block)
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
    fc1: Linear,
    fc2: Linear,
    heads: i64,
    causal: bool,
    activation: Activation,
}

impl Block {
    fn new(scope: &Scope<'_>, layout: &TransformerLayout, causal: bool) -> Self {
        let width = layout.width;
        let (attention, mlp) = (scope.sub("self_attn"), scope.sub("mlp"));
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
            fc1: Linear::new(&mlp.sub("fc1"), width, layout.mlp_width),
            fc2: Linear::new(&mlp.sub("fc2"), layout.mlp_width, width),
            heads: layout.heads,
            causal,
            activation: layout.activation,
        }
    }

    fn forward(&self, xs: &Tensor) -> Tensor {
        let normed = self.norm1.forward(xs);
        let (queries, keys) = (self.queries.forward(&normed), self.keys.forward(&normed));
        let attended = attend(
            &queries,
            &keys,
            &self.values.forward(&normed),
            self.heads,
            self.causal,
        );
        let xs = xs + self.out.forward(&attended);
        let hidden = self.fc1.forward(&self.norm2.forward(&xs));
        let hidden = match self.activation {
            Activation::QuickGelu => &hidden * (&hidden * 1.702).sigmoid(),
            Activation::Gelu => hidden.gelu("none"),
        };
        xs + self.fc2.forward(&hidden)
    }
}

/// Vectors [B, width] scaled to length 1, in fp32.
pub(crate) fn unit(vectors: &Tensor) -> Tensor {
    let vectors = vectors.to_kind(Kind::Float);
    let lengths = vectors
        .square()
        .sum_dim_intlist([1i64].as_slice(), true, Kind::Float)
        .sqrt();
    &vectors / lengths.clamp_min(1e-6)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn vectors_have_length_one_and_zero_stays() {
        let vectors = Tensor::from_slice(&[3f32, 4., 0., 0.]).view([2, 2]);
        let units = Vec::<f32>::try_from(unit(&vectors).flatten(0, 1)).unwrap();
        assert_eq!(units, [0.6, 0.8, 0., 0.]);
    }
}
