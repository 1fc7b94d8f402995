//! Reads `samples.jsonl` and applies the rules of texts ([`crate::names`]) to its rows. No images.

use std::collections::BTreeMap;
use std::io::{BufRead, Read};
use std::path::Path;

use proto::rating::Rating;
use serde::Deserialize;

use super::{ImportError, ImportReport};
use crate::decode::{Change, ChangeKind};
use crate::names;
use crate::sample::{join_tags, split_tags};
use crate::verify::check_box;

/// Longest line of the file.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// A line of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Row {
    pub(super) id: String,
    pub(super) character: String,
    pub(super) artists: String,
    pub(super) bbox: Option<[f64; 4]>,
    pub(super) prompts: String,
    #[serde(default)]
    pub(super) cloths: Vec<String>,
    pub(super) similar: Option<Vec<String>>,
    #[serde(default)]
    pub(super) outfit: String,
    pub(super) image: String,
    pub(super) mask: Option<String>,
    #[serde(default)]
    pub(super) whole: bool,
    pub(super) rating: Option<String>,
    #[serde(skip)]
    pub(super) line: u64,
    #[serde(skip)]
    pub(super) changes: Vec<Change>,
}

/// All valid rows, in the order of their lines. `path` is what they are called in messages.
///
/// # Errors
/// The lines cannot be read. Invalid rows are reported, not errors.
pub(super) fn read_rows(
    mut reader: impl BufRead,
    path: &Path,
    report: &mut ImportReport,
) -> Result<Vec<Row>, ImportError> {
    let failed = |source| ImportError::Read {
        path: path.to_owned(),
        source,
    };
    let (mut rows, mut seen) = (Vec::new(), Seen::default());
    for line in 1.. {
        let Some(text) = read_line(&mut reader, line).map_err(failed)? else {
            break;
        };
        if line == 1 && (text.starts_with(&[0xff, 0xfe]) || text.starts_with(&[0xfe, 0xff])) {
            return Err(ImportError::Utf16 {
                path: path.to_owned(),
            });
        }
        // Windows editors write one at the start of a file, and `cat` may put it at any line.
        let text = match text.strip_prefix(b"\xef\xbb\xbf") {
            Some(rest) => {
                let mark = ChangeKind::ByteOrderMark.name();
                report.changes.add(&format!("line {line}"), [mark]);
                rest
            }
            None => text.as_slice(),
        };
        if text.trim_ascii().is_empty() {
            continue;
        }
        report.rows += 1;
        let parsed = serde_json::from_slice::<Row>(text)
            .map_err(|error| json_reason(text, &error))
            .and_then(|row| check_fields(row, line, &mut seen));
        match parsed {
            Ok(row) => rows.push(row),
            Err(reason) => report.rejected.push((line, reason)),
        }
    }
    Ok(rows)
}

/// The next line. None at the end of the file.
fn read_line(reader: &mut impl BufRead, line: u64) -> std::io::Result<Option<Vec<u8>>> {
    let mut text = Vec::new();
    let mut reader = reader.take(LINE_BYTES_MAX + 1);
    if reader.read_until(b'\n', &mut text)? == 0 {
        return Ok(None);
    }
    if LINE_BYTES_MAX < text.len() as u64 {
        let reason = format!("line {line} has more than {LINE_BYTES_MAX} bytes");
        return Err(std::io::Error::other(reason));
    }
    Ok(Some(text))
}

/// The reason with the column in the line of the file. The parser sees one line only, and calls it
/// line 1.
fn json_reason(text: &[u8], error: &serde_json::Error) -> String {
    let message = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let Some(message) = message.strip_suffix(&place).filter(|_| error.column() > 0) else {
        return message;
    };
    // The parser counts bytes, and editors count characters.
    let before = &text[..text.len().min(error.column() - 1)];
    let column = String::from_utf8_lossy(before).chars().count() + 1;
    format!("column {column}: {message}")
}

/// What earlier rows had.
#[derive(Debug, Default)]
struct Seen {
    /// Line of each id.
    ids: BTreeMap<String, u64>,
    /// The first spelling of each character, artist and outfit, by field and key.
    spellings: BTreeMap<(&'static str, String), String>,
}

impl Seen {
    /// A name as it is stored: cleaned, and spelled as the first that is the same.
    fn name(
        &mut self,
        field: &'static str,
        text: &str,
        changes: &mut Vec<Change>,
    ) -> Result<String, String> {
        self.spelled(field, "", text, changes)
    }

