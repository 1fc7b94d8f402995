//! Imports a data set from the interchange format: a folder with images, masks and `samples.jsonl`,
//! one JSON object per line with the paper's field names:
//!
//! - `id`: text, unique
//! - `character`: one character tag
//! - `artists`: one artist tag
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
//! - `rating`: general, sensitive, questionable or explicit; optional
//!
//! Images and masks are read by [`crate::decode`], texts by [`crate::names`], and a guessed face is
//! the upper part of the mask. Whatever these change or guess is counted in the report, and kept in
//! the column `changes`. An invalid row is skipped and reported with its line and reason. A `similar`
//! that names a missing or skipped row is dropped and reported. With `strict`, any such report makes
//! the import fail before `dataset.json` is written.

mod face;
mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use proto::dataset::DatasetManifest;
use proto::rating::Rating;
use serde::Serialize;

use crate::decode::{Change, ChangeCounts, ChangeKind, Expect, MaskSource, Origin, decode};
use crate::image_file::{ImageError, encode_gray, encode_rgb};
use crate::regular;
use crate::sample::{Metadata, Sample};
use crate::writer::{DatasetWriter, WriteError, WriteOptions};
use face::guess_face;
use rows::{Row, read_rows};

pub const SAMPLES_FILE: &str = "samples.jsonl";

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
        "strict: {} of {} rows of {SAMPLES_FILE} were rejected and {} links dropped, \
         no data set was made; the first: {}",
        report.rejected.len(), report.rows, report.dropped.len(), report.first_fault())]
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
    /// Accepted rows without `bbox`, whose face was guessed.
    pub guessed_boxes: u64,
    /// Accepted rows without a similar image.
    pub alone: u64,
    /// Accepted rows by rating; "unrated" for those without one.
    pub ratings: BTreeMap<String, u64>,
    /// What was changed or guessed, over all rows that were read, accepted or not.
    pub changes: ChangeCounts,
}

impl ImportReport {
    fn first_fault(&self) -> String {
        match self.rejected.iter().chain(&self.dropped).min() {
            Some((line, reason)) => format!("line {line}: {reason}"),
            None => "the file has no rows".to_owned(),
        }
    }
}

/// Imports `folder` into a new data set at `url`. `source` is its one-line description.
///
/// # Errors
/// The folder or URL cannot be used, no row is valid, or `strict` is set and a row or link is not.
pub async fn import(
    folder: &Path,
    url: &str,
    source: &str,
    strict: bool,
) -> Result<(DatasetManifest, ImportReport), ImportError> {
    let mut report = ImportReport::default();
    let rows = read_rows(folder, &mut report)?;
    let mut writer = DatasetWriter::open(url, WriteOptions::new(source))?;
    for group in group_rows(rows, &mut report) {
        let samples = load_group(folder, group, &mut report);
        if !samples.is_empty() {
            report.accepted += samples.len() as u64;
            let alone = samples
                .iter()
                .filter(|sample| sample.metadata.similar.is_empty());
            report.alone += alone.count() as u64;
            writer.add(samples).await?;
        }
    }
    report.rejected.sort();
    report.dropped.sort();
    if report.accepted == 0 {
        return Err(ImportError::Nothing {
            path: folder.join(SAMPLES_FILE),
            report: Box::new(report),
        });
    }
    if strict && !(report.rejected.is_empty() && report.dropped.is_empty()) {
        return Err(ImportError::Strict {
            report: Box::new(report),
        });
    }
    Ok((writer.finish().await?, report))
}

/// Groups rows by outfit or by `similar`, in the order of their first lines. Links to missing rows
/// are dropped here.
fn group_rows(mut rows: Vec<Row>, report: &mut ImportReport) -> Vec<Vec<Row>> {
    let index: BTreeMap<String, usize> = rows
        .iter()
        .enumerate()
        .map(|(i, r)| (r.id.clone(), i))
        .collect();
    let owner = |row: &Row| (row.character.clone(), row.artists.clone());
    let owners: Vec<(String, String)> = rows.iter().map(owner).collect();
    let mut links = Links::new(rows.len());
    let mut outfits: BTreeMap<(String, String, String), usize> = BTreeMap::new();
    for (i, row) in rows.iter_mut().enumerate() {
        if !row.outfit.is_empty() {
            let key = (
                row.character.clone(),
                row.artists.clone(),
                row.outfit.clone(),
            );
            links.join(i, *outfits.entry(key).or_insert(i));
        }
        let (line, own_id) = (row.line, row.id.clone());
        let mut link = |id: &String| {
            let reason = match index.get(id) {
                None => format!("similar names {id:?}, which does not exist"),
                Some(_) if *id == own_id => "similar names the row itself".to_owned(),
                Some(j) if owners[*j] != owners[i] => {
                    format!("similar names {id:?}, which is of another character or artist")
                }
                Some(j) => {
                    links.join(i, *j);
                    return true;
                }
            };
            report.dropped.push((line, reason));
            false
        };
        if let Some(similar) = &mut row.similar {
            similar.retain(&mut link);
        }
    }
    let mut groups: BTreeMap<usize, Vec<Row>> = BTreeMap::new();
    for (i, row) in rows.into_iter().enumerate() {
        groups.entry(links.root(i)).or_default().push(row);
    }
    groups.into_values().collect()
}

