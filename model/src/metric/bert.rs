//! BERT's encoder (Devlin et al. 2018) with the names of `transformers`: post-norm self-attention
//! and MLP blocks. For sentence embeddings.

use crate::attention::attend;
use crate::layer::{LayerNorm, Linear};
use crate::parameter::{Init, Scope};
use proto::layout::BertLayout;
use tch::Tensor;

/// Token ids -> states, without the pooler.
#[derive(Debug)]
pub(crate) struct Bert {
    token: Tensor,
    position: Tensor,
    kind: Tensor,
    norm: LayerNorm,
    blocks: Vec<Block>,
}

impl Bert {
    pub(crate) fn new(scope: &Scope<'_>, layout: &BertLayout) -> Self {
        let (embeddings, layers) = (scope.sub("embeddings"), scope.sub("encoder").sub("layer"));
        let table = |name: &str, rows: i64| {
            let shape = [rows, layout.transformer.width];
            let init = Init::Normal(0.02);
            embeddings.sub(name).parameter("weight", &shape, init)
        };
        Self {
            token: table("word_embeddings", layout.vocabulary),
            position: table("position_embeddings", layout.tokens),
            kind: table("token_type_embeddings", layout.types),
            norm: norm(&embeddings, layout),
            blocks: (0..layout.transformer.layers)
                .map(|i| Block::new(&layers.sub(i), layout))
                .collect(),
        }
    }

    /// One text's ids [1, tokens], without padding -> states [1, tokens, width].
    pub(crate) fn forward(&self, ids: &Tensor) -> Tensor {
        let positions = self.position.narrow(0, 0, ids.size()[1]);
        let tokens = Tensor::embedding(&self.token, ids, -1, false, false);
        let embedded = tokens + positions + self.kind.get(0);
        let blocks = self.blocks.iter();
        blocks.fold(self.norm.forward(&embedded), |xs, block| block.forward(&xs))
    }
}

#[derive(Debug)]
struct Block {
    queries: Linear,
    keys: Linear,
    values: Linear,
    out: Linear,
    attention_norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    norm: LayerNorm,
    heads: i64,
}

impl Block {
    fn new(scope: &Scope<'_>, layout: &BertLayout) -> Self {
        let (width, mlp_width) = (layout.transformer.width, layout.transformer.mlp_width);
        let attention = scope.sub("attention");
        let (own, output) = (attention.sub("self"), attention.sub("output"));
        let projection = |name: &str| Linear::new(&own.sub(name), width, width);
        Self {
            queries: projection("query"),
            keys: projection("key"),
            values: projection("value"),
            out: Linear::new(&output.sub("dense"), width, width),
            attention_norm: norm(&output, layout),
            fc1: Linear::new(&scope.sub("intermediate").sub("dense"), width, mlp_width),
            fc2: Linear::new(&scope.sub("output").sub("dense"), mlp_width, width),
            norm: norm(&scope.sub("output"), layout),
            heads: layout.transformer.heads,
        }
    }

    fn forward(&self, xs: &Tensor) -> Tensor {
        let (queries, keys) = (self.queries.forward(xs), self.keys.forward(xs));
        let values = self.values.forward(xs);
        let attended = attend(&queries, &keys, &values, self.heads, false);
        let xs = self
            .attention_norm
            .forward(&(xs + self.out.forward(&attended)));
        let hidden = self.fc1.forward(&xs).gelu("none");
        self.norm.forward(&(&xs + self.fc2.forward(&hidden)))
    }
}

fn norm(scope: &Scope<'_>, layout: &BertLayout) -> LayerNorm {
    let norm = LayerNorm::new(&scope.sub("LayerNorm"), layout.transformer.width);
    norm.epsilon(layout.transformer.norm_epsilon)
}
