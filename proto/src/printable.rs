//! Text from outside, as it may be shown. A terminal obeys control characters, and the eye obeys
//! marks of direction and characters without width; so a name could overwrite the line above it,
//! forge a log line, or read as another name. One function escapes them wherever text is shown:
//! tables, logs, errors, metrics, JSON. Pure.
//!
//! Escaping twice changes nothing, so a text may be escaped by every layer that it passes.

use std::borrow::Cow;
use std::fmt::{self, Display, Write};

/// Whether a character changes how its neighbours are shown instead of being seen itself: control
/// characters (with them every ANSI sequence), line and paragraph separators, marks of direction
/// (Unicode's Bidi_Control), and characters without width. The joiners U+200C and U+200D, which
/// scripts and emoji need, are not among them.
#[must_use]
pub fn is_deceptive(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// The text in one line: deceptive characters become escapes such as `\n` and `\u{202e}`.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    escape(text, |_| false, rust_escape)
}

/// As [`printable`], but line ends stay: for a text that may have several lines, such as a table.
#[must_use]
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escape(text, |character| character == '\n', rust_escape)
}

/// JSON text whose strings hold escapes in place of deceptive characters. The values are the same:
/// line ends and tabs stay, because JSON has them only outside of strings.
#[must_use]
pub fn printable_json(json: &str) -> Cow<'_, str> {
    escape(json, |it| matches!(it, '\n' | '\r' | '\t'), json_escape)
}

/// Shows a value as [`printable`].
#[derive(Debug, Clone, Copy)]
pub struct Printable<T>(pub T);

impl<T: Display> Display for Printable<T> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping { to }, "{}", self.0)
    }
}

/// Escapes what is written through it, without a copy of the whole text.
struct Escaping<'a, W> {
    to: &'a mut W,
}

impl<W: Write> Write for Escaping<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.to.write_str(&printable(text))
    }
}

fn escape(text: &str, stays: fn(char) -> bool, write: fn(char, &mut String)) -> Cow<'_, str> {
    let is_escaped = |character: char| is_deceptive(character) && !stays(character);
    if !text.contains(is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_escaped(character) {
            write(character, &mut escaped);
        } else {
            escaped.push(character);
        }
    }
    Cow::Owned(escaped)
}

fn rust_escape(character: char, to: &mut String) {
    to.extend(character.escape_default());
}

/// `\uXXXX`, or two of them for a character outside of the basic plane.
fn json_escape(character: char, to: &mut String) {
    for unit in character.encode_utf16(&mut [0; 2]) {
        write!(to, "\\u{unit:04x}").expect("a String takes everything");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn escapes_controls_ansi_and_marks_of_direction() {
        let cases = [
            ("w1", "w1"),
            ("Zoë 小林 👩\u{200d}🚀", "Zoë 小林 👩\u{200d}🚀"),
            ("\u{1b}[31mred\u{1b}[0m", r"\u{1b}[31mred\u{1b}[0m"),
            ("\u{9b}31m", r"\u{9b}31m"),
            ("a\r\nERROR b\0", r"a\r\nERROR b\u{0}"),
            ("abc\u{202e}cba\u{2066}", r"abc\u{202e}cba\u{2066}"),
            (
                "a\u{200b}b\u{feff}\u{e0041}",
                r"a\u{200b}b\u{feff}\u{e0041}",
            ),
            ("a\u{2028}b\u{85}c", r"a\u{2028}b\u{85}c"),
        ];
        for (text, expected) in cases {
            assert_eq!(printable(text), expected);
            assert_eq!(Printable(text).to_string(), expected);
        }
        assert_eq!(printable_lines("a\nb\r\u{1b}"), "a\nb\\r\\u{1b}");
        assert_eq!(
            printable_json("{\n\"\u{202e}\u{e0041}\"}"),
            "{\n\"\\u202e\\udb40\\udc41\"}"
        );
    }

    /// Texts in which deceptive characters are as frequent as others.
    fn hostile() -> impl Strategy<Value = String> {
        let special = prop::sample::select(vec![
            '\0',
            '\n',
            '\r',
            '\t',
            '\u{1b}',
            '\u{7f}',
            '\u{9b}',
            '\u{202e}',
            '\u{2066}',
            '\\',
            '"',
            '\u{e0041}',
            '\u{200b}',
        ]);
        let character = prop_oneof![special, any::<char>(), prop::char::range('a', 'f')];
        prop::collection::vec(character, 0..64).prop_map(String::from_iter)
    }

    proptest! {
        #[test]
        fn what_is_printed_is_one_line_without_deceptive_characters(text in hostile()) {
            let shown = printable(&text);
            prop_assert!(!shown.contains(is_deceptive), "{shown:?}");
            prop_assert_eq!(printable(&shown), shown.clone());
            prop_assert_eq!(Printable(&text).to_string(), shown);
            let lines = printable_lines(&text);
            prop_assert_eq!(lines.matches('\n').count(), text.matches('\n').count());
            prop_assert!(!lines.replace('\n', "").contains(is_deceptive));
        }

        #[test]
        fn harmless_text_is_unchanged(text in "[ -~ä-ÿ一-三]{0,64}") {
            prop_assert!(matches!(printable(&text), Cow::Borrowed(it) if it == text));
        }

        #[test]
        fn json_means_the_same_and_shows_nothing_deceptive(text in hostile(), other in hostile()) {
            let value = serde_json::json!({ text: [other] });
            let shown = printable_json(&format!("{value:#}")).into_owned();
            prop_assert!(!shown.replace('\n', "").contains(is_deceptive), "{shown:?}");
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        }
    }
}
