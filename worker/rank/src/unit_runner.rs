//! Runs the units of a sampling job with the model and the data set loaded once. A unit is one
//! image with its JSON record, the attention maps of one subject, or the closing files. A unit
//! whose outputs exist in the store is skipped. Called by [`crate::sample`].

use crate::checkpoint::Checkpoints;
use crate::identity::Identities;
use crate::images::Images;
use crate::load::{build, open_data};
use crate::maps;
use crate::process::Rank;
use crate::sidecar::{Checkpoint, Provenance, Target};
use crate::subject::{Chosen, Subject, from_request, from_sample};
use crate::{device, environment};
use anyhow::{Context, bail};
use image::RgbImage;
use model::SampleOptions;
use model::trainer::Trainer;
use model::weights::digest;
use model_data::loader::Loader;
use model_data::order::SampleOrder;
use proto::checkpoint::CheckpointRef;
use proto::message::SourceJob;
use proto::sample::{SampleUnit, SampleWork};
use proto::spec::{Pairing, Task, TrainWork};

/// See the module documentation.
pub(crate) struct UnitRunner<'a> {
    pub(crate) rank: &'a Rank<'a>,
    pub(crate) work: &'a SampleWork,
    /// The trained job's spec, with the task and pairing of this job.
    spec: TrainWork,
    trainer: Trainer,
    pub(crate) loader: Loader,
    pub(crate) images: Images,
    pub(crate) identities: Identities,
    provenance: Provenance,
    /// The subject of the previous unit, which the next unit often shares.
    cached: Option<(u32, Subject)>,
}

impl<'a> UnitRunner<'a> {
    pub(crate) fn open(
        rank: &'a Rank<'a>,
        work: &'a SampleWork,
        source: &SourceJob,
    ) -> anyhow::Result<Self> {
        let assignment = &rank.task.assignment;
        let mut spec =
            proto::job::parse_training(&format!("job.toml of {}", work.job), &source.job_toml)?;
        if let Some(references) = spec.model.architecture.references_mut() {
            references.task = work.task.unwrap_or(references.task);
            references.pairing = work.pairing.unwrap_or(references.pairing);
        }
        spec.model.architecture.prepare_for_sampling(&work.knobs);
        let references = spec.model.architecture.references();
        let kind = rank.job.resources.device;
        let device = device::choose(kind, rank.task.device, spec.train.precision)?;
        let mut trainer = build(rank, &spec, device)?;
        let mut checkpoint = None;
        if let Some(reference) = source.checkpoint {
            checkpoint = Some(load(rank, work, &spec, &mut trainer, reference)?);
        }
        let data = open_data(&spec, &assignment.dataset_version);
        let loader = rank.runtime.block_on(data)?;
        let provenance = Provenance {
            job: assignment.job.0.clone(),
            source: work.job.0.clone(),
            checkpoint,
            init_digest: trainer.init_digest(),
            dataset_version: assignment.dataset_version.clone(),
            resolution: spec.data.resolution,
            task: references.map_or(Task::Composition, |it| it.task),
            pairing: references.map_or(Pairing::B, |it| it.pairing),
            transform: references.and_then(|it| it.transform()),
            environment: environment::describe(&spec, kind),
        };
        Ok(Self {
            rank,
            work,
            spec,
            trainer,
            images: Images::open(&assignment.store_url, &assignment.job)?,
            identities: Identities::of(&loader, first_seed(work)),
            loader,
            provenance,
            cached: None,
        })
    }

    /// Marks the unit as begun and returns its description.
    pub(crate) fn begin(&self, unit: u64) -> anyhow::Result<SampleUnit> {
        self.rank.link.progress().begin_unit(unit);
        let description = self.work.unit(unit);
        description.with_context(|| format!("{} has no unit {unit}", self.provenance.job))
    }

    /// Runs an operation of the object store during a unit.
    pub(crate) fn wait<T>(&self, unit: u64, operation: impl Future<Output = T>) -> T {
        self.rank.link.progress().wait_for_store();
        let outcome = self.rank.runtime.block_on(operation);
        self.rank.link.progress().begin_unit(unit);
        outcome
    }

    /// Generates one image and its record, unless they exist. `seed` is an index.
    pub(crate) fn image(
        &mut self,
        unit: u64,
        subject: u32,
        prompt: usize,
        seed: usize,
    ) -> anyhow::Result<()> {
        let seed = self.work.seeds.get(seed).copied().context("no such seed")?;
        let name = image_name(unit);
        let (png, json) = (format!("{name}.png"), format!("{name}.json"));
        // The record is written last, so its presence completes the unit.
        if self.wait(unit, self.images.has(&json))? && self.wait(unit, self.images.has(&png))? {
            return Ok(());
        }
        let subject = self.take_subject(unit, subject)?;
        let outcome = self.generate_image(unit, &subject.1, prompt, seed, &name);
        self.cached = Some(subject);
        outcome
    }

    fn generate_image(
        &mut self,
        unit: u64,
        subject: &Subject,
        prompt: usize,
        seed: u64,
        name: &str,
    ) -> anyhow::Result<()> {
        let work = self.work;
        let prompt = subject.prompts.get(prompt).context("no such prompt")?;
        let mut example = subject.example.clone();
        example.prompt.clone_from(prompt);
        let options = SampleOptions {
            method: work.method,
            steps: work.steps,
            guidance: work.guidance,
            reference_guidance: work.reference_guidance,
            negative_prompt: work.negative_prompt.clone(),
            knobs: work.knobs.clone(),
            seed,
        };
        let images = self
            .trainer
            .sample(std::slice::from_ref(&example), &options)?;
        let image = images.into_iter().next();
        let image = image.context("the model returned no image")?;
        let mut record = self
            .provenance
            .image_record(name, subject, prompt, seed, work);
        // Classify the stored image: one from another kind of device may differ in the last bits.
        let image = self.wait(unit, self.images.put_image(&record.file, image))?;
        if let Some(position) = subject.target {
            record.target = Some(self.classify(unit, position, subject.donor, &image)?);
        }
        let json = serde_json::to_vec_pretty(&record)?;
        self.wait(unit, self.images.put(&format!("{name}.json"), json))?;
        tracing::info!(unit, file = record.file, "generated an image");
        Ok(())
    }

