//! The stage `dataset`: the figures of clusters with their images, masks and face boxes become a
//! data set, in the folder `data` of the stage. Images are read and checked as those of
//! `coordinator dataset import`; rows are in the order of clusters.

use crate::batches::is_table;
use crate::engine::Engine;
use crate::error::{BuildError, Result};
use crate::figure::{CLUSTERED, FACES, FIGURES, MASKED};
use crate::images::Images;
use crate::near;
use crate::output::Outputs;
use crate::table::Column;
use crate::truth::read_boxes;
use bytes::Bytes;
use futures::StreamExt;
use model_data::decode::{Expect, MaskSource, Origin, decode};
use model_data::import::{ImageFiles, ImportError, ImportOptions, ImportReport, import_rows};
use proto::build::report::{BadRow, EXAMPLES_MAX, Report, UnitOutput};
use proto::build::settings::{DatasetSettings, NamedFile, NearDuplicates, OnBadRow};
use proto::build::{Stage, StagePlan};
use proto::text::hex_sha256;
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

const TABLES: &str = "
    CREATE TABLE figures(id INTEGER PRIMARY KEY, rating, md5, ext, width, height, parent,
        character, artist, general, cloths);
    CREATE TABLE clustered(id INTEGER PRIMARY KEY, cluster, size, character, artist, outfit);
    CREATE TABLE masked(id INTEGER PRIMARY KEY);
    CREATE TABLE boxes(id INTEGER PRIMARY KEY, box);
    CREATE TABLE usable(id INTEGER PRIMARY KEY, cluster);";

/// The second columns are not stored, and the names of all must be bound.
const INSERT_MASKED: &str = "INSERT INTO masked SELECT ?1 WHERE ?2 IS ?2";
const INSERT_FACE: &str = "INSERT INTO boxes SELECT ?1, json_array(?2, ?3, ?4, ?5)
    WHERE ?6 IS ?6 AND ?7 IS ?7";

/// Images by the names that rows have for them: `image/7` and `mask/7`.
struct Files {
    images: Images,
    masks: Option<Images>,
    runtime: Handle,
}

