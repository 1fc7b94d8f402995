//! What is checked of a job before it is submitted: what people say about it, and that its data
//! set, its models and its prompts exist and fit.

use super::ControlService;
use crate::budget::blocking;
use crate::calls::short;
use crate::inspect::InspectError;
use crate::subject;
use coordinator_core::event::{About, DatasetPin};
use proto::evaluate::{EvaluateWork, EvaluatedModel, EvaluationPlan};
use proto::id::JobId;
use proto::limits::{LABEL_BYTES, LABELS, TEXT_BYTES, cut};
use proto::printable::Printable;
use proto::sample::Weights;
use proto::spec::{JobSpec, TrainingEvaluation, Work};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use tonic::Status;

impl ControlService {
    /// Checks that the job's inputs exist. Returns what is pinned of them, and a summary of the
    /// job.
    pub(super) async fn check_inputs(
        &self,
        file: &str,
        spec: &JobSpec,
        address: IpAddr,
    ) -> Result<(DatasetPin, String), Status> {
        let resources = &spec.resources;
        let placement = format!(
            "on {} to {} {} workers with {} ranks each",
            resources.workers_min,
            resources.workers_max,
            resources.device.name(),
            resources.devices_per_worker
        );
        match &spec.work {
            Work::Train(work) => {
                let pinned = self.inspector.pin(spec, work, address).await;
                let pinned = pinned.map_err(|error| match error {
                    InspectError::Busy => Status::resource_exhausted(error.to_string()),
                    InspectError::Refused { .. } => {
                        short(Status::invalid_argument, &format!("{file}: {error}"))
                    }
                })?;
                let divided = pinned.adapted.map_or_else(String::new, |it| {
                    let (training, held_out) = (it.training, it.held_out);
                    format!("; {training} samples to train on, {held_out} held out")
                });
                let mut summary = format!(
                    "{} steps of {} samples from {} (version {}{divided}), {placement}",
                    work.train.steps,
                    work.train.global_batch,
                    work.data.dataset,
                    &pinned.version[..12],
                );
                let of_plan = match &work.evaluation {
                    Some(evaluation) => {
                        let text = proto::job::to_toml(spec);
                        check_plan(file, evaluation, text).await?
                    }
                    None => Vec::new(),
                };
                for note in pinned.notes().into_iter().chain(of_plan) {
                    // A tag must not add a line.
                    summary.push_str(&format!("\nnote: {}", Printable(note)));
                }
                let lost_tags = pinned.lost_tags();
                let dataset = DatasetPin {
                    version: pinned.version,
                    cut_prompts: pinned.cut_prompts.map(|it| it.cut),
                    lost_tags,
                    adapted: pinned.adapted,
                };
                Ok((dataset, summary))
            }
            Work::Sample(work) => {
                let (_, trained) = self.job(&work.job.0).await?;
                let checked = work.clone();
                // Texts are parsed and tokenized off the runtime's threads.
                let fits = blocking(move || subject::check(&checked, &trained.job_toml));
                let notes = fits
                    .await
                    .map_err(|error| Status::internal(error.to_string()))?
                    .map_err(|why| short(Status::invalid_argument, &format!("{file}: {why}")))?;
                let (images, job, steps) = (work.images(), &work.job, work.steps);
                let mut summary = format!("{images} images of {job} in {steps} steps, {placement}");
                for note in notes {
                    summary.push_str(&format!("\nnote: {}", Printable(note)));
                }
                Ok((DatasetPin::default(), summary))
            }
            Work::Build(work) => {
                let summary = format!(
                    "{} units of the stage {} in {}, {placement}",
                    work.units,
                    work.key.stage,
                    Printable(&work.out)
                );
                Ok((DatasetPin::default(), summary))
            }
            Work::Evaluate(work) => {
                let summary = self.check_models(file, work, &placement, address).await?;
                Ok((DatasetPin::default(), summary))
            }
        }
    }

