//! Draws pictures with a trained model: chooses held-out samples, draws each from its references, judges
//! whose picture it is, and writes `jobs/<job>/pictures/`: one PNG each, `grid.png`, and `pictures.json`
//! last, so that who sees it sees all. The same request gives the same pictures. Called by [`crate::run`].

use crate::checkpoint::Checkpoints;
use crate::device;
use crate::run::Rank;
use crate::score::{Identities, Verdict};
use crate::train::{build, open_data};
use anyhow::Context;
use image::{ImageFormat, RgbImage};
use model::SampleOptions;
use model_data::example::Example;
use model_data::figure::tags::pose_prompt;
use model_data::grid::{Cell, picture_grid};
use model_data::loader::Loader;
use model_data::order::SampleOrder;
use model_data::store;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use proto::id::JobId;
use proto::message::{RankPhase, SamplePrompt, SampleRequest};
use proto::spec::JobSpec;
use serde::Serialize;
use std::io::Cursor;
use std::sync::Arc;

/// Rows of the grid; the other pictures are written on their own only.
const GRID_ROWS: usize = 24;
/// Rows beside each other, and the side of a picture in the grid.
const GRID_ACROSS: u32 = 2;
const GRID_SIDE: u32 = 96;

/// `pictures.json`.
#[derive(Debug, Serialize)]
struct Record {
    pictures: Vec<PictureRecord>,
    summary: Summary,
}

#[derive(Debug, Serialize)]
struct PictureRecord {
    file: String,
    /// Position and id of the sample that was to be drawn.
    position: u64,
    id: String,
    character: String,
    outfit: String,
    prompt: String,
    /// Which candidate it is nearest to; 0 is its own identity. Absent where its identity cannot be told.
    nearest: Option<usize>,
    nearest_identity: Option<u64>,
    correct: Option<bool>,
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

/// Does the work of one sample request.
pub(crate) fn sample(rank: &Rank<'_>, spec: &JobSpec, request: &SampleRequest) -> anyhow::Result<()> {
    let assignment = &rank.task.assignment;
    let device = device::choose(spec.resources.device, rank.task.device, spec.train.precision)?;
    let mut trainer = build(rank, spec, device)?;
    if let Some(place) = request.checkpoint {
        let checkpoints = Checkpoints::open(&assignment.store_url, &request.source)?;
        let (_, tensors) = rank.runtime.block_on(checkpoints.read(place))?;
        trainer.load_state(&tensors, place.step.0)?;
    }
    let loader = rank
        .runtime
        .block_on(open_data(spec, &assignment.dataset_version))?;
    let places = choose(&loader, request);
    rank.link.phase(RankPhase::Training);

    let options = SampleOptions {
        method: request.method,
        steps: request.steps,
        guidance: request.guidance,
        reference_guidance: request.reference_guidance,
        seed: request.seed,
    };
    let pictures = Pictures::open(&assignment.store_url, &assignment.job)?;
    let mut gallery = Gallery::new(&loader, request.seed);
    // A few at a time, so that memory does not grow with the request.
    for part in places.chunks(spec.train.micro_batch as usize) {
        let mut examples = rank.runtime.block_on(loader.examples_at(part.to_vec()))?;
        for example in &mut examples {
            example.prompt = prompt(&loader, example.position, request.prompt);
        }
        let drawn = trainer.sample(&examples, &options)?;
        for (example, picture) in examples.iter().zip(drawn) {
            rank.runtime
                .block_on(gallery.hang(&loader, &pictures, example, &picture))?;
        }
        tracing::info!(
            drawn = gallery.records.len(),
            of = places.len(),
            "drawing pictures"
        );
    }
    rank.runtime.block_on(gallery.close(&loader, &pictures))
}

/// `count` samples of the characters that training never shows, or of any when none is held out; a
/// permutation chosen by the request's seed. More than there are: again, under other random numbers.
fn choose(loader: &Loader, request: &SampleRequest) -> Vec<(u64, u64)> {
    let pool = if loader.held_out().is_empty() {
        loader.training()
    } else {
        loader.held_out()
    };
    let order = SampleOrder::new(request.seed, pool.len() as u64);
    (0..u64::from(request.count))
        .map(|place| order.at(place))
        .map(|(epoch, index)| (epoch, pool[usize::try_from(index).expect("an index")]))
        .collect()
}

fn prompt(loader: &Loader, position: u64, wish: SamplePrompt) -> String {
    let full = &loader.rows()[usize::try_from(position).expect("positions are indices")].prompts;
    match wish {
        SamplePrompt::Full => full.clone(),
        SamplePrompt::Pose => pose_prompt(full),
        SamplePrompt::Empty => String::new(),
    }
}

/// Pictures drawn so far, judged.
struct Gallery {
    identities: Identities,
    records: Vec<PictureRecord>,
    verdicts: Vec<Verdict>,
    rows: Vec<Vec<Cell>>,
}

impl Gallery {
    fn new(loader: &Loader, seed: u64) -> Self {
        let held_out = Identities::new(loader, loader.held_out(), seed);
        let identities = if held_out.are_enough() {
            held_out
        } else {
            let all: Vec<u64> = (0..loader.rows().len() as u64).collect();
            Identities::new(loader, &all, seed)
        };
        Self {
            identities,
            records: Vec::new(),
            verdicts: Vec::new(),
            rows: Vec::new(),
        }
    }

