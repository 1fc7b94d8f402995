//! `coordinator logs`.

use super::client::{connect, request_error};
use super::{Global, Outcome, Output, json};
use crate::text::{now_ms, outln};
use crate::time::{Since, rfc3339};
use anyhow::Result;
use clap::Args;
use proto::pb;
use proto::printable::printable_json;

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    #[arg(required_unless_present = "own")]
    job: Option<String>,
    /// The newest lines of the coordinator's own log, since it started
    #[arg(long = "self", conflicts_with_all = ["job", "rank"])]
    own: bool,
    /// Only lines of this rank
    #[arg(long)]
    rank: Option<u32>,
    /// Only the last N of the lines; with --follow, then new ones
    #[arg(long, value_name = "N")]
    tail: Option<u64>,
    /// Only lines since then: how long ago (90s, 15m, 2h30m) or a time (2026-01-31T08:00:00Z,
    /// 2026-01-31). The time of a line is that of its worker's clock
    #[arg(long, value_name = "DURATION|TIME", value_parser = Since::parse)]
    since: Option<Since>,
    /// Keep printing new lines until the job ends; with --self, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
}

pub(crate) async fn logs(global: &Global, args: &LogsArgs) -> Result<Outcome> {
    let mut client = connect(global).await?;
    let request = pb::LogsRequest {
        job: args.job.clone().unwrap_or_default(),
        own: args.own,
        rank: args.rank,
        follow: args.follow,
        tail: args.tail,
        since_ms: args.since.map(|since| since.at(now_ms())),
    };
    let failed = |status: tonic::Status| request_error(global, &status);
    let mut lines = client.logs(request).await.map_err(failed)?.into_inner();
    while let Some(line) = lines.message().await.map_err(failed)? {
        match global.output {
            Output::Json => outln!("{}", printable_json(&json::log_line(&line).to_string())),
            Output::Table => {
                if 0 < line.dropped {
                    outln!("… {} lines are not kept", line.dropped);
                }
                outln!("{}", shown(&line, args.own));
            }
        }
    }
    Ok(Outcome::True)
}

/// A line of the coordinator's own log has its time already.
fn shown(line: &pb::LogLine, own: bool) -> String {
    if own {
        return line.text.clone();
    }
    let (at, generation, rank) = (rfc3339(line.at_ms), line.generation, line.rank);
    let step = line
        .step
        .map_or_else(String::new, |step| format!(" s{step}"));
    format!("{at} g{generation} r{rank}{step} {}", line.text)
}
