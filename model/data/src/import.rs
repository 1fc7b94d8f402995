//! Imports a data set from the interchange format: a folder with images, masks and `samples.jsonl`,
//! one JSON object per line with the paper's field names:
//!
//! - `id`: text, unique
//! - `character`: one character tag
//! - `artists`: one artist tag; "" if the source has none, as photographs
//! - `bbox`: face as centre x, centre y, width, height relative to the image size; if absent:
//!   guessed
//! - `prompts`: general tags, separated by ", ", with underscores
//! - `cloths`: list of clothing tags; optional
//! - `similar`: ids of the same character, outfit and artist; if absent: all rows that have these
//!   three in common
//! - `outfit`: name of the outfit; optional, without it only `similar` groups rows
//! - `image`: path of a PNG, JPEG or WebP inside the folder
//! - `mask`: path of a greyscale image of the same size, 255 on the figure; if absent: the alpha
//!   channel of the image
//! - `whole`: true if there is no mask and the whole image counts, as in photographs of faces.
//!   Without a `bbox` the face is then the whole image. Clothes are never cut from such a row
//! - `rating`: general, sensitive, questionable or explicit; optional
//!
//! Images and masks are read by [`crate::decode`], texts by [`crate::names`], and a guessed face is
//! the upper part of the mask. Whatever these change or guess is counted in the report, and kept in
//! the column `changes`. An invalid row is skipped and reported with its line and reason. A
//! `similar` that names a missing or skipped row is dropped and reported. An identity that is too
//! large for one row group is split into several, and reported. With `strict`, any such report
//! makes the import fail before `dataset.json` is written.
//!
//! Images are decoded and encoded on all cores, and written in the order of the rows. Memory is
//! bounded by [`DECODE_MIB`], [`PART_BYTES`] and the text of `samples.jsonl`.

mod face;
mod group;
mod load;
mod rows;

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use crate::decode::ChangeCounts;
use crate::image_file::IMAGE_FILE_BYTES_MAX;
use crate::image_sizes::ImageSizes;
use crate::prompt_length::CutPrompts;
use crate::writer::{DatasetWriter, WriteError, WriteOptions, Written};
use group::group_rows;
use load::load_groups;
use rows::{Row, read_rows};

pub const SAMPLES_FILE: &str = "samples.jsonl";

/// An identity with more bytes of images is split. A rank reads all of an identity at once, so this
/// is far below what a row group could hold.
pub const PART_BYTES: usize = 256 << 20;
/// An identity with more rows is split, because each row lists all others as similar.
pub const PART_ROWS: usize = 1024;
/// Memory for images that are being decoded, in MiB.
pub const DECODE_MIB: u32 = 2048;
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error(
        "cannot read {}; an import folder contains {SAMPLES_FILE}, images and masks",
        path.display()
    )]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "{} is UTF-16 text; save it as UTF-8 (in Windows editors: UTF-8, with or without a byte \
         order mark)",
        path.display()
    )]
    Utf16 { path: PathBuf },
    #[error(
        "strict: {} of {} rows of {SAMPLES_FILE} were rejected, {} links dropped and {} \
         identities split; no data set was made; the first: {}",
        report.rejected.len(), report.rows, report.dropped.len(), report.split.len(),
        report.first_fault())]
    Strict { report: Box<ImportReport> },
    #[error("no row of {} is valid; the first reason: {}", path.display(), report.first_fault())]
    Nothing {
        path: PathBuf,
        report: Box<ImportReport>,
    },
    #[error(transparent)]
    Write(Box<WriteError>),
}

impl From<WriteError> for ImportError {
    fn from(error: WriteError) -> Self {
        Self::Write(Box::new(error))
    }
}

/// Result of an import.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ImportReport {
    /// Lines that are not blank.
    pub rows: u64,
    pub accepted: u64,
    /// Rows that were skipped: line (1-based) and reason.
    pub rejected: Vec<(u64, String)>,
    /// `similar` entries that were dropped from accepted rows: line and reason.
    pub dropped: Vec<(u64, String)>,
    /// Identities that were split: line of the first row, and what was split.
    pub split: Vec<(u64, String)>,
    /// Accepted rows without `bbox`, whose face was guessed.
    pub guessed_boxes: u64,
    /// Accepted rows without a similar image.
    pub alone: u64,
    /// Accepted rows whose prompt is longer than what CLIP reads.
    pub cut_prompts: CutPrompts,
    /// Of accepted rows, for common sizes of squares.
    pub sizes: ImageSizes,
    /// Accepted rows by rating; "unrated" for those without one.
    pub ratings: BTreeMap<String, u64>,
    /// What was changed or guessed, over all rows that were read, accepted or not.
    pub changes: ChangeCounts,
}