    /// The same for an evaluation: its models must exist and read its prompts.
    async fn check_models(
        &self,
        file: &str,
        work: &EvaluateWork,
        placement: &str,
        address: IpAddr,
    ) -> Result<String, Status> {
        let mut notes: Vec<String> = Vec::new();
        let mut first: Option<Arc<str>> = None;
        for model in &work.models {
            let (id, trained) = self.job(&model.job.0).await?;
            let sample = model.as_sample(&work.plan);
            let side = work.plan.resolution;
            let text: Arc<str> = trained.job_toml.clone().into();
            let first = Arc::clone(first.get_or_insert_with(|| Arc::clone(&text)));
            let is_trained = model.weights != Weights::Base;
            self.check_model_init(file, &id, model, &work.plan, &text, address)
                .await?;
            // Texts are parsed and tokenized off the runtime's threads.
            let fits = tokio::task::spawn_blocking(move || {
                subject::check_resolution(side, &text)?;
                let mut notes = subject::check_data(&first, &text, is_trained)?;
                notes.extend(subject::check(&sample, &text)?);
                Ok(notes)
            });
            let found = fits
                .await
                .map_err(|error| Status::internal(error.to_string()))?
                .map_err(|why: String| {
                    let why = format!("{file}: evaluate.models: {:?}: {why}", model.name);
                    short(Status::invalid_argument, &why)
                })?;
            // Models with the same tokenizer say the same.
            notes.extend(
                found
                    .into_iter()
                    .filter(|note| !notes.contains(note))
                    .collect::<Vec<_>>(),
            );
        }
        let (images, models) = (work.images(), work.models.len());
        let mut summary = format!(
            "{images} images: {models} models, {} characters, {} prompts, {} seeds, {} samples, \
             {placement}",
            work.plan.characters(),
            work.plan.prompts.count(),
            work.plan.seeds.len(),
            work.plan.samples,
        );
        for note in notes {
            summary.push_str(&format!("\nnote: {}", Printable(note)));
        }
        Ok(summary)
    }

    /// Looks into the folder of weights that a model names, as its job would read it.
    async fn check_model_init(
        &self,
        file: &str,
        id: &JobId,
        model: &EvaluatedModel,
        plan: &EvaluationPlan,
        text: &str,
        address: IpAddr,
    ) -> Result<(), Status> {
        if model.init.is_none() {
            return Ok(());
        }
        let trained = proto::job::parse_stored(id, text);
        let mut spec = trained.map_err(|error| short(Status::internal, &error.to_string()))?;
        let Work::Train(work) = &mut spec.work else {
            // The state machine refuses it by name.
            return Ok(());
        };
        model.read_by(plan, work);
        let work = work.clone();
        let looked = self.inspector.base(&spec, &work, address).await;
        looked.map(|_| ()).map_err(|error| match error {
            InspectError::Busy => Status::resource_exhausted(error.to_string()),
            InspectError::Refused { reason, .. } => {
                let name = &model.name;
                let why = format!("{file}: evaluate.models: {name:?}: init: {reason}");
                short(Status::invalid_argument, &why)
            }
        })
    }
}

/// Checks what a caller says about a job.
pub(super) fn about(
    owner: String,
    labels: HashMap<String, String>,
    note: String,
) -> Result<About, Status> {
    let long = |field: &str, text: &str, limit: usize| {
        Err(Status::invalid_argument(format!(
            "field `{field}` has {} bytes; at most {limit} are accepted",
            text.len()
        )))
    };
    if LABEL_BYTES < owner.len() {
        return long("owner", &owner, LABEL_BYTES);
    }
    if TEXT_BYTES < note.len() {
        return long("note", &note, TEXT_BYTES);
    }
    if LABELS < labels.len() {
        return Err(Status::invalid_argument(format!(
            "field `labels` has {} entries; at most {LABELS} are accepted",
            labels.len()
        )));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    for (key, value) in &labels {
        if key.is_empty() || LABEL_BYTES < key.len() || !key.chars().all(allowed) {
            return Err(Status::invalid_argument(format!(
                "field `labels`: the key {:?} must be 1 to {LABEL_BYTES} letters, digits, dashes, \
                 underscores, dots and slashes",
                cut(key, TEXT_BYTES)
            )));
        }
        if LABEL_BYTES < value.len() {
            return long(&format!("labels.{key}"), value, LABEL_BYTES);
        }
    }
    Ok(About {
        owner,
        labels: labels.into_iter().collect(),
        note,
    })
}

/// Checks the plan by which a job is evaluated while it trains. `text`: the job's own. Returns what
/// the user should know.
async fn check_plan(
    file: &str,
    evaluation: &TrainingEvaluation,
    text: String,
) -> Result<Vec<String>, Status> {
    let sample = evaluation.model.as_sample(&evaluation.plan);
    let side = evaluation.plan.resolution;
    // Texts are parsed and tokenized off the runtime's threads.
    let fits = blocking(move || {
        subject::check_resolution(side, &text)?;
        subject::check(&sample, &text)
    });
    fits.await
        .map_err(|error| Status::internal(error.to_string()))?
        .map_err(|why: String| {
            short(
                Status::invalid_argument,
                &format!("{file}: evaluate: {why}"),
            )
        })
}
