//! The closing unit of sampling: `grid.png`, and then `images.json`, so that who sees it sees all.
//! Both are made of what lies in the store. An image that was set aside is named as missing. Called
//! by [`crate::studio`].

use crate::sidecar::Drawn;
use crate::studio::{Studio, image_name};
use crate::subject::Subject;
use figures::grid::{Cell, image_grid};
use futures::{StreamExt, TryStreamExt};
use image::{Rgb, RgbImage};
use serde::Serialize;

const GRID: &str = "grid.png";
const LIST: &str = "pictures.json";

/// Rows of the grid; the other pictures are written on their own only.
const GRID_ROWS: u64 = 24;
/// Rows beside each other, and the side of a picture in the grid.
const GRID_ACROSS: u32 = 2;
const GRID_SIDE: u32 = 96;
/// In place of an image that is missing.
const MISSING: Rgb<u8> = Rgb([128, 128, 128]);

/// Records that are read at one time.
const READS: usize = 32;

/// `images.json`.
#[derive(Debug, Serialize)]
struct Record {
    images: Vec<Drawn>,
    summary: Summary,
    /// Images whose units were set aside.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing: Vec<String>,
}

/// Only pictures whose identity can be told count.
#[derive(Debug, Serialize, PartialEq)]
struct Summary {
    correct: usize,
    count: usize,
    /// Candidates of each picture.
    of: usize,
    /// `correct / count` of somebody who guesses.
    chance: f64,
    /// Whether the pictures are of characters that training never showed.
    held_out: bool,
}

/// `unit`: its own number.
pub(crate) fn close(studio: &mut Studio<'_>, unit: u64) -> anyhow::Result<()> {
    if studio.wait(unit, studio.images.has(LIST))? {
        return Ok(());
    }
    let (drawn, missing) = studio.wait(unit, read_all(studio))?;
    let rows = grid_rows(studio, unit)?;
    let widest = rows.iter().map(Vec::len).max().unwrap_or(0);
    let across = if widest > 6 { 1 } else { GRID_ACROSS };
    let grid = image_grid(&rows, GRID_SIDE, across);
    studio.wait(unit, studio.images.put_image(GRID, grid))?;
    let summary = summarize(studio, &drawn);
    tracing::info!(
        correct = summary.correct,
        count = summary.count,
        of = summary.of,
        missing = missing.len(),
        "all images are made and judged"
    );
    let record = Record {
        images: drawn,
        summary,
        missing,
    };
    studio.wait(
        unit,
        studio.images.put(LIST, serde_json::to_vec_pretty(&record)?),
    )
}

/// The records of all images in order, and the images that are not there.
async fn read_all(studio: &Studio<'_>) -> anyhow::Result<(Vec<Drawn>, Vec<String>)> {
    let (mut drawn, mut missing) = (Vec::new(), Vec::new());
    let reads = futures::stream::iter(0..studio.work.images()).map(|unit| async move {
        let record = studio
            .images
            .get(&format!("{}.json", image_name(unit)))
            .await?;
        anyhow::Ok((unit, record))
    });
    let mut reads = std::pin::pin!(reads.buffered(READS));
    while let Some((unit, record)) = reads.try_next().await? {
        match record {
            Some(record) => drawn.push(serde_json::from_slice(&record)?),
            None => missing.push(format!("{}.png", image_name(unit))),
        }
    }
    Ok((drawn, missing))
}

/// A row for each subject and prompt.
fn grid_rows(studio: &mut Studio<'_>, unit: u64) -> anyhow::Result<Vec<Vec<Cell>>> {
    let work = studio.work;
    let (prompts, seeds) = (work.prompts.len().max(1) as u64, work.seeds.len() as u64);
    let mut rows = Vec::new();
    for row in 0..GRID_ROWS.min(u64::from(work.count) * prompts) {
        let (mut images, mut there) = (Vec::new(), false);
        for image in row * seeds..(row + 1) * seeds {
            let name = format!("{}.png", image_name(image));
            let found = studio.wait(unit, studio.images.get_image(&name))?;
            there |= found.is_some();
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
        if !there {
            // What kept its images from being made may keep the subject from being read.
            rows.push(images);
            continue;
        }
        let subject = studio.take_subject(unit, u32::try_from(row / prompts)?)?;
        rows.push(grid_row(&subject.1, images));
        studio.keep_subject(subject);
    }
    Ok(rows)
}

/// Target, references with their concepts, and what was drawn with each seed.
fn grid_row(subject: &Subject, images: Vec<Cell>) -> Vec<Cell> {
    let target = subject
        .target
        .map(|_| Cell::new("target", subject.example.target.clone()));
    let references = subject.example.references.iter();
    let references =
        references.map(|reference| Cell::new(reference.concept.word(), reference.image.clone()));
    target.into_iter().chain(references).chain(images).collect()
}

fn summarize(studio: &Studio<'_>, drawn: &[Drawn]) -> Summary {
    let judged: Vec<(u64, bool)> = drawn
        .iter()
        .filter_map(|drawn| {
            let target = drawn.target.as_ref()?;
            Some((target.position, target.correct?))
        })
        .collect();
    let of = judged.first().map_or(0, |(position, _)| {
        studio.identities.candidates_of(&studio.loader, *position)
    });
    let correct = judged.iter().filter(|(_, correct)| *correct).count();
    summary(
        correct,
        judged.len(),
        of,
        !studio.loader.held_out().is_empty(),
    )
}

fn summary(correct: usize, count: usize, of: usize, held_out: bool) -> Summary {
    Summary {
        correct,
        count,
        of,
        chance: if of == 0 { 0.0 } else { 1.0 / of as f64 },
        held_out,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chance_is_that_of_somebody_who_guesses() {
        let two_of_three = summary(2, 3, 8, true);
        assert!((two_of_three.chance - 0.125).abs() < 1e-9);
        let nothing = summary(0, 0, 0, false);
        assert_eq!((nothing.correct, nothing.count, nothing.of), (0, 0, 0));
        assert!(nothing.chance.abs() < 1e-9 && !nothing.held_out);
    }
}
