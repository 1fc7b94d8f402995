//! The stage `dataset`: the figures of clusters with their images, masks and face boxes become a
//! data set, in the folder `data` of the stage. Images are read and checked as those of
//! `coordinator dataset import`; rows are in the order of clusters.

mod load;
mod publish;
mod rows;

use crate::batches::{decoded, refuse};
use crate::engine::Engine;
use crate::error::{BuildError, Result};
use crate::images::Images;
use crate::near;
use crate::output::Outputs;
use bytes::Bytes;
use futures::StreamExt;
use model_data::import::{ImageFiles, ImportError, ImportOptions, ImportReport, import_rows};
use proto::build::report::{BadRow, EXAMPLES_MAX, Report, UnitOutput};
use proto::build::settings::{DatasetSettings, NearDuplicates, OnBadRow, Publish};
use proto::build::{Stage, StagePlan};
use proto::text::hex_sha256;
use rows::Row;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use tokio::runtime::Handle;

pub const NO_IMAGE: &str = "no image";
pub const NO_MASK: &str = "no mask";
pub const NO_FACE: &str = "no face box";
pub const NEAR: &str = "a near-duplicate of another figure";
pub const ALONE: &str = "no other figure of the cluster is left";
pub const REFUSED: &str = "an image, mask or face box that cannot be used";

/// Images that are read at a time.
const READS: usize = 8;

/// Images by the names that rows have for them: `image/7` and `mask/7`.
struct Files {
    images: Images,
    masks: Masks,
    runtime: Handle,
}

/// Where masks are.
enum Masks {
    /// Of each figure there is one, or the figure is dropped.
    Each(Images),
    /// As the rows of folders say, if there are any, and else in the alpha channels of images, or
    /// nowhere.
    Rows(Option<Images>),
}

impl Masks {
    fn images(&self) -> Option<&Images> {
        match self {
            Self::Each(images) => Some(images),
            Self::Rows(images) => images.as_ref(),
        }
    }
}

impl ImageFiles for Files {
    fn read(&self, path: &str) -> std::result::Result<Bytes, String> {
        let (kind, id) = path.split_once('/').ok_or("has no number")?;
        let id: i64 = id.parse().map_err(|_| "has no number")?;
        let folder = match (kind, self.masks.images()) {
            ("mask", Some(masks)) => masks,
            _ => &self.images,
        };
        let name = folder.path(id).unwrap_or_default();
        let read = self.runtime.block_on(folder.read(id));
        read.map_err(|reason| format!("({name}) {reason}"))
    }
}

/// Writes the data set.
///
/// # Errors
/// Input is missing or damaged, or no figure can be used.
pub async fn run(
    plan: &StagePlan,
    settings: &DatasetSettings,
    (outputs, out): (&Outputs, &str),
    scratch: &Path,
) -> Result<UnitOutput> {
    let engine = Engine::open(scratch)?;
    let mut report = Report::default();
    load::load(&engine, plan, outputs).await?;
    report.rows_in = engine.number("cannot count", "SELECT count(*) FROM clustered")?;
    let has_boxes = load::boxes(&engine, plan, settings).await?;
    let images = settings.images.as_ref();
    let files = Files {
        images: Images::of_stage(plan, outputs, images, scratch).await?,
        masks: masks(plan, settings, outputs, scratch).await?,
        runtime: Handle::current(),
    };
    for images in std::iter::once(&files.images).chain(files.masks.images()) {
        images.check(settings.on_bad_row)?;
        images.describe(0, &mut report);
    }
    find(&engine, &files, has_boxes, &mut report)?;
    compare(&engine, &files.images, settings, &mut report).await?;
    drop_alone(&engine, &mut report)?;
    let url = format!("{}/{}/data", out.trim_end_matches('/'), plan.key().folder());
    let is_whole = |row: &Row| row.is_whole(settings.whole, &files.masks);
    if settings.publish == Publish::Annotations {
        publish::write(&engine, plan, outputs, &url, is_whole, &mut report).await?;
        return Ok(UnitOutput {
            parts: Vec::new(),
            report,
        });
    }
    let (rows, ids) = scratch_file(&engine, &files, is_whole, scratch)?;
    let files = Arc::new(files);
    let options = ImportOptions {
        source: "built from metadata by coordinator dataset build".to_owned(),
        strict: false,
        // What a killed attempt has written is the same.
        replace: true,
    };
    let lines = BufReader::new(File::open(rows.path())?);
    let name = Path::new("the figures of clusters");
    let source: Arc<dyn ImageFiles> = Arc::clone(&files) as Arc<dyn ImageFiles>;
    let written = import_rows(lines, name, source, &url, &options).await;
    let (written, import) = written.map_err(failed)?;
    let refused = import
        .rejected
        .first()
        .map(|it| bad_row(it, &ids, &files.images));
    if let Some(row) = refused.filter(|_| settings.on_bad_row == OnBadRow::Stop) {
        let row = Box::new(row);
        return Err(BuildError::BadRow { row, after: None });
    }
    let manifest = serde_json::to_vec_pretty(&written.manifest).expect("plain values are JSON");
    report.found.push(format!(
        "data set stages/{}/…/data, version {}, {} samples",
        Stage::Dataset,
        hex_sha256(&manifest),
        written.manifest.samples
    ));
    add(&import, &ids, &files.images, &mut report);
    Ok(UnitOutput {
        parts: Vec::new(),
        report,
    })
}

