//! CLIP's tokenizer as the files that `transformers` reads: its vocabulary and the merges in their
//! order. Both are recovered from the tokenizer that this program uses, which has no such files.
//! For exports. Pure.

use instant_clip_tokenizer::{Token, Tokenizer};
use proto::layout::CLIP_END;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Tokens of single bytes: as they are, and as the end of a word.
const BYTES: usize = 256;
/// The mark of the end of a word.
const END: &str = "</w>";

/// File names and contents. `length` is the number of tokens that the text encoder reads.
#[must_use]
pub fn files(length: u32) -> [(&'static str, String); 4] {
    let vocabulary = Vocabulary::new();
    let special = json!({
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    });
    let mut config = special.clone();
    for (field, value) in [
        ("tokenizer_class", json!("CLIPTokenizer")),
        ("model_max_length", json!(length)),
        ("add_prefix_space", json!(false)),
        ("do_lower_case", json!(true)),
        ("errors", json!("replace")),
    ] {
        config[field] = value;
    }
    [
        ("vocab.json", vocabulary.json()),
        ("merges.txt", vocabulary.merges()),
        ("tokenizer_config.json", format!("{config:#}\n")),
        ("special_tokens_map.json", format!("{special:#}\n")),
    ]
}

/// All tokens but the two special ones.
struct Vocabulary {
    /// The text of each token, whose bytes are written as printable characters.
    texts: Vec<String>,
    /// The two tokens that each token after those of single bytes is made of.
    pairs: Vec<[usize; 2]>,
}

impl Vocabulary {
    fn new() -> Self {
        let tokenizer = Tokenizer::new();
        let alphabet = alphabet();
        let mut position = [0; BYTES];
        for (at, (byte, _)) in alphabet.iter().enumerate() {
            position[usize::from(*byte)] = at;
        }
        let letters = alphabet.iter().map(|(_, letter)| letter.to_string());
        let ends = alphabet.iter().map(|(_, letter)| format!("{letter}{END}"));
        let mut texts: Vec<String> = letters.chain(ends).collect();
        let (mut pairs, mut merged) = (Vec::new(), HashMap::new());
        // The start token follows the last merge.
        for token in 2 * BYTES..CLIP_END as usize - 1 {
            let (bytes, ends_word) = bytes_of(&tokenizer, &position, token as u16);
            let mut parts: Vec<usize> = bytes
                .iter()
                .map(|byte| position[usize::from(*byte)])
                .collect();
            if let Some(last) = parts.last_mut().filter(|_| ends_word) {
                *last += BYTES;
            }
            let pair = last_merge(parts, &merged);
            merged.insert(pair, token);
            texts.push(format!("{}{}", texts[pair[0]], texts[pair[1]]));
            pairs.push(pair);
        }
        Self { texts, pairs }
    }

    fn json(&self) -> String {
        let special = ["<|startoftext|>", "<|endoftext|>"];
        let all = self.texts.iter().map(String::as_str).chain(special);
        let numbered = all.enumerate();
        let object: Map<String, Value> = numbered
            .map(|(id, text)| (text.to_owned(), json!(id)))
            .collect();
        Value::Object(object).to_string()
    }

    fn merges(&self) -> String {
        let mut text = "#version: 0.2\n".to_owned();
        for [first, second] in &self.pairs {
            text.push_str(&format!("{} {}\n", self.texts[*first], self.texts[*second]));
        }
        text
    }
}

/// The character of each byte, in the order of CLIP's vocabulary: a printable one for itself, and
/// further letters for the others.
fn alphabet() -> Vec<(u8, char)> {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let all = 0..=u8::MAX;
    let own = all
        .clone()
        .filter(printable)
        .map(|byte| (byte, char::from(byte)));
    let others = all.filter(|byte| !printable(byte));
    let further = others.zip('\u{100}'..);
    own.chain(further).collect()
}

/// The two tokens that are left before the last merge of these parts, if earlier merges are applied
/// in their order.
fn last_merge(mut parts: Vec<usize>, merged: &HashMap<[usize; 2], usize>) -> [usize; 2] {
    loop {
        if let [first, second] = parts[..] {
            return [first, second];
        }
        let next = parts
            .windows(2)
            .enumerate()
            .filter_map(|(at, pair)| Some((*merged.get(&[pair[0], pair[1]])?, at)))
            .min();
        let (token, at) = next.expect("every token is a merge of two earlier ones");
        parts.splice(at..at + 2, [token]);
    }
}

/// The bytes of a token, and whether it ends a word. A token may be a part of a character, which
/// can be decoded only with what comes before and after it. `position` is that of each byte in the
/// vocabulary.
fn bytes_of(tokenizer: &Tokenizer, position: &[usize; BYTES], token: u16) -> (Vec<u8>, bool) {
    // Beginnings that one, two and three further bytes complete, and endings that complete what any
    // beginning lacks.
    const BEFORE: [&[u8]; 4] = [&[], &[0xc2], &[0xe1], &[0xf1]];
    const AFTER: [&[u8]; 10] = [
        &[],
        &[0x80],
        &[0x90],
        &[0xa0],
        &[0x80, 0x80],
        &[0x90, 0x80],
        &[0xa0, 0x80],
        &[0x80, 0x80, 0x80],
        &[0x90, 0x80, 0x80],
        &[0xa0, 0x80, 0x80],
    ];
    let ids = |bytes: &[u8]| -> Vec<u16> {
        let all = bytes.iter().map(|byte| position[usize::from(*byte)] as u16);
        all.collect()
    };
    let combinations = BEFORE
        .iter()
        .flat_map(|before| AFTER.iter().map(move |after| (*before, *after)));
    let decoded = |before: &[u8], after: &[u8]| {
        let all = [ids(before), vec![token], ids(after)].concat();
        let tokens = all
            .into_iter()
            .filter_map(|id| Token::from_u16(id, tokenizer));
        tokenizer.decode(tokens)
    };
    let whole = combinations.into_iter().find_map(|(before, after)| {
        let text = decoded(before, after);
        let is_whole = !text.contains(char::REPLACEMENT_CHARACTER);
        is_whole.then(|| text.as_bytes()[before.len()..text.len() - after.len()].to_vec())
    });
    // The vocabulary also has the replacement character itself.
    let bytes = whole.unwrap_or_else(|| decoded(&[], &[]).into_bytes());
    match bytes.strip_suffix(b" ") {
        Some(word) => (word.to_vec(), true),
        None => (bytes, false),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_those_that_openai_published() {
        let [vocabulary, merges, config, _] = files(77).map(|(_, text)| text);
        let vocabulary: HashMap<String, usize> = serde_json::from_str(&vocabulary).unwrap();
        assert_eq!(vocabulary.len(), 49_408);
        for (text, id) in [
            ("!", 0),
            ("!</w>", 256),
            ("\u{143}</w>", 511),
            ("in", 512),
            ("the</w>", 518),
            ("hello</w>", 3306),
            ("<|startoftext|>", 49_406),
            ("<|endoftext|>", 49_407),
        ] {
            assert_eq!(vocabulary.get(text), Some(&id), "{text}");
        }
        let lines: Vec<&str> = merges.lines().collect();
        assert_eq!(lines.len(), 1 + 48_894);
        assert_eq!(lines[..4], ["#version: 0.2", "i n", "t h", "a n"]);
        // Every merge makes the token of its place.
        for (at, line) in lines[1..].iter().enumerate() {
            let made = line.replacen(' ', "", 1);
            assert_eq!(vocabulary[&made], 512 + at, "{line}");
        }
        assert!(config.contains("\"model_max_length\": 77"));
    }
}
