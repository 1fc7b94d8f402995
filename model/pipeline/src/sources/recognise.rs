//! Recognises the files of a source by their content, and divides them into pieces.

use super::json::{edition_of, is_tag};
use super::{Piece, Span, parquet, sqlite};
use crate::error::{BuildError, Result};
use crate::post::Edition;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use proto::build::settings::{Source, SourceFile, SourcesSettings};
use serde_json::Value;

/// Bytes of a file that are looked at.
const HEAD_BYTES: u64 = 4 << 20;
/// Rows that are looked at. They must agree.
const ROWS: usize = 100;
/// Largest file with posts on several lines; it is read at once.
pub(super) const DOCUMENT_BYTES_MAX: u64 = 1 << 30;

/// What a file is.
enum Kind {
    Posts {
        edition: Edition,
        lines: bool,
    },
    /// The list of tags that the editions of 2021 have beside their posts: posts name their tags.
    Tags,
    Sqlite,
    Parquet,
}

/// The pieces of all sources, in order, and a sentence about each file.
///
/// # Errors
/// A file is none of the editions, is of two, or was changed since the pipeline was planned.
pub async fn recognise(settings: &SourcesSettings) -> Result<(Vec<Piece>, Vec<String>)> {
    let (mut pieces, mut found) = (Vec::new(), Vec::new());
    for (index, source) in (0..).zip(&settings.sources) {
        let (store, prefix) = storage::open(&source.folder)?;
        let before = pieces.len();
        for file in &source.files {
            let path = join(&prefix, &file.path);
            let head = read_head(&*store, &path, file).await?;
            let kind = kind_of(&name(source, file), &head, file.size)?;
            let piece = |edition, span| Piece {
                source: index,
                file: file.path.clone(),
                edition,
                span,
            };
            let label = name(source, file);
            match kind {
                Kind::Tags => {
                    found.push(format!("{label}: a list of tags, which is not needed"));
                    continue;
                }
                Kind::Posts {
                    edition,
                    lines: false,
                } => {
                    if DOCUMENT_BYTES_MAX < file.size {
                        let reason = format!(
                            "has posts on several lines and {} bytes; at most \
                             {DOCUMENT_BYTES_MAX} are read at once: write one post in each line",
                            file.size
                        );
                        return Err(BuildError::input(&label, reason));
                    }
                    pieces.push(piece(edition, Span::Document));
                    found.push(format!("{label}: {}", edition.description()));
                }
                Kind::Posts { edition, .. } => {
                    let mut start = 0;
                    while start < file.size {
                        let end = file.size.min(start + settings.piece_bytes.max(1));
                        pieces.push(piece(edition, Span::Lines { start, end }));
                        start = end;
                    }
                    found.push(format!("{label}: {}, one in a line", edition.description()));
                }
                Kind::Sqlite => {
                    let local = local_file(source, file)?;
                    let opened = sqlite::Database::open(&label, &local, source.tag_types)?;
                    found.push(format!("{label}: {}", opened.description()));
                    let edition = opened.edition();
                    let spans = opened.spans(settings.piece_rows)?;
                    pieces.extend(spans.into_iter().map(|span| piece(edition, span)));
                }
                Kind::Parquet => {
                    let groups = parquet::row_groups(&label, &store, &path, file.size).await?;
                    found.push(format!("{label}: {}", Edition::Parquet.description()));
                    let spans = groups.into_iter().map(|span| piece(Edition::Parquet, span));
                    pieces.extend(spans);
                }
            }
        }
        if pieces.len() == before {
            let reason = "there are no posts in it".to_owned();
            return Err(BuildError::input(&source.folder, reason));
        }
    }
    Ok((pieces, found))
}

pub(crate) fn join(prefix: &Path, relative: &str) -> Path {
    relative.split('/').fold(prefix.clone(), Path::join)
}

/// The URL of a file, for messages.
pub(super) fn name(source: &Source, file: &SourceFile) -> String {
    format!("{}/{}", source.folder.trim_end_matches('/'), file.path)
}

/// SQLite reads files of this machine only.
pub(super) fn local_file(source: &Source, file: &SourceFile) -> Result<std::path::PathBuf> {
    match storage::local_folder(&source.folder)? {
        Some(folder) => Ok(folder.join(&file.path)),
        None => Err(BuildError::input(
            &name(source, file),
            "is a SQLite database, which is read from a folder of the worker alone: copy it there, \
             and name the folder as file:///…",
        )),
    }
}

