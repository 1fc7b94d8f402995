//! The coordinator opens stores of earlier versions. See `tests/fixtures/README.md`.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use proto::id::{JobId, Step};
use proto::ledger::{Entry, Replay, Tip};
use proto::pb::control_client::ControlClient;
use proto::pb::{JobRequest, JobView};
use proto::version;
use serde_json::Value;
use std::path::Path;
use tests::cluster::{Cluster, Options, checkout};
use tonic::transport::Endpoint;

/// The global batch of every training job in the store.
const GLOBAL_BATCH: u32 = 4;

/// Starts a coordinator without workers on a copy of the store.
fn open(fixture: &str) -> Result<(Cluster, tempfile::TempDir)> {
    let directory = tempfile::tempdir()?;
    copy(
        &checkout().join("tests/fixtures").join(fixture),
        directory.path(),
    )?;
    let cluster = Cluster::start(Options {
        store: Some(format!("file://{}", directory.path().display())),
        ..Options::with_workers(0)
    })?;
    Ok((cluster, directory))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

/// The job's view and its ledger.
fn ledger(cluster: &Cluster, job: &str) -> Result<(JobView, Vec<Entry>)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let channel = Endpoint::from_shared(cluster.url().to_owned())?
            .connect()
            .await?;
        let mut client = ControlClient::with_interceptor(channel, version::stamp);
        let request = JobRequest {
            job: job.to_owned(),
        };
        let view = client.describe_job(request.clone()).await?.into_inner();
        let mut lines = client.list_ledger(request).await?.into_inner();
        let mut entries = Vec::new();
        while let Some(line) = lines.message().await? {
            entries.push(serde_json::from_str(&line.json)?);
        }
        Ok((view, entries))
    })
}

fn listed<'a>(jobs: &'a Value, id: &str) -> &'a Value {
    let mut all = jobs.as_array().unwrap().iter();
    all.find(|job| job["job"] == id)
        .unwrap_or_else(|| panic!("{id} is missing: {jobs}"))
}

