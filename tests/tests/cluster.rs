//! Real processes on loopback: a tiny job under crashes, pauses, drains and cancellations, and
//! invalid user input. Faults are injected when `coordinator watch` shows that the job is in the
//! middle.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result};
use proto::reason::{Constraint, Waiting};
use serde_json::Value;
use std::sync::OnceLock;
use tests::cluster::Cluster;
use tests::cluster::job::{TinyJob, digest, with_figures};
use tests::cluster::reason::waiting;

/// The weights of the job of forty steps on two workers without faults: computed once, by the first
/// test that needs them.
fn undisturbed() -> &'static str {
    static DIGEST: OnceLock<String> = OnceLock::new();
    DIGEST.get_or_init(|| {
        let (cluster, dataset) = with_figures(2).unwrap();
        let id = cluster
            .submit(&TinyJob::forty_steps(&dataset, 2).to_toml())
            .unwrap();
        let view = cluster.wait_done(&id).unwrap();
        assert_eq!(view.restarts, 0, "{view:?}");
        digest(&cluster, &id).unwrap()
    })
}

/// Injects `fault` in the middle of a job on two workers; the job must end with the undisturbed
/// weights after `restarts` restarts.
fn check(fault: impl FnOnce(&mut Cluster) -> Result<()>, restarts: u32) -> Result<()> {
    let expected = undisturbed();
    let (mut cluster, dataset) = with_figures(2)?;
    let id = cluster.submit(&TinyJob::forty_steps(&dataset, 2).to_toml())?;
    cluster.wait_step(&id, 10)?;
    fault(&mut cluster)?;
    let view = cluster.wait_done(&id)?;
    assert_eq!(view.restarts, restarts, "{view:?}");
    // After a restart the generation is above 1; waiting survivors form generations, too.
    assert_eq!(view.generation == 1, restarts == 0, "{view:?}");
    assert_eq!(view.incidents.len(), restarts as usize, "{view:?}");
    assert_eq!(
        digest(&cluster, &id)?,
        expected,
        "the weights differ from those of an undisturbed run"
    );
    let audit = cluster.json(&["audit", &id])?;
    assert_eq!(
        (&audit["clean"], &audit["steps"]),
        (&true.into(), &40.into()),
        "{audit}"
    );
    cluster.stop()
}

#[test]
fn a_job_survives_the_death_of_a_rank() -> Result<()> {
    check(|cluster| cluster.kill_rank(1), 1)
}

#[test]
fn a_job_survives_the_death_of_a_daemon() -> Result<()> {
    check(
        |cluster| {
            cluster.kill_worker(1)?;
            cluster.start_worker(1)
        },
        1,
    )
}

#[test]
fn a_job_does_not_notice_the_death_of_the_coordinator() -> Result<()> {
    check(
        |cluster| {
            cluster.kill_coordinator()?;
            cluster.start_coordinator()
        },
        0,
    )
}

/// Pause, resume and drain end a generation after its current step: no step is repeated, no
/// incident is recorded, and the weights are those of an undisturbed run.
#[test]
fn a_job_is_paused_and_a_worker_drained_without_a_trace() -> Result<()> {
    let expected = undisturbed();
    let (cluster, dataset) = with_figures(3)?;
    let id = cluster.submit(&TinyJob::forty_steps(&dataset, 2).to_toml())?;
    cluster.wait_step(&id, 10)?;
    assert_eq!(cluster.ok(&["pause", &id])?.trim(), "tiny-1 is paused");
    let why = cluster.json(&["why", &id])?;
    assert_eq!(why["constraint"], "paused", "{why}");
    assert!(why["remedy"].is_string(), "{why}");
    let refused = cluster.run(&["scale", &id, "--workers", "9"])?.failure()?;
    assert!(
        refused.contains("workers: 9 is not a valid scale for job tiny-1"),
        "{refused}"
    );
    cluster.ok(&["resume", &id])?;
    let view = cluster.wait_step(&id, 22)?;
    let why = cluster.json(&["why", &id])?;
    assert_eq!(why["constraint"], "step", "{why}");
    let worker = view.members[1]
        .worker
        .as_ref()
        .context("a worker")?
        .name
        .clone();
    let drained = cluster.ok(&["drain", &worker])?;
    assert_eq!(drained.trim(), format!("{worker} is drained and empty"));
    let view = cluster.wait_done(&id)?;
    assert_eq!((view.restarts, view.incidents.len()), (0, 0), "{view:?}");
    assert_eq!(digest(&cluster, &id)?, expected);
    let audit = cluster.json(&["audit", &id])?;
    assert_eq!(
        (&audit["clean"], &audit["steps"]),
        (&true.into(), &40.into()),
        "{audit}"
    );
    assert_eq!(audit["superseded_steps"], 0, "{audit}");
    cluster.ok(&["undrain", &worker])?;
    cluster.stop()
}

#[test]
fn a_job_moves_to_another_worker_when_its_own_is_lost() -> Result<()> {
    let (mut cluster, dataset) = with_figures(2)?;
    let id = cluster.submit(&TinyJob::forty_steps(&dataset, 1).to_toml())?;
    let view = cluster.wait_step(&id, 10)?;
    let name = view.members[0]
        .worker
        .as_ref()
        .map(|worker| worker.name.as_str());
    cluster.kill_worker(if name == Some("w1") { 0 } else { 1 })?;
    let view = cluster.wait_done(&id)?;
    assert_eq!(view.restarts, 1, "{view:?}");
    Ok(())
}

