//! Counts the prompts that a model cannot read whole, because its text encoder takes a fixed number
//! of tokens, and the tags that are lost most often. Pure. Used by the import, `describe` and
//! `submit`.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::prompt::Prompts;
use crate::sample::split_tags;

/// Number of tokens of CLIP, which Stable Diffusion 1 uses. Start and end token are included.
pub const CLIP_TOKENS: u32 = 77;

/// Number of lost tags that are listed.
pub const LISTED: usize = 20;

/// Bounds of the memory for tags. Captions in place of tags are all different.
const REMEMBERED: usize = 1 << 18;

/// Which prompts of a set of samples are cut.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutPrompts {
    /// Number of tokens that the model reads, with start and end token.
    pub tokens: u32,
    pub samples: u64,
    /// Samples with a longer prompt.
    pub cut: u64,
    /// Tokens of the longest prompt, with start and end token.
    pub longest: u64,
    /// The tags that are not read whole, and the number of samples that lose them. The most
    /// frequent first; at most [`LISTED`].
    pub lost: Vec<(String, u64)>,
}

impl CutPrompts {
    /// One sentence; None if no prompt is cut. `named` is the number of lost tags in it.
    #[must_use]
    pub fn sentence(&self, named: usize) -> Option<String> {
        if self.cut == 0 {
            return None;
        }
        let lost = self.lost.iter().take(named);
        let lost: Vec<String> = lost
            .map(|(tag, n)| format!("{} ({n})", short(tag)))
            .collect();
        let lost = match lost.as_slice() {
            [] => String::new(),
            tags => format!("; lost most often: {}", tags.join(", ")),
        };
        Some(format!(
            "{} of {} prompts are longer than the {} tokens that the model reads, and are cut \
             there (the longest has {}){lost}",
            self.cut, self.samples, self.tokens, self.longest
        ))
    }
}

/// A caption instead of a tag may be long.
fn short(tag: &str) -> String {
    const LONGEST: usize = 40;
    match tag.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &tag[..end]),
        None => tag.to_owned(),
    }
}

/// Counts cut prompts, one sample at a time.
#[derive(Debug)]
pub struct PromptCounter {
    prompts: Prompts,
    /// Lengths of tags that were seen before.
    lengths: HashMap<String, Length>,
    counts: CutPrompts,
    lost: HashMap<String, u64>,
}

/// Number of tokens of a tag.
#[derive(Debug, Clone, Copy)]
struct Length {
    alone: u64,
    /// With a comma after it, which may be one token together with the tag's last character.
    with_comma: u64,
}

impl PromptCounter {
    /// `tokens` is the number that the model reads, with start and end token.
    #[must_use]
    pub fn new(tokens: u32) -> Self {
        Self {
            prompts: Prompts::new(tokens),
            lengths: HashMap::new(),
            counts: CutPrompts {
                tokens,
                ..CutPrompts::default()
            },
            lost: HashMap::new(),
        }
    }

    pub fn add(&mut self, prompt: &str) {
        let room = u64::from(self.counts.tokens.saturating_sub(2));
        let total = if is_sum_of_tags(prompt) {
            self.sum(prompt)
        } else {
            self.prompts.count(prompt)
        };
        self.counts.samples += 1;
        self.counts.longest = self.counts.longest.max(total + 2);
        if total <= room {
            return;
        }
        self.counts.cut += 1;
        let mut start = 0;
        for tag in split_tags(prompt) {
            let length = self.length(tag);
            if start + length.alone > room {
                self.lose(tag);
            }
            start += length.with_comma;
        }
    }

    #[must_use]
    pub fn finish(self) -> CutPrompts {
        let mut lost: Vec<(String, u64)> = self.lost.into_iter().collect();
        lost.sort_by(|(a, m), (b, n)| n.cmp(m).then_with(|| a.cmp(b)));
        lost.truncate(LISTED);
        CutPrompts {
            lost,
            ..self.counts
        }
    }

