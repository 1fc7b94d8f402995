//! Line numbers of fields in TOML text, and readable messages for errors of the TOML parser.

use toml::de::{DeTable, DeValue};

/// The line (1-based) of a dotted field. If the field is absent, the line of its nearest parent
/// that is present, else 1.
pub(crate) fn line_of(text: &str, field: &str) -> usize {
    lines_of(text, &[field]).first().copied().unwrap_or(1)
}

/// The same for several fields, which parses the text once.
pub(crate) fn lines_of(text: &str, fields: &[&str]) -> Vec<usize> {
    let document = DeTable::parse(text).ok();
    let table = document.as_ref().map(|document| document.get_ref());
    let line = |field: &&str| table.map_or(1, |table| line_in(text, table, field));
    fields.iter().map(line).collect()
}

fn line_in(text: &str, table: &DeTable<'_>, field: &str) -> usize {
    let mut table = table;
    let mut line = 1;
    for part in field.split('.') {
        let Some((key, value)) = table.iter().find(|(key, _)| key.get_ref().as_ref() == part)
        else {
            break;
        };
        line = line_at(text, key.span().start);
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => break,
        }
    }
    line
}

/// Maximum number of characters that an error quotes of an invalid line.
const QUOTED_MAX: usize = 80;

/// Line, field and message of an error of the TOML parser.
pub(crate) fn of_toml_error(text: &str, error: &toml::de::Error) -> (usize, String, String) {
    let start = error.span().map_or(0, |span| span.start);
    let line = line_at(text, start);
    let mut message = plain(&error.message().replace('\n', ", "));
    let Ok(document) = DeTable::parse(text) else {
        // Without valid TOML there is no field name, so quote the line.
        let content: String = text.lines().nth(line - 1).unwrap_or_default().trim().into();
        let quoted: String = content.chars().take(QUOTED_MAX).collect();
        return (line, String::new(), format!("{message} in `{quoted}`"));
    };
    let field = field_at(document.get_ref(), start);
    if is_planned(&field, &message) {
        message = format!("not supported yet: {message}");
    } else if let Some(hint) = did_you_mean(&message) {
        message = format!("{message}; did you mean `{hint}`?");
    }
    (line, field, message)
}

/// Rewrites the parser's message about a value of the wrong type without names of Rust types.
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
        "a string" => "a quoted string",
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

/// The dotted name of the innermost field whose key or value contains `offset`.
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

/// Values that are planned but not supported yet, by field.
const PLANNED: [(&str, &[&str]); 1] = [(
    "model.architecture",
    &["fastcomposer", "controlnet", "ip-adapter", "kandinsky"],
)];

/// Whether the value that a message calls unknown is a planned one.
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

/// Parses "unknown field `x`, expected one of `a`, `b`" and returns the nearest allowed name.
fn did_you_mean(message: &str) -> Option<&str> {
    if !message.starts_with("unknown") {
        return None;
    }
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let (unknown, allowed) = quoted.split_first()?;
    nearest(unknown, allowed)
}

/// The allowed word of which `unknown` is probably a misspelling; None if none is similar.
pub(crate) fn nearest<'a>(unknown: &str, allowed: &[&'a str]) -> Option<&'a str> {
    allowed
        .iter()
        .map(|word| (strsim::damerau_levenshtein(unknown, word), *word))
        .min()
        .filter(|(distance, word)| *distance <= 1 + word.len() / 3)
        .map(|(_, word)| word)
}
