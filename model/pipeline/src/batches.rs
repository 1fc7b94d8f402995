//! Stages that run a model on images divide their figures into batches, whose outputs do not depend
//! on the number of units. A batch that was written is not repeated after a kill.

use crate::error::{BuildError, Result};
use crate::figure::{CLUSTERED, MASKED};
use crate::images::Images;
use crate::output::{Outputs, StageFolder};
use crate::table::{self, Column, Value};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use image::RgbImage;
use model_data::decode::{Expect, MaskSource, Origin, decode};
use proto::build::report::{BadRow, EXAMPLES_MAX, Report, UnitOutput};
use proto::build::settings::OnBadRow;
use proto::build::{Stage, StagePlan};

/// Figures of one batch: less than a minute of most models.
pub(crate) const BATCH_FIGURES: usize = 64;
/// Images that are read and decoded at a time, and so in memory.
const READS: usize = 4;

/// Reasons for which a figure is left out.
pub(crate) const NO_IMAGE: &str = "no image";
pub(crate) const NOT_READ: &str = "an image that cannot be read";

/// Runs the batches of a unit that are not there yet, and merges all of them.
pub(crate) async fn run(
    folder: &StageFolder,
    figures: &[i64],
    (unit, units): (u32, u32),
    mut batch: impl AsyncFnMut(usize, &[i64]) -> Result<UnitOutput>,
) -> Result<UnitOutput> {
    let mut output = UnitOutput::default();
    for (number, figures) in figures.chunks(BATCH_FIGURES).enumerate() {
        if number % units as usize != unit as usize {
            continue;
        }
        let done = match folder.batch(number).await? {
            Some(done) => done,
            None => {
                let done = batch(number, figures).await?;
                folder.put_batch(number, &done).await?;
                done
            }
        };
        output.parts.extend(done.parts);
        output.report.add(&done.report);
    }
    Ok(output)
}

/// The figures that a stage after `clusters` reads, cluster by cluster.
pub(crate) async fn figures(plan: &StagePlan, outputs: &Outputs) -> Result<Vec<i64>> {
    let (stage, columns): (_, &[(&str, Column)]) = if plan.input(Stage::Masks).is_some() {
        (Stage::Masks, &MASKED)
    } else {
        (Stage::Clusters, &CLUSTERED)
    };
    let (folder, manifest) = outputs.input(plan, stage).await?;
    let mut figures = Vec::new();
    for part in manifest.parts.iter().filter(|it| is_table(&it.path)) {
        let bytes = folder.part(part).await?;
        table::read(&part.path, bytes, columns, |rows| {
            for row in 0..rows.count() {
                if let Some(Value::Number(id)) = rows.row(row).next() {
                    figures.push(id);
                }
            }
            Ok(())
        })?;
    }
    Ok(figures)
}

/// Whether a part has rows, and is no file beside them.
pub(crate) fn is_table(path: &str) -> bool {
    path.ends_with(".parquet")
}

/// An image of a figure that was looked for.
pub(crate) enum Found<T> {
    Nothing,
    /// Why it cannot be read.
    Bad(String),
    Image(T),
}

/// Reads, decodes and prepares images, in the order of the figures.
pub(crate) fn prepared<'a, T: Send + 'static>(
    images: &'a Images,
    figures: &'a [i64],
    prepare: impl Fn(RgbImage) -> T + Clone + Send + 'static,
) -> impl Stream<Item = (i64, Found<T>)> + 'a {
    futures::stream::iter(figures.iter().copied())
        .map(move |id| {
            let prepare = prepare.clone();
            async move { (id, look(images, id, prepare).await) }
        })
        .buffered(READS)
}

async fn look<T: Send + 'static>(
    images: &Images,
    id: i64,
    prepare: impl Fn(RgbImage) -> T + Send + 'static,
) -> Found<T> {
    if images.path(id).is_none() {
        return Found::Nothing;
    }
    let bytes = match images.read(id).await {
        Ok(bytes) => bytes,
        Err(reason) => return Found::Bad(format!("the image {reason}")),
    };
    match decoded(bytes, prepare).await {
        Ok(prepared) => Found::Image(prepared),
        Err(reason) => Found::Bad(reason),
    }
}

/// What `prepare` makes of an image, on a thread for blocking work.
///
/// # Errors
/// Why it cannot be decoded.
pub(crate) async fn decoded<T: Send + 'static>(
    bytes: Bytes,
    prepare: impl FnOnce(RgbImage) -> T + Send + 'static,
) -> std::result::Result<T, String> {
    let done = tokio::task::spawn_blocking(move || {
        let expect = Expect {
            what: "image",
            origin: Origin::File,
            size: None,
            face: None,
            check: false,
        };
        let pixels = decode(&bytes, MaskSource::Whole, &expect, &mut Vec::new());
        pixels
            .map(|pixels| prepare(pixels.image))
            .map_err(|error| error.to_string())
    });
    let failed = "the image made its decoder fail";
    done.await.unwrap_or_else(|_| Err(failed.to_owned()))
}

/// Counts a figure that has no usable image; None for it.
pub(crate) fn keep<T>(
    (id, found): (i64, Found<T>),
    (images, on_bad_row): (&Images, OnBadRow),
    report: &mut Report,
) -> Result<Option<(i64, T)>> {
    match found {
        Found::Image(image) => return Ok(Some((id, image))),
        Found::Nothing => report.lose(NO_IMAGE, 1),
        Found::Bad(reason) => {
            let row = BadRow {
                file: images.path(id).unwrap_or_default(),
                row: u64::try_from(id).unwrap_or(0),
                offset: None,
                reason: format!("post {id}: {reason}"),
            };
            refuse(row, NOT_READ, on_bad_row, report)?;
        }
    }
    Ok(None)
}

/// Counts a row that cannot be used, or fails.
pub(crate) fn refuse(
    row: BadRow,
    loss: &str,
    on_bad_row: OnBadRow,
    report: &mut Report,
) -> Result<()> {
    if on_bad_row == OnBadRow::Stop {
        let row = Box::new(row);
        return Err(BuildError::BadRow { row, after: None });
    }
    report.lose(loss, 1);
    if report.bad_rows.len() < EXAMPLES_MAX {
        report.bad_rows.push(row);
    }
    Ok(())
}
