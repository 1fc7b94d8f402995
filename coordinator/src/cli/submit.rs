//! `coordinator submit`: reads and checks job.toml here, where the user's files are, and sends its
//! canonical form.

use super::client::{connect, refusal};
use super::{Global, Outcome, Output, print_json, watch};
use crate::pin::pin;
use crate::words::say;
use anyhow::{Context, Result, anyhow};
use clap::Args;
use proto::pb;
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
    let job_toml = canonical(&args.file).await?;
    let mut client = connect(global).await?;
    let request = pb::SubmitRequest {
        file_name: args.file.display().to_string(),
        job_toml,
        dry_run: args.dry_run,
    };
    let reply = client
        .submit(request)
        .await
        .map_err(|status| refusal(global, &status))?
        .into_inner();
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

/// The job as the coordinator is to read it: all fields written out, all paths absolute. What it reads must
/// be there.
async fn canonical(file: &Path) -> Result<String> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
    let absolute = std::path::absolute(file).with_context(|| format!("cannot tell where {name} is"))?;
    let spec = proto::job::parse(&name, &text, absolute.parent())?;
    if let Err(error) = pin(&spec).await {
        return Err(anyhow!(proto::job::error_at(
            &name,
            &text,
            error.field(),
            error.to_string()
        )));
    }
    Ok(proto::job::to_toml(&spec))
}
