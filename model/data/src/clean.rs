//! Cleans a prompt as `open_clip` does before tokenization: `ftfy.fix_text`, HTML entities, white
//! space, lower case. All of ftfy except its repair of text that was decoded with the wrong
//! encoding ("schÃ¶n"), which is left as it is. Pure. Called by [`crate::prompt`].

use std::borrow::Cow;
use unicode_normalization::UnicodeNormalization;

/// Windows-1252 at 0x80 to 0x9f. Unassigned codes map to themselves.
const WINDOWS_1252: &str = "€\u{81}‚ƒ„…†‡ˆ‰Š‹Œ\u{8d}Ž\u{8f}\u{90}‘’“”•–—˜™š›œ\u{9d}žŸ";
const LIGATURES: [(char, &str); 22] = [
    ('Ĳ', "IJ"),
    ('ĳ', "ij"),
    ('ŉ', "ʼn"),
    ('Ǳ', "DZ"),
    ('ǲ', "Dz"),
    ('ǳ', "dz"),
    ('Ǆ', "DŽ"),
    ('ǅ', "Dž"),
    ('ǆ', "dž"),
    ('Ǉ', "LJ"),
    ('ǈ', "Lj"),
    ('ǉ', "lj"),
    ('Ǌ', "NJ"),
    ('ǋ', "Nj"),
    ('ǌ', "nj"),
    ('ﬀ', "ff"),
    ('ﬁ', "fi"),
    ('ﬂ', "fl"),
    ('ﬃ', "ffi"),
    ('ﬄ', "ffl"),
    ('ﬅ', "ſt"),
    ('ﬆ', "st"),
];

/// The prompt as it is passed to the tokenizer.
#[must_use]
pub(crate) fn clean(prompt: &str) -> Cow<'_, str> {
    let plain = |byte: u8| byte.is_ascii() && byte != b'&' && !byte.is_ascii_control();
    if prompt.bytes().all(plain) {
        return Cow::Borrowed(prompt);
    }
    let mut entities = true;
    let lines = prompt.split_inclusive('\n').map(|line| {
        // ftfy decodes no entities from the first line with a `<` on: text with tags may contain
        // intended entities.
        entities = entities && !line.contains('<');
        fix(line, entities)
    });
    let fixed: String = lines.collect();
    let once = htmlize::unescape(fixed.as_str());
    let twice = htmlize::unescape(once.as_ref());
    let words: Vec<&str> = twice.split_whitespace().collect();
    // U+0345 is a mark whose upper case is a letter. open_clip's case-insensitive pattern matches
    // it in no class of words, so it separates words.
    Cow::Owned(words.join(" ").to_lowercase().replace('\u{345}', " "))
}

/// Repeats ftfy's steps on one line until nothing changes.
fn fix(line: &str, entities: bool) -> String {
    let mut text = line.to_owned();
    loop {
        let mut next = if entities {
            unescape(&text)
        } else {
            text.clone()
        };
        next = next.chars().map(from_windows_1252).collect();
        next = next.chars().fold(String::new(), simplify);
        next = without_control(&next);
        next = next.nfc().collect();
        if next == text {
            return text;
        }
        text = next;
    }
}

/// Decodes entities that end with a semicolon, the only ones that ftfy decodes.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(ampersand) = rest.find('&') {
        out.push_str(&rest[..ampersand]);
        rest = &rest[ampersand..];
        let name = rest[1..].strip_prefix('#').unwrap_or(&rest[1..]);
        let length = name.bytes().take_while(u8::is_ascii_alphanumeric).count();
        let end = rest.len() - name.len() + length;
        if (1..=24).contains(&length) && rest[end..].starts_with(';') {
            let entity = &rest[..=end];
            let decoded = htmlize::unescape(entity);
            if decoded.contains(';') {
                out.push_str(&decode_uppercase(entity));
            } else {
                out.push_str(&decoded);
            }
            rest = &rest[end + 1..];
        } else {
            out.push('&');
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    out
}

/// `&EACUTE;`: an entity in upper case decodes to the upper case of its lower-case entity.
fn decode_uppercase(entity: &str) -> String {
    let lower = entity.to_lowercase();
    let decoded = htmlize::unescape(lower.as_str());
    if entity.to_uppercase() == entity && !decoded.contains(';') {
        decoded.to_uppercase()
    } else {
        entity.to_owned()
    }
}

fn from_windows_1252(character: char) -> char {
    let code = u32::from(character);
    match code {
        0x80..=0x9f => WINDOWS_1252
            .chars()
            .nth(code as usize - 0x80)
            .unwrap_or(character),
        _ => character,
    }
}

/// Appends the character normalized: ligatures as letters, full-width and half-width forms as the
/// usual ones, straight quotes, and `\n` as the only line end.
fn simplify(mut out: String, character: char) -> String {
    match character {
        '\u{3000}' => out.push(' '),
        '\u{ff01}'..='\u{ffef}' => out.extend(std::iter::once(character).nfkc()),
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => out.push('\''),
        '\u{201c}'..='\u{201f}' => out.push('"'),
        '\r' | '\u{2028}' | '\u{2029}' | '\u{85}' => out.push('\n'),
        _ => match LIGATURES
            .iter()
            .find(|(ligature, _)| *ligature == character)
        {
            Some((_, letters)) => out.push_str(&letters.replace('ʼ', "'")),
            None => out.push(character),
        },
    }
    out
}

/// Removes escape sequences of terminals and invisible control characters.
fn without_control(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        if let Some(end) = terminal_escape(rest) {
            rest = &rest[end..];
            continue;
        }
        rest = &rest[character.len_utf8()..];
        let is_control = matches!(
            character,
            '\0'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}'
                | '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}'
        );
        if !is_control {
            out.push(character);
        }
    }
    out
}

/// Length of the escape sequence at the start of the text.
fn terminal_escape(text: &str) -> Option<usize> {
    let parameters = text.strip_prefix("\u{1b}[")?;
    let end = parameters.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    parameters[end..]
        .starts_with(|c: char| c.is_ascii_alphabetic())
        .then_some(2 + end + 1)
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn prompts_are_cleaned_as_open_clip_cleans_them() {
        for (prompt, expected) in [
            ("Blue_Hair,  1girl", "Blue_Hair,  1girl"),
            ("“Ｆｕｌｌｗｉｄｔｈ”　ﬁne", "\"fullwidth\" fine"),
            ("it’s e\u{301}\u{a0}é", "it's é é"),
            (
                "a &amp;amp; b &lt;3 &EACUTE; d&d &notit",
                "a & b <3 é d&d ¬it",
            ),
            ("<b> &ldquo;x&rdquo;", "<b> “x”"),
            ("\u{1b}[31mred\u{1b}[0m\u{feff}\u{7}", "red"),
            ("one\r\ntwo\u{2028}three", "one two three"),
            ("\u{93}x\u{94}", "\"x\""),
            ("ΟΔΟΣ İ", "οδος i̇"),
            ("α\u{345}", "ᾳ"),
            ("x\u{345}y", "x y"),
        ] {
            assert_eq!(clean(prompt), expected, "{prompt:?}");
        }
    }
}
