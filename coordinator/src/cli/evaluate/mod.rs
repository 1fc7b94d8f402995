//! `coordinator evaluate`: submits a plan, and makes a report of its results.

mod document;
mod folders;
pub(crate) mod open;
mod report;
mod stored;

use super::patience::aloud;
use super::submit::{self, SubmitArgs};
use super::{Global, Outcome, client};
use crate::pin::check_init;
use crate::text::errln;
use anyhow::{Result, anyhow};
use clap::{Args, Subcommand};
use model_data::evaluation;
use model_data::loader::{Loader, LoaderOptions};
use proto::evaluate::{
    EvaluateWork, EvaluatedModel, EvaluationPlan, FACES_FILES, LPIPS_FILES, MetricSettings,
    VqaSettings,
};
use proto::pb;
use proto::spec::TrainWork;
use std::path::PathBuf;
use vqa::{Client, Options};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct EvaluateArgs {
    #[command(subcommand)]
    command: Option<EvaluateCommand>,
    /// The plan; deploy/jobs/evaluate.toml documents every field
    #[arg(value_name = "plan.toml", required = true)]
    file: Option<PathBuf>,
    /// Check everything here and on the coordinator, but store nothing
    #[arg(long)]
    dry_run: bool,
    /// Follow the job until it ends; exit code 0 only if it is done
    #[arg(long, conflicts_with = "dry_run")]
    watch: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EvaluateCommand {
    /// Write tables, plots and grids of an evaluation, with the paper's values beside them
    Report(report::ReportArgs),
}

/// Checks the plan's characters and prompts against the data set of the first model's job, if this
/// machine can read it. Workers check again.
pub(crate) async fn check(
    global: &Global,
    client: &mut client::Client,
    work: &EvaluateWork,
    trained: &pb::JobView,
) -> Result<()> {
    check_metrics(&work.metrics).await?;
    for model in work.models.iter().filter(|model| model.init.is_some()) {
        let job = client::describe(global, client, &model.job.0).await?;
        check_model_init(model, &work.plan, &job).await?;
    }
    let spec = training(trained)?;
    let version = Some(trained.dataset_version.clone());
    check_characters(&work.plan, &work.models[0], spec, version).await
}

/// The same for the plan by which a job is evaluated while it trains.
pub(crate) async fn check_during(work: &TrainWork, version: &str) -> Result<()> {
    let Some(evaluation) = &work.evaluation else {
        return Ok(());
    };
    check_metrics(&evaluation.metrics).await?;
    let version = Some(version.to_owned());
    check_characters(&evaluation.plan, &evaluation.model, work.clone(), version).await
}

async fn check_metrics(metrics: &MetricSettings) -> Result<()> {
    if let Some(url) = &metrics.clip {
        folders::check_clip(url).await?;
    }
    let lpips = ("evaluate.lpips", &metrics.lpips, &LPIPS_FILES[..]);
    let faces = ("evaluate.faces", &metrics.faces, &FACES_FILES[..]);
    for (field, url, files) in [lpips, faces] {
        if let Some(url) = url {
            folders::check_files(field, url, files).await?;
        }
    }
    if let Some(settings) = &metrics.vqa {
        check_server(settings).await?;
    }
    Ok(())
}

fn training(trained: &pb::JobView) -> Result<TrainWork> {
    let file = format!("job.toml of {}", trained.job);
    Ok(proto::job::parse_training(&file, &trained.job_toml)?)
}

/// Whether the folder that replaces a model's weights fits it, if this machine can read the folder.
async fn check_model_init(
    model: &EvaluatedModel,
    plan: &EvaluationPlan,
    job: &pb::JobView,
) -> Result<()> {
    let mut spec = training(job)?;
    model.read_by(plan, &mut spec);
    let url = model.init.as_deref().unwrap_or_default();
    match aloud(url, check_init(&spec)).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_unreachable() => {
            errln!(
                "evaluate.models: {:?}: init: not seen from here: {error}",
                model.name
            );
            Ok(())
        }
        Err(error) => Err(anyhow!("evaluate.models: {:?}: init: {error}", model.name)),
    }
}

async fn check_characters(
    plan: &EvaluationPlan,
    model: &EvaluatedModel,
    mut spec: TrainWork,
    version: Option<String>,
) -> Result<()> {
    plan.adapt(model, &mut spec);
    let options = LoaderOptions::new(&spec.model.architecture, 0, version);
    let unseen = |why: &str| {
        errln!(
            "{} cannot be read here, so the plan's characters are checked by workers alone: {why}",
            spec.data.dataset
        );
        Ok(())
    };
    // Opening a local store creates its folder.
    if let Ok(Some(folder)) = storage::local_folder(&spec.data.dataset)
        && !folder.is_dir()
    {
        return unseen("there is no such folder");
    }
    let opened = aloud(&spec.data.dataset, Loader::open(&spec.data, options)).await;
    let loader = match opened {
        Ok(loader) => loader,
        Err(error) => return unseen(&proto::text::chain(&error)),
    };
    let characters = evaluation::characters(&loader, plan)?;
    evaluation::prompts(&loader, plan, &characters)?;
    Ok(())
}

/// Asks the server that answers questions for its models. It may be reachable from workers alone.
async fn check_server(settings: &VqaSettings) -> Result<()> {
    let endpoint = settings.endpoint.strip_suffix("/v1");
    let endpoint = endpoint.unwrap_or(&settings.endpoint);
    let model = &settings.model;
    let client = Client::new(Options::new(endpoint, model), None)
        .map_err(|error| anyhow!("evaluate.vqa.endpoint: {}", proto::text::chain(&error)))?;
    match aloud(&settings.endpoint, client.server()).await {
        Ok(server) if server.lists(model) => {}
        Ok(server) => errln!(
            "evaluate.vqa.model: {} does not list {model}; it lists {}",
            settings.endpoint,
            server.models.join(", ")
        ),
        Err(error) => errln!(
            "evaluate.vqa.endpoint: not reached from here, so workers alone find out: {}",
            proto::text::chain(&error)
        ),
    }
    Ok(())
}

pub(crate) async fn evaluate(global: &Global, args: &EvaluateArgs) -> Result<Outcome> {
    match (&args.command, &args.file) {
        (Some(EvaluateCommand::Report(args)), _) => report::report(global, args).await,
        (None, Some(file)) => {
            let args = SubmitArgs::of(file.clone(), args.dry_run, args.watch);
            submit::submit(global, &args).await
        }
        (None, None) => Err(anyhow!("name a plan")),
    }
}
