//! What `open_clip` does to a prompt before it looks for words: `ftfy.fix_text`, HTML entities,
//! white space, lower case. Of ftfy everything but its guesses at text that was once decoded
//! wrongly ("schÃ¶n"): such a prompt is read as it stands. Pure. Called by [`crate::prompt`].

use std::borrow::Cow;
use unicode_normalization::UnicodeNormalization;

/// Windows-1252 at 0x80 to 0x9f; a code that it leaves free stands for itself.
const WINDOWS: &str = "€\u{81}‚ƒ„…†‡ˆ‰Š‹Œ\u{8d}Ž\u{8f}\u{90}‘’“”•–—˜™š›œ\u{9d}žŸ";
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

/// The prompt as it is cut into words.
#[must_use]
pub(crate) fn clean(prompt: &str) -> Cow<'_, str> {
    let plain = |byte: u8| byte.is_ascii() && byte != b'&' && !byte.is_ascii_control();
    if prompt.bytes().all(plain) {
        return Cow::Borrowed(prompt);
    }
    let mut entities = true;
    let lines = prompt.split_inclusive('\n').map(|line| {
        // Where tags may be, entities may be meant; ftfy does not come back to them.
        entities = entities && !line.contains('<');
        fix(line, entities)
    });
    let fixed: String = lines.collect();
    let once = htmlize::unescape(fixed.as_str());
    let twice = htmlize::unescape(once.as_ref());
    let words: Vec<&str> = twice.split_whitespace().collect();
    // A mark whose capital is a letter: open_clip's pattern, which ignores case, finds it in no
    // kind of word.
    Cow::Owned(words.join(" ").to_lowercase().replace('\u{345}', " "))
}

/// ftfy's steps on one line, again and again until nothing changes.
fn fix(line: &str, entities: bool) -> String {
    let mut text = line.to_owned();
    loop {
        let mut next = if entities {
            unescape(&text)
        } else {
            text.clone()
        };
        next = next.chars().map(of_windows).collect();
        next = next.chars().fold(String::new(), simplify);
        next = without_control(&next);
        next = next.nfc().collect();
        if next == text {
            return text;
        }
        text = next;
    }
}

/// Entities that end with a semicolon, the only ones that ftfy takes for entities.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let name = rest[1..].strip_prefix('#').unwrap_or(&rest[1..]);
        let length = name.bytes().take_while(u8::is_ascii_alphanumeric).count();
        let end = rest.len() - name.len() + length;
        if (1..=24).contains(&length) && rest[end..].starts_with(';') {
            let entity = &rest[..=end];
            let found = htmlize::unescape(entity);
            if found.contains(';') {
                out.push_str(&loud(entity));
            } else {
                out.push_str(&found);
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

/// `&EACUTE;`: an entity in capitals is the capital of what it is in small letters.
fn loud(entity: &str) -> String {
    let small = entity.to_lowercase();
    let found = htmlize::unescape(small.as_str());
    if entity.to_uppercase() == entity && !found.contains(';') {
        found.to_uppercase()
    } else {
        entity.to_owned()
    }
}

fn of_windows(character: char) -> char {
    let code = u32::from(character);
    match code {
        0x80..=0x9f => WINDOWS
            .chars()
            .nth(code as usize - 0x80)
            .unwrap_or(character),
        _ => character,
    }
}

/// Ligatures as letters, wide and narrow forms as their usual ones, quotes straight, lines ended in
/// one way.
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

/// Without escape sequences of terminals and characters that steer and show nothing.
fn without_control(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        if let Some(end) = terminal_escape(rest) {
            rest = &rest[end..];
            continue;
        }
        rest = &rest[character.len_utf8()..];
        let steers = matches!(character, '\0'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}'
            | '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}');
        if !steers {
            out.push(character);
        }
    }
    out
}

/// Where an escape sequence that the text begins with ends.
fn terminal_escape(text: &str) -> Option<usize> {
    let numbers = text.strip_prefix("\u{1b}[")?;
    let end = numbers.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    numbers[end..]
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
