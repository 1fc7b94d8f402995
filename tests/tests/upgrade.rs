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

#[test]
fn every_job_of_a_store_of_protocol_5_is_there_as_it_was() -> Result<()> {
    let (cluster, _directory) = open("store-v5")?;
    let jobs = cluster.json(&["jobs"])?;
    // Phases of a job that was running and may have noticed the loss of its workers.
    let ran = ["forming", "training", "queued"];
    let expected: [(&str, &[&str], u64); 9] = [
        ("finished-1", &["done"], 6),
        ("broken-2", &["failed"], 0),
        ("unwanted-3", &["cancelled"], 27),
        ("finished-1-sample-4", &["done"], 0),
        ("waiting-5", &["paused"], 10),
        ("endless-6", &ran, 74),
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
    let reason = &listed(&jobs, "broken-2")["reason"];
    ensure!(
        reason.as_str().unwrap().contains("no data set at"),
        "{reason}"
    );
    let drained = cluster.ok(&["undrain", "w3"])?;
    ensure!(drained.contains("w3"), "{drained}");
    cluster.stop()
}

#[test]
fn ledgers_and_checkpoints_of_a_store_of_protocol_5_hold() -> Result<()> {
    let (cluster, _directory) = open("store-v5")?;
    for (id, entries, steps) in [
        ("finished-1", 8, 6),
        ("unwanted-3", 34, 27),
        ("waiting-5", 13, 10),
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
    for (id, step, digest) in [("finished-1", 6, FINISHED), ("waiting-5", 10, WAITING)] {
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

/// Output of `coordinator checkpoint digest` when the store was written.
const FINISHED: &str = "cbfa0b7cef776ad2e4c53f7da57961ba8e7d4e54eefc7aee413e6cc08d595c6f";
const WAITING: &str = "7d253dc4d247d5e9d55f7c198ad9ede74efbb5eda45e241deac6b3f89bf174b2";

/// The coordinator also writes to the store: jobs are changed, and the changes survive a restart.
#[test]
fn jobs_of_a_store_of_protocol_5_go_on() -> Result<()> {
    let (mut cluster, _directory) = open("store-v5")?;
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
