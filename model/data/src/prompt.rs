//! CLIP's tokenizer (notes 5.1): the token ids of a prompt for the text encoder, cleaned as
//! `open_clip` cleans it. No tensors.

use crate::clean::clean;
use crate::sample::split_tags;
use instant_clip_tokenizer::Tokenizer;
use proto::layout::CLIP_END;

/// Converts prompts to token ids.
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
    /// `tokens` is the length of each sequence, start and end token included.
    #[must_use]
    pub fn new(tokens: u32) -> Self {
        Self {
            tokenizer: Tokenizer::new(),
            tokens: tokens as usize,
        }
    }

    /// One sequence of ids: start, the prompt, end. A long prompt is truncated before the end
    /// token, a short one is padded with it.
    #[must_use]
    pub fn ids(&self, prompt: &str) -> Vec<i64> {
        let mut tokens = vec![self.tokenizer.start_of_text()];
        self.tokenizer.encode(&clean(prompt), &mut tokens);
        let mut ids: Vec<i64> = tokens.into_iter().map(|t| i64::from(t.to_u16())).collect();
        ids.truncate(self.tokens - 1);
        ids.resize(self.tokens, CLIP_END);
        ids
    }

    /// As [`Self::ids`], but a long prompt is sliced, so that it loses its end token, as
    /// torchmetrics does.
    #[must_use]
    pub fn sliced_ids(&self, prompt: &str) -> Vec<i64> {
        self.subject_ids(prompt, &[]).0
    }

    /// The ids of a prompt as FastComposer reads it, and the position of the last token of its
    /// subject: the first of its tags that is in `subjects`. A long prompt is truncated without an
    /// end token, a short one is padded with it. No position: the prompt names no subject, or its
    /// name is cut off.
    #[must_use]
    pub fn subject_ids(&self, prompt: &str, subjects: &[String]) -> (Vec<i64>, Option<usize>) {
        let encoded = |text: &str| {
            let mut tokens = vec![self.tokenizer.start_of_text()];
            self.tokenizer.encode(&clean(text), &mut tokens);
            tokens
        };
        let tokens = encoded(prompt).into_iter();
        let mut ids: Vec<i64> = tokens.map(|t| i64::from(t.to_u16())).collect();
        ids.push(CLIP_END);
        ids.truncate(self.tokens);
        ids.resize(self.tokens, CLIP_END);
        let is_subject = |tag: &&str| subjects.iter().any(|it| it == *tag);
        let named = split_tags(prompt).find(is_subject);
        let position = named.and_then(|tag| {
            // `tag` is a part of `prompt`.
            let end = tag.as_ptr() as usize - prompt.as_ptr() as usize + tag.len();
            let last = encoded(prompt.get(..end)?).len() - 1;
            (last < self.tokens).then_some(last)
        });
        (ids, position)
    }

    /// Number of tokens of a prompt of any length, without start and end token.
    #[must_use]
    pub fn count(&self, prompt: &str) -> u64 {
        let mut tokens = Vec::new();
        self.tokenizer.encode(&clean(prompt), &mut tokens);
        tokens.len() as u64
    }

    /// The part of a prompt that fits into the sequence, as text: lower case, with a space after
    /// each word.
    #[must_use]
    pub fn kept(&self, prompt: &str) -> String {
        let mut tokens = Vec::new();
        self.tokenizer.encode(&clean(prompt), &mut tokens);
        tokens.truncate(self.tokens.saturating_sub(2));
        self.tokenizer.decode(tokens).trim_end().to_owned()
    }

    /// Length of a sequence.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concept_words_are_one_token_and_the_sequence_is_padded_with_the_end_token() {
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

    /// Token ids of `open_clip`, recorded by `tests/parity/tokens.py`.
    #[test]
    fn tokens_are_open_clip_s() {
        let text = include_str!("../../../tests/golden/prompts.json");
        let cases: serde_json::Value = serde_json::from_str(text).expect("a list of prompts");
        let (prompts, cases) = (Prompts::new(77), cases.as_array().expect("a list"));
        assert!(cases.len() > 200);
        for case in cases {
            let prompt = case["prompt"].as_str().expect("a prompt");
            let expected: Vec<i64> = serde_json::from_value(case["ids"].clone()).expect("ids");
            let ids = prompts.ids(prompt);
            assert_eq!(ids[..expected.len()], expected, "{prompt:?}");
            assert!(ids[expected.len()..].iter().all(|id| *id == CLIP_END));
        }
    }

    #[test]
    fn the_subject_is_the_last_token_of_the_first_tag_that_names_one() {
        let (prompts, subjects) = (Prompts::new(77), ["1girl".to_owned(), "1boy".to_owned()]);
        let of = |prompt: &str| prompts.subject_ids(prompt, &subjects);
        // "1", "girl", ","
        let (ids, position) = of("1girl, blue_hair");
        assert_eq!((ids[0], position), (49_406, Some(2)));
        assert_eq!(ids, prompts.ids("1girl, blue_hair"));
        assert_eq!(of("blue hair, 1boy").1, Some(5));
        assert_eq!(of("solo, 1girls").1, None);
        assert_eq!(of("").1, None);
        // Far away it is cut off, and so is the end token.
        let long = format!("{}1girl", "blue, ".repeat(50));
        let (ids, position) = of(&long);
        assert_eq!((ids.len(), position), (77, None));
        assert!(ids.iter().all(|id| *id != CLIP_END));
    }

    #[test]
    fn a_long_prompt_is_cut_and_keeps_its_end_token() {
        let prompts = Prompts::new(8);
        let ids = prompts.ids("a b c d e f g h i j k");
        assert_eq!((ids.len(), ids[0], ids[7]), (8, 49_406, CLIP_END));
        assert!(ids[1..7].iter().all(|id| *id != CLIP_END));
        let sliced = prompts.sliced_ids("a b c d e f g h i j k");
        assert_eq!((sliced.len(), &sliced[..7]), (8, &ids[..7]));
        assert_ne!(sliced[7], CLIP_END);
        assert_eq!(prompts.sliced_ids("a b"), prompts.ids("a b"));
        assert_eq!(prompts.kept("a b c d e f g h i j k"), "a b c d e f");
        assert_eq!(prompts.kept("1girl, Blue_Hair"), "1 girl , blue _ hair");
    }
}
