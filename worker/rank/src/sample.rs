//! Draws pictures with a trained model and judges whose they are: one PNG each with a JSON file of everything that made
//! it, `grid.png`, and `pictures.json` last, so that who sees it sees all; all in `jobs/<job>/pictures/`. The same request
//! gives the same pictures. Called by [`crate::run`].

use crate::checkpoint::{Checkpoints, digest};
use crate::maps;
use crate::pictures::Pictures;
use crate::run::Rank;
use crate::score::{Identities, Verdict};
use crate::sidecar::{Checkpoint, Drawn, Subjects, Target};
use crate::subject::{Subject, named, of_data};
use crate::train::{build, open_data};
use crate::{device, environment};
use anyhow::ensure;
use image::RgbImage;
use model::SampleOptions;
use model::trainer::Trainer;
use model_data::grid::{Cell, picture_grid};
use model_data::loader::Loader;
use proto::checkpoint::CheckpointRef;
use proto::message::RankPhase;
use proto::sample::SampleWork;
use proto::spec::{Pairing, Task, TrainWork};
use serde::Serialize;

/// Rows of the grid; the other pictures are written on their own only.
const GRID_ROWS: usize = 24;
/// Rows beside each other, and the side of a picture in the grid.
const GRID_ACROSS: u32 = 2;
const GRID_SIDE: u32 = 96;

/// `pictures.json`.
#[derive(Debug, Serialize)]
struct Record {
    pictures: Vec<Drawn>,
    summary: Summary,
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
pub(crate) fn sample(
    rank: &Rank<'_>,
    spec: &TrainWork,
    request: &SampleWork,
    weights: Option<CheckpointRef>,
) -> anyhow::Result<()> {
    let assignment = &rank.task.assignment;
    let mut spec = spec.clone();
    if let Some(references) = spec.model.architecture.references_mut() {
        references.task = request.task.unwrap_or(references.task);
        references.pairing = request.pairing.unwrap_or(references.pairing);
    }
    let references = spec.model.architecture.references();
    let device = device::choose(rank.job.resources.device, rank.task.device, spec.train.precision)?;
    let mut trainer = build(rank, &spec, device)?;
    let mut checkpoint = None;
    if let Some(place) = weights {
        let checkpoints = Checkpoints::open(&assignment.store_url, &request.job)?;
        let tensors = rank.runtime.block_on(checkpoints.read_for(&trainer, place))?;
        checkpoint = Some(Checkpoint {
            step: place.step.0,
            generation: place.generation.0,
            digest: digest(&tensors),
            weights: match spec.train.ema {
                Some(_) => "moving average",
                None => "as trained",
            },
        });
        trainer.load_state(&tensors, place.step.0)?;
        trainer.take_averages();
    }
    let loader = rank
        .runtime
        .block_on(open_data(&spec, &assignment.dataset_version))?;
    rank.link.phase(RankPhase::Training);

    let seed = request.seeds.first().copied().unwrap_or(0);
    let subjects = Subjects {
        job: assignment.job.0.clone(),
        source: request.job.0.clone(),
        checkpoint,
        init_digest: trainer.init_digest(),
        dataset_version: assignment.dataset_version.clone(),
        resolution: spec.data.resolution,
        task: references.map_or(Task::Composition, |it| it.task),
        pairing: references.map_or(Pairing::B, |it| it.pairing),
        environment: environment::describe(&spec, rank.job.resources.device),
    };
    let mut drawing = Drawing {
        rank,
        request,
        trainer,
        pictures: Pictures::open(&assignment.store_url, &assignment.job)?,
        gallery: Gallery::new(&loader, seed),
        loader: &loader,
        subjects,
    };
    drawing.all(&spec)?;
    let Drawing {
        pictures, gallery, ..
    } = drawing;
    rank.runtime.block_on(gallery.close(&loader, &pictures))
}

struct Drawing<'a> {
    rank: &'a Rank<'a>,
    request: &'a SampleWork,
    trainer: Trainer,
    loader: &'a Loader,
    pictures: Pictures,
    gallery: Gallery,
    subjects: Subjects,
}

