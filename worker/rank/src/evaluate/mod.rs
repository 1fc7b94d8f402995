//! Evaluation in one rank process: images of several models by one plan, each scored as soon as it
//! is generated. One model is loaded at a time; units are ordered by model. A unit whose record
//! exists in the store is skipped. Called by [`crate::run`].

mod character;
mod closing;
mod loaded;
mod score;
mod vqa;

use crate::images::Images;
use crate::load::open_data;
use crate::process::{Permanent, Rank};
use crate::sample::run_units;
use crate::scorers::{Network, Scorers};
use anyhow::{Context, ensure};
use character::Subject;
use image::RgbImage;
use loaded::Loaded;
use model::SampleOptions;
use model_data::evaluation::{Answers, Character, Row, characters, prompts};
use model_data::loader::Loader;
use proto::evaluate::{EvaluateUnit, EvaluateWork, ImageKey};
use proto::message::SourceJob;
use proto::spec::{Data, TrainWork};
use proto::text::hex_sha256;
use std::convert::Infallible;
use vqa::Asker;

/// The unit of an image, with indices.
#[derive(Debug, Clone, Copy)]
struct At {
    unit: u64,
    model: usize,
    character: usize,
    prompt: usize,
    seed: usize,
    sample: u32,
}

/// What all models have in common, and the loaded one.
struct Evaluation<'a> {
    rank: &'a Rank<'a>,
    work: &'a EvaluateWork,
    sources: &'a [SourceJob],
    /// Digest of plan and data set.
    plan: String,
    /// The data of the first model's job, for all models: their characters and references are the
    /// same. The coordinator refuses models that were trained on other samples.
    data: Data,
    characters: Vec<Character>,
    prompts: Vec<String>,
    images: Images,
    loaded: Option<Loaded>,
    /// The subject of the previous unit, which the next one often shares.
    subject: Option<((usize, usize), Subject)>,
    scorers: Scorers,
    /// None: the plan asks nothing.
    asker: Option<Asker>,
}

/// Returns only on an error of the process. A failed unit is reported, and the next one is run.
pub(crate) fn evaluate(
    rank: &Rank<'_>,
    work: &EvaluateWork,
    sources: &[SourceJob],
) -> anyhow::Result<Infallible> {
    rank.link.start_units();
    let mut evaluation = Evaluation::open(rank, work, sources)?;
    run_units(rank, |unit| evaluation.run(unit))
}

impl<'a> Evaluation<'a> {
    fn open(
        rank: &'a Rank<'a>,
        work: &'a EvaluateWork,
        sources: &'a [SourceJob],
    ) -> anyhow::Result<Self> {
        let assignment = &rank.task.assignment;
        ensure!(
            sources.len() == work.models.len(),
            "the order names the weights of {} models, and {} has {}",
            sources.len(),
            assignment.job,
            work.models.len()
        );
        let (model, source) = (&work.models[0], &sources[0]);
        let mut spec = trained(&model.job.0, source)?;
        work.plan.adapt(model, &mut spec);
        let loader = open_data(&spec, &assignment.dataset_version);
        let loader: Loader = rank.runtime.block_on(loader)?;
        let characters = characters(&loader, &work.plan);
        let characters = characters.map_err(|error| Permanent(error.to_string()))?;
        let prompts = prompts(&loader, &work.plan, &characters);
        let prompts = prompts.map_err(|error| Permanent(error.to_string()))?;
        let scorers = score::open(rank, &work.metrics)?;
        let asker = Asker::open(rank, &work.metrics)?;
        Ok(Self {
            scorers,
            asker,
            plan: work.plan.digest(&assignment.dataset_version),
            data: spec.data,
            characters,
            prompts,
            images: Images::open(&assignment.store_url, &assignment.job)?,
            loaded: None,
            subject: None,
            rank,
            work,
            sources,
        })
    }

