//! Where in the text a field stands, and what the TOML reader's errors mean to a person.

use toml::de::{DeTable, DeValue};

/// Line (1-based) of a dotted field; of its nearest parent that is written when the field itself is
/// not; 1 at worst.
pub(crate) fn line_of(text: &str, field: &str) -> usize {
    let Ok(document) = DeTable::parse(text) else {
        return 1;
    };
    let mut table = document.into_inner();
    let mut line = 1;
    for part in field.split('.') {
        let Some((key, value)) = table.iter().find(|(key, _)| key.get_ref().as_ref() == part)
        else {
            break;
        };
        line = line_at(text, key.span().start);
        match value.get_ref() {
            DeValue::Table(inner) => table = inner.clone(),
            _ => break,
        }
    }
    line
}

/// Of a line that is no TOML, so many characters are told.
const LINE_SHOWN: usize = 80;

/// Line, field and message of an error of the TOML reader.
pub(crate) fn of_toml_error(text: &str, error: &toml::de::Error) -> (usize, String, String) {
    let start = error.span().map_or(0, |span| span.start);
    let line = line_at(text, start);
    let mut message = plain(&error.message().replace('\n', ", "));
    let Ok(document) = DeTable::parse(text) else {
        // No field can be named; what stands there can.
        let written: String = text.lines().nth(line - 1).unwrap_or_default().trim().into();
        let shown: String = written.chars().take(LINE_SHOWN).collect();
        return (line, String::new(), format!("{message} in `{shown}`"));
    };
    let field = field_at(document.get_ref(), start);
    if is_planned(&field, &message) {
        message = format!("not there yet: {message}");
    } else if let Some(hint) = did_you_mean(&message) {
        message = format!("{message}; did you mean `{hint}`?");
    }
    (line, field, message)
}

/// The reader's words for a value of a wrong type, without the names of Rust's types.
fn plain(message: &str) -> String {
    let Some((found, expected)) = message
        .strip_prefix("invalid type: ")
        .or_else(|| message.strip_prefix("invalid value: "))
        .and_then(|rest| rest.rsplit_once(", expected "))
    else {
        return message.to_owned();
    };
    let expected = match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "i64" | "i32" => "a whole number",
        "f64" | "f32" => "a number",
        "a string" => "a text in quotes",
        "a sequence" => "a list in square brackets",
        other if other.starts_with("struct ") || other == "a map" => {
            "a table, such as { key = value }"
        }
        other => other,
    };
    format!("is the {found}; it must be {expected}")
}

fn line_at(text: &str, offset: usize) -> usize {
    text.bytes()
        .take(offset)
        .filter(|byte| *byte == b'\n')
        .count()
        + 1
}

/// Dotted name of the innermost field whose key or value covers `offset`.
fn field_at(table: &DeTable<'_>, offset: usize) -> String {
    let mut best = String::new();
    for (key, value) in table {
        let name = key.get_ref().to_string();
        if key.span().contains(&offset) {
            return name;
        }
        if let DeValue::Table(inner) = value.get_ref() {
            let deeper = field_at(inner, offset);
            if !deeper.is_empty() {
                return format!("{name}.{deeper}");
            }
        }
        if value.span().contains(&offset) {
            best = name;
        }
    }
    best
}

/// Values that are planned and not there yet, by field.
const PLANNED: [(&str, &[&str]); 1] = [(
    "model.architecture",
    &["fastcomposer", "controlnet", "ip-adapter", "kandinsky"],
)];

/// Whether the value that a message calls unknown is only not there yet.
fn is_planned(field: &str, message: &str) -> bool {
    let value = message
        .strip_prefix("unknown variant `")
        .and_then(|rest| rest.split('`').next());
    let words = PLANNED
        .iter()
        .find(|(name, _)| *name == field)
        .map(|(_, words)| words);
    value
        .zip(words)
        .is_some_and(|(value, words)| words.contains(&value))
}

/// Reads "unknown field `x`, expected one of `a`, `b`" and picks the nearest.
fn did_you_mean(message: &str) -> Option<&str> {
    if !message.starts_with("unknown") {
        return None;
    }
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let (unknown, allowed) = quoted.split_first()?;
    nearest(unknown, allowed)
}

/// The allowed word that `unknown` is probably a slip of; None when nothing is near.
pub fn nearest<'a>(unknown: &str, allowed: &[&'a str]) -> Option<&'a str> {
    allowed
        .iter()
        .map(|word| (strsim::damerau_levenshtein(unknown, word), *word))
        .min()
        .filter(|(distance, word)| *distance <= 1 + word.len() / 3)
        .map(|(_, word)| word)
}