#[test]
fn the_same_job_gives_the_same_weights() -> Result<()> {
    let (cluster, dataset) = with_figures(1)?;
    let first = cluster.submit(&TinyJob::forty_steps(&dataset, 1).to_toml())?;
    let second = cluster.submit(&TinyJob::forty_steps(&dataset, 1).to_toml())?;
    cluster.wait_done(&first)?;
    cluster.wait_done(&second)?;
    assert_ne!(first, second);
    assert_eq!(digest(&cluster, &first)?, digest(&cluster, &second)?);
    cluster.stop()
}

#[test]
fn a_waiting_job_outlives_the_coordinator_and_can_be_cancelled() -> Result<()> {
    let (mut cluster, dataset) = with_figures(1)?;
    // The job needs two workers, and there is one.
    let id = cluster.submit(&TinyJob::forty_steps(&dataset, 2).to_toml())?;
    let view = cluster.wait(&id, "phase queued", |view| view.phase == "queued")?;
    let Some(Waiting::Shortage { shortage, .. }) = waiting(&view) else {
        panic!("{view:?}")
    };
    assert_eq!(
        (shortage.constraint, shortage.workers_min),
        (Constraint::Workers, 2),
        "{view:?}"
    );
    cluster.kill_coordinator()?;
    cluster.start_coordinator()?;
    assert_eq!(cluster.json(&["describe", &id])?["phase"], "queued");

    cluster.ok(&["cancel", &id])?;
    assert_eq!(cluster.json(&["describe", &id])?["phase"], "cancelled");
    let watched = cluster.run(&["watch", &id])?;
    assert_ne!(
        watched.code,
        Some(0),
        "`watch` of a cancelled job should fail: {watched:?}"
    );

    // A running job frees its worker for the next.
    let endless = TinyJob {
        steps: 1_000_000,
        ..TinyJob::forty_steps(&dataset, 1)
    };
    let running = cluster.submit(&endless.to_toml())?;
    cluster.wait_step(&running, 2)?;
    let next = cluster.submit(
        &TinyJob {
            steps: 2,
            ..TinyJob::forty_steps(&dataset, 1)
        }
        .to_toml(),
    )?;
    cluster.ok(&["cancel", &running])?;
    cluster.wait_done(&next)?;
    assert_eq!(cluster.json(&["describe", &running])?["phase"], "cancelled");
    cluster.stop()
}

#[test]
fn wrong_input_is_refused_with_what_would_be_right() -> Result<()> {
    let (mut cluster, dataset) = with_figures(0)?;
    let good = TinyJob::forty_steps(&dataset, 1).to_toml();
    let refused = |cluster: &Cluster, toml: &str, words: &[&str]| -> Result<()> {
        let file = cluster.write_job(toml)?;
        let stderr = cluster.run(&["submit", &file])?.failure()?;
        for word in words {
            assert!(stderr.contains(word), "{word:?} is missing in: {stderr}");
        }
        Ok(())
    };
    refused(
        &cluster,
        &good.replace("steps =", "stepps ="),
        &["job.toml:", "stepps", "did you mean `steps`?"],
    )?;
    refused(
        &cluster,
        &good.replace("global_batch = 4", "global_batch = 5"),
        &["train.global_batch", "is 5", "2"],
    )?;
    refused(
        &cluster,
        &good.replace("resolution = 32", "resolution = 33"),
        &["data.resolution", "is 33"],
    )?;
    refused(
        &cluster,
        &good.replace("/figures\"", "/figurines\""),
        &["data.dataset", "figurines"],
    )?;
    let absent = cluster.run(&["submit", "nowhere.toml"])?.failure()?;
    assert!(absent.contains("nowhere.toml"), "{absent}");
    let unknown = cluster.run(&["describe", "tiny-77"])?.failure()?;
    assert!(unknown.contains("tiny-77"), "{unknown}");

    // A dry run succeeds and submits nothing.
    let file = cluster.write_job(&good)?;
    let checked = cluster.ok(&["submit", &file, "--dry-run"])?;
    assert_eq!(cluster.json(&["jobs"])?, Value::Array(Vec::new()));
    // Each note has a line of its own.
    let notes: Vec<&str> = checked.lines().skip(1).collect();
    let cut = notes
        .iter()
        .find(|note| note.contains("prompts are longer"));
    let cut = cut.with_context(|| checked.clone())?;
    assert!(
        notes.iter().all(|note| note.starts_with("note: ")),
        "{checked}"
    );
    // The job remembers them, for `describe` and for metrics.
    let view = cluster.json(&["describe", &cluster.submit(&good)?])?;
    let most = &view["lost_tags"][0];
    assert!(
        cut.contains(&format!(
            "{} ({})",
            most["tag"].as_str().unwrap_or("none"),
            most["samples"]
        )),
        "{view}"
    );
    assert!(
        view["cut_prompts"].as_u64() >= most["samples"].as_u64(),
        "{view}"
    );
    let adapted = &view["adapted"];
    assert!(
        adapted["training"].as_u64() > Some(0) && adapted["enlarged"] == 0,
        "{view}"
    );

    cluster.kill_coordinator()?;
    let unreachable = cluster.run(&["jobs"])?.failure()?;
    assert!(
        unreachable.contains("cannot reach a coordinator at http://127.0.0.1:"),
        "{unreachable}"
    );
    Ok(())
}
