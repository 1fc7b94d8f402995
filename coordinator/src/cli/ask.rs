//! Asks the ranks of a job something and collects their answers. Used by `stacks` and `trace`.

use super::Global;
use super::client::{connect, request_error};
use anyhow::Result;
use proto::pb;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;

/// The answer of one rank, or why there is none.
#[derive(Debug)]
pub(crate) struct RankAnswer<T> {
    /// None: all ranks of this worker.
    pub(crate) rank: Option<u32>,
    pub(crate) worker: String,
    pub(crate) generation: u64,
    pub(crate) answer: Result<T, String>,
}

/// Of all ranks, in their order; those of workers that are late come last.
pub(crate) async fn ask<T: DeserializeOwned>(
    global: &Global,
    request: pb::ProbeRequest,
) -> Result<Vec<RankAnswer<T>>> {
    let mut client = connect(global).await?;
    let failed = |status: tonic::Status| request_error(global, &status);
    let mut replies = client.probe(request).await.map_err(failed)?.into_inner();
    let mut parts: BTreeMap<(u32, u64, String), String> = BTreeMap::new();
    let mut answers = Vec::new();
    while let Some(reply) = replies.message().await.map_err(failed)? {
        let rank = (!reply.late).then_some(reply.rank);
        let key = (reply.rank, reply.generation, reply.worker);
        if !reply.error.is_empty() {
            answers.push(RankAnswer {
                rank,
                worker: key.2,
                generation: key.1,
                answer: Err(reply.error),
            });
            continue;
        }
        let text = parts.entry(key.clone()).or_default();
        text.push_str(&reply.part);
        if reply.last {
            let text = std::mem::take(text);
            parts.remove(&key);
            let answer = serde_json::from_str(&text);
            answers.push(RankAnswer {
                rank,
                worker: key.2,
                generation: key.1,
                answer: answer.map_err(|error| format!("its answer cannot be read: {error}")),
            });
        }
    }
    answers.extend(
        parts
            .into_keys()
            .map(|(rank, generation, worker)| RankAnswer {
                rank: Some(rank),
                worker,
                generation,
                answer: Err("its answer is incomplete".to_owned()),
            }),
    );
    answers.sort_by_key(|it| (it.rank.is_none(), it.rank, it.worker.clone()));
    Ok(answers)
}

impl<T> RankAnswer<T> {
    /// `rank 3 on w2`, or `w2`.
    pub(crate) fn name(&self) -> String {
        match self.rank {
            Some(rank) => format!("rank {rank} on {}", self.worker),
            None => self.worker.clone(),
        }
    }
}
