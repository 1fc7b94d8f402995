//! The tokenizer of uncased BERT models: words of lower-case letters without accents, split into
//! the longest pieces that a vocabulary has. For the answers of the VQA score, which MiniLM embeds.
//! Gives the ids of `transformers`' `BertTokenizer`. Pure.

use std::collections::HashMap;
use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

/// Words with more characters are unknown.
const WORD_CHARACTERS_MAX: usize = 100;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VocabularyError {
    #[error("it has no token {token:?}")]
    Missing { token: &'static str },
    #[error("line {line}: the token {token:?} is there twice")]
    Repeated { line: usize, token: String },
}

/// A vocabulary in memory.
#[derive(Debug, Clone)]
pub struct WordPiece {
    ids: HashMap<String, i64>,
    begin: i64,
    end: i64,
    unknown: i64,
}

impl WordPiece {
    /// Reads a `vocab.txt`: one token on each line, whose number is the id.
    ///
    /// # Errors
    /// A token that is there twice, or no `[CLS]`, `[SEP]` or `[UNK]`.
    pub fn parse(text: &str) -> Result<Self, VocabularyError> {
        let mut ids = HashMap::new();
        for (index, token) in text.lines().enumerate() {
            let token = token.trim_end_matches('\r');
            if ids.insert(token.to_owned(), index as i64).is_some() {
                return Err(VocabularyError::Repeated {
                    line: index + 1,
                    token: token.to_owned(),
                });
            }
        }
        let of = |token: &'static str| {
            let id = ids.get(token).copied();
            id.ok_or(VocabularyError::Missing { token })
        };
        Ok(Self {
            begin: of("[CLS]")?,
            end: of("[SEP]")?,
            unknown: of("[UNK]")?,
            ids,
        })
    }

    /// Number of tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Never true: a vocabulary has its special tokens.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The ids of a text: `[CLS]`, its pieces, `[SEP]`. Not padded, not cut.
    #[must_use]
    pub fn ids(&self, text: &str) -> Vec<i64> {
        let mut ids = vec![self.begin];
        for word in words(text) {
            self.pieces(&word, &mut ids);
        }
        ids.push(self.end);
        ids
    }

    /// Appends the longest pieces of a word from left to right, or one unknown token.
    fn pieces(&self, word: &[char], ids: &mut Vec<i64>) {
        let begun = ids.len();
        let mut first = 0;
        while first < word.len() && word.len() <= WORD_CHARACTERS_MAX {
            let found = (first + 1..=word.len()).rev().find_map(|end| {
                let prefix = if first > 0 { "##" } else { "" };
                let piece: String = prefix.chars().chain(word[first..end].to_vec()).collect();
                Some((*self.ids.get(&piece)?, end))
            });
            let Some((id, end)) = found else {
                break;
            };
            ids.push(id);
            first = end;
        }
        if first < word.len() {
            ids.truncate(begun);
            ids.push(self.unknown);
        }
    }
}

/// Words and single marks of punctuation, normalized.
fn words(text: &str) -> Vec<Vec<char>> {
    let spaced = text.chars().flat_map(|character| {
        let character = if is_space(character) { ' ' } else { character };
        let apart = is_ideograph(character);
        let space = apart.then_some(' ');
        let kept = (!is_control(character)).then_some(character);
        space.into_iter().chain(kept).chain(space)
    });
    // Accents are marks of their own after this.
    let plain: String = spaced.nfd().filter(|it| !is_combining_mark(*it)).collect();
    let mut words: Vec<Vec<char>> = Vec::new();
    let mut is_open = false;
    for character in plain.to_lowercase().chars() {
        if character.is_whitespace() {
            is_open = false;
        } else if is_punctuation(character) {
            words.push(vec![character]);
            is_open = false;
        } else if let (true, Some(word)) = (is_open, words.last_mut()) {
            word.push(character);
        } else {
            words.push(vec![character]);
            is_open = true;
        }
    }
    words
}

