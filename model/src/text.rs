//! CLIP's text tower (notes 5.1), Hugging Face names, and its tokenizer. Prompts become text states; nothing
//! here decides what is encoded when.

use crate::clip::Transformer;
use crate::layer::{LayerNorm, Linear};
use crate::parameter::{Init, Scope};
use instant_clip_tokenizer::Tokenizer;
use proto::layout::{CLIP_END, TextLayout};
use tch::{Device, Kind, Tensor};

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
        ids.resize(self.tokens, CLIP_END);
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

/// Token ids -> text states.
#[derive(Debug)]
pub struct TextEncoder {
    token: Tensor,
    position: Tensor,
    transformer: Transformer,
    norm: LayerNorm,
    projection: Option<Linear>,
    end: Option<i64>,
}

impl TextEncoder {
    #[must_use]
    pub fn new(scope: &Scope<'_>, layout: &TextLayout) -> Self {
        let (tower, width) = (scope.sub("text_model"), layout.transformer.width);
        let embeddings = tower.sub("embeddings");
        let table = |name: &str, rows: i64, deviation: f64| {
            embeddings
                .sub(name)
                .parameter("weight", &[rows, width], Init::Normal(deviation))
        };
        let norm = LayerNorm::new(&tower.sub("final_layer_norm"), width);
        let projection = |to| Linear::unbiased(&scope.sub("text_projection"), width, to);
        Self {
            token: table("token_embedding", layout.vocabulary, 0.02),
            position: table("position_embedding", layout.tokens, 0.01),
            transformer: Transformer::new(&tower, &layout.transformer, true),
            norm: norm.epsilon(layout.transformer.norm_epsilon),
            projection: layout.projection.map(projection),
            end: layout.end,
        }
    }

    /// [batch, tokens] ids -> states after the final norm, [batch, tokens, width].
    pub fn forward(&self, ids: &Tensor) -> Tensor {
        let positions = self.position.narrow(0, 0, ids.size()[1]);
        let embedded = Tensor::embedding(&self.token, ids, -1, false, false) + positions;
        self.norm.forward(&self.transformer.forward(embedded))
    }

    /// The state at the end token of each line: ids [batch, tokens] and their states -> [batch, width].
    pub fn pool(&self, ids: &Tensor, states: &Tensor) -> Tensor {
        // argmax answers with the first of equals.
        let end = match self.end {
            Some(end) => ids.eq(end).to_kind(Kind::Int).argmax(-1, false),
            None => ids.argmax(-1, false),
        };
        let index = end.view([-1, 1, 1]).expand([-1, 1, states.size()[2]], false);
        states.gather(1, &index, false).squeeze_dim(1)
    }

    /// Pooled states [batch, width] -> embeddings [batch, projection]; None where there is no projection.
    pub fn project(&self, pooled: &Tensor) -> Option<Tensor> {
        Some(self.projection.as_ref()?.forward(pooled))
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
            assert_eq!(
                (ids.len(), &ids[..3]),
                (77, &[49_406, id, CLIP_END][..]),
                "{word}"
            );
            assert!(ids[2..].iter().all(|id| *id == CLIP_END));
        }
        assert_eq!(prompts.ids("")[..2], [49_406, CLIP_END]);
    }

    #[test]
    fn a_long_prompt_is_cut_and_keeps_its_end_token() {
        let prompts = Prompts::new(8);
        let ids = prompts.ids("a b c d e f g h i j k");
        assert_eq!((ids.len(), ids[0], ids[7]), (8, 49_406, CLIP_END));
        assert!(ids[1..7].iter().all(|id| *id != CLIP_END));
    }
}
