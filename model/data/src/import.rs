//! Reads the general form of a data set and writes ours. The form is a folder with pictures, masks
//! and `samples.jsonl`, one JSON object per line with the paper's field names:
//!
//! | field | meaning |
//! |---|---|
//! | `id` | text, unique |
//! | `character` | one character tag |
//! | `artists` | one artist tag |
//! | `bbox` | face: centre x, centre y, width, height as shares of the picture; left out: guessed |
//! | `prompts` | general tags, separated by ", ", with underscores |
//! | `cloths` | list of clothing tags; may be left out |
//! | `similar` | ids of the same character, outfit and artist; left out: all rows that share these three |
//! | `outfit` | name of the outfit; may be left out, then only `similar` tells which rows belong together |
//! | `image` | path of a PNG, JPEG or WebP inside the folder |
//! | `mask` | path of a grey picture of the same size, 255 on the figure; left out: the picture's own alpha |
//!
//! A guessed face is the upper part of the mask, and counted in the report. Transparent pictures
//! are stored over white. A row that cannot be used is reported with its line and reason and left
//! out; a `similar` that names a row that is not there (or was left out) is reported and dropped.
//! With `strict`, anything reported makes the import fail before `dataset.json` is written.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use image::{DynamicImage, GrayImage, Rgb};
use proto::dataset::DatasetManifest;
use serde::{Deserialize, Serialize};

use crate::image_file::{ImageError, encode_gray, encode_rgb, flatten, mask_region, open_image};
use crate::sample::{Metadata, Sample, join_tags, split_tags};
use crate::verify::check_box;
use crate::writer::{DatasetWriter, WriteError, WriteOptions};

pub const SAMPLES_FILE: &str = "samples.jsonl";

#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("cannot read {}; an import folder holds {SAMPLES_FILE}, pictures and \
    masks", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "strict: {} of {} rows of {SAMPLES_FILE} were rejected and {} links dropped, \
         no data set was made; the first: {}",
        report.rejected.len(), report.rows, report.dropped.len(), report.first())]
    Strict { report: Box<ImportReport> },
    #[error("no row of {} can be used; the first reason: {}", path.display(), report.first())]
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

/// What became of the rows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ImportReport {
    /// Lines that were not blank.
    pub rows: u64,
    pub accepted: u64,
    /// Rows that were left out: line (1-based) and reason.
    pub rejected: Vec<(u64, String)>,
    /// `similar` entries that were dropped from accepted rows: line and reason.
    pub dropped: Vec<(u64, String)>,
    /// Accepted rows without `bbox`, whose face was guessed.
    pub guessed_boxes: u64,
    /// Accepted rows that name no similar picture.
    pub alone: u64,
}