    /// Writes the outputs of a unit, unless they exist.
    fn run(&mut self, unit: u64) -> anyhow::Result<()> {
        self.rank.link.progress().begin_unit(unit);
        let found = self.work.unit(unit);
        let job = &self.rank.task.assignment.job;
        match found.with_context(|| format!("{job} has no unit {unit}"))? {
            EvaluateUnit::Image {
                model,
                character,
                prompt,
                seed,
                sample,
            } => self.image(At {
                unit,
                model,
                character,
                prompt,
                seed,
                sample,
            }),
            EvaluateUnit::Closing => closing::close(self, unit),
        }
    }

    /// Runs an operation of the object store during a unit.
    fn wait<T>(&self, unit: u64, operation: impl Future<Output = T>) -> T {
        self.rank.link.progress().wait_for_store();
        let outcome = self.rank.runtime.block_on(operation);
        self.rank.link.progress().begin_unit(unit);
        outcome
    }

    fn image(&mut self, at: At) -> anyhow::Result<()> {
        let (image, record) = (image_file(at.unit), record_file(at.unit));
        // The record is written last, so its presence completes the unit.
        if self.wait(at.unit, self.images.has(&record))? {
            return Ok(());
        }
        let mut loaded = self.take_loaded(at)?;
        let subject = match self.subject.take() {
            Some((of, subject)) if of == (at.model, at.character) => Ok(subject),
            _ => self.read_subject(&loaded, at),
        };
        let outcome = match subject {
            Ok(mut subject) => {
                let outcome = self.generate_and_score(at, &mut loaded, &mut subject, &image);
                self.subject = Some(((at.model, at.character), subject));
                outcome
            }
            Err(error) => Err(error),
        };
        self.loaded = Some(loaded);
        let row = outcome?;
        let json = serde_json::to_vec_pretty(&row)?;
        self.wait(at.unit, self.images.put(&record, json))?;
        tracing::info!(
            unit = at.unit,
            model = row.model,
            character = row.character,
            "generated and scored an image"
        );
        Ok(())
    }

    /// Takes the loaded model if it is that of the unit, or loads it. The previous one is dropped
    /// first: two may not fit into memory.
    fn take_loaded(&mut self, at: At) -> anyhow::Result<Loaded> {
        match self.loaded.take() {
            Some(loaded) if loaded.index == at.model => Ok(loaded),
            other => {
                drop(other);
                self.subject = None;
                self.rank.link.progress().end();
                let loaded = self.load(at.model);
                self.rank.link.progress().begin_unit(at.unit);
                let name = &self.work.models[at.model].name;
                loaded.with_context(|| format!("the model {name:?}"))
            }
        }
    }

