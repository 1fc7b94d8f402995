//! CLIP's text transformer (notes 5.1), Hugging Face names, and its tokenizer. Prompts become text states;
//! nothing here decides what is encoded when.

use crate::attention::attend;
use crate::layer::{LayerNorm, Linear};
use crate::parameter::{Init, Scope};
use instant_clip_tokenizer::Tokenizer;
use proto::spec::TextEncoderConfig;
use tch::{Device, Tensor};

/// Size of CLIP's vocabulary.
pub const VOCABULARY: i64 = 49_408;
/// Ends a prompt and fills the rest of the line.
pub const END: i64 = 49_407;

/// Prompts -> token ids.
pub struct Prompts {
    tokenizer: Tokenizer,
    tokens: usize,
}

impl std::fmt::Debug for Prompts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prompts")
            .field("tokens", &self.tokens)
            .finish_non_exhaustive()
    }
}

impl Prompts {
    /// `tokens` in each line, begin and end included.
    #[must_use]
    pub fn new(tokens: u32) -> Self {
        Self {
            tokenizer: Tokenizer::new(),
            tokens: tokens as usize,
        }
    }

    /// One line of ids: begin, the prompt, end; a long prompt is cut before the end token, a short one is
    /// filled with it.
    #[must_use]
    pub fn ids(&self, prompt: &str) -> Vec<i64> {
        let mut tokens = vec![self.tokenizer.start_of_text()];
        self.tokenizer.encode(prompt, &mut tokens);
        let mut ids: Vec<i64> = tokens.into_iter().map(|t| i64::from(t.to_u16())).collect();
        ids.truncate(self.tokens - 1);
        ids.resize(self.tokens, END);
        ids
    }

    /// [prompts, tokens] ids on a device.
    pub fn batch(&self, prompts: &[&str], device: Device) -> Tensor {
        let ids: Vec<i64> = prompts.iter().flat_map(|prompt| self.ids(prompt)).collect();
        Tensor::from_slice(&ids)
            .view([prompts.len() as i64, self.tokens as i64])
            .to_device(device)
    }
}

/// Token ids -> text states after the final norm.
#[derive(Debug)]
pub struct TextEncoder {
    token: Tensor,
    position: Tensor,
    layers: Vec<TextLayer>,
    norm: LayerNorm,
}

impl TextEncoder {
    #[must_use]
    pub fn new(scope: &Scope<'_>, config: &TextEncoderConfig) -> Self {
        let scope = scope.sub("text_model");
        let (width, tokens) = (i64::from(config.width), i64::from(config.tokens));
        let embeddings = scope.sub("embeddings");
        let table = |name: &str, rows: i64, deviation: f64| {
            embeddings
                .sub(name)
                .parameter("weight", &[rows, width], Init::Normal(deviation))
        };
        let layers = scope.sub("encoder").sub("layers");
        Self {
            token: table("token_embedding", VOCABULARY, 0.02),
            position: table("position_embedding", tokens, 0.01),
            layers: (0..config.layers)
                .map(|i| TextLayer::new(&layers.sub(i), config))
                .collect(),
            norm: LayerNorm::new(&scope.sub("final_layer_norm"), width),
        }
    }

    /// [batch, tokens] ids -> [batch, tokens, width].
    pub fn forward(&self, ids: &Tensor) -> Tensor {
        let embedded = Tensor::embedding(&self.token, ids, -1, false, false) + &self.position;
        let xs = self.layers.iter().fold(embedded, |xs, layer| layer.forward(&xs));
        self.norm.forward(&xs)
    }
}

/// Causal self-attention and a quick-GELU network, pre-normed.
#[derive(Debug)]
struct TextLayer {
    norm1: LayerNorm,
    queries: Linear,
    keys: Linear,
    values: Linear,
    out: Linear,
    norm2: LayerNorm,
    wide: Linear,
    narrow: Linear,
    heads: i64,
}

impl TextLayer {
    fn new(scope: &Scope<'_>, config: &TextEncoderConfig) -> Self {
        let width = i64::from(config.width);
        let (attention, network) = (scope.sub("self_attn"), scope.sub("mlp"));
        let projection = |name: &str| Linear::new(&attention.sub(name), width, width);
        Self {
            norm1: LayerNorm::new(&scope.sub("layer_norm1"), width),
            queries: projection("q_proj"),
            keys: projection("k_proj"),
            values: projection("v_proj"),
            out: projection("out_proj"),
            norm2: LayerNorm::new(&scope.sub("layer_norm2"), width),
            wide: Linear::new(&network.sub("fc1"), width, 4 * width),
            narrow: Linear::new(&network.sub("fc2"), 4 * width, width),
            heads: i64::from(config.heads),
        }
    }

    fn forward(&self, xs: &Tensor) -> Tensor {
        let normed = self.norm1.forward(xs);
        let (queries, keys) = (self.queries.forward(&normed), self.keys.forward(&normed));
        let found = attend(&queries, &keys, &self.values.forward(&normed), self.heads, true);
        let xs = xs + self.out.forward(&found);
        let wide = self.wide.forward(&self.norm2.forward(&xs));
        // Quick GELU: x * sigmoid(1.702 x).
        let gated = &wide * (&wide * 1.702).sigmoid();
        xs + self.narrow.forward(&gated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concept_words_are_one_token_and_the_line_is_filled_with_the_end_token() {
        // Token ids: notes 2.5.
        let prompts = Prompts::new(77);
        for (word, id) in [
            ("face", 1710),
            ("clothes", 7080),
            ("figure", 5274),
            ("Face", 1710),
        ] {
            let ids = prompts.ids(word);
            assert_eq!((ids.len(), &ids[..3]), (77, &[49_406, id, END][..]), "{word}");
            assert!(ids[2..].iter().all(|id| *id == END));
        }
        assert_eq!(prompts.ids("")[..2], [49_406, END]);
    }

    #[test]
    fn a_long_prompt_is_cut_and_keeps_its_end_token() {
        let prompts = Prompts::new(8);
        let ids = prompts.ids("a b c d e f g h i j k");
        assert_eq!((ids.len(), ids[0], ids[7]), (8, 49_406, END));
        assert!(ids[1..7].iter().all(|id| *id != END));
    }
}
