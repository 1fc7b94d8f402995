//! Real processes on loopback: a job shrinks, grows, loses ranks and loses nodes, and no process
//! that stays is ever started again; no checkpoint is written on the way, and not a bit is lost.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use tests::cluster::Cluster;
use tests::cluster::job::{elastic, nothing_was_lost, trains, with_figures};

#[test]
fn a_job_shrinks_and_grows_and_loses_ranks_and_one_process_sees_it_all() -> Result<()> {
    let (mut cluster, dataset) = with_figures(3)?;
    let id = cluster.submit(&elastic(&dataset, 1..=3, 1_000_000))?;
    trains(&cluster, &id, 3)?;
    let witness = cluster.rank(0)?;
    cluster.ok(&["scale", &id, "--workers", "1"])?;
    trains(&cluster, &id, 1)?;
    cluster.ok(&["scale", &id, "--workers", "3"])?;
    let view = trains(&cluster, &id, 3)?;
    ensure!((view.restarts, view.incidents.len()) == (0, 0), "{view:?}");
    // A rank is killed: the others do not wait for another, and take it in when it is ready.
    cluster.kill_rank(1)?;
    cluster.wait(&id, "the loss", |view| view.restarts == 1)?;
    let view = trains(&cluster, &id, 3)?;
    ensure!(view.restarts == 1, "{view:?}");
    // A daemon is asked to leave, and started again.
    cluster.terminate_worker(2)?;
    trains(&cluster, &id, 2)?;
    cluster.start_worker(2)?;
    let view = trains(&cluster, &id, 3)?;
    ensure!((view.restarts, view.incidents.len()) == (1, 1), "{view:?}");
    ensure!(view.checkpoints.is_empty(), "{view:?}");
    ensure!(cluster.rank(0)? == witness, "the first rank was restarted");
    nothing_was_lost(&cluster, &dataset, &id, 0)?;
    cluster.stop()
}

#[test]
fn too_few_ranks_keep_what_they_hold_and_the_last_worker_leaves_with_a_checkpoint() -> Result<()> {
    let (mut cluster, dataset) = with_figures(2)?;
    let id = cluster.submit(&elastic(&dataset, 2..=2, 1_000_000))?;
    trains(&cluster, &id, 2)?;
    let witness = cluster.rank(0)?;
    cluster.kill_worker(1)?;
    cluster.wait(&id, "the loss of a worker", |view| {
        view.phase == "queued"
            && view
                .reason
                .ends_with("1 is free (w1); its state is kept by w1")
    })?;
    let why = cluster.json(&["why", &id])?;
    let sentence = why["why"].as_str().context("a sentence")?;
    ensure!(sentence.ends_with("its state is kept by w1"), "{why}");
    cluster.start_worker(1)?;
    let view = trains(&cluster, &id, 2)?;
    ensure!(view.checkpoints.is_empty(), "{view:?}");
    ensure!(cluster.rank(0)? == witness, "the survivor was restarted");
    nothing_was_lost(&cluster, &dataset, &id, 0)?;

    // Nobody could take over from the only worker.
    let alone = cluster.submit(&elastic(&dataset, 1..=1, 1_000_000))?;
    let view = trains(&cluster, &alone, 1)?;
    let worker = view.members[0]
        .worker
        .as_ref()
        .context("a worker")?
        .name
        .clone();
    let other = 1 - usize::from(worker == "w2");
    cluster.ok(&["drain", &format!("w{}", other + 1)])?;
    cluster.terminate_worker(usize::from(worker == "w2"))?;
    let view = cluster.wait(&alone, "leaving", |view| view.phase == "queued")?;
    ensure!(
        (view.restarts, view.checkpoints.len()) == (0, 1),
        "{view:?}"
    );
    cluster.ok(&["cancel", &alone])?;
    cluster.stop()
}

#[test]
fn a_rank_that_waits_for_others_writes_down_what_it_holds_before_it_is_sent_away() -> Result<()> {
    let (mut cluster, dataset) = with_figures(2)?;
    let id = cluster.submit(&elastic(&dataset, 2..=2, 1_000_000))?;
    let alone = |cluster: &mut Cluster| {
        let view = trains(cluster, &id, 2)?;
        cluster.kill_worker(1)?;
        cluster.wait(&id, "the loss of a worker", |view| {
            view.phase == "queued" && view.reason.ends_with("its state is kept by w1")
        })?;
        anyhow::Ok(view)
    };
    let before = alone(&mut cluster)?;
    // It returns when the worker is empty.
    cluster.ok(&["drain", "w1"])?;
    let view = cluster.wait(&id, "a checkpoint", |view| view.phase == "queued")?;
    ensure!(
        view.checkpoints.len() == 1 && before.step <= view.checkpoints[0].step,
        "{view:?} after {before:?}"
    );
    cluster.ok(&["undrain", "w1"])?;
    cluster.start_worker(1)?;
    let view = alone(&mut cluster)?;
    ensure!(
        (view.restarts, view.checkpoints.len()) == (1, 1),
        "{view:?}"
    );
    let kept = nothing_was_lost(&cluster, &dataset, &id, 1)?;
    ensure!(view.step <= kept, "{kept} after {view:?}");
    cluster.stop()
}
