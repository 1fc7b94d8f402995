//! Loads the images of an import on all cores, and writes them in the order of the rows.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use proto::rating::Rating;
use tokio::sync::Semaphore;

use super::face::guess_face;
use super::rows::Row;
use super::{DECODE_MIB, ImageFiles, ImportError, ImportReport, PART_BYTES, PART_ROWS};
use crate::decode::{Change, ChangeKind, Expect, MaskSource, Origin, decode};
use crate::image_file::{ImageError, encode_gray, encode_rgb};
use crate::image_sizes::{COMMON, ImageSizes};
use crate::prompt_length::{CLIP_TOKENS, PromptCounter};
use crate::sample::{Metadata, Sample};
use crate::writer::{DatasetWriter, WriteError};

/// Memory that an image needs while it is imported, in bytes per pixel: twice RGBA of 16 bits, and
/// twice RGBA of 8 bits.
const BYTES_PER_PIXEL: u64 = 24;

/// Loads the images of all groups in parallel, and writes the groups in order.
pub(super) async fn load_groups(
    files: Arc<dyn ImageFiles>,
    groups: Vec<Vec<Row>>,
    writer: &mut DatasetWriter,
    report: &mut ImportReport,
) -> Result<(), ImportError> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = Arc::new(Semaphore::new(DECODE_MIB as usize));
    let rows = groups.into_iter().enumerate();
    let rows = rows.flat_map(|(group, rows)| rows.into_iter().map(move |row| (group, row)));
    // More than there are cores, so that no core waits while a group is written.
    let mut loads = futures::stream::iter(rows)
        .map(|(group, row)| {
            let (files, memory) = (Arc::clone(&files), Arc::clone(&memory));
            async move { (group, load_row(files, row, &memory).await) }
        })
        .buffered(cores * 2);
    let mut part = Part::default();
    let mut prompts = PromptCounter::new(CLIP_TOKENS);
    let mut sizes = ImageSizes::new(&COMMON);
    while let Some((group, LoadedRow { row, images })) = loads.next().await {
        if group != part.group {
            part.write(writer, report).await?;
            part.report_split(report);
            part = Part {
                group,
                ..Part::default()
            };
        }
        report.note_changes(&row);
        match images {
            Ok(images) => {
                let size = images.image.len() + images.mask.len();
                if part.bytes + size > PART_BYTES || part.loaded.len() == PART_ROWS {
                    part.write(writer, report).await?;
                }
                report.guessed_boxes += u64::from(row.bbox.is_none());
                let rating = row.rating.as_deref().unwrap_or(Rating::Unrated.word());
                *report.ratings.entry(rating.to_owned()).or_insert(0) += 1;
                part.bytes += size;
                prompts.add(&row.prompts);
                sizes.add(&row.id, images.width, images.height);
                part.loaded.push((row, images));
            }
            Err(reason) => report.rejected.push((row.line, reason)),
        }
    }
    part.write(writer, report).await?;
    part.report_split(report);
    report.cut_prompts = prompts.finish();
    report.sizes = sizes;
    Ok(())
}

/// A row after its images were loaded, or were refused.
struct LoadedRow {
    row: Row,
    images: Result<Images, String>,
}

/// The files of a row.
struct Files {
    image: Bytes,
    mask: Option<Bytes>,
}

/// Loads the images of a row on threads for blocking work. They are decoded when there is memory
/// for them.
async fn load_row(source: Arc<dyn ImageFiles>, row: Row, memory: &Semaphore) -> LoadedRow {
    let line = row.line;
    let read = tokio::task::spawn_blocking(move || {
        let files = read_files(&*source, &row);
        (row, files)
    });
    let (mut row, files) = match read.await {
        Ok((row, Ok(files))) => (row, files),
        Ok((row, Err(reason))) => {
            return LoadedRow {
                row,
                images: Err(reason),
            };
        }
        Err(error) => return LoadedRow::lost(line, &error),
    };
    // The semaphore is never closed; without a permit the row would only use more memory.
    let _permit = memory.acquire_many(mib_of(&files)).await;
    let decoded = tokio::task::spawn_blocking(move || {
        let mut changes = std::mem::take(&mut row.changes);
        let images = load_images(&files, &row, &mut changes);
        row.changes = changes;
        LoadedRow { row, images }
    });
    decoded
        .await
        .unwrap_or_else(|error| LoadedRow::lost(line, &error))
}

impl LoadedRow {
    /// A row whose task ended before it returned anything.
    fn lost(line: u64, error: &tokio::task::JoinError) -> Self {
        Self {
            row: Row {
                line,
                ..Row::default()
            },
            images: Err(format!("the image cannot be decoded: {error}")),
        }
    }
}

/// Memory to decode image and mask, from their headers. A file that cannot be read needs none.
fn mib_of(files: &Files) -> u32 {
    let pixels = |bytes: &Bytes| {
        let reader = image::ImageReader::new(std::io::Cursor::new(bytes));
        let reader = reader.with_guessed_format().ok();
        let size = reader.and_then(|it| it.into_dimensions().ok());
        size.map_or(0, |(width, height)| u64::from(width) * u64::from(height))
    };
    // One after the other is decoded, but the pixels of the first are kept.
    let most = pixels(&files.image).max(files.mask.as_ref().map_or(0, pixels));
    let mib = most.saturating_mul(BYTES_PER_PIXEL) >> 20;
    u32::try_from(mib).map_or(DECODE_MIB, |mib| mib.clamp(1, DECODE_MIB))
}

impl ImportReport {
    fn note_changes(&mut self, row: &Row) {
        let words: Vec<String> = row.changes.iter().map(ToString::to_string).collect();
        let sample = format!("line {}", row.line);
        self.changes.add(&sample, words.iter().map(String::as_str));
    }
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

fn read_files(source: &dyn ImageFiles, row: &Row) -> Result<Files, String> {
    let read = |field: &str, path: &str| {
        let bytes = source.read(path);
        bytes.map_err(|reason| format!("{field} {path:?} {reason}"))
    };
    let mask = row.mask.as_ref();
    Ok(Files {
        image: read("image", &row.image)?,
        mask: mask.map(|path| read("mask", path)).transpose()?,
    })
}

/// Decodes a row's image and mask. What was changed or guessed is appended to `changes`, also
/// before an error.
fn load_images(files: &Files, row: &Row, changes: &mut Vec<Change>) -> Result<Images, String> {
    let message = |e: ImageError| e.to_string();
    let expect = Expect {
        what: "image",
        origin: Origin::File,
        size: None,
        face: row.bbox,
        check: true,
    };
    let source = match &files.mask {
        Some(bytes) => MaskSource::File(bytes),
        None if row.whole => {
            changes.push(Change::new(ChangeKind::Whole, ""));
            MaskSource::Whole
        }
        None => MaskSource::Alpha,
    };
    let pixels = decode(&files.image, source, &expect, changes).map_err(message)?;
    let (width, height) = pixels.image.dimensions();
    let bbox = match row.bbox {
        Some(bbox) => bbox,
        None if row.whole => {
            changes.push(Change::new(ChangeKind::FaceGuessed, "the whole image"));
            [0.5, 0.5, 1.0, 1.0]
        }
        None => {
            changes.push(Change::new(ChangeKind::FaceGuessed, ""));
            guess_face(&pixels.mask)
                .ok_or("the mask is empty, so no face can be guessed; give a bbox")?
        }
    };
    let image = match pixels.stored_as {
        Some(length) if length == files.image.len() => files.image.clone(),
        // A copy: a slice would keep the bytes that are ignored in memory, too.
        Some(length) => Bytes::copy_from_slice(&files.image[..length]),
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