    async fn hang(
        &mut self,
        loader: &Loader,
        pictures: &Pictures,
        example: &Example,
        drawn: &RgbImage,
    ) -> anyhow::Result<()> {
        let verdict = self.identities.judge(loader, example.position, drawn).await?;
        let file = format!("{:03}.png", self.records.len());
        pictures.put_picture(&file, drawn).await?;
        if self.rows.len() < GRID_ROWS {
            self.rows.push(row(example, drawn));
        }
        let sample = &loader.rows()[usize::try_from(example.position)?];
        self.records.push(PictureRecord {
            file,
            position: example.position,
            id: sample.id.clone(),
            character: sample.character.clone(),
            outfit: sample.outfit.clone(),
            prompt: example.prompt.clone(),
            nearest: verdict.map(|verdict| verdict.nearest),
            nearest_identity: verdict.map(|verdict| verdict.identity),
            correct: verdict.map(|verdict| verdict.nearest == 0),
        });
        self.verdicts.extend(verdict);
        Ok(())
    }

    async fn close(self, loader: &Loader, pictures: &Pictures) -> anyhow::Result<()> {
        pictures
            .put_picture("grid.png", &picture_grid(&self.rows, GRID_SIDE, GRID_ACROSS))
            .await?;
        let summary = summarize(&self.verdicts, !loader.held_out().is_empty());
        tracing::info!(
            correct = summary.correct,
            count = summary.count,
            of = summary.of,
            "pictures drawn and judged"
        );
        let record = Record {
            pictures: self.records,
            summary,
        };
        pictures
            .put("pictures.json", serde_json::to_vec_pretty(&record)?)
            .await
    }
}

fn summarize(verdicts: &[Verdict], held_out: bool) -> Summary {
    let of = verdicts.first().map_or(0, |verdict| verdict.of);
    Summary {
        correct: verdicts.iter().filter(|verdict| verdict.nearest == 0).count(),
        count: verdicts.len(),
        of,
        chance: if of == 0 { 0.0 } else { 1.0 / of as f64 },
        held_out,
    }
}

/// Target, references with their concepts, drawn.
fn row(example: &Example, drawn: &RgbImage) -> Vec<Cell> {
    let references = example.references.iter();
    std::iter::once(Cell::new("target", example.target.clone()))
        .chain(references.map(|reference| Cell::new(reference.concept.word(), reference.picture.clone())))
        .chain([Cell::new("drawn", drawn.clone())])
        .collect()
}

/// `jobs/<job>/pictures/` in the store.
struct Pictures {
    objects: Arc<dyn ObjectStore>,
    folder: Path,
}

impl Pictures {
    fn open(store_url: &str, job: &JobId) -> anyhow::Result<Self> {
        let (objects, prefix) = store::open(store_url)?;
        let folder = ["jobs", &job.0, "pictures"]
            .into_iter()
            .fold(prefix, |path, part| path.join(part));
        Ok(Self { objects, folder })
    }

    async fn put_picture(&self, name: &str, picture: &RgbImage) -> anyhow::Result<()> {
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, ImageFormat::Png)?;
        self.put(name, bytes.into_inner()).await
    }

    async fn put(&self, name: &str, bytes: Vec<u8>) -> anyhow::Result<()> {
        let path = self.folder.clone().join(name);
        self.objects
            .put(&path, bytes.into())
            .await
            .with_context(|| format!("cannot write {path}"))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_pictures_nearest_to_their_own_identity() {
        let verdict = |nearest| Verdict {
            nearest,
            identity: 5,
            of: 8,
        };
        let summary = summarize(&[verdict(0), verdict(3), verdict(0)], true);
        assert_eq!((summary.correct, summary.count, summary.of), (2, 3, 8));
        assert!((summary.chance - 0.125).abs() < 1e-9);
        let nothing = summarize(&[], false);
        assert_eq!(
            (nothing.correct, nothing.count, nothing.of, nothing.held_out),
            (0, 0, 0, false)
        );
    }
}