    fn classify(
        &mut self,
        unit: u64,
        position: u64,
        donor: Option<u64>,
        image: &RgbImage,
    ) -> anyhow::Result<Target> {
        self.rank.link.progress().wait_for_store();
        let operation = self
            .identities
            .classify(&self.loader, position, donor, image);
        let classification = self.rank.runtime.block_on(operation)?;
        self.rank.link.progress().begin_unit(unit);
        Target::of(&self.loader, position, donor, classification)
    }

    /// Renders the attention maps of one subject, unless they exist.
    pub(crate) fn attention_maps(&mut self, unit: u64, number: u32) -> anyhow::Result<()> {
        let name = format!("attention-{number:03}");
        let json = format!("{name}.json");
        if self.wait(unit, self.images.has(&json))? {
            return Ok(());
        }
        let subject = self.take_subject(unit, number)?;
        let maps = maps::render(&mut self.trainer, &subject.1, self.work, &name);
        self.cached = Some(subject);
        let maps = maps?;
        for (name, image) in maps.images {
            self.wait(unit, self.images.put_image(&name, image))?;
        }
        self.wait(
            unit,
            self.images
                .put(&json, serde_json::to_vec_pretty(&maps.record)?),
        )
    }

    /// The subject's target through the autoencoder alone, if the model has one to decode with.
    pub(crate) fn reconstruct(&mut self, subject: &Subject) -> anyhow::Result<Option<RgbImage>> {
        Ok(self.trainer.reconstruct(&subject.example)?)
    }

    /// Takes the cached subject if it has this number, or reads it.
    pub(crate) fn take_subject(
        &mut self,
        unit: u64,
        number: u32,
    ) -> anyhow::Result<(u32, Subject)> {
        match self.cached.take() {
            Some(cached) if cached.0 == number => Ok(cached),
            _ => Ok((number, self.subject(unit, number)?)),
        }
    }

    fn subject(&self, unit: u64, number: u32) -> anyhow::Result<Subject> {
        let (work, loader) = (self.work, &self.loader);
        if work.references.is_empty() {
            let chosen = choose(loader, number, first_seed(work))?;
            let donor = if work.swap_references {
                Some(choose_donor(loader, number, first_seed(work))?)
            } else {
                None
            };
            return self.wait(unit, from_sample(loader, &self.spec, chosen, donor, work));
        }
        let store = &self.rank.task.assignment.store_url;
        self.wait(unit, from_request(loader, store, &self.spec, work))
    }

    /// Caches a subject for the next unit.
    pub(crate) fn cache_subject(&mut self, subject: (u32, Subject)) {
        self.cached = Some(subject);
    }
}

pub(crate) fn image_name(unit: u64) -> String {
    format!("{unit:03}")
}

pub(crate) fn first_seed(work: &SampleWork) -> u64 {
    work.seeds.first().copied().unwrap_or(0)
}

/// Loads a checkpoint into the model, with the moving average if the job has one.
fn load(
    rank: &Rank<'_>,
    work: &SampleWork,
    spec: &TrainWork,
    trainer: &mut Trainer,
    reference: CheckpointRef,
) -> anyhow::Result<Checkpoint> {
    let checkpoints = Checkpoints::open(&rank.task.assignment.store_url, &work.job)?;
    let tensors = rank
        .runtime
        .block_on(checkpoints.read_for(trainer, reference))?;
    let checkpoint = Checkpoint {
        step: reference.step.0,
        generation: reference.generation.0,
        digest: digest(&tensors),
        weights: match spec.train.ema {
            Some(_) => "moving average",
            None => "as trained",
        }
        .to_owned(),
    };
    trainer.load_state(&tensors, reference.step.0)?;
    trainer.take_averages();
    Ok(checkpoint)
}

/// Chooses the sample of subject `number`: from the held-out samples, or from all training samples
/// if none are held out, in a permutation seeded with the first seed. If there are more subjects
/// than samples, the samples repeat in a new epoch with other random choices.
fn choose(loader: &Loader, number: u32, seed: u64) -> anyhow::Result<Chosen> {
    let pool = if loader.held_out().is_empty() {
        loader.training()
    } else {
        loader.held_out()
    };
    let (epoch, index) = SampleOrder::new(seed, pool.len() as u64).at(u64::from(number));
    let position = pool.get(usize::try_from(index)?).copied();
    let position = position.context("the data set has no samples")?;
    Ok(Chosen { epoch, position })
}

/// Chooses the sample whose references subject `number` gets in the swap test: the next subject
/// that is of another character.
fn choose_donor(loader: &Loader, number: u32, seed: u64) -> anyhow::Result<Chosen> {
    let character = |chosen: Chosen| -> anyhow::Result<&str> {
        Ok(&loader.rows()[usize::try_from(chosen.position)?].character)
    };
    let own = character(choose(loader, number, seed)?)?;
    let tries = u32::try_from(loader.rows().len())?;
    for other in 1..=tries {
        let chosen = choose(loader, number.wrapping_add(other), seed)?;
        if character(chosen)? != own {
            return Ok(chosen);
        }
    }
    bail!("swap_references needs two characters to sample from, and there is only {own:?}")
}
