//! `coordinator submit`: reads and checks job.toml here, where the user's files are, and sends its
//! canonical form.

use super::client::{self, Client, connect, refusal};
use super::reference::{self, Keep};
use super::{Global, Outcome, Output, print_json, watch};
use crate::pin::pin;
use crate::words::say;
use anyhow::{Context, Result, anyhow};
use clap::Args;
use proto::pb;
use proto::spec::{JobSpec, Work};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(crate) struct SubmitArgs {
    /// The job; every field is documented in deploy/jobs/demo.toml
    #[arg(value_name = "job.toml")]
    file: PathBuf,
    /// Check everything, also on the coordinator, and store nothing
    #[arg(long)]
    dry_run: bool,
    /// Follow the job until it ends; exit code 0 only if it is done
    #[arg(long, conflicts_with = "dry_run")]
    watch: bool,
}

pub(crate) async fn submit(global: &Global, args: &SubmitArgs) -> Result<Outcome> {
    let mut spec = read(&args.file).await?;
    let mut client = connect(global).await?;
    if let Work::Sample(work) = &mut spec.work {
        // What it names is in the user's folder, and the workers read it from the store.
        let trained = client::describe(global, &mut client, &work.job.0).await?;
        let folder = args.file.parent().unwrap_or(Path::new(""));
        let keep = if args.dry_run {
            Keep::LookedAt
        } else {
            Keep::Stored
        };
        reference::store_files(&mut work.references, folder, &trained, keep).await?;
    }
    let file_name = args.file.display().to_string();
    let reply = send(global, &mut client, &spec, file_name, args.dry_run).await?;
    match (global.output, args.dry_run) {
        (Output::Json, _) if !args.watch => print_json(&serde_json::json!({
            "job": (!args.dry_run).then_some(&reply.job),
            "summary": reply.summary,
        })),
        (Output::Json, _) => {}
        (Output::Table, true) => say!("{} is good: {}", args.file.display(), reply.summary),
        (Output::Table, false) => say!("{}", reply.job),
    }
    if args.watch {
        watch::watch(global, &reply.job).await
    } else {
        Ok(Outcome::True)
    }
}

/// Sends the canonical text of a job.
pub(crate) async fn send(
    global: &Global,
    client: &mut Client,
    spec: &JobSpec,
    file_name: String,
    dry_run: bool,
) -> Result<pb::SubmitReply> {
    let request = pb::SubmitRequest {
        file_name,
        job_toml: proto::job::to_toml(spec),
        dry_run,
    };
    let reply = client.submit(request).await;
    Ok(reply.map_err(|status| refusal(global, &status))?.into_inner())
}

/// The job, all paths absolute. What it trains on must be there.
async fn read(file: &Path) -> Result<JobSpec> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
    let absolute = std::path::absolute(file).with_context(|| format!("cannot tell where {name} is"))?;
    let spec = proto::job::parse(&name, &text, absolute.parent())?;
    if let Work::Train(work) = &spec.work
        && let Err(error) = pin(work).await
    {
        return Err(anyhow!(proto::job::error_at(
            &name,
            &text,
            error.field(),
            error.to_string()
        )));
    }
    Ok(spec)
}