impl ImageFiles for Files {
    fn read(&self, path: &str) -> std::result::Result<Bytes, String> {
        let (kind, id) = path.split_once('/').ok_or("has no number")?;
        let id: i64 = id.parse().map_err(|_| "has no number")?;
        let folder = match (kind, &self.masks) {
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
    engine.run("cannot make its tables", TABLES)?;
    let mut report = Report::default();
    load(&engine, plan, outputs).await?;
    report.rows_in = engine.number("cannot count", "SELECT count(*) FROM clustered")?;
    if let Some(boxes) = &settings.boxes {
        load_boxes(&engine, boxes).await?;
    }
    let has_boxes = settings.boxes.is_some() || plan.input(Stage::Faces).is_some();
    let files = Files {
        images: Images::open(&settings.images).await?,
        masks: masks(plan, settings, outputs).await?,
        runtime: Handle::current(),
    };
    report.found.push(format!(
        "{} images of posts, {} of them in {} tars with an index",
        files.images.count(),
        if files.images.tars == 0 {
            0
        } else {
            files.images.count()
        },
        files.images.tars
    ));
    report.count("further images of a post", files.images.repeated);
    report.count("files that are no image of a post", files.images.others);
    find(&engine, &files, has_boxes, &mut report)?;
    compare(&engine, &files.images, settings, &mut report).await?;
    drop_alone(&engine, &mut report)?;
    let (rows, ids) = scratch_file(&engine, &files, scratch)?;
    let files = Arc::new(files);
    let url = format!("{}/{}/data", out.trim_end_matches('/'), plan.key().folder());
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

/// Loads the tables of earlier stages. Figures that one of them has dropped are not in `clustered`.
async fn load(engine: &Engine, plan: &StagePlan, outputs: &Outputs) -> Result<()> {
    let tables: [(Stage, &[(&str, Column)], &str); 4] = [
        (
            Stage::Filter,
            &FIGURES,
            "INSERT INTO figures VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        ),
        (
            Stage::Clusters,
            &CLUSTERED,
            "INSERT INTO clustered VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        ),
        (Stage::Masks, &MASKED, INSERT_MASKED),
        (Stage::Faces, &FACES, INSERT_FACE),
    ];
    for (stage, columns, insert) in tables {
        let is_optional = matches!(stage, Stage::Masks | Stage::Faces);
        if is_optional && plan.input(stage).is_none() {
            continue;
        }
        let (folder, manifest) = outputs.input(plan, stage).await?;
        for part in manifest.parts.iter().filter(|it| is_table(&it.path)) {
            let bytes = folder.part(part).await?;
            let _ = engine.load(&part.path, bytes, columns, insert)?;
        }
        let table = match stage {
            Stage::Masks => "masked",
            Stage::Faces => "boxes",
            _ => continue,
        };
        let drop = format!("DELETE FROM clustered WHERE id NOT IN (SELECT id FROM {table})");
        engine.run("cannot drop figures", &drop)?;
    }
    Ok(())
}

/// None: the alpha channels of the images are the masks.
async fn masks(
    plan: &StagePlan,
    settings: &DatasetSettings,
    outputs: &Outputs,
) -> Result<Option<Images>> {
    if let Some(masks) = &settings.masks {
        return Ok(Some(Images::open(masks).await?));
    }
    if plan.input(Stage::Masks).is_none() {
        return Ok(None);
    }
    let (folder, manifest) = outputs.input(plan, Stage::Masks).await?;
    Ok(Some(Images::of_parts(&folder, &manifest.parts).await?))
}

async fn load_boxes(engine: &Engine, boxes: &NamedFile) -> Result<()> {
    let context = "cannot load face boxes";
    engine.run(context, "BEGIN")?;
    let insert = "INSERT INTO boxes VALUES (?1, ?2) ON CONFLICT DO NOTHING";
    let mut insert = engine.prepare(context, insert)?;
    read_boxes(boxes, |row| {
        let list = serde_json::to_string(&row.bbox).expect("numbers are JSON");
        match insert.run((row.id, list)) {
            Ok(0) => Err(format!("post {} has a box already", row.id)),
            Ok(_) => Ok(()),
            Err(error) => Err(proto::text::chain(&error)),
        }
    })
    .await?;
    engine.run(context, "COMMIT")
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
            let masked = files
                .masks
                .as_ref()
                .is_none_or(|masks| masks.path(id).is_some());
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
            let (known, hashes): (Vec<i64>, Vec<u128>) = ids
                .iter()
                .zip(hashes)
                .filter_map(|(id, hash)| Some((*id, hash?)))
                .unzip();
            let originals = near::originals(&hashes, settings.near_bits);
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

async fn hash_of(images: &Images, id: i64) -> Option<u128> {
    let bytes = images.read(id).await.ok()?;
    let hashed = tokio::task::spawn_blocking(move || {
        let expect = Expect {
            what: "image",
            origin: Origin::File,
            size: None,
            face: None,
            check: false,
        };
        let pixels = decode(&bytes, MaskSource::Whole, &expect, &mut Vec::new());
        Some(near::hash(&pixels.ok()?.image))
    });
    hashed.await.ok().flatten()
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
    scratch: &Path,
) -> Result<(tempfile::NamedTempFile, Vec<i64>)> {
    let file = crate::scratch::file(scratch)?;
    let mut out = BufWriter::new(file.reopen()?);
    let (mut fault, mut ids) = (Ok(()), Vec::new());
    engine.query(
        "cannot read clusters",
        "SELECT id, f.rating, f.character, f.artist, c.outfit, f.general, f.cloths, b.box
         FROM usable u JOIN clustered c USING (id) JOIN figures f USING (id)
         LEFT JOIN boxes b USING (id) ORDER BY c.cluster, id",
        |row| {
            let id: i64 = row.get(0)?;
            ids.push(id);
            let words = |text: String| -> Vec<String> {
                text.split(' ')
                    .filter(|it| !it.is_empty())
                    .map(str::to_owned)
                    .collect()
            };
            let face: Option<String> = row.get(7)?;
            let face = face.and_then(|face| serde_json::from_str::<[f64; 4]>(&face).ok());
            let cloths: Vec<String> = words(row.get(6)?)
                .into_iter()
                .map(|tag| tag.replace('_', " "))
                .collect();
            let line = json!({
                "id": id.to_string(),
                "rating": row.get::<_, String>(1)?,
                "character": row.get::<_, String>(2)?,
                "artists": row.get::<_, String>(3)?,
                "outfit": row.get::<_, String>(4)?,
                "prompts": words(row.get(5)?).join(", "),
                "cloths": cloths,
                "bbox": face,
                "image": format!("image/{id}"),
                "mask": files.masks.is_some().then(|| format!("mask/{id}")),
            });
            if fault.is_ok() {
                fault = writeln!(out, "{line}");
            }
            Ok(())
        },
    )?;
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