    /// Tokens of a prompt without start and end token.
    fn sum(&mut self, prompt: &str) -> u64 {
        let (mut total, mut comma) = (0, 0);
        for tag in split_tags(prompt) {
            let length = self.length(tag);
            total += comma + length.alone;
            comma = length.with_comma - length.alone;
        }
        total
    }

    fn length(&mut self, tag: &str) -> Length {
        if let Some(length) = self.lengths.get(tag) {
            return *length;
        }
        let length = Length {
            alone: self.prompts.count(tag),
            with_comma: self.prompts.count(&format!("{tag},")),
        };
        if self.lengths.len() < REMEMBERED {
            self.lengths.insert(tag.to_owned(), length);
        }
        length
    }

    fn lose(&mut self, tag: &str) {
        if let Some(count) = self.lost.get_mut(tag) {
            *count += 1;
        } else if self.lost.len() < REMEMBERED {
            // More different ones are captions, of which none is frequent.
            self.lost.insert(tag.to_owned(), 1);
        }
    }
}

/// True if the prompt has as many tokens as its tags and commas: white space separates words, but
/// nothing else does surely, and entities are decoded over the whole prompt.
fn is_sum_of_tags(prompt: &str) -> bool {
    let commas = prompt.matches(',').count();
    !prompt.contains('&') && commas == prompt.matches(", ").count() && {
        // An empty tag leaves a comma without its tag.
        commas + 1 == split_tags(prompt).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_beyond_the_last_token_is_lost_and_counted() {
        // Eight tokens, of which start and end leave six: "a , b , c ,".
        let mut counter = PromptCounter::new(8);
        counter.add("a, b, c");
        counter.add("a, b, c, d, e");
        counter.add("b, c, d, e");
        counter.add("");
        let counts = counter.finish();
        assert_eq!((counts.samples, counts.cut, counts.longest), (4, 2, 11));
        assert_eq!(counts.lost, [("e".to_owned(), 2), ("d".to_owned(), 1)]);
        assert_eq!(
            counts.sentence(1).as_deref(),
            Some(
                "2 of 4 prompts are longer than the 8 tokens that the model reads, and are cut \
                 there (the longest has 11); lost most often: e (2)"
            )
        );
        assert_eq!(PromptCounter::new(8).finish().sentence(1), None);
    }

    #[test]
    fn a_tag_of_which_only_a_part_is_read_is_lost() {
        let mut counter = PromptCounter::new(6);
        counter.add("blue_hair, red");
        counter.add("red, blue_hair");
        let counts = counter.finish();
        // "blue _ hair ," fits without "red"; of "red , blue _ hair" the last token is cut.
        assert_eq!(counts.cut, 2);
        assert_eq!(
            counts.lost,
            [("blue_hair".to_owned(), 1), ("red".to_owned(), 1)]
        );
    }

    #[test]
    fn captions_do_not_fill_the_memory() {
        let mut counter = PromptCounter::new(8);
        counter.lengths = (0..REMEMBERED)
            .map(|n| {
                let length = Length {
                    alone: 1,
                    with_comma: 2,
                };
                (n.to_string(), length)
            })
            .collect();
        counter.add("a caption of more than six words");
        assert_eq!(counter.lengths.len(), REMEMBERED);
        assert_eq!(counter.finish().cut, 1);
    }

    proptest! {
        #[test]
        fn the_sum_over_tags_is_the_number_of_tokens(
            tags in prop::collection::vec("[a-zA-Z0-9_():'.!<>é-]{1,8}( [a-z]{1,3})?", 1..6),
        ) {
            let prompt = tags.join(", ");
            let mut counter = PromptCounter::new(77);
            if is_sum_of_tags(&prompt) {
                prop_assert_eq!(counter.sum(&prompt), counter.prompts.count(&prompt));
            }
        }
    }
}