fn is_space(character: char) -> bool {
    matches!(character, '\t' | '\n' | '\r') || character.is_whitespace()
}

/// Control and format characters, and the replacement character.
fn is_control(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}'
                | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
                | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{fffd}'
        )
}

/// Ideographs are words of their own; Kana and Hangul are not.
fn is_ideograph(character: char) -> bool {
    matches!(
        character,
        '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}'
            | '\u{20000}'..='\u{2a6df}' | '\u{2a700}'..='\u{2ceaf}' | '\u{2f800}'..='\u{2fa1f}'
    )
}

/// All marks of ASCII, and the punctuation of Latin, general and East Asian text. That of other
/// scripts counts as letters here.
fn is_punctuation(character: char) -> bool {
    character.is_ascii_punctuation()
        || matches!(
            character,
            '\u{a1}' | '\u{a7}' | '\u{ab}' | '\u{b6}' | '\u{b7}' | '\u{bb}' | '\u{bf}'
                | '\u{37e}' | '\u{387}' | '\u{55a}'..='\u{55f}' | '\u{589}' | '\u{58a}'
                | '\u{5be}' | '\u{5c0}' | '\u{5c3}' | '\u{60c}' | '\u{60d}' | '\u{61b}'
                | '\u{61f}' | '\u{66a}'..='\u{66d}' | '\u{964}' | '\u{965}'
                | '\u{2010}'..='\u{2027}' | '\u{2030}'..='\u{2043}' | '\u{2045}'..='\u{2051}'
                | '\u{2053}'..='\u{205e}' | '\u{207d}' | '\u{207e}' | '\u{208d}' | '\u{208e}'
                | '\u{2e00}'..='\u{2e4f}' | '\u{3001}'..='\u{3003}' | '\u{3008}'..='\u{3011}'
                | '\u{3014}'..='\u{301f}' | '\u{3030}' | '\u{303d}' | '\u{30a0}' | '\u{30fb}'
                | '\u{fe10}'..='\u{fe19}' | '\u{fe30}'..='\u{fe52}' | '\u{fe54}'..='\u{fe61}'
                | '\u{fe63}' | '\u{fe68}' | '\u{fe6a}' | '\u{fe6b}' | '\u{ff01}'..='\u{ff03}'
                | '\u{ff05}'..='\u{ff0a}' | '\u{ff0c}'..='\u{ff0f}' | '\u{ff1a}' | '\u{ff1b}'
                | '\u{ff1f}' | '\u{ff20}' | '\u{ff3b}'..='\u{ff3d}' | '\u{ff3f}' | '\u{ff5b}'
                | '\u{ff5d}' | '\u{ff5f}'..='\u{ff65}'
        )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Ids of `transformers`' BertTokenizer with the same vocabulary, recorded by
    /// `tests/parity/sentences.py`.
    #[test]
    fn ids_are_those_of_transformers() {
        let text = include_str!("../../../tests/golden/wordpiece.json");
        let golden: serde_json::Value = serde_json::from_str(text).unwrap();
        let vocabulary: Vec<String> = serde_json::from_value(golden["vocabulary"].clone()).unwrap();
        let tokenizer = WordPiece::parse(&vocabulary.join("\n")).unwrap();
        assert_eq!(tokenizer.len(), vocabulary.len());
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() > 30);
        for case in cases {
            let text = case["text"].as_str().unwrap();
            let expected: Vec<i64> = serde_json::from_value(case["ids"].clone()).unwrap();
            assert_eq!(tokenizer.ids(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_broken_vocabulary_is_refused_by_token_and_line() {
        let message = |text: &str| WordPiece::parse(text).unwrap_err().to_string();
        assert_eq!(message("[CLS]\n[SEP]\n"), "it has no token \"[UNK]\"");
        assert_eq!(
            message("[CLS]\na\n[SEP]\na"),
            "line 4: the token \"a\" is there twice"
        );
    }
}