impl ImportReport {
    fn first_fault(&self) -> String {
        let faults = self.rejected.iter().chain(&self.dropped);
        match faults.chain(&self.split).min() {
            Some((line, reason)) => format!("line {line}: {reason}"),
            None => "the file has no rows".to_owned(),
        }
    }
}

/// How to import.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImportOptions {
    /// One-line description of the data set.
    pub source: String,
    /// Fail if a row is rejected, a link dropped or an identity split.
    pub strict: bool,
    /// Replace the data set at the URL, if there is one.
    pub replace: bool,
}

/// Imports `folder` into a new data set at `url`.
///
/// # Errors
/// The folder or URL cannot be used, there is a data set at the URL and `replace` is not set, no
/// row is valid, or `strict` is set and a row or link is not.
pub async fn import(
    folder: &Path,
    url: &str,
    options: &ImportOptions,
) -> Result<(Written, ImportReport), ImportError> {
    let rows = |report: &mut ImportReport| {
        let path = folder.join(SAMPLES_FILE);
        let file = storage::confined::open_inside(folder, SAMPLES_FILE);
        let file = file.map_err(|error| ImportError::Read {
            path: path.clone(),
            source: std::io::Error::other(error),
        })?;
        read_rows(std::io::BufReader::new(file), &path, report)
    };
    let files: Arc<dyn ImageFiles> = Arc::new(Folder(folder.to_owned()));
    run(rows, (&folder.join(SAMPLES_FILE), files), url, options).await
}

/// The files that rows name.
pub trait ImageFiles: Send + Sync {
    /// The bytes of a file. Called on threads for blocking work.
    ///
    /// # Errors
    /// Why it cannot be read, to follow its name.
    fn read(&self, path: &str) -> Result<Bytes, String>;
}

/// The files of an import folder, and none of elsewhere: import folders are untrusted.
struct Folder(PathBuf);

impl ImageFiles for Folder {
    fn read(&self, path: &str) -> Result<Bytes, String> {
        storage::confined::read_inside(&self.0, path, IMAGE_FILE_BYTES_MAX)
            .map(Bytes::from)
            .map_err(|error| error.to_string())
    }
}

/// Imports rows in the form of `samples.jsonl` whose files are elsewhere. `path` is what their
/// origin is called in messages.
///
/// # Errors
/// As [`import`].
pub async fn import_rows(
    lines: impl BufRead,
    path: &Path,
    files: Arc<dyn ImageFiles>,
    url: &str,
    options: &ImportOptions,
) -> Result<(Written, ImportReport), ImportError> {
    let rows = |report: &mut ImportReport| read_rows(lines, path, report);
    run(rows, (path, files), url, options).await
}

async fn run(
    rows: impl FnOnce(&mut ImportReport) -> Result<Vec<Row>, ImportError>,
    (path, files): (&Path, Arc<dyn ImageFiles>),
    url: &str,
    options: &ImportOptions,
) -> Result<(Written, ImportReport), ImportError> {
    let write_options = WriteOptions {
        replace: options.replace,
        ..WriteOptions::new(&options.source)
    };
    // First, because it takes no time to find out that the URL cannot be written to.
    let mut writer = DatasetWriter::open(url, write_options).await?;
    let mut report = ImportReport::default();
    let rows = rows(&mut report)?;
    let groups = group_rows(rows, &mut report);
    load_groups(files, groups, &mut writer, &mut report).await?;
    report.rejected.sort();
    report.dropped.sort();
    report.split.sort();
    if report.accepted == 0 {
        return Err(ImportError::Nothing {
            path: path.to_owned(),
            report: Box::new(report),
        });
    }
    let faults = [&report.rejected, &report.dropped, &report.split];
    if options.strict && faults.iter().any(|list| !list.is_empty()) {
        return Err(ImportError::Strict {
            report: Box::new(report),
        });
    }
    Ok((writer.finish().await?, report))
}