/// A store that an earlier version wrote, and what was in it.
struct Fixture {
    folder: &'static str,
    /// Step of `unwanted-3`, `waiting-5` and `endless-6`, as far as their ledgers were saved.
    steps: [u64; 3],
    /// Ledger entries of `finished-1`, `unwanted-3` and `waiting-5`.
    entries: [usize; 3],
    /// Output of `coordinator checkpoint digest` of `finished-1` and `waiting-5`.
    digests: [&'static str; 2],
}

/// Records of version 1, of protocol 5: before jobs had kinds of work.
const PROTOCOL_5: Fixture = Fixture {
    folder: "store-v5",
    steps: [27, 10, 74],
    entries: [8, 34, 13],
    digests: [
        FINISHED,
        "7d253dc4d247d5e9d55f7c198ad9ede74efbb5eda45e241deac6b3f89bf174b2",
    ],
};
/// Records of version 2, of protocol 6: reasons were stored as sentences.
const PROTOCOL_6: Fixture = Fixture {
    folder: "store-v6",
    steps: [23, 13, 53],
    entries: [8, 29, 17],
    digests: [
        FINISHED,
        "5f29b88abcffcde471ec44a4001680b8714e8c8ff30003dd257011c5c6127444",
    ],
};
/// Both versions trained the same job to the same bits.
const FINISHED: &str = "cbfa0b7cef776ad2e4c53f7da57961ba8e7d4e54eefc7aee413e6cc08d595c6f";

#[test]
fn every_job_of_a_store_of_protocol_5_is_there_as_it_was() -> Result<()> {
    every_job_is_there(&PROTOCOL_5)
}

#[test]
fn every_job_of_a_store_of_protocol_6_is_there_as_it_was() -> Result<()> {
    every_job_is_there(&PROTOCOL_6)
}

fn every_job_is_there(fixture: &Fixture) -> Result<()> {
    let (cluster, _directory) = open(fixture.folder)?;
    let jobs = cluster.json(&["jobs"])?;
    // Phases of a job that was running and may have noticed the loss of its workers.
    let ran = ["forming", "training", "queued"];
    let [unwanted, waiting, endless] = fixture.steps;
    let expected: [(&str, &[&str], u64); 9] = [
        ("finished-1", &["done"], 6),
        ("broken-2", &["failed"], 0),
        ("unwanted-3", &["cancelled"], unwanted),
        ("finished-1-sample-4", &["done"], 0),
        ("waiting-5", &["paused"], waiting),
        ("endless-6", &ran, endless),
        ("finished-1-sample-7", &ran, 0),
        ("finished-1-sample-8", &["queued"], 0),
        ("queued-9", &["queued"], 0),
    ];
    ensure!(
        jobs.as_array().map(Vec::len) == Some(expected.len()),
        "{jobs}"
    );
    for (id, phases, step) in expected {
        let job = listed(&jobs, id);
        let phase = job["phase"].as_str().unwrap();
        ensure!(phases.contains(&phase), "{id} is {phase}");
        ensure!(
            job["step"].as_u64() >= Some(step),
            "{id} is at step {}",
            job["step"]
        );
        let trained = id.contains("sample").then_some("finished-1");
        ensure!(job["sample_of"].as_str() == trained, "{id}: {job}");
    }
    // The sentence that the earlier version stored.
    let cause = &listed(&jobs, "broken-2")["cause"];
    ensure!(
        cause["kind"] == "text" && cause["text"].as_str().unwrap().contains("no data set at"),
        "{cause}"
    );
    let drained = cluster.ok(&["undrain", "w3"])?;
    ensure!(drained.contains("w3"), "{drained}");
    cluster.stop()
}

#[test]
fn ledgers_and_checkpoints_of_a_store_of_protocol_5_hold() -> Result<()> {
    ledgers_and_checkpoints_hold(&PROTOCOL_5)
}

#[test]
fn ledgers_and_checkpoints_of_a_store_of_protocol_6_hold() -> Result<()> {
    ledgers_and_checkpoints_hold(&PROTOCOL_6)
}

fn ledgers_and_checkpoints_hold(fixture: &Fixture) -> Result<()> {
    let (cluster, _directory) = open(fixture.folder)?;
    let [unwanted, waiting, _] = fixture.steps;
    let [of_finished, of_unwanted, of_waiting] = fixture.entries;
    let [finished, paused] = fixture.digests;
    for (id, entries, steps) in [
        ("finished-1", of_finished, 6),
        ("unwanted-3", of_unwanted, unwanted),
        ("waiting-5", of_waiting, waiting),
    ] {
        let (view, ledger) = ledger(&cluster, id)?;
        let tip = view.ledger.context("a tip")?;
        ensure!(
            ledger.len() == entries && tip.entries == entries as u64,
            "{id}: {tip:?}"
        );
        ensure!(
            ledger.last().map(|last| &last.hash) == Some(&tip.hash),
            "{id}: {tip:?}"
        );
        // The first entry hashes the stored text of the job.
        let begin = Tip::begin(&JobId(id.to_owned()), &view.dataset_version, &view.job_toml);
        let mut replay = Replay::new(begin, GLOBAL_BATCH);
        for entry in &ledger {
            replay.take(entry).with_context(|| id.to_owned())?;
        }
        let last = replay.done().iter().map(|done| done.last).max();
        ensure!(last == Some(Step(steps)), "{id} ends at step {last:?}");
    }
    for (id, step, digest) in [("finished-1", 6, finished), ("waiting-5", waiting, paused)] {
        let described = cluster.json(&["describe", id])?;
        ensure!(
            described["checkpoints"][0]["step"] == step,
            "{}",
            described["checkpoints"]
        );
        let checkpoints = cluster.ok(&["checkpoints", id])?;
        ensure!(checkpoints.contains(&step.to_string()), "{checkpoints}");
        cluster.ok(&["checkpoint", "verify", id])?;
        let found = cluster.ok(&["checkpoint", "digest", id])?;
        ensure!(found.trim() == digest, "the digest of {id} is {found}");
    }
    cluster.stop()
}

/// The coordinator also writes to the store: jobs are changed, and the changes survive a restart.
#[test]
fn jobs_of_stores_of_earlier_protocols_continue() -> Result<()> {
    for fixture in [&PROTOCOL_5, &PROTOCOL_6] {
        jobs_continue(fixture).with_context(|| fixture.folder)?;
    }
    Ok(())
}

fn jobs_continue(fixture: &Fixture) -> Result<()> {
    let (mut cluster, _directory) = open(fixture.folder)?;
    cluster.ok(&["cancel", "endless-6"])?;
    cluster.ok(&["cancel", "finished-1-sample-8"])?;
    cluster.ok(&["resume", "waiting-5"])?;
    let after = |cluster: &Cluster| -> Result<()> {
        let jobs = cluster.json(&["jobs"])?;
        for (id, phase) in [
            ("endless-6", "cancelled"),
            ("finished-1-sample-8", "cancelled"),
            ("waiting-5", "queued"),
        ] {
            let job = listed(&jobs, id);
            ensure!(job["phase"] == phase, "{id} is {}", job["phase"]);
        }
        Ok(())
    };
    after(&cluster)?;
    cluster.kill_coordinator()?;
    cluster.start_coordinator()?;
    after(&cluster)?;
    cluster.stop()
}