async fn read_head(store: &dyn ObjectStore, path: &Path, file: &SourceFile) -> Result<Vec<u8>> {
    let read = |source| BuildError::Read {
        path: path.to_string(),
        source,
    };
    let meta = store.head(path).await.map_err(read)?;
    if meta.size != file.size || meta.e_tag.as_deref().unwrap_or_default() != file.tag {
        return Err(BuildError::input(
            path.as_ref(),
            format!(
                "it was changed since the pipeline was planned ({} bytes then, {} now): run \
                 `coordinator dataset build` again",
                file.size, meta.size
            ),
        ));
    }
    if file.size == 0 {
        return Err(BuildError::input(path.as_ref(), "is empty"));
    }
    let head = store.get_range(path, 0..HEAD_BYTES.min(file.size)).await;
    Ok(head.map_err(read)?.to_vec())
}

fn kind_of(label: &str, head: &[u8], size: u64) -> Result<Kind> {
    for (magic, what) in [
        (&b"\x1f\x8b"[..], "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\xfd7zXZ", "xz"),
        (b"BZh", "bzip2"),
        (b"PK\x03\x04", "zip"),
    ] {
        if head.starts_with(magic) {
            let reason = format!("is compressed ({what}): unpack it first");
            return Err(BuildError::input(label, reason));
        }
    }
    if head.starts_with(b"SQLite format 3\0") {
        return Ok(Kind::Sqlite);
    }
    if head.starts_with(b"PAR1") {
        return Ok(Kind::Parquet);
    }
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    match text.trim_ascii_start().first() {
        Some(b'{') => kind_of_objects(label, text, head.len() as u64 == size),
        Some(b'[') => {
            let text = text.trim_ascii_start();
            kind_of_values(label, objects(&text[1..]), false)
        }
        Some(_) | None => {
            let reason = "is neither JSON, Parquet nor SQLite: name the folder or file of the \
                          metadata alone";
            Err(BuildError::input(label, reason))
        }
    }
}

fn kind_of_objects(label: &str, text: &[u8], whole: bool) -> Result<Kind> {
    // The last line may be cut off by the limit of what is read.
    let end = if whole {
        text.len()
    } else {
        text.iter()
            .rposition(|it| *it == b'\n')
            .unwrap_or(text.len())
    };
    let lines = text[..end].split(|it| *it == b'\n').map(<[u8]>::trim_ascii);
    let lines = lines.filter(|line| !line.is_empty()).take(ROWS);
    let parsed = lines.map(serde_json::from_slice::<Value>);
    let (good, bad): (Vec<_>, Vec<_>) = parsed.partition(|it| it.is_ok());
    // A bad row among good ones is that row's fault.
    let is_lines = bad.len() <= good.len();
    if is_lines {
        kind_of_values(label, good.into_iter().flatten().collect(), true)
    } else {
        kind_of_values(label, objects(text), false)
    }
}

/// The first objects of a text, as far as they are whole, whatever is between them.
fn objects(text: &[u8]) -> Vec<Value> {
    let (mut found, mut rest) = (Vec::new(), text);
    while found.len() < ROWS {
        let start = rest.iter().position(|it| *it == b'{');
        let Some(start) = start else { break };
        rest = &rest[start..];
        let mut stream = serde_json::Deserializer::from_slice(rest).into_iter::<Value>();
        let Some(Ok(value)) = stream.next() else {
            break;
        };
        let length = stream.byte_offset();
        found.push(value);
        rest = &rest[length..];
    }
    found
}

fn kind_of_values(label: &str, values: Vec<Value>, lines: bool) -> Result<Kind> {
    let mut editions: Vec<Edition> = values.iter().filter_map(edition_of).collect();
    editions.sort();
    editions.dedup();
    match editions.as_slice() {
        [edition] => Ok(Kind::Posts {
            edition: *edition,
            lines,
        }),
        [] if !values.is_empty() && values.iter().all(is_tag) => Ok(Kind::Tags),
        [] => {
            let keys = values.first().and_then(Value::as_object);
            let keys: Vec<&str> = keys
                .into_iter()
                .flat_map(|it| it.keys().map(String::as_str))
                .take(20)
                .collect();
            let reason = format!(
                "its rows are no posts of Danbooru: they have the keys {}; expected is \
                 tag_string_general, or tags as a list of objects with name and category",
                if keys.is_empty() {
                    "none".to_owned()
                } else {
                    keys.join(", ")
                }
            );
            Err(BuildError::input(label, reason))
        }
        [first, second, ..] => {
            let reason = format!(
                "its rows are of two editions, {} and {}: divide it into two files",
                first.description(),
                second.description()
            );
            Err(BuildError::input(label, reason))
        }
    }
}