    fn generate_and_score(
        &mut self,
        at: At,
        loaded: &mut Loaded,
        subject: &mut Subject,
        file: &str,
    ) -> anyhow::Result<Row> {
        let model = &self.work.models[at.model];
        let character = &self.characters[at.character];
        let (prompt, seed) = (&self.prompts[at.prompt], self.work.plan.seeds[at.seed]);
        let (character_key, model_digest) = (character.key(), loaded.digest.clone());
        let key = ImageKey {
            plan: &self.plan,
            model: &model_digest,
            character: &character_key,
            prompt,
            seed,
            sample: at.sample,
        };
        // An earlier attempt may have been cut off between image and record.
        let stored = self.wait(at.unit, self.images.get_image(file))?;
        let image = match stored {
            Some(image) => anyhow::Ok(image),
            None => self.generate(at, loaded, subject, key, file),
        }?;
        let answers = self.answers(at, subject, file, &image)?;
        let mut scored = score::score(&mut self.scorers, &image, subject, prompt)?;
        if let (Some(asker), Some(answers)) = (&mut self.asker, &answers) {
            asker.score(answers, &mut scored.scores)?;
        }
        let digest = |network| self.scorers.digest(network).map(str::to_owned);
        Ok(Row {
            unit: at.unit,
            key: key.digest(),
            pair: key.pair(),
            plan: self.plan.clone(),
            dataset_version: self.rank.task.assignment.dataset_version.clone(),
            model: model.name.clone(),
            model_digest: model_digest.clone(),
            job: model.job.clone(),
            step: loaded.step,
            domain: character.domain,
            character: character.name.clone(),
            sample_id: character.sample.as_ref().map(|(_, id)| id.clone()),
            prompt: prompt.clone(),
            prompt_cut: loaded.cuts(prompt),
            seed,
            sample: at.sample,
            noise_seed: key.noise_seed(),
            method: model.method,
            steps: model.steps,
            guidance: model.guidance,
            reference_guidance: model.reference_guidance,
            negative_prompt: model.negative_prompt.clone(),
            knobs: serde_json::to_string(&model.knobs).unwrap_or_default(),
            resolution: loaded.spec.data.resolution,
            references: subject.origins.clone(),
            concepts: subject.concepts(),
            environment: loaded.environment.clone(),
            image: file.to_owned(),
            image_sha256: hex_sha256(image.as_raw()),
            clip: digest(Network::Clip),
            lpips: digest(Network::Lpips),
            faces: digest(Network::Faces),
            clip_i_each: scored.clip_i_each,
            clip_i_whole_each: scored.clip_i_whole_each,
            clip_t_sliced: scored.clip_t_sliced,
            vqa: answers,
            scores: scored.scores,
        })
    }

    /// What the plan's model answers about an image and about the references of its character.
    fn answers(
        &self,
        at: At,
        subject: &mut Subject,
        file: &str,
        image: &RgbImage,
    ) -> anyhow::Result<Option<Answers>> {
        let Some(asker) = &self.asker else {
            return Ok(None);
        };
        if subject.answers.is_none() {
            let named = subject.wholes.iter().enumerate();
            let named = named.map(|(number, image)| {
                let character = &self.characters[at.character].name;
                (format!("reference {number} of {character}"), image)
            });
            let images: Vec<(String, &RgbImage)> = named.collect();
            subject.answers = Some(self.wait(at.unit, asker.ask(&images))?);
        }
        let images = [(file.to_owned(), image)];
        let own = self.wait(at.unit, asker.ask(&images))?.pop();
        let own = own.context("nothing was asked about the image")?;
        let references = subject.answers.clone().unwrap_or_default();
        Ok(Some(asker.answers(own, references)))
    }

    fn generate(
        &self,
        at: At,
        loaded: &mut Loaded,
        subject: &Subject,
        key: ImageKey<'_>,
        file: &str,
    ) -> anyhow::Result<RgbImage> {
        let model = &self.work.models[at.model];
        let mut example = subject.example.clone();
        key.prompt.clone_into(&mut example.prompt);
        // Noise follows from the seed and this number; the seed alone is to determine it.
        example.position = 0;
        let options = SampleOptions {
            method: model.method,
            steps: model.steps,
            guidance: model.guidance,
            reference_guidance: model.reference_guidance,
            negative_prompt: model.negative_prompt.clone(),
            knobs: model.knobs.clone(),
            seed: key.noise_seed(),
        };
        let images = loaded
            .trainer
            .sample(std::slice::from_ref(&example), &options)?;
        let image = images.into_iter().next();
        let image = image.context("the model returned no image")?;
        // Score the stored image: one from another kind of device may differ in the last bits.
        self.wait(at.unit, self.images.put_image(file, image))
    }
}

/// The spec of the job that trained a model.
fn trained(job: &str, source: &SourceJob) -> anyhow::Result<TrainWork> {
    let file = format!("job.toml of {job}");
    Ok(proto::job::parse_training(&file, &source.job_toml)?)
}

fn image_file(unit: u64) -> String {
    format!("{unit:07}.png")
}

fn record_file(unit: u64) -> String {
    format!("{unit:07}.json")
}
