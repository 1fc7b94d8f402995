//! The names of a tagger's outputs: WD14's `selected_tags.csv` (`tag_id,name,category,count`) or
//! cl_tagger's `tag_mapping.json` (`{"0": {"tag": "…", "category": "…"}}`), told by their content.

use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Debug, Deserialize)]
struct Entry {
    tag: String,
}

/// A name for each output, with underscores.
///
/// # Errors
/// It is neither of them; says why.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<String>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "is no UTF-8".to_owned())?;
    let text = text.trim_start_matches('\u{feff}');
    let names = if text.trim_start().starts_with('{') {
        mapping(text)?
    } else {
        csv(text)?
    };
    Ok(names.into_iter().map(|it| it.replace(' ', "_")).collect())
}

fn mapping(text: &str) -> Result<Vec<String>, String> {
    let entries: BTreeMap<usize, Entry> = serde_json::from_str(text)
        .map_err(|error| format!("is no {{\"0\": {{\"tag\": …, \"category\": …}}, …}}: {error}"))?;
    if let Some((gap, _)) = (0..).zip(entries.keys()).find(|(index, key)| index != *key) {
        return Err(format!("has no tag {gap}; each output has one, from 0 on"));
    }
    Ok(entries.into_values().map(|entry| entry.tag).collect())
}

fn csv(text: &str) -> Result<Vec<String>, String> {
    let mut lines = text.lines();
    let header = fields(lines.next().unwrap_or_default());
    let column = header.iter().position(|it| it == "name").ok_or_else(|| {
        format!(
            "has the columns {}; tag_id,name,category,count are expected, or the JSON of \
             cl_tagger",
            header.join(",")
        )
    })?;
    let lines = (2..).zip(lines).filter(|(_, line)| !line.trim().is_empty());
    let names = lines.map(|(number, line)| {
        let mut row = fields(line);
        if row.len() != header.len() {
            return Err(format!(
                "row {number}: has {} fields, and the header has {}",
                row.len(),
                header.len()
            ));
        }
        Ok(row.swap_remove(column))
    });
    names.collect()
}

/// The fields of a line; one in quotes may have commas, and quotes twice.
fn fields(line: &str) -> Vec<String> {
    let (mut fields, mut is_quoted) = (vec![String::new()], false);
    let mut letters = line.trim_end_matches('\r').chars().peekable();
    while let Some(letter) = letters.next() {
        let field = fields.last_mut().expect("there is one from the start");
        match letter {
            '"' if is_quoted && letters.peek() == Some(&'"') => {
                field.push('"');
                let _ = letters.next();
            }
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => fields.push(String::new()),
            other => field.push(other),
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn both_forms_name_each_output() {
        let csv = "tag_id,name,category,count\r\n9,general,9,5\r\n1,\"a,\"\"b\"\"\",0,4\r\n";
        assert_eq!(parse(csv.as_bytes()).unwrap(), ["general", "a,\"b\""]);
        let json = br#"{"1": {"tag": "long hair", "category": "General"},
            "0": {"tag": "skirt", "category": "General"}}"#;
        assert_eq!(parse(json).unwrap(), ["skirt", "long_hair"]);
    }

    #[test]
    fn what_is_neither_is_named() {
        let fault = |text: &str| parse(text.as_bytes()).unwrap_err();
        assert!(fault("a,b\n1,2\n").starts_with("has the columns a,b; tag_id,name"));
        assert!(fault("tag_id,name\n1\n").starts_with("row 2: has 1 fields"));
        assert!(fault("{\"1\": {\"tag\": \"a\"}}").starts_with("has no tag 0"));
        assert!(fault("{\"0\": 3}").starts_with("is no {\"0\""));
    }
}
