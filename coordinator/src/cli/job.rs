//! `coordinator jobs` and `coordinator cancel`.

use super::client::{connect, request_error};
use super::{Global, Outcome, Output, json, print_json, table};
use crate::text::{ago, now_ms, outln};
use anyhow::Result;
use proto::pb;
use proto::phase::Phase;

pub(crate) async fn jobs(global: &Global) -> Result<Outcome> {
    let mut client = connect(global).await?;
    let reply = client
        .list_jobs(pb::ListJobsRequest {})
        .await
        .map_err(|status| request_error(global, &status))?;
    let jobs = reply.into_inner().jobs;
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
            job.reason_sentence(),
        ]);
    }
    outln!("{table}");
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
