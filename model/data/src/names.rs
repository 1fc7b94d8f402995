//! The rules of ids, names and tags, in one place. The import applies them, and `verify` finds rows
//! that do not keep them:
//!
//! | text | white space | Unicode | case |
//! |---|---|---|---|
//! | id, `similar` | none at the ends | NFC | counts: `A1` and `a1` are two samples |
//! | character, artist, outfit | none at the ends, one space inside | NFC | kept; names that differ only in case, or in spaces and underscores, are one, spelled as the first |
//! | tags of `prompts` | underscores | NFC | lower |
//! | tags of `cloths` | one space inside | NFC | lower |
//!
//! Invisible characters without meaning (byte order marks, zero-width spaces, word joiners, soft
//! hyphens) are removed from all of them. Control characters in ids and names are refused.

use unicode_normalization::UnicodeNormalization;

/// Applies the rule of ids.
///
/// # Errors
/// Why it can be no id.
pub(crate) fn id(text: &str) -> Result<String, String> {
    let cleaned = visible(text);
    refuse_control(cleaned.trim())
}

/// Applies the rule of names, apart from spelling.
///
/// # Errors
/// Why it can be no name.
pub(crate) fn name(text: &str) -> Result<String, String> {
    refuse_control(&words(&visible(text)).join(" "))
}

/// Names with equal keys are one name.
pub(crate) fn key(name: &str) -> String {
    words(&name.replace('_', " ")).join("_").to_lowercase()
}

/// A general tag, with underscores.
pub(crate) fn tag(text: &str) -> String {
    words(&visible(text)).join("_").to_lowercase()
}

/// A tag of clothes, with spaces.
pub(crate) fn cloth(text: &str) -> String {
    words(&visible(text).replace('_', " "))
        .join(" ")
        .to_lowercase()
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

/// NFC without invisible characters. Joiners of scripts and emoji are not removed.
fn visible(text: &str) -> String {
    let is_invisible = |it: char| matches!(it, '\u{feff}' | '\u{200b}' | '\u{2060}' | '\u{ad}');
    text.chars().filter(|it| !is_invisible(*it)).nfc().collect()
}

fn refuse_control(text: &str) -> Result<String, String> {
    if let Some(control) = text.chars().find(|it| it.is_control()) {
        let code = u32::from(control);
        return Err(format!(
            "{text:?} contains the control character U+{code:04X}"
        ));
    }
    if text.is_empty() {
        return Err("is empty; it is required".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_keep_case_and_inner_space() {
        assert_eq!(id(" A  1\u{a0}").as_deref(), Ok("A  1"));
        assert_eq!(id("cafe\u{301}").as_deref(), Ok("caf\u{e9}"));
        assert_eq!(id("\u{feff}x\u{200b}").as_deref(), Ok("x"));
        assert_eq!(id(" \u{feff}"), Err("is empty; it is required".to_owned()));
        assert_eq!(
            id("a\u{0}"),
            Err("\"a\\0\" contains the control character U+0000".to_owned())
        );
        // The joiner of a family emoji, and of Persian, has a meaning.
        assert_eq!(
            id("\u{1f468}\u{200d}\u{1f469}").as_deref(),
            Ok("\u{1f468}\u{200d}\u{1f469}")
        );
    }

    #[test]
    fn names_have_one_spelling() {
        assert_eq!(name(" Hatsune\t Miku ").as_deref(), Ok("Hatsune Miku"));
        assert_eq!(key("Hatsune Miku"), key("hatsune_miku"));
        assert_ne!(key("miku"), key("miku_2"));
        assert_ne!(key("é"), key("e"));
    }

    #[test]
    fn tags_are_lower_case() {
        assert_eq!(tag(" Blue  Hair"), "blue_hair");
        assert_eq!(tag("blue_hair"), "blue_hair");
        assert_eq!(tag("^_^"), "^_^");
        assert_eq!(cloth("Pleated_Skirt "), "pleated skirt");
    }
}