    /// The outfit of a row, whose character and artist are known. Outfits of others have their own
    /// spellings.
    fn outfit(&mut self, row: &Row, changes: &mut Vec<Change>) -> Result<String, String> {
        let owner = format!("{}\0{}\0", row.character, row.artists);
        self.spelled("outfit", &owner, &row.outfit, changes)
    }

    fn spelled(
        &mut self,
        field: &'static str,
        owner: &str,
        text: &str,
        changes: &mut Vec<Change>,
    ) -> Result<String, String> {
        let name = names::name(text).map_err(|reason| format!("{field} {reason}"))?;
        if name != text {
            let detail = format!("{field} {text:?} is {name:?}");
            changes.push(Change::new(ChangeKind::Name, detail));
        }
        let key = owner.to_owned() + &names::key(&name);
        let first = self.spellings.entry((field, key));
        let first = first.or_insert_with(|| name.clone());
        if *first != name {
            let detail = format!("{field} {name:?} is {first:?}");
            changes.push(Change::new(ChangeKind::Spelling, detail));
        }
        Ok(first.clone())
    }
}

fn check_fields(mut row: Row, line: u64, seen: &mut Seen) -> Result<Row, String> {
    let mut changes = Vec::new();
    row.id = clean_id(&row.id, &mut changes).map_err(|reason| format!("id {reason}"))?;
    row.character = seen.name("character", &row.character, &mut changes)?;
    if row.artists.trim().is_empty() {
        row.artists.clear();
        changes.push(Change::new(ChangeKind::NoArtist, ""));
    } else {
        row.artists = seen.name("artists", &row.artists, &mut changes)?;
    }
    if row.whole && row.mask.is_some() {
        return Err("whole is true, and there is a mask: leave one of them out".to_owned());
    }
    if row.outfit.trim().is_empty() {
        row.outfit.clear();
    } else {
        row.outfit = seen.outfit(&row, &mut changes)?;
    }
    row.bbox.map_or(Ok(()), check_box)?;
    if let Some(text) = row.rating.filter(|text| !text.trim().is_empty()) {
        let rating = Rating::meant(&text).ok_or_else(|| {
            format!("rating is {text:?}; it must be general, sensitive, questionable or explicit")
        })?;
        if rating.word() != text {
            let detail = format!("{text:?} is {rating}");
            changes.push(Change::new(ChangeKind::Rating, detail));
        }
        row.rating = Some(rating.word().to_owned());
    } else {
        row.rating = None;
    }
    for similar in row.similar.iter_mut().flatten() {
        // What is no id is no id of a row, and is dropped as such.
        *similar = clean_id(similar, &mut changes).unwrap_or_else(|_| similar.clone());
    }
    clean_tags(&mut row, &mut changes);
    if let Some(first) = seen.ids.get(&row.id) {
        return Err(format!("id {:?} is also that of line {first}", row.id));
    }
    seen.ids.insert(row.id.clone(), line);
    row.line = line;
    row.changes = changes;
    Ok(row)
}

fn clean_id(text: &str, changes: &mut Vec<Change>) -> Result<String, String> {
    let id = names::id(text)?;
    if id != text {
        changes.push(Change::new(ChangeKind::Id, format!("{text:?} is {id:?}")));
    }
    Ok(id)
}

fn clean_tags(row: &mut Row, changes: &mut Vec<Change>) {
    let prompts = join_tags(split_tags(&row.prompts));
    let mut cloths: Vec<String> = Vec::new();
    for cloth in row.cloths.iter().map(|tag| names::cloth(tag)) {
        if !cloth.is_empty() && !cloths.contains(&cloth) {
            cloths.push(cloth);
        }
    }
    let different_tag = split_tags(&row.prompts).find(|tag| *tag != names::tag(tag));
    let different_cloth = row.cloths.iter().find(|tag| **tag != names::cloth(tag));
    let detail = match (different_tag, different_cloth) {
        (Some(tag), _) => Some(format!("{tag:?} is {:?}", names::tag(tag))),
        (None, Some(cloth)) => Some(format!("{cloth:?} is {:?}", names::cloth(cloth))),
        (None, None) if prompts != row.prompts || cloths != row.cloths => {
            Some("order, commas or repetition".to_owned())
        }
        (None, None) => None,
    };
    changes.extend(detail.map(|detail| Change::new(ChangeKind::Tags, detail)));
    row.prompts = prompts;
    row.cloths = cloths;
}
