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
//!
//! A guessed face is the upper part of the mask, and is counted in the report. Images with
//! transparency are composited over white. An invalid row is skipped and reported with its line and
//! reason. A `similar` that names a missing or skipped row is dropped and reported. An identity
//! that is too large for one row group is split into several, and reported. With `strict`, any such
//! report makes the import fail before `dataset.json` is written.
//!
//! Images are decoded and encoded on all cores, and written in the order of the rows. Memory is
//! bounded by [`DECODE_MIB`], [`PART_BYTES`] and the text of `samples.jsonl`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use image::{DynamicImage, GrayImage, Rgb};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::image_file::{ImageError, encode_gray, encode_rgb, flatten, mask_region, open_image};
use crate::prompt_length::{CLIP_TOKENS, CutPrompts, PromptCounter};
use crate::sample::{Metadata, Sample, join_tags, split_tags};
use crate::verify::check_box;
use crate::writer::{DatasetWriter, WriteError, WriteOptions, Written};

pub const SAMPLES_FILE: &str = "samples.jsonl";
/// Longest line of it.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// Largest file of an image or a mask.
const IMAGE_FILE_BYTES_MAX: u64 = 256 << 20;

/// An identity with more bytes of images is split. A rank reads all of an identity at once, so this
/// is far below what a row group could hold.
pub const PART_BYTES: usize = 256 << 20;
/// An identity with more rows is split, because each row lists all others as similar.
pub const PART_ROWS: usize = 1024;
/// Memory for images that are being decoded, in MiB.
pub const DECODE_MIB: u32 = 2048;
/// Memory that an image needs while it is imported, in bytes per pixel: twice RGBA, RGB, and masks,
/// rounded up.
const BYTES_PER_PIXEL: u64 = 16;

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

