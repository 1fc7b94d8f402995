//! `coordinator jobs`, `cancel`, `retry` and `delete`.

use super::client::{connect, request_error};
use super::{Global, Outcome, Output, json, print_json, table};
use crate::text::{ago, now_ms, outln};
use anyhow::Result;
use clap::Args;
use proto::pb;
use proto::phase::Phase;

#[derive(Debug, Args)]
pub(crate) struct JobsArgs {
    /// Only jobs in this phase, such as failed
    #[arg(long, default_value = "", hide_default_value = true)]
    phase: String,
    /// Only jobs of this team
    #[arg(long, default_value = "", hide_default_value = true)]
    team: String,
    /// Only jobs of this name
    #[arg(long, default_value = "", hide_default_value = true)]
    name: String,
    /// How many jobs at most
    #[arg(long, default_value_t = 100, value_name = "N")]
    limit: u32,
    /// Only jobs older than this one; the last line of a page names it
    #[arg(long, value_name = "JOB")]
    before: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RetryArgs {
    job: String,
    /// Set a key of job.toml, such as train.steps=2000; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    job: String,
    /// Delete its checkpoints and images, too
    #[arg(long)]
    checkpoints: bool,
}

pub(crate) async fn retry(global: &Global, args: &RetryArgs) -> Result<Outcome> {
    let mut client = connect(global).await?;
    let request = pb::RetryRequest {
        job: args.job.clone(),
        set: args.set.clone(),
    };
    let reply = client
        .retry(request)
        .await
        .map_err(|status| request_error(global, &status))?;
    let (job, phase) = (&args.job, reply.into_inner().phase);
    match global.output {
        Output::Json => print_json(&serde_json::json!({ "job": job, "phase": phase })),
        Output::Table => outln!("{job} is {phase}"),
    }
    Ok(Outcome::True)
}

pub(crate) async fn delete(global: &Global, args: &DeleteArgs) -> Result<Outcome> {
    let mut client = connect(global).await?;
    let request = pb::DeleteRequest {
        job: args.job.clone(),
        checkpoints: args.checkpoints,
    };
    let reply = client
        .delete(request)
        .await
        .map_err(|status| request_error(global, &status))?;
    let (job, files) = (&args.job, reply.into_inner().files);
    match global.output {
        Output::Json => print_json(&serde_json::json!({ "job": job, "files": files })),
        Output::Table if args.checkpoints => outln!("{job} is deleted, with {files} files"),
        Output::Table => outln!("{job} is deleted; its checkpoints and images stay"),
    }
    Ok(Outcome::True)
}

pub(crate) async fn jobs(global: &Global, args: &JobsArgs) -> Result<Outcome> {
    let mut client = connect(global).await?;
    let request = pb::ListJobsRequest {
        phase: args.phase.clone(),
        team: args.team.clone(),
        name: args.name.clone(),
        limit: args.limit.max(1),
        before: args.before.clone(),
    };
    let reply = client
        .list_jobs(request)
        .await
        .map_err(|status| request_error(global, &status))?;
    let pb::ListJobsReply { jobs, next } = reply.into_inner();
    if global.output == Output::Json {
        print_json(&jobs.iter().map(json::job).collect());
        return Ok(Outcome::True);
    }
    let now = now_ms();
    let mut table = table(&[
        "JOB",
        "PHASE",
        "PROGRESS",
        "LOSS",
        "RANKS",
        "RESTARTS",
        "CHECKPOINT",
        "SUBMITTED",
        "REASON",
    ]);
    for job in &jobs {
        table.add_row([
            job.job.clone(),
            job.phase.clone(),
            progress(job),
            job.last_step
                .as_ref()
                .map_or_else(|| "-".into(), |it| format!("{:.4}", it.loss)),
            job.world.to_string(),
            job.restarts.to_string(),
            job.checkpoints
                .last()
                .map_or_else(|| "-".into(), |it| it.step.to_string()),
            ago(job.submitted_ms, now),
            match &job.parent {
                Some(parent) => format!("evaluates {parent}: {}", job.reason_sentence()),
                None => job.reason_sentence(),
            },
        ]);
    }
    table.print();
    if let Some(next) = next {
        outln!("there may be older jobs: --before {next}");
    }
    Ok(Outcome::True)
}

/// Finished and total steps or units, such as `40/400`; `-` if the total is unknown.
pub(crate) fn progress(job: &pb::JobView) -> String {
    if let Some(units) = &job.units {
        format!("{}/{}", units.done, units.total)
    } else if job.steps == 0 {
        "-".into()
    } else {
        format!("{}/{}", job.step, job.steps)
    }
}

pub(crate) async fn cancel(global: &Global, job: &str) -> Result<Outcome> {
    let mut client = connect(global).await?;
    let request = pb::JobRequest {
        job: job.to_owned(),
    };
    let reply = client
        .cancel(request)
        .await
        .map_err(|status| request_error(global, &status))?;
    let phase = reply.into_inner().phase;
    match global.output {
        Output::Json => print_json(&serde_json::json!({ "job": job, "phase": phase })),
        Output::Table => outln!("{job} is {phase}"),
    }
    Ok(if phase == Phase::Cancelled {
        Outcome::True
    } else {
        Outcome::False
    })
}