impl Drawing<'_> {
    fn all(&mut self, spec: &TrainWork) -> anyhow::Result<()> {
        let (rank, request, loader) = (self.rank, self.request, self.loader);
        if request.references.is_empty() {
            let seed = request.seeds.first().copied().unwrap_or(0);
            for place in choose_places(loader, request.count, seed) {
                let subject = rank.runtime.block_on(of_data(loader, spec, place, request))?;
                self.subject(&subject)?;
            }
        } else {
            let store = &rank.task.assignment.store_url;
            let subject = rank.runtime.block_on(named(loader, store, spec, request))?;
            self.subject(&subject)?;
        }
        Ok(())
    }

    /// A picture for each prompt and seed, and what the retrieval encoder attends to.
    fn subject(&mut self, subject: &Subject) -> anyhow::Result<()> {
        let request = self.request;
        for prompt in &subject.prompts {
            let mut example = subject.example.clone();
            example.prompt.clone_from(prompt);
            let mut row = Vec::new();
            for seed in &request.seeds {
                let options = SampleOptions {
                    method: request.method,
                    steps: request.steps,
                    guidance: request.guidance,
                    reference_guidance: request.reference_guidance,
                    seed: *seed,
                };
                let number = self.gallery.records.len() + 1;
                self.rank.link.marks().draw(number as u64);
                let picture = self.trainer.sample(std::slice::from_ref(&example), &options)?;
                self.rank.link.marks().leave();
                let picture = picture.into_iter().next();
                let picture = picture.expect("one picture for one example");
                let name = format!("{:03}", self.gallery.records.len());
                let drawn = self.subjects.drawn(&name, subject, prompt, *seed, request);
                let hang = self
                    .gallery
                    .hang(self.loader, &self.pictures, drawn, subject, &picture);
                self.rank.runtime.block_on(hang)?;
                row.push(picture);
            }
            self.gallery.row(subject, row);
            tracing::info!(drawn = self.gallery.records.len(), "drawing pictures");
        }
        if !request.attention.is_empty() {
            self.gallery.maps += 1;
            let name = format!("attention-{:03}", self.gallery.maps - 1);
            let drawn = maps::draw(&mut self.trainer, subject, request, &name)?;
            for (name, picture) in &drawn.pictures {
                self.rank
                    .runtime
                    .block_on(self.pictures.put_picture(name, picture))?;
            }
            let json = serde_json::to_vec_pretty(&drawn.record)?;
            let file = format!("{name}.json");
            self.rank.runtime.block_on(self.pictures.put(&file, json))?;
        }
        Ok(())
    }
}

/// `count` samples of the characters that training never shows, or of any when none is held out; a permutation chosen
/// by the request's first seed. More than there are: again, under other random numbers.
fn choose_places(loader: &Loader, count: u32, seed: u64) -> Vec<(u64, u64)> {
    let pool = if loader.held_out().is_empty() {
        loader.training()
    } else {
        loader.held_out()
    };
    let order = model_data::order::SampleOrder::new(seed, pool.len() as u64);
    (0..u64::from(count))
        .map(|place| order.at(place))
        .map(|(epoch, index)| (epoch, pool[usize::try_from(index).expect("an index")]))
        .collect()
}

/// Pictures drawn so far, judged.
struct Gallery {
    identities: Identities,
    records: Vec<Drawn>,
    verdicts: Vec<Verdict>,
    rows: Vec<Vec<Cell>>,
    maps: usize,
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
            maps: 0,
        }
    }

    /// Judges a picture and writes it with its record.
    async fn hang(
        &mut self,
        loader: &Loader,
        pictures: &Pictures,
        mut drawn: Drawn,
        subject: &Subject,
        picture: &RgbImage,
    ) -> anyhow::Result<()> {
        if let Some(position) = subject.target {
            let verdict = self.identities.judge(loader, position, picture).await?;
            drawn.target = Some(Target::of(loader, position, verdict)?);
            self.verdicts.extend(verdict);
        }
        pictures.put_picture(&drawn.file, picture).await?;
        let json = serde_json::to_vec_pretty(&drawn)?;
        pictures.put(&drawn.file.replace(".png", ".json"), json).await?;
        self.records.push(drawn);
        Ok(())
    }

    /// Target, references with their concepts, and what was drawn with each seed.
    fn row(&mut self, subject: &Subject, drawn: Vec<RgbImage>) {
        if self.rows.len() >= GRID_ROWS {
            return;
        }
        let target = subject
            .target
            .map(|_| Cell::new("target", subject.example.target.clone()));
        let references = subject.example.references.iter();
        let references =
            references.map(|reference| Cell::new(reference.concept.word(), reference.picture.clone()));
        let drawn = drawn.into_iter().map(|picture| Cell::new("drawn", picture));
        self.rows
            .push(target.into_iter().chain(references).chain(drawn).collect());
    }

    async fn close(self, loader: &Loader, pictures: &Pictures) -> anyhow::Result<()> {
        let widest = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let across = if widest > 6 { 1 } else { GRID_ACROSS };
        pictures
            .put_picture("grid.png", &picture_grid(&self.rows, GRID_SIDE, across))
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
