//! A store with many jobs that ended long ago, through a backup file of the coordinator's state.

use super::coordinator_command;
use anyhow::{Context, Result};
use coordinator_core::event::{
    About, Counters, DatasetPin, Durable, Effect, Input, JobRecord, Record, Reply, RequestId,
};
use coordinator_core::{Config, Coordinator, WaitingQuotas};
use prost::Message;
use proto::id::JobId;
use proto::job;
use proto::pb::StateEntry;
use proto::text::hex_sha256;
use std::collections::BTreeMap;
use std::path::Path;

/// As in `coordinator/src/cli/state.rs`, which refuses any other.
const MAGIC: &[u8] = b"retri-state-1\n";
/// A year ago and more: no page shows these jobs.
const NOW: u64 = 1_600_000_000_000;

/// Writes the backup into `folder` and restores it to `store`.
pub(super) fn restore(folder: &Path, store: &str, ended: u32) -> Result<()> {
    if ended == 0 {
        return Ok(());
    }
    let record = cancelled()?;
    let counters = Counters {
        jobs: u64::from(ended),
    };
    let mut body = MAGIC.to_vec();
    let mut entry = |key: String, value: Vec<u8>| {
        let key = key.into_bytes();
        StateEntry { key, value }.encode_length_delimited(&mut body)
    };
    entry("counters".to_owned(), serde_json::to_vec(&counters)?)?;
    for number in 1..=ended {
        let id = JobId(format!("old-{number}"));
        let job = JobRecord {
            id: id.clone(),
            ..record.clone()
        };
        entry(format!("job/{id}"), serde_json::to_vec(&job)?)?;
    }
    let end = hex_sha256(&body).into_bytes();
    let (key, value) = (Vec::new(), end);
    StateEntry { key, value }.encode_length_delimited(&mut body)?;
    let file = folder.join("ended.state");
    std::fs::write(&file, body)?;
    let file = file.display().to_string();
    coordinator_command(&["state", "restore", &file, "--store", store])
}

/// The record of a job that was cancelled.
fn cancelled() -> Result<JobRecord> {
    let config = Config {
        store_url: "file:///store".to_owned(),
        detect_within_ms: 3_000,
        quotas: BTreeMap::new(),
        waiting: WaitingQuotas::default(),
        ended_jobs_max: 64,
    };
    let mut machine = Coordinator::restore(config, Durable::default(), NOW);
    let text = super::submits::job_toml("file:///figures");
    let submit = Input::Submit {
        request: RequestId(1),
        spec: Box::new(job::parse("job.toml", &text, None)?),
        job_toml: text,
        dataset: DatasetPin {
            version: "0".repeat(64),
            ..DatasetPin::default()
        },
        about: About::default(),
        archived: vec![],
    };
    let effects = machine.handle(NOW, submit);
    let job = effects.into_iter().find_map(|effect| match effect {
        Effect::Reply {
            reply: Reply::Accepted { job },
            ..
        } => Some(job),
        _ => None,
    });
    let job = job.context("the job was refused")?;
    let request = RequestId(2);
    let effects = machine.handle(NOW, Input::Cancel { request, job });
    let records = effects.into_iter().filter_map(|effect| match effect {
        Effect::Save(records) => Some(records),
        _ => None,
    });
    let record = records.flatten().find_map(|record| match record {
        Record::Job(job) => Some(*job),
        _ => None,
    });
    record.context("a cancelled job is saved")
}