/// The valid samples of one group. Their links to invalid rows are dropped.
fn load_group(folder: &Path, group: Vec<Row>, report: &mut ImportReport) -> Vec<Sample> {
    let mut loaded = Vec::new();
    for mut row in group {
        let mut changes = std::mem::take(&mut row.changes);
        let images = load_images(folder, &row, &mut changes);
        let words: Vec<String> = changes.iter().map(ToString::to_string).collect();
        let sample = format!("line {}", row.line);
        report
            .changes
            .add(&sample, words.iter().map(String::as_str));
        row.changes = changes;
        match images {
            Ok(images) => {
                report.guessed_boxes += u64::from(row.bbox.is_none());
                let rating = row.rating.as_deref().unwrap_or(Rating::Unrated.word());
                *report.ratings.entry(rating.to_owned()).or_insert(0) += 1;
                loaded.push((row, images));
            }
            Err(reason) => report.rejected.push((row.line, reason)),
        }
    }
    let loaded_ids: BTreeSet<String> = loaded.iter().map(|(row, _)| row.id.clone()).collect();
    let same_outfit = |row: &Row| -> Vec<String> {
        let others = loaded
            .iter()
            .filter(|(r, _)| !row.outfit.is_empty() && r.outfit == row.outfit && r.id != row.id);
        others.map(|(r, _)| r.id.clone()).collect()
    };
    let similar: Vec<Vec<String>> = loaded
        .iter()
        .map(|(row, _)| {
            let mut similar = row.similar.clone().unwrap_or_else(|| same_outfit(row));
            similar.retain(|id| {
                if !loaded_ids.contains(id) {
                    report.dropped.push((
                        row.line,
                        format!("similar names {id:?}, which was rejected"),
                    ));
                }
                loaded_ids.contains(id)
            });
            similar
        })
        .collect();
    loaded
        .into_iter()
        .zip(similar)
        .map(|((row, images), similar)| Sample {
            metadata: Metadata {
                id: row.id,
                character: row.character,
                artists: row.artists,
                outfit: row.outfit,
                bbox: images.bbox,
                prompts: row.prompts,
                cloths: row.cloths,
                similar,
                rating: row.rating.unwrap_or_default(),
                changes: row.changes.iter().map(ToString::to_string).collect(),
                width: images.width,
                height: images.height,
                ..Metadata::default()
            },
            image: images.image,
            mask: images.mask,
        })
        .collect()
}

struct Images {
    image: Bytes,
    mask: Bytes,
    bbox: [f64; 4],
    width: u32,
    height: u32,
}

/// Reads a row's image and mask. What was changed or guessed is appended to `changes`, also before
/// an error.
fn load_images(folder: &Path, row: &Row, changes: &mut Vec<Change>) -> Result<Images, String> {
    let message = |e: ImageError| e.to_string();
    let bytes = read_inside(folder, "image", &row.image)?;
    let mask_bytes = match &row.mask {
        Some(path) => Some(read_inside(folder, "mask", path)?),
        None => None,
    };
    let expect = Expect {
        what: "image",
        origin: Origin::File,
        size: None,
        face: row.bbox,
        check: true,
    };
    let source = mask_bytes
        .as_ref()
        .map_or(MaskSource::Alpha, |bytes| MaskSource::File(bytes));
    let pixels = decode(&bytes, source, &expect, changes).map_err(message)?;
    let (width, height) = pixels.image.dimensions();
    let bbox = match row.bbox {
        Some(bbox) => bbox,
        None => {
            changes.push(Change::new(ChangeKind::FaceGuessed, ""));
            guess_face(&pixels.mask)
                .ok_or("the mask is empty, so no face can be guessed; give a bbox")?
        }
    };
    let image = match pixels.stored_as {
        Some(length) => bytes.slice(..length),
        None => encode_rgb(pixels.image).map_err(message)?,
    };
    Ok(Images {
        image,
        mask: encode_gray(pixels.mask).map_err(message)?,
        bbox,
        width,
        height,
    })
}

/// Reads a file of the folder. A path that leaves the folder is rejected, because import folders
/// are untrusted.
fn read_inside(folder: &Path, field: &str, path: &str) -> Result<Bytes, String> {
    let relative = Path::new(path);
    if !relative
        .components()
        .all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
    {
        return Err(format!(
            "{field} {path:?} leaves the folder; write a path inside it"
        ));
    }
    regular::read(&folder.join(relative))
        .map(Bytes::from)
        .map_err(|e| format!("{field} {path:?} cannot be read: {e}"))
}

/// Union-find over rows that are linked directly or transitively. The smallest index of a group is
/// its root.
struct Links {
    parent: Vec<usize>,
}

impl Links {
    fn new(count: usize) -> Self {
        Self {
            parent: (0..count).collect(),
        }
    }

    fn root(&mut self, mut node: usize) -> usize {
        while self.parent[node] != node {
            self.parent[node] = self.parent[self.parent[node]];
            node = self.parent[node];
        }
        node
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.parent[a.max(b)] = a.min(b);
    }
}