/// Where the masks of a plan are.
async fn masks(
    plan: &StagePlan,
    settings: &DatasetSettings,
    outputs: &Outputs,
    scratch: &Path,
) -> Result<Masks> {
    if let Some(masks) = &settings.masks {
        return Ok(Masks::Each(Images::open(masks, scratch).await?));
    }
    if plan.input(Stage::Masks).is_some() {
        let (folder, manifest) = outputs.input(plan, Stage::Masks).await?;
        let images = Images::of_parts(&folder, &manifest.parts).await?;
        return Ok(Masks::Each(images));
    }
    // Masks of whole images are not those of their crops.
    if plan.input(Stage::Folders).is_none() || plan.input(Stage::Figures).is_some() {
        return Ok(Masks::Rows(None));
    }
    let images = Images::masks_of_folders(plan, outputs).await?;
    Ok(Masks::Rows(Some(images)))
}

fn failed(error: ImportError) -> BuildError {
    match error {
        ImportError::Nothing { report, .. } => {
            let first = report
                .rejected
                .first()
                .map_or("there are none", |(_, why)| why.as_str());
            BuildError::Input(format!("no figure can be used; the first: {first}"))
        }
        other => BuildError::Input(proto::text::chain(&other)),
    }
}

/// Notes the figures that have everything.
fn find(engine: &Engine, files: &Files, boxes: bool, report: &mut Report) -> Result<()> {
    let context = "cannot find images";
    let mut found: Vec<(i64, i64, bool)> = Vec::new();
    let query = "SELECT id, cluster, id IN (SELECT id FROM boxes) FROM clustered ORDER BY id";
    engine.query(context, query, |row| {
        found.push((row.get(0)?, row.get(1)?, row.get(2)?));
        Ok(())
    })?;
    let (mut image, mut mask, mut face) = (0, 0, 0);
    engine.run(context, "BEGIN")?;
    {
        let mut insert = engine.prepare(context, "INSERT INTO usable VALUES (?1, ?2)")?;
        for (id, cluster, boxed) in found {
            let masked = match &files.masks {
                Masks::Each(masks) => masks.path(id).is_some(),
                Masks::Rows(_) => true,
            };
            if files.images.path(id).is_none() {
                image += 1;
            } else if !masked {
                mask += 1;
            } else if boxes && !boxed {
                face += 1;
            } else {
                let _ = insert.run((id, cluster))?;
            }
        }
    }
    engine.run(context, "COMMIT")?;
    for (reason, rows) in [(NO_IMAGE, image), (NO_MASK, mask), (NO_FACE, face)] {
        report.lose(reason, rows);
    }
    Ok(())
}

