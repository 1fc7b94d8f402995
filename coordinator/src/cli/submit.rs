//! `coordinator submit`: checks job.toml here, where the user's files are, and sends it as it is
//! written.

use super::client::{self, Client, connect, refusal};
use super::reference::{self, Keep};
use super::{Global, Outcome, Output, print_json, watch};
use crate::pin::pin;
use crate::words::say;
use anyhow::{Context, Result, anyhow};
use clap::Args;
use proto::pb;
use proto::spec::{JobSpec, Work};
use std::collections::HashMap;
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
    let mut job = Written::read(&args.file)?;
    let spec = look(&job).await?;
    let mut client = connect(global).await?;
    if let Work::Sample(work) = spec.work {
        // What it names is in the user's folder, and the workers read it from the store.
        let trained = client::describe(global, &mut client, &work.job.0).await?;
        let keep = if args.dry_run {
            Keep::LookedAt
        } else {
            Keep::Stored
        };
        job.files =
            reference::store_files(&work.references, &job.directory, &trained, keep).await?;
    }
    let reply = send(global, &mut client, job, args.dry_run).await?;
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

/// A job as somebody wrote it.
#[derive(Debug)]
pub(crate) struct Written {
    /// For messages.
    pub(crate) file_name: String,
    pub(crate) text: String,
    /// What its paths are relative to.
    pub(crate) directory: PathBuf,
    /// SHA-256 of the files that it names, which lie in the store.
    pub(crate) files: HashMap<String, String>,
}

impl Written {
    fn read(file: &Path) -> Result<Self> {
        let file_name = file.display().to_string();
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read {file_name}"))?;
        let absolute = std::path::absolute(file)
            .with_context(|| format!("cannot tell where {file_name} is"))?;
        Ok(Self {
            directory: absolute.parent().map(Path::to_owned).unwrap_or_default(),
            file_name,
            text,
            files: HashMap::new(),
        })
    }
}

/// Sends a job as it is written: what it means, and its canonical text, are the coordinator's.
pub(crate) async fn send(
    global: &Global,
    client: &mut Client,
    job: Written,
    dry_run: bool,
) -> Result<pb::SubmitReply> {
    let request = pb::SubmitRequest {
        file_name: job.file_name,
        job_toml: job.text,
        dry_run,
        directory: Some(job.directory.display().to_string()),
        files: job.files,
    };
    let reply = client.submit(request).await;
    Ok(reply
        .map_err(|status| refusal(global, &status))?
        .into_inner())
}

/// Checks the job here, where the user's files are. What it trains on must be there.
async fn look(job: &Written) -> Result<JobSpec> {
    let spec = proto::job::parse(&job.file_name, &job.text, Some(&job.directory))?;
    if let Work::Train(work) = &spec.work
        && let Err(error) = pin(work).await
    {
        return Err(anyhow!(proto::job::error_at(
            &job.file_name,
            &job.text,
            error.field(),
            error.to_string()
        )));
    }
    Ok(spec)
}
