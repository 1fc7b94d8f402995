//! `coordinator logs`.

use super::client::{connect, request_error};
use super::{Global, Outcome, Output, json};
use anyhow::Result;
use clap::Args;
use proto::pb;
use std::io::Write;

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    job: String,
    /// Only lines of this rank
    #[arg(long)]
    rank: Option<u32>,
    /// Keep printing new lines until the job ends
    #[arg(short, long)]
    follow: bool,
}

pub(crate) async fn logs(global: &Global, args: &LogsArgs) -> Result<Outcome> {
    let mut client = connect(global).await?;
    let request = pb::LogsRequest {
        job: args.job.clone(),
        rank: args.rank,
        follow: args.follow,
    };
    let failed = |status: tonic::Status| request_error(global, &status);
    let mut lines = client.logs(request).await.map_err(failed)?.into_inner();
    let mut out = std::io::stdout().lock();
    while let Some(line) = lines.message().await.map_err(failed)? {
        let written = match global.output {
            Output::Json => writeln!(out, "{}", json::log_line(&line)),
            Output::Table => writeln!(out, "g{} r{} {}", line.generation, line.rank, line.text),
        };
        if written.is_err() {
            // The reader has closed the pipe, as in `coordinator logs J | head`.
            break;
        }
    }
    Ok(Outcome::True)
}