#[derive(Debug, Clone, Deserialize)]
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
    let write_options = WriteOptions {
        replace: options.replace,
        ..WriteOptions::new(&options.source)
    };
    // First, because it takes no time to find out that the URL cannot be written to.
    let mut writer = DatasetWriter::open(url, write_options).await?;
    let mut report = ImportReport::default();
    let rows = read_rows(folder, &mut report)?;
    let groups = group_rows(rows, &mut report);
    load_groups(folder, groups, &mut writer, &mut report).await?;
    report.rejected.sort();
    report.dropped.sort();
    report.split.sort();
    if report.accepted == 0 {
        return Err(ImportError::Nothing {
            path: folder.join(SAMPLES_FILE),
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

/// Loads the images of all groups in parallel, and writes the groups in order.
async fn load_groups(
    folder: &Path,
    groups: Vec<Vec<Row>>,
    writer: &mut DatasetWriter,
    report: &mut ImportReport,
) -> Result<(), ImportError> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = Arc::new(Semaphore::new(DECODE_MIB as usize));
    let folder: Arc<Path> = folder.into();
    let rows = groups.into_iter().enumerate();
    let rows = rows.flat_map(|(group, rows)| rows.into_iter().map(move |row| (group, row)));
    // More than there are cores, so that no core waits while a group is written.
    let mut loads = futures::stream::iter(rows)
        .map(|(group, row)| {
            let (folder, memory) = (Arc::clone(&folder), Arc::clone(&memory));
            async move { (group, load_row(folder, row, &memory).await) }
        })
        .buffered(cores * 2);
    let mut part = Part::default();
    let mut prompts = PromptCounter::new(CLIP_TOKENS);
    while let Some((group, (row, loaded))) = loads.next().await {
        if group != part.group {
            part.write(writer, report).await?;
            part.report_split(report);
            part = Part {
                group,
                ..Part::default()
            };
        }
        match loaded {
            Ok(images) => {
                let size = images.image.len() + images.mask.len();
                if part.bytes + size > PART_BYTES || part.loaded.len() == PART_ROWS {
                    part.write(writer, report).await?;
                }
                report.guessed_boxes += u64::from(row.bbox.is_none());
                part.bytes += size;
                prompts.add(&row.prompts);
                part.loaded.push((row, images));
            }
            Err(reason) => report.rejected.push((row.line, reason)),
        }
    }
    part.write(writer, report).await?;
    part.report_split(report);
    report.cut_prompts = prompts.finish();
    Ok(())
}

/// Loads the images of a row on a thread for blocking work, when there is memory for them.
async fn load_row(
    folder: Arc<Path>,
    row: Row,
    memory: &Semaphore,
) -> (Row, Result<Images, String>) {
    let mib = mib_of(&folder, &row.image);
    // The semaphore is never closed; without a permit the row would only use more memory.
    let _permit = memory.acquire_many(mib).await;
    let row = Arc::new(row);
    let task = tokio::task::spawn_blocking({
        let row = Arc::clone(&row);
        move || load_images(&folder, &row)
    });
    let loaded = task
        .await
        .unwrap_or_else(|error| Err(format!("the image cannot be decoded: {error}")));
    let row = Arc::try_unwrap(row).unwrap_or_else(|shared| (*shared).clone());
    (row, loaded)
}

/// Memory to load an image, from its header. An image that cannot be read needs none.
fn mib_of(folder: &Path, image: &str) -> u32 {
    let path = folder.join(image);
    // Opening anything but a file could block.
    let is_file = std::fs::metadata(&path).is_ok_and(|it| it.is_file());
    let reader = is_file
        .then(|| image::ImageReader::open(&path).ok())
        .flatten();
    let reader = reader.and_then(|it| it.with_guessed_format().ok());
    let size = reader.and_then(|it| it.into_dimensions().ok());
    let (width, height) = size.unwrap_or_default();
    let mib = (u64::from(width) * u64::from(height) * BYTES_PER_PIXEL) >> 20;
    u32::try_from(mib).map_or(DECODE_MIB, |mib| mib.clamp(1, DECODE_MIB))
}

/// The loaded rows of an identity, or of a part of it.
#[derive(Default)]
struct Part {
    group: usize,
    loaded: Vec<(Row, Images)>,
    bytes: usize,
    /// The parts of the identity that were written.
    written: usize,
    /// Of all parts: the first row with its identity, number of rows, bytes.
    first: Option<(u64, String)>,
    rows: usize,
    total_bytes: usize,
}

impl Part {
    /// Writes the loaded rows, if there are any, as an identity of their own.
    async fn write(
        &mut self,
        writer: &mut DatasetWriter,
        report: &mut ImportReport,
    ) -> Result<(), WriteError> {
        let loaded = std::mem::take(&mut self.loaded);
        let Some((row, _)) = loaded.first() else {
            return Ok(());
        };
        if self.first.is_none() {
            let (character, outfit, artists) = (&row.character, &row.outfit, &row.artists);
            let identity =
                format!("character {character:?}, outfit {outfit:?}, artist {artists:?}");
            self.first = Some((row.line, identity));
        }
        self.written += 1;
        self.rows += loaded.len();
        self.total_bytes += std::mem::take(&mut self.bytes);
        let samples = samples_of(loaded, report);
        report.accepted += samples.len() as u64;
        let alone = samples
            .iter()
            .filter(|sample| sample.metadata.similar.is_empty());
        report.alone += alone.count() as u64;
        writer.add(samples).await
    }

    /// After the last part.
    fn report_split(&self, report: &mut ImportReport) {
        let Some((line, identity)) = self.first.as_ref().filter(|_| self.written > 1) else {
            return;
        };
        let what = format!(
            "{identity}: its {} images ({} MiB) are stored as {} identities, because one holds at \
             most {PART_ROWS} images and {} MiB; images of different parts are not similar",
            self.rows,
            self.total_bytes >> 20,
            self.written,
            PART_BYTES >> 20,
        );
        report.split.push((*line, what));
    }
}

fn read_rows(folder: &Path, report: &mut ImportReport) -> Result<Vec<Row>, ImportError> {
    let path = folder.join(SAMPLES_FILE);
    let failed = |source| ImportError::Read {
        path: path.clone(),
        source,
    };
    let file = storage::confined::open_inside(folder, SAMPLES_FILE)
        .map_err(|error| failed(std::io::Error::other(error)))?;
    let (mut rows, mut ids) = (Vec::new(), BTreeMap::new());
    let mut reader = std::io::BufReader::new(file);
    for line in 1.. {
        let Some(text) = read_line(&mut reader, line).map_err(failed)? else {
            break;
        };
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

/// The next line. None at the end of the file.
fn read_line(reader: &mut impl BufRead, line: u64) -> std::io::Result<Option<Vec<u8>>> {
    let mut text = Vec::new();
    if reader
        .take(LINE_BYTES_MAX + 1)
        .read_until(b'\n', &mut text)?
        == 0
    {
        return Ok(None);
    }
    if LINE_BYTES_MAX < text.len() as u64 {
        let reason = format!("line {line} has more than {LINE_BYTES_MAX} bytes");
        return Err(std::io::Error::other(reason));
    }
    Ok(Some(text))
}

fn check_fields(mut row: Row, line: u64, ids: &mut BTreeMap<String, u64>) -> Result<Row, String> {
    for (field, value) in [
        ("id", &row.id),
        ("character", &row.character),
        ("artists", &row.artists),
    ] {
        if value.trim().is_empty() {
            return Err(format!("{field} is empty; it is required"));
        }
    }
    row.bbox.map_or(Ok(()), check_box)?;
    if let Some(first) = ids.get(&row.id) {
        return Err(format!("id {:?} is also that of line {first}", row.id));
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

/// The samples of an identity. Links to rows that are not among them are dropped.
fn samples_of(loaded: Vec<(Row, Images)>, report: &mut ImportReport) -> Vec<Sample> {
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
                    let why = "which was rejected or is in another part of the split identity";
                    report
                        .dropped
                        .push((row.line, format!("similar names {id:?}, {why}")));
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
    let message = |e: ImageError| e.to_string();
    let bytes = read_inside(folder, "image", &row.image)?;
    let image = open_image("image", &bytes).map_err(message)?;
    let (width, height) = (image.width(), image.height());
    let transparent = image.color().has_alpha();
    let mask = match &row.mask {
        Some(path) => load_mask(folder, path, width, height)?,
        None if transparent => alpha(&image),
        None => {
            return Err(
                "there is no mask: give a mask file, or an image with an alpha channel".to_owned(),
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
        encode_rgb(flatten(image, Rgb([255, 255, 255]))).map_err(message)?
    } else {
        bytes
    };
    Ok(Images {
        image,
        mask: encode_gray(mask).map_err(message)?,
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

/// Guesses the face of a row without `bbox`: a square of 0.3 of the figure's height at its upper
/// end. Thin tips above the head (a raised sword, a feather) are skipped: the head starts at the
/// first row that is a quarter as wide as the widest.
fn guess_face(mask: &GrayImage) -> Option<[f64; 4]> {
    let (width, height) = (f64::from(mask.width()), f64::from(mask.height()));
    let figure = mask_region(mask)?;
    let rows: Vec<Vec<u32>> = (figure.y..figure.bottom())
        .map(|y| {
            (0..mask.width())
                .filter(|x| mask.get_pixel(*x, y).0[0] >= 128)
                .collect()
        })
        .collect();
    let widest = rows.iter().map(Vec::len).max()?;
    let top = rows.iter().position(|row| row.len() * 4 >= widest)?;
    let side = (f64::from(figure.height) * 0.3).max(2.0);
    let mut columns: Vec<u32> = rows
        .iter()
        .skip(top)
        .take(side as usize)
        .flatten()
        .copied()
        .collect();
    columns.sort_unstable();
    let centre = f64::from(*columns.get(columns.len() / 2)?) + 0.5;
    let y = f64::from(figure.y) + top as f64;
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
    GrayImage::from_vec(rgba.width(), rgba.height(), values)
        .expect("one alpha value for each pixel")
}

/// Reads a file of the folder and of nowhere else, because import folders are untrusted.
fn read_inside(folder: &Path, field: &str, path: &str) -> Result<Bytes, String> {
    storage::confined::read_inside(folder, path, IMAGE_FILE_BYTES_MAX)
        .map(Bytes::from)
        .map_err(|error| format!("{field} {path:?} {error}"))
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
