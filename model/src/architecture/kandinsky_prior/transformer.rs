//! Kandinsky 2.2's prior (`PriorTransformer` of `diffusers`): from a prompt to an image embedding.
//! Its tokens are the text states, the text embedding, the time step, the noisy image embedding and
//! a learned one, whose last state is the prediction. Weight names are those of `diffusers`.

use crate::embedding::timestep_embedding;
use crate::layer::{LayerNorm, Linear};
use crate::parameter::{Init, Scope};
use crate::recompute::ActivationCheckpoint;
use proto::layout::{Frequencies, PriorLayout};
use tch::{Kind, Tensor};

/// Added to the logits of tokens that must not be attended to.
const MASKED: f64 = -10_000.0;
/// Tokens after the text states.
const ADDED: i64 = 4;

/// See the module's header.
#[derive(Debug)]
pub struct Prior {
    positions: Tensor,
    learned: Tensor,
    time: [Linear; 2],
    image_in: Linear,
    embedding_in: Linear,
    states_in: Linear,
    blocks: Vec<ActivationCheckpoint<Block>>,
    norm: LayerNorm,
    out: Linear,
    /// Mean and standard deviation of image embeddings, [1, embedding]; never trained.
    statistics: [Tensor; 2],
    width: i64,
}

/// The conditions of a prediction.
#[derive(Debug)]
pub struct PriorText<'a> {
    /// Text states, [batch, tokens, embedding].
    pub states: &'a Tensor,
    /// Text embeddings, [batch, embedding].
    pub embedding: &'a Tensor,
    /// True for tokens of the prompt, with its start and end, [batch, tokens].
    pub mask: &'a Tensor,
}

impl Prior {
    #[must_use]
    pub fn new(scope: &Scope<'_>, layout: &PriorLayout) -> Self {
        let (width, embedding) = (layout.width, layout.embedding);
        let linear =
            |name: &str, inputs: i64, outputs: i64| Linear::new(&scope.sub(name), inputs, outputs);
        let time = scope.sub("time_embedding");
        let small = Init::Normal(0.02);
        let blocks = (0..layout.layers).map(|i| {
            let scope = scope.sub("transformer_blocks").sub(i);
            let block = Block::new(&scope, width, layout.heads);
            ActivationCheckpoint::new(&[&scope], block)
        });
        let blocks = blocks.collect();
        Self {
            positions: scope.parameter(
                "positional_embedding",
                &[1, layout.tokens + ADDED, width],
                small,
            ),
            learned: scope.parameter("prd_embedding", &[1, 1, width], small),
            time: ["linear_1", "linear_2"].map(|name| Linear::new(&time.sub(name), width, width)),
            image_in: linear("proj_in", embedding, width),
            embedding_in: linear("embedding_proj", embedding, width),
            states_in: linear("encoder_hidden_states_proj", embedding, width),
            blocks,
            norm: LayerNorm::new(&scope.sub("norm_out"), width),
            out: linear("proj_to_clip_embeddings", width, embedding),
            statistics: [
                scope.parameter("clip_mean", &[1, embedding], Init::Zeros),
                scope.parameter("clip_std", &[1, embedding], Init::Ones),
            ],
            width,
        }
    }

    /// The clean image embedding that belongs to noisy ones [batch, embedding] at time steps
    /// [batch].
    pub fn forward(&self, noisy: &Tensor, timesteps: &Tensor, text: &PriorText<'_>) -> Tensor {
        let dtype = noisy.kind();
        let time = timestep_embedding(timesteps, self.width, Frequencies::default());
        let time = self.time[1].forward(&self.time[0].forward(&time).silu());
        let batch = noisy.size()[0];
        let tokens = [
            self.states_in.forward(text.states),
            self.embedding_in.forward(text.embedding).unsqueeze(1),
            time.to_kind(dtype).unsqueeze(1),
            self.image_in.forward(noisy).unsqueeze(1),
            self.learned.to_kind(dtype).expand([batch, 1, -1], false),
        ];
        let tokens = Tensor::cat(&tokens, 1) + self.positions.to_kind(dtype);
        let mask = mask(text.mask, tokens.size()[1]).to_kind(dtype);
        let states = self.blocks.iter().fold(tokens, |xs, block| {
            block.run([&xs, &mask], |block, [xs, mask]| block.forward(xs, mask))
        });
        let last = self.norm.forward(&states).select(1, -1);
        self.out.forward(&last)
    }

    /// Image embeddings in the space of the prior, where each value has mean 0 and variance 1.
    pub fn whiten(&self, embeddings: &Tensor) -> Tensor {
        let [mean, deviation] = &self.statistics;
        (embeddings - mean.to_kind(embeddings.kind())) / deviation.to_kind(embeddings.kind())
    }

    /// The inverse of [`Self::whiten`].
    pub fn unwhiten(&self, embeddings: &Tensor) -> Tensor {
        let [mean, deviation] = &self.statistics;
        embeddings * deviation.to_kind(embeddings.kind()) + mean.to_kind(embeddings.kind())
    }
}

/// What is added to the logits, [batch, 1, all, all]: a token sees those before it, and of the text
/// only the prompt.
fn mask(text: &Tensor, all: i64) -> Tensor {
    let options = (Kind::Float, text.device());
    let padding: Tensor = (text.to_kind(Kind::Float) - 1.0) * -MASKED;
    let padding = padding.constant_pad_nd([0, all - text.size()[1]]);
    let later = Tensor::full([all, all], MASKED, options).triu(1);
    padding.unsqueeze(1).unsqueeze(1) + later
}

/// A pre-norm transformer block.
#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    queries: Linear,
    keys: Linear,
    values: Linear,
    out: Linear,
    norm3: LayerNorm,
    expand: Linear,
    contract: Linear,
    heads: i64,
}

impl Block {
    fn new(scope: &Scope<'_>, width: i64, heads: i64) -> Self {
        let (attention, net) = (scope.sub("attn1"), scope.sub("ff").sub("net"));
        let projection = |name: &str| Linear::new(&attention.sub(name), width, width);
        Self {
            norm1: LayerNorm::new(&scope.sub("norm1"), width),
            queries: projection("to_q"),
            keys: projection("to_k"),
            values: projection("to_v"),
            out: Linear::new(&attention.sub("to_out").sub(0), width, width),
            norm3: LayerNorm::new(&scope.sub("norm3"), width),
            expand: Linear::new(&net.sub(0).sub("proj"), width, 4 * width),
            contract: Linear::new(&net.sub(2), 4 * width, width),
            heads,
        }
    }

    fn forward(&self, xs: &Tensor, mask: &Tensor) -> Tensor {
        let normed = self.norm1.forward(xs);
        let split = |xs: Tensor| xs.unflatten(2, [self.heads, -1]).transpose(1, 2);
        let attended = Tensor::scaled_dot_product_attention(
            &split(self.queries.forward(&normed)),
            &split(self.keys.forward(&normed)),
            &split(self.values.forward(&normed)),
            Some(mask),
            0.0,
            false,
            None,
            false,
        );
        let xs = xs + self.out.forward(&attended.transpose(1, 2).flatten(2, 3));
        let hidden = self.expand.forward(&self.norm3.forward(&xs)).gelu("none");
        &xs + self.contract.forward(&hidden)
    }
}
