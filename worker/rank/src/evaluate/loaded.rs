//! A model of an evaluation with its weights, and the data set as it reads it.

use super::{Evaluation, trained};
use crate::checkpoint::Checkpoints;
use crate::load::{build, open_data};
use crate::{device, environment};
use model::trainer::Trainer;
use model::weights::digest;
use model_data::loader::Loader;
use model_data::prompt::Prompts;
use proto::spec::TrainWork;

pub(super) struct Loaded {
    /// Its index in the evaluation.
    pub(super) index: usize,
    /// Its job, with the evaluation's data, resolution, task and pairing.
    pub(super) spec: TrainWork,
    pub(super) trainer: Trainer,
    pub(super) loader: Loader,
    /// Digest of its weights and settings.
    pub(super) digest: String,
    pub(super) step: Option<u64>,
    pub(super) environment: String,
    /// None: it reads no prompts.
    tokenizer: Option<Prompts>,
}

impl Loaded {
    /// Whether the model's text encoder does not read all of the prompt.
    pub(super) fn cuts(&self, prompt: &str) -> bool {
        let tokenizer = self.tokenizer.as_ref();
        // With the tokens at its beginning and end.
        tokenizer.is_some_and(|it| (it.tokens() as u64) < it.count(prompt) + 2)
    }
}

impl Evaluation<'_> {
    pub(super) fn load(&self, index: usize) -> anyhow::Result<Loaded> {
        let (rank, plan) = (self.rank, &self.work.plan);
        let (model, source) = (&self.work.models[index], &self.sources[index]);
        let assignment = &rank.task.assignment;
        let mut spec = trained(&model.job.0, source)?;
        let own = spec.data.resolution;
        spec.data = self.data.clone();
        spec.data.resolution = own;
        model.read_by(plan, &mut spec);
        let kind = rank.job.resources.device;
        let device = device::choose(kind, rank.task.device, spec.train.precision)?;
        let mut trainer = build(rank, &spec, device)?;
        let mut weights = trainer.init_digest().unwrap_or_default();
        if let Some(reference) = source.checkpoint {
            let checkpoints = Checkpoints::open(&assignment.store_url, &model.job)?;
            let read = checkpoints.read_for(&trainer, reference);
            let tensors = rank.runtime.block_on(read)?;
            // Weights that are not in the checkpoint are those of the base.
            weights = format!("{} {weights}", digest(&tensors));
            trainer.load_state(&tensors, reference.step.0)?;
            trainer.take_averages();
        }
        let loader = open_data(&spec, &assignment.dataset_version);
        let loader = rank.runtime.block_on(loader)?;
        let text = spec.model.architecture.text_encoder();
        tracing::info!(model = model.name, job = %model.job, "loaded a model");
        Ok(Loaded {
            index,
            digest: model.digest(&weights),
            step: source.checkpoint.map(|it| it.step.0),
            environment: environment::describe(&spec, kind),
            tokenizer: text.map(|text| Prompts::new(text.tokens)),
            trainer,
            loader,
            spec,
        })
    }
}
