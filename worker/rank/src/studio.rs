//! What a rank that samples keeps loaded, and how it makes one unit: an image with a JSON file of
//! everything that made it, the attention maps of one subject, or the closing files. A unit whose
//! outputs are there already costs a look. Called by [`crate::sample`].

use crate::checkpoint::Checkpoints;
use crate::images::Images;
use crate::load::{build, open_data};
use crate::maps;
use crate::process::Rank;
use crate::score::Identities;
use crate::sidecar::{Checkpoint, Subjects, Target};
use crate::subject::{Chosen, Subject, named, of_data};
use crate::{device, environment};
use anyhow::Context;
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

/// See the module's header.
pub(crate) struct Studio<'a> {
    pub(crate) rank: &'a Rank<'a>,
    pub(crate) work: &'a SampleWork,
    /// Of the trained job, with what the work says of task and pairing.
    spec: TrainWork,
    trainer: Trainer,
    pub(crate) loader: Loader,
    pub(crate) images: Images,
    pub(crate) identities: Identities,
    subjects: Subjects,
    /// The subject of the unit before: the next one often has the same.
    newest: Option<(u32, Subject)>,
}

impl<'a> Studio<'a> {
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
        let references = spec.model.architecture.references();
        let kind = rank.job.resources.device;
        let device = device::choose(kind, rank.task.device, spec.train.precision)?;
        let mut trainer = build(rank, &spec, device)?;
        let mut checkpoint = None;
        if let Some(at) = source.checkpoint {
            checkpoint = Some(load(rank, work, &spec, &mut trainer, at)?);
        }
        let data = open_data(&spec, &assignment.dataset_version);
        let loader = rank.runtime.block_on(data)?;
        let subjects = Subjects {
            job: assignment.job.0.clone(),
            source: work.job.0.clone(),
            checkpoint,
            init_digest: trainer.init_digest(),
            dataset_version: assignment.dataset_version.clone(),
            resolution: spec.data.resolution,
            task: references.map_or(Task::Composition, |it| it.task),
            pairing: references.map_or(Pairing::B, |it| it.pairing),
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
            subjects,
            newest: None,
        })
    }

    /// What this unit is, which is begun now.
    pub(crate) fn begin(&self, unit: u64) -> anyhow::Result<SampleUnit> {
        self.rank.link.progress().unit(unit);
        let what = self.work.unit(unit);
        what.with_context(|| format!("{} has no unit {unit}", self.subjects.job))
    }

    /// Waits for the object store in the middle of a unit.
    pub(crate) fn wait<T>(&self, unit: u64, storage: impl Future<Output = T>) -> T {
        self.rank.link.progress().waits();
        let outcome = self.rank.runtime.block_on(storage);
        self.rank.link.progress().unit(unit);
        outcome
    }

    /// Makes one image and its record, unless they are there. `seed` is an index.
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
        // The record comes second: with it the unit is there.
        if self.wait(unit, self.images.has(&json))? && self.wait(unit, self.images.has(&png))? {
            return Ok(());
        }
        let subject = self.take_subject(unit, subject)?;
        let outcome = self.image_of(unit, &subject.1, prompt, seed, &name);
        self.newest = Some(subject);
        outcome
    }

    fn image_of(
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
            seed,
        };
        let images = self
            .trainer
            .sample(std::slice::from_ref(&example), &options)?;
        let image = images.into_iter().next();
        let image = image.context("the model gave no image for one example")?;
        let mut drawn = self.subjects.drawn(name, subject, prompt, seed, work);
        // What lies there is what is judged: on another kind of device it may differ in the last
        // bits.
        let image = self.wait(unit, self.images.put_image(&drawn.file, image))?;
        if let Some(position) = subject.target {
            drawn.target = Some(self.judge(unit, position, &image)?);
        }
        let json = serde_json::to_vec_pretty(&drawn)?;
        self.wait(unit, self.images.put(&format!("{name}.json"), json))?;
        tracing::info!(unit, file = drawn.file, "an image is made");
        Ok(())
    }

    fn judge(&mut self, unit: u64, position: u64, image: &RgbImage) -> anyhow::Result<Target> {
        self.rank.link.progress().waits();
        let judged = self.identities.judge(&self.loader, position, image);
        let verdict = self.rank.runtime.block_on(judged)?;
        self.rank.link.progress().unit(unit);
        Target::of(&self.loader, position, verdict)
    }

    /// What the retrieval encoder attends to.
    pub(crate) fn maps(&mut self, unit: u64, number: u32) -> anyhow::Result<()> {
        let name = format!("attention-{number:03}");
        let json = format!("{name}.json");
        if self.wait(unit, self.images.has(&json))? {
            return Ok(());
        }
        let subject = self.take_subject(unit, number)?;
        let drawn = maps::draw(&mut self.trainer, &subject.1, self.work, &name);
        self.newest = Some(subject);
        let drawn = drawn?;
        for (name, image) in drawn.images {
            self.wait(unit, self.images.put_image(&name, image))?;
        }
        self.wait(
            unit,
            self.images
                .put(&json, serde_json::to_vec_pretty(&drawn.record)?),
        )
    }

    /// The subject of this number, read where it is not at hand.
    pub(crate) fn take_subject(
        &mut self,
        unit: u64,
        number: u32,
    ) -> anyhow::Result<(u32, Subject)> {
        match self.newest.take() {
            Some(newest) if newest.0 == number => Ok(newest),
            _ => Ok((number, self.subject(unit, number)?)),
        }
    }

    fn subject(&self, unit: u64, number: u32) -> anyhow::Result<Subject> {
        let (work, loader) = (self.work, &self.loader);
        if work.references.is_empty() {
            let chosen = choose(loader, number, first_seed(work))?;
            return self.wait(unit, of_data(loader, &self.spec, chosen, work));
        }
        let store = &self.rank.task.assignment.store_url;
        self.wait(unit, named(loader, store, &self.spec, work))
    }

    /// Keeps a subject for the next unit.
    pub(crate) fn keep_subject(&mut self, subject: (u32, Subject)) {
        self.newest = Some(subject);
    }
}

pub(crate) fn image_name(unit: u64) -> String {
    format!("{unit:03}")
}

pub(crate) fn first_seed(work: &SampleWork) -> u64 {
    work.seeds.first().copied().unwrap_or(0)
}

/// Puts the weights of this checkpoint into the model, averaged where the job keeps an average.
fn load(
    rank: &Rank<'_>,
    work: &SampleWork,
    spec: &TrainWork,
    trainer: &mut Trainer,
    at: CheckpointRef,
) -> anyhow::Result<Checkpoint> {
    let checkpoints = Checkpoints::open(&rank.task.assignment.store_url, &work.job)?;
    let tensors = rank.runtime.block_on(checkpoints.read_for(trainer, at))?;
    let checkpoint = Checkpoint {
        step: at.step.0,
        generation: at.generation.0,
        digest: digest(&tensors),
        weights: match spec.train.ema {
            Some(_) => "moving average",
            None => "as trained",
        }
        .to_owned(),
    };
    trainer.load_state(&tensors, at.step.0)?;
    trainer.take_averages();
    Ok(checkpoint)
}

/// Subject `number`: a sample of the characters that training never shows, or of any when none is
/// held out; a permutation chosen by the first seed. More subjects than samples: again, under other
/// random numbers.
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
