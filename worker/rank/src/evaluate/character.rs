//! The references of a character as a model is shown them, and their whole images.

use super::loaded::Loaded;
use super::score::Embedded;
use super::{At, Evaluation};
use crate::subject::{Chosen, from_request, from_sample, read_image};
use anyhow::Context;
use image::RgbImage;
use model_data::evaluation::Character;
use model_data::example::{Concept, Example};
use proto::evaluate::{Characters, EvaluationPlan, FileCharacter};
use proto::sample::{ImageSource, NamedReference, SampleWork};

/// A character as one model sees it.
pub(super) struct Subject {
    /// With the references; its prompt is replaced.
    pub(super) example: Example,
    /// For each reference, the id of its sample or the name of its file.
    pub(super) origins: Vec<String>,
    /// The image from which each reference was cut; for a model without references, the one of the
    /// character.
    pub(super) wholes: Vec<RgbImage>,
    /// None: no image of it was scored yet.
    pub(super) embedded: Option<Embedded>,
    /// The answers about each of [`Self::wholes`]. None: nothing was asked yet.
    pub(super) answers: Option<Vec<Vec<Option<String>>>>,
}

impl Subject {
    pub(super) fn concepts(&self) -> Vec<Concept> {
        let references = self.example.references.iter();
        references.map(|reference| reference.concept).collect()
    }
}

impl Evaluation<'_> {
    pub(super) fn read_subject(&self, loaded: &Loaded, at: At) -> anyhow::Result<Subject> {
        let character = &self.characters[at.character];
        let subject = match &character.sample {
            Some((position, _)) => self.of_sample(loaded, at, *position),
            None => self.of_files(loaded, at, character),
        };
        subject.with_context(|| format!("the character {:?}", character.name))
    }

    fn of_sample(&self, loaded: &Loaded, at: At, position: u64) -> anyhow::Result<Subject> {
        let request = self.work.models[at.model].as_sample(&self.work.plan);
        // Epoch 0: the references of a character are the same for all prompts, seeds and samples.
        let chosen = Chosen { epoch: 0, position };
        let (loader, spec) = (&loaded.loader, &loaded.spec);
        let subject = self.wait(at.unit, from_sample(loader, spec, chosen, None, &request))?;
        let references = subject.example.references.iter();
        let mut positions: Vec<u64> = references.map(|reference| reference.position).collect();
        if positions.is_empty() {
            positions.push(position);
        }
        let mut wholes = Vec::new();
        for position in positions {
            let decoded = self.wait(at.unit, loader.decoded(position))?;
            wholes.push(decoded.image.clone());
        }
        let id = |position: u64| loader.rows()[position as usize].id.clone();
        let references = subject.example.references.iter();
        Ok(Subject {
            origins: references.map(|it| id(it.position)).collect(),
            example: subject.example,
            wholes,
            embedded: None,
            answers: None,
        })
    }

    fn of_files(&self, loaded: &Loaded, at: At, character: &Character) -> anyhow::Result<Subject> {
        let found = files(&self.work.plan, &character.name).context("has no files")?;
        let settings = loaded.spec.model.architecture.references();
        // Other architectures than the paper's take a fixed number of references.
        let taken = settings.map_or(1, |settings| settings.count.max(1) as usize);
        let named: Vec<NamedReference> = found.references.iter().take(taken).cloned().collect();
        let request = SampleWork {
            references: named.clone(),
            // `coordinator evaluate` stores files with the first model's job.
            job: self.work.models[0].job.clone(),
            ..self.work.models[at.model].as_sample(&self.work.plan)
        };
        let store = &self.rank.task.assignment.store_url;
        let mut wholes = Vec::new();
        for reference in &named {
            wholes.push(match &reference.from {
                ImageSource::Sample { id } => {
                    let position = loaded.loader.position_of(id);
                    let position =
                        position.with_context(|| format!("there is no sample {id:?}"))?;
                    let decoded = self.wait(at.unit, loaded.loader.decoded(position))?;
                    decoded.image.clone()
                }
                file @ ImageSource::File { .. } => {
                    let read = read_image(store, &request, file);
                    self.wait(at.unit, read)?.0.image
                }
            });
        }
        let example = if settings.is_some() {
            let read = from_request(&loaded.loader, store, &loaded.spec, &request);
            self.wait(at.unit, read)?.example
        } else {
            crate::subject::without_references(loaded.spec.data.resolution)
        };
        let name = |it: &NamedReference| match &it.from {
            ImageSource::Sample { id } => id.clone(),
            ImageSource::File { name, .. } => name.clone(),
        };
        let shown = example.references.len();
        Ok(Subject {
            origins: named.iter().take(shown).map(name).collect(),
            example,
            wholes,
            embedded: None,
            answers: None,
        })
    }
}

fn files<'a>(plan: &'a EvaluationPlan, name: &str) -> Option<&'a FileCharacter> {
    let domains = [&plan.in_domain, &plan.out_of_domain];
    let mut files = domains
        .into_iter()
        .flatten()
        .flat_map(|characters| match characters {
            Characters::Files(files) => files.as_slice(),
            Characters::Trained(_) | Characters::HeldOut(_) | Characters::Ids(_) => &[],
        });
    files.find(|it| it.name == name)
}