/// Finds near-duplicates in clusters, and drops them if the settings say so. An image that cannot
/// be read is like no other, and is refused when it is imported.
async fn compare(
    engine: &Engine,
    images: &Images,
    settings: &DatasetSettings,
    report: &mut Report,
) -> Result<()> {
    let context = "cannot compare images";
    let mut clusters: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    let query = "SELECT cluster, id FROM usable ORDER BY cluster, id";
    engine.query(context, query, |row| {
        clusters.entry(row.get(0)?).or_default().push(row.get(1)?);
        Ok(())
    })?;
    engine.run(context, "BEGIN")?;
    {
        let mut delete = engine.prepare(context, "DELETE FROM usable WHERE id = ?1")?;
        let (mut near, mut dropped) = (0, 0);
        for ids in clusters.values() {
            // Some hundred at a time in the largest clusters, and never more than one image each.
            let hashes = futures::stream::iter(ids)
                .map(|id| hash_of(images, *id))
                .buffered(READS)
                .collect::<Vec<_>>()
                .await;
            let (mut known, mut found) = (Vec::new(), Vec::new());
            for (id, hash) in ids.iter().zip(hashes) {
                match hash {
                    Ok(hash) => {
                        known.push(*id);
                        found.push(hash);
                    }
                    // Of a data set with images, their import says so.
                    Err(reason) if settings.publish == Publish::Annotations => {
                        let _ = delete.run([*id])?;
                        let row = BadRow {
                            file: images.path(*id).unwrap_or_default(),
                            row: u64::try_from(*id).unwrap_or(0),
                            offset: None,
                            reason: format!("post {id}: {reason}"),
                        };
                        refuse(row, REFUSED, settings.on_bad_row, report)?;
                    }
                    Err(_) => {}
                }
            }
            let originals = near::originals(&found, settings.near_bits);
            for (id, original) in known.into_iter().zip(originals) {
                if original.is_some() {
                    near += 1;
                    if settings.near_duplicates == NearDuplicates::Drop {
                        dropped += delete.run([id])? as u64;
                    }
                }
            }
        }
        report.count("near-duplicates of a figure in their cluster", near);
        report.lose(NEAR, dropped);
    }
    engine.run(context, "COMMIT")
}

async fn hash_of(images: &Images, id: i64) -> std::result::Result<u128, String> {
    let bytes = images.read(id).await?;
    decoded(bytes, |image| near::hash(&image)).await
}

/// Drops figures whose cluster has no other one left.
fn drop_alone(engine: &Engine, report: &mut Report) -> Result<()> {
    let context = "cannot drop figures";
    let before = engine.number(context, "SELECT count(*) FROM usable")?;
    engine.run(
        context,
        "DELETE FROM usable WHERE cluster IN
            (SELECT cluster FROM usable GROUP BY cluster HAVING count(*) < 2)",
    )?;
    let after = engine.number(context, "SELECT count(*) FROM usable")?;
    report.lose(ALONE, before - after);
    Ok(())
}

/// The rows in the form of an import, and the posts of its lines.
fn scratch_file(
    engine: &Engine,
    files: &Files,
    is_whole: impl Fn(&Row) -> bool,
    scratch: &Path,
) -> Result<(tempfile::NamedTempFile, Vec<i64>)> {
    let file = crate::scratch::file(scratch)?;
    let mut out = BufWriter::new(file.reopen()?);
    let (mut fault, mut ids) = (Ok(()), Vec::new());
    rows::each(engine, |row| {
        let id = row.id;
        ids.push(id);
        let masked = match &files.masks {
            Masks::Each(_) => true,
            Masks::Rows(masks) => masks.as_ref().is_some_and(|it| it.path(id).is_some()),
        };
        let mut line = row.annotations();
        line["image"] = json!(format!("image/{id}"));
        if masked {
            line["mask"] = json!(format!("mask/{id}"));
        } else if is_whole(&row) {
            line["whole"] = json!(true);
        }
        if fault.is_ok() {
            fault = writeln!(out, "{line}");
        }
    })?;
    fault?;
    out.flush()?;
    Ok((file, ids))
}

/// A row that the import has refused.
fn bad_row((line, reason): &(u64, String), ids: &[i64], images: &Images) -> BadRow {
    let index = usize::try_from(line.saturating_sub(1)).unwrap_or(usize::MAX);
    let id = ids.get(index).copied().unwrap_or_default();
    BadRow {
        file: images.path(id).unwrap_or_default(),
        row: *line,
        offset: None,
        reason: format!("post {id}: {reason}"),
    }
}

/// What the import says.
fn add(import: &ImportReport, ids: &[i64], images: &Images, report: &mut Report) {
    report.rows_out = import.accepted;
    report.lose(REFUSED, import.rejected.len() as u64);
    let rejected = import.rejected.iter().take(EXAMPLES_MAX);
    report
        .bad_rows
        .extend(rejected.map(|it| bad_row(it, ids, images)));
    let counts: BTreeMap<&str, u64> = BTreeMap::from([
        ("faces guessed from masks", import.guessed_boxes),
        (
            "samples without a similar one, because its image cannot be used",
            import.alone,
        ),
        (
            "clusters split because they are too large",
            import.split.len() as u64,
        ),
    ]);
    for (name, rows) in counts {
        report.count(name, rows);
    }
    report.found.extend(import.changes.lines());
}
