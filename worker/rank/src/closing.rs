//! The closing unit of a sampling job: writes `grid.png`, then `images.json`. The JSON file comes
//! last, so its presence means that all outputs exist. Both are built from the objects in the
//! store. Images of units that were given up are listed as missing. Called by [`crate::sample`].

use crate::sidecar::ImageRecord;
use crate::subject::Subject;
use crate::unit_runner::{UnitRunner, image_name};
use figures::grid::{Cell, image_grid};
use futures::{StreamExt, TryStreamExt};
use image::{Rgb, RgbImage};
use serde::Serialize;

const GRID: &str = "grid.png";
const LIST: &str = "images.json";

/// At most so many rows are in the grid. `coordinator sample --beside` relies on this and on
/// [`GRID_SIDE`].
const GRID_ROWS: u64 = 24;
/// Rows of at most this many images stand side by side. Those with references do not, so that
/// `coordinator sample --beside` can add to them.
const NARROW: usize = 3;
const GRID_ACROSS: u32 = 2;
/// Side of an image in the grid, in pixels.
const GRID_SIDE: u32 = 96;
/// Colour of the placeholder for a missing image.
const MISSING: Rgb<u8> = Rgb([128, 128, 128]);

/// Image records that are read concurrently.
const CONCURRENT_READS: usize = 32;

/// `images.json`.
#[derive(Debug, Serialize)]
struct Record {
    images: Vec<ImageRecord>,
    summary: Summary,
    /// Files of the images whose units were given up.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing: Vec<String>,
}

/// Accuracy of the identity test, over the images whose identity can be evaluated.
#[derive(Debug, Serialize, PartialEq)]
struct Summary {
    /// Nearest to the identity of their references.
    correct: usize,
    count: usize,
    /// With swapped references: nearest to the identity of their target.
    #[serde(skip_serializing_if = "Option::is_none")]
    old: Option<usize>,
    /// Candidate identities per image.
    #[serde(rename = "of")]
    candidates: usize,
    /// Expected `correct / count` of random guessing.
    chance: f64,
    /// True if the characters are excluded from training.
    held_out: bool,
}

/// `unit`: the number of the closing unit.
pub(crate) fn close(runner: &mut UnitRunner<'_>, unit: u64) -> anyhow::Result<()> {
    if runner.wait(unit, runner.images.has(LIST))? {
        return Ok(());
    }
    let (images, missing) = runner.wait(unit, read_all(runner))?;
    let rows = grid_rows(runner, unit)?;
    let widest = rows.iter().map(Vec::len).max().unwrap_or(0);
    let across = if widest > NARROW { 1 } else { GRID_ACROSS };
    let grid = image_grid(&rows, GRID_SIDE, across);
    runner.wait(unit, runner.images.put_image(GRID, grid))?;
    let summary = summarize(runner, &images);
    tracing::info!(
        correct = summary.correct,
        count = summary.count,
        candidates = summary.candidates,
        missing = missing.len(),
        "all images are generated and evaluated"
    );
    let record = Record {
        images,
        summary,
        missing,
    };
    runner.wait(
        unit,
        runner.images.put(LIST, serde_json::to_vec_pretty(&record)?),
    )
}

/// The records of all images in order, and the files of missing images.
async fn read_all(runner: &UnitRunner<'_>) -> anyhow::Result<(Vec<ImageRecord>, Vec<String>)> {
    let (mut records, mut missing) = (Vec::new(), Vec::new());
    let reads = futures::stream::iter(0..runner.work.images()).map(|unit| async move {
        let record = runner
            .images
            .get(&format!("{}.json", image_name(unit)))
            .await?;
        anyhow::Ok((unit, record))
    });
    let mut reads = std::pin::pin!(reads.buffered(CONCURRENT_READS));
    while let Some((unit, record)) = reads.try_next().await? {
        match record {
            Some(record) => records.push(serde_json::from_slice(&record)?),
            None => missing.push(format!("{}.png", image_name(unit))),
        }
    }
    Ok((records, missing))
}

/// One row per subject and prompt.
fn grid_rows(runner: &mut UnitRunner<'_>, unit: u64) -> anyhow::Result<Vec<Vec<Cell>>> {
    let work = runner.work;
    let (prompts, seeds) = (work.prompts.len().max(1) as u64, work.seeds.len() as u64);
    let mut rows = Vec::new();
    for row in 0..GRID_ROWS.min(u64::from(work.count) * prompts) {
        let (mut images, mut any_found) = (Vec::new(), false);
        for image in row * seeds..(row + 1) * seeds {
            let name = format!("{}.png", image_name(image));
            let found = runner.wait(unit, runner.images.get_image(&name))?;
            any_found |= found.is_some();
            images.push(found.map_or_else(
                || {
                    Cell::new(
                        "missing",
                        RgbImage::from_pixel(GRID_SIDE, GRID_SIDE, MISSING),
                    )
                },
                |image| Cell::new("drawn", image),
            ));
        }
        if !any_found {
            // The subject may be unreadable for the same reason that its images were not generated.
            rows.push(images);
            continue;
        }
        let subject = runner.take_subject(unit, u32::try_from(row / prompts)?)?;
        let decoded = match subject.1.target {
            Some(_) => runner.reconstruct(&subject.1)?,
            None => None,
        };
        rows.push(grid_row(&subject.1, decoded, images));
        runner.cache_subject(subject);
    }
    Ok(rows)
}

/// Target, its reconstruction by the autoencoder, references with their concepts, and the image of
/// each seed.
fn grid_row(subject: &Subject, decoded: Option<RgbImage>, images: Vec<Cell>) -> Vec<Cell> {
    let target = subject
        .target
        .map(|_| Cell::new("target", subject.example.target.clone()));
    let decoded = decoded.map(|image| Cell::new("decoded", image));
    let references = subject.example.references.iter();
    let references =
        references.map(|reference| Cell::new(reference.concept.word(), reference.image.clone()));
    target
        .into_iter()
        .chain(decoded)
        .chain(references)
        .chain(images)
        .collect()
}

fn summarize(runner: &UnitRunner<'_>, images: &[ImageRecord]) -> Summary {
    let evaluated: Vec<(u64, bool)> = images
        .iter()
        .filter_map(|image| {
            let target = image.target.as_ref()?;
            Some((target.position, target.correct?))
        })
        .collect();
    let candidates = evaluated.first().map_or(0, |(position, _)| {
        runner.identities.candidate_count(&runner.loader, *position)
    });
    let correct = evaluated.iter().filter(|(_, correct)| *correct).count();
    let targets = images.iter().filter_map(|image| image.target.as_ref());
    let old = targets.filter(|target| target.nearest == Some(0)).count();
    Summary {
        old: Some(old).filter(|_| runner.work.swap_references),
        ..summary(
            correct,
            evaluated.len(),
            candidates,
            !runner.loader.held_out().is_empty(),
        )
    }
}

fn summary(correct: usize, count: usize, candidates: usize, held_out: bool) -> Summary {
    Summary {
        correct,
        count,
        old: None,
        candidates,
        chance: if candidates == 0 {
            0.0
        } else {
            1.0 / candidates as f64
        },
        held_out,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chance_is_that_of_random_guessing() {
        let two_of_three = summary(2, 3, 8, true);
        assert!((two_of_three.chance - 0.125).abs() < 1e-9);
        let nothing = summary(0, 0, 0, false);
        assert_eq!(
            (nothing.correct, nothing.count, nothing.candidates),
            (0, 0, 0)
        );
        assert!(nothing.chance.abs() < 1e-9 && !nothing.held_out);
    }
}
