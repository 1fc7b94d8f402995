//! `coordinator why`: shows what a job is waiting for.

use super::client::{connect, request_error};
use super::{Global, Outcome, Output, json, print_json};
use crate::text::outln;
use anyhow::Result;
use proto::pb;

pub(crate) async fn why(global: &Global, job: &str) -> Result<Outcome> {
    let mut client = connect(global).await?;
    let request = pb::JobRequest {
        job: job.to_owned(),
    };
    let reply = client
        .why(request)
        .await
        .map_err(|status| request_error(global, &status))?;
    let why = reply.into_inner();
    match global.output {
        Output::Json => print_json(&serde_json::json!({
            "job": job,
            "why": why.sentence,
            "constraint": why.constraint,
            "remedy": why.remedy,
            "waits_for": why.waits_for.as_ref().map(|it| serde_json::json!({
                "rank": it.rank,
                "worker": it.worker,
                "phase": it.phase,
                "for_ms": it.for_ms,
            })),
            "pressure": json::pressure(&why.pressure),
        })),
        Output::Table => {
            let remedy = why
                .remedy
                .map_or_else(String::new, |remedy| format!("; remedy: {remedy}"));
            outln!("{job}: {}{remedy}", why.sentence);
            for sentence in why.pressure.iter().filter_map(pb::Reason::sentence) {
                outln!("meanwhile: {sentence}");
            }
        }
    }
    Ok(Outcome::True)
}
