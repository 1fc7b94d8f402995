//! `coordinator events` and `incidents`: what happened, and what went wrong.

use super::client::{self, connect, request_error};
use super::{Global, Outcome, Output, json, print_json, table};
use crate::text::{ago, now_ms, outln};
use crate::time::rfc3339;
use anyhow::Result;
use clap::Args;
use proto::pb;

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Only events of this job
    job: Option<String>,
    /// Continue with new events until interrupted
    #[arg(long, short)]
    follow: bool,
    /// Only events of this kind, such as committed or worker-down
    #[arg(long)]
    kind: Option<String>,
}

pub(crate) async fn events(global: &Global, args: &EventsArgs) -> Result<Outcome> {
    let mut client = connect(global).await?;
    let request = pb::EventsRequest {
        job: args.job.clone().unwrap_or_default(),
        after: 0,
        follow: args.follow,
    };
    let reply = client.events(request).await;
    let mut lines = reply
        .map_err(|status| request_error(global, &status))?
        .into_inner();
    while let Some(line) = lines
        .message()
        .await
        .map_err(|status| request_error(global, &status))?
    {
        if args.kind.as_ref().is_some_and(|kind| *kind != line.kind) {
            continue;
        }
        match global.output {
            // One object per line, because the stream may not end.
            Output::Json => outln!("{}", event(&line)),
            Output::Table => {
                let whose = [line.job.as_str(), line.worker.as_str()];
                let whose: Vec<&str> = whose.into_iter().filter(|it| !it.is_empty()).collect();
                outln!(
                    "{}  {:<18}  {:<24}  {}",
                    rfc3339(line.at_ms),
                    line.kind,
                    whose.join(" "),
                    line.text
                );
            }
        }
    }
    Ok(Outcome::True)
}

pub(super) fn event(line: &pb::EventLine) -> serde_json::Value {
    serde_json::json!({
        "number": line.number,
        "at_ms": line.at_ms,
        "kind": line.kind,
        "job": (!line.job.is_empty()).then_some(&line.job),
        "worker": (!line.worker.is_empty()).then_some(&line.worker),
        "step": (line.step != 0).then_some(line.step),
        "generation": (line.generation != 0).then_some(line.generation),
        "text": line.text,
    })
}

#[derive(Debug, Args)]
pub(crate) struct IncidentsArgs {
    /// The job; without one, of all jobs in memory
    job: Option<String>,
}

pub(crate) async fn incidents(global: &Global, args: &IncidentsArgs) -> Result<Outcome> {
    let mut client = connect(global).await?;
    let jobs = match &args.job {
        Some(job) => vec![job.clone()],
        None => {
            let reply = client.list_jobs(pb::ListJobsRequest::default()).await;
            let reply = reply.map_err(|status| request_error(global, &status))?;
            let jobs = reply.into_inner().jobs.into_iter();
            let troubled = jobs.filter(|job| !job.faults.is_empty());
            troubled.map(|job| job.job).collect()
        }
    };
    let mut found = Vec::new();
    for job in &jobs {
        let view = client::describe(global, &mut client, job).await?;
        for incident in view.incidents {
            found.push((view.job.clone(), incident));
        }
    }
    found.sort_by_key(|(_, incident)| incident.at_ms);
    match global.output {
        Output::Json => {
            let rows = found.iter().map(|(job, incident)| {
                let mut value = json::incident(incident);
                value["job"] = job.as_str().into();
                value
            });
            print_json(&rows.collect());
        }
        Output::Table => {
            let now = now_ms();
            let mut rows = table(&["WHEN", "JOB", "GENERATION", "INCIDENT"]);
            for (job, incident) in &found {
                rows.add_row([
                    ago(incident.at_ms, now),
                    job.clone(),
                    incident.generation.to_string(),
                    incident.sentence(),
                ]);
            }
            rows.print();
        }
    }
    Ok(Outcome::True)
}