impl ImportReport {
    fn first(&self) -> String {
        match self.rejected.iter().chain(&self.dropped).min() {
            Some((line, reason)) => format!("line {line}: {reason}"),
            None => "the file has no rows".to_owned(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    id: String,
    character: String,
    artists: String,
    bbox: Option<[f64; 4]>,
    prompts: String,
    #[serde(default)]
    cloths: Vec<String>,
    similar: Option<Vec<String>>,
    #[serde(default)]
    outfit: String,
    image: String,
    mask: Option<String>,
    #[serde(skip)]
    line: u64,
}

/// Imports `folder` into a new data set at `url`. `source` is its one line for people.
///
/// # Errors
/// The folder or URL cannot be used, no row is good, or `strict` and not all are.
pub async fn import(
    folder: &Path,
    url: &str,
    source: &str,
    strict: bool,
) -> Result<(DatasetManifest, ImportReport), ImportError> {
    let mut report = ImportReport::default();
    let rows = read_rows(folder, &mut report)?;
    let mut writer = DatasetWriter::open(url, WriteOptions::new(source))?;
    for group in groups(rows, &mut report) {
        let samples = load_group(folder, group, &mut report);
        if !samples.is_empty() {
            report.accepted += samples.len() as u64;
            let alone = samples.iter().filter(|it| it.metadata.similar.is_empty());
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

fn read_rows(folder: &Path, report: &mut ImportReport) -> Result<Vec<Row>, ImportError> {
    let path = folder.join(SAMPLES_FILE);
    let failed = |source| ImportError::Read {
        path: path.clone(),
        source,
    };
    let file = std::fs::File::open(&path).map_err(failed)?;
    let (mut rows, mut ids) = (Vec::new(), BTreeMap::new());
    for (index, text) in std::io::BufReader::new(file).split(b'\n').enumerate() {
        let (line, text) = (index as u64 + 1, text.map_err(failed)?);
        if text.trim_ascii().is_empty() {
            continue;
        }
        report.rows += 1;
        let parsed = serde_json::from_slice::<Row>(&text)
            .map_err(|e| e.to_string())
            .and_then(|row| check_fields(row, line, &mut ids));
        match parsed {
            Ok(row) => rows.push(row),
            Err(reason) => report.rejected.push((line, reason)),
        }
    }
    Ok(rows)
}

fn check_fields(mut row: Row, line: u64, ids: &mut BTreeMap<String, u64>) -> Result<Row, String> {
    for (field, value) in [
        ("id", &row.id),
        ("character", &row.character),
        ("artists", &row.artists),
    ] {
        if value.trim().is_empty() {
            return Err(format!("{field} is empty; every row needs one"));
        }
    }
    row.bbox.map_or(Ok(()), check_box)?;
    if let Some(first) = ids.get(&row.id) {
        return Err(format!("id {:?} is that of line {first} too", row.id));
    }
    ids.insert(row.id.clone(), line);
    row.line = line;
    row.prompts = join_tags(split_tags(&row.prompts));
    row.cloths = row
        .cloths
        .iter()
        .map(|tag| tag.trim().replace('_', " "))
        .collect();
    Ok(row)
}

/// Rows that belong together, by outfit or by `similar`, in the order of their first lines. Links
/// that lead nowhere are dropped here.
fn groups(mut rows: Vec<Row>, report: &mut ImportReport) -> Vec<Vec<Row>> {
    let index: BTreeMap<String, usize> = rows
        .iter()
        .enumerate()
        .map(|(i, r)| (r.id.clone(), i))
        .collect();
    let who = |row: &Row| (row.character.clone(), row.artists.clone());
    let people: Vec<(String, String)> = rows.iter().map(who).collect();
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
        let (line, own) = (row.line, row.id.clone());
        let mut keep = |id: &String| {
            let reason = match index.get(id) {
                None => format!("similar names {id:?}, which is not there"),
                Some(_) if *id == own => "similar names the row itself".to_owned(),
                Some(j) if people[*j] != people[i] => {
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
            similar.retain(&mut keep);
        }
    }
    let mut groups: BTreeMap<usize, Vec<Row>> = BTreeMap::new();
    for (i, row) in rows.into_iter().enumerate() {
        groups.entry(links.root(i)).or_default().push(row);
    }
    groups.into_values().collect()
}

/// The usable samples of one group, with their links to unusable ones dropped.
fn load_group(folder: &Path, group: Vec<Row>, report: &mut ImportReport) -> Vec<Sample> {
    let mut loaded = Vec::new();
    for row in group {
        match load_images(folder, &row) {
            Ok(images) => {
                report.guessed_boxes += u64::from(row.bbox.is_none());
                loaded.push((row, images));
            }
            Err(reason) => report.rejected.push((row.line, reason)),
        }
    }
    let here: BTreeSet<String> = loaded.iter().map(|(row, _)| row.id.clone()).collect();
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
                if !here.contains(id) {
                    report.dropped.push((
                        row.line,
                        format!("similar names {id:?}, which was rejected"),
                    ));
                }
                here.contains(id)
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

fn load_images(folder: &Path, row: &Row) -> Result<Images, String> {
    let text = |e: ImageError| e.to_string();
    let bytes = read_inside(folder, "image", &row.image)?;
    let image = open_image("image", &bytes).map_err(text)?;
    let (width, height) = (image.width(), image.height());
    let transparent = image.color().has_alpha();
    let mask = match &row.mask {
        Some(path) => load_mask(folder, path, width, height)?,
        None if transparent => alpha(&image),
        None => {
            return Err(
                "there is no mask: name a mask file, or give the image an alpha channel".to_owned(),
            );
        }
    };
    let bbox = match row.bbox {
        Some(bbox) => bbox,
        None => {
            guess_face(&mask).ok_or("the mask is empty, so no face can be guessed; give a bbox")?
        }
    };
    let image = if transparent {
        encode_rgb(flatten(image, Rgb([255, 255, 255]))).map_err(text)?
    } else {
        bytes
    };
    Ok(Images {
        image,
        mask: encode_gray(mask).map_err(text)?,
        bbox,
        width,
        height,
    })
}

fn load_mask(folder: &Path, path: &str, width: u32, height: u32) -> Result<GrayImage, String> {
    let bytes = read_inside(folder, "mask", path)?;
    let mask = open_image("mask", &bytes)
        .map_err(|e| e.to_string())?
        .into_luma8();
    if mask.dimensions() != (width, height) {
        let (w, h) = mask.dimensions();
        return Err(format!(
            "the mask {path:?} is {w}x{h} pixels, the image is {width}x{height}"
        ));
    }
    Ok(mask)
}

/// A face where nobody marked one: a square of 0.3 of the figure's height at its upper end. Thin
/// tips above the head (a raised sword, a feather) are skipped: the head begins where a row is a
/// quarter as wide as the widest.
fn guess_face(mask: &GrayImage) -> Option<[f64; 4]> {
    let (width, height) = (f64::from(mask.width()), f64::from(mask.height()));
    let whole = mask_region(mask)?;
    let rows: Vec<Vec<u32>> = (whole.y..whole.bottom())
        .map(|y| {
            (0..mask.width())
                .filter(|x| mask.get_pixel(*x, y).0[0] >= 128)
                .collect()
        })
        .collect();
    let widest = rows.iter().map(Vec::len).max()?;
    let top = rows.iter().position(|row| row.len() * 4 >= widest)?;
    let side = (f64::from(whole.height) * 0.3).max(2.0);
    let mut columns: Vec<u32> = rows
        .iter()
        .skip(top)
        .take(side as usize)
        .flatten()
        .copied()
        .collect();
    columns.sort_unstable();
    let centre = f64::from(*columns.get(columns.len() / 2)?) + 0.5;
    let y = f64::from(whole.y) + top as f64;
    let clip = |low: f64, high: f64, end: f64| (low.max(0.0), high.min(end));
    let (left, right) = clip(centre - side / 2.0, centre + side / 2.0, width);
    let (upper, lower) = clip(y, y + side, height);
    Some([
        (left + right) / 2.0 / width,
        (upper + lower) / 2.0 / height,
        (right - left) / width,
        (lower - upper) / height,
    ])
}

fn alpha(image: &DynamicImage) -> GrayImage {
    let rgba = image.to_rgba8();
    let values = rgba.as_raw().chunks_exact(4).map(|p| p[3]).collect();
    GrayImage::from_vec(rgba.width(), rgba.height(), values).expect("one alpha for each pixel")
}

/// A file of the folder; a path that leaves it is refused, because import folders come from
/// strangers.
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
    std::fs::read(folder.join(relative))
        .map(Bytes::from)
        .map_err(|e| format!("{field} {path:?} cannot be read: {e}"))
}

/// Union-find: which rows are linked, directly or through others. The smallest index of a group is
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

    fn root(&mut self, mut at: usize) -> usize {
        while self.parent[at] != at {
            self.parent[at] = self.parent[self.parent[at]];
            at = self.parent[at];
        }
        at
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.parent[a.max(b)] = a.min(b);
    }
}
