//! Real processes on loopback: a job shrinks, grows, loses ranks and loses nodes. No surviving
//! process is restarted, no checkpoint is written on the way, and the weights equal those of an
//! undisturbed run.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use proto::pb::JobView;
use proto::reason::Waiting;
use tests::cluster::Cluster;
use tests::cluster::job::{check_nothing_lost, elastic, wait_training, with_figures};
use tests::cluster::reason::waiting;

/// The job waits for workers. Only w1 is free, and holds its state.
fn is_held_by_w1(view: &JobView) -> bool {
    matches!(
        waiting(view),
        Some(Waiting::Shortage { shortage, state_holders })
            if shortage.ready == ["w1"] && state_holders == ["w1"]
    )
}

#[test]
fn a_job_shrinks_and_grows_and_loses_ranks_and_one_process_sees_it_all() -> Result<()> {
    let (mut cluster, dataset) = with_figures(3)?;
    let id = cluster.submit(&elastic(&dataset, 1..=3, 1_000_000))?;
    wait_training(&cluster, &id, 3)?;
    let survivor = cluster.rank(0)?;
    cluster.ok(&["scale", &id, "--workers", "1"])?;
    wait_training(&cluster, &id, 1)?;
    cluster.ok(&["scale", &id, "--workers", "3"])?;
    let view = wait_training(&cluster, &id, 3)?;
    ensure!((view.restarts, view.incidents.len()) == (0, 0), "{view:?}");
    // A rank is killed: the others continue without it, and take it in when it is ready again.
    cluster.kill_rank(1)?;
    cluster.wait(&id, "the loss", |view| view.restarts == 1)?;
    let view = wait_training(&cluster, &id, 3)?;
    ensure!(view.restarts == 1, "{view:?}");
    // A daemon is shut down and restarted.
    cluster.terminate_worker(2)?;
    wait_training(&cluster, &id, 2)?;
    cluster.start_worker(2)?;
    let view = wait_training(&cluster, &id, 3)?;
    ensure!((view.restarts, view.incidents.len()) == (1, 1), "{view:?}");
    ensure!(view.checkpoints.is_empty(), "{view:?}");
    ensure!(cluster.rank(0)? == survivor, "the first rank was restarted");
    check_nothing_lost(&cluster, &dataset, &id, 0)?;
    cluster.stop()
}

#[test]
fn too_few_ranks_keep_what_they_hold_and_the_last_worker_leaves_with_a_checkpoint() -> Result<()> {
    let (mut cluster, dataset) = with_figures(2)?;
    let id = cluster.submit(&elastic(&dataset, 2..=2, 1_000_000))?;
    wait_training(&cluster, &id, 2)?;
    let survivor = cluster.rank(0)?;
    cluster.kill_worker(1)?;
    cluster.wait(&id, "the loss of a worker", is_held_by_w1)?;
    let why = cluster.json(&["why", &id])?;
    ensure!(why["constraint"] == "workers", "{why}");
    cluster.start_worker(1)?;
    let view = wait_training(&cluster, &id, 2)?;
    ensure!(view.checkpoints.is_empty(), "{view:?}");
    ensure!(cluster.rank(0)? == survivor, "the survivor was restarted");
    check_nothing_lost(&cluster, &dataset, &id, 0)?;

    // The only worker cannot hand its state over; it writes a checkpoint.
    let alone = cluster.submit(&elastic(&dataset, 1..=1, 1_000_000))?;
    let view = wait_training(&cluster, &alone, 1)?;
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
    let lose_w2 = |cluster: &mut Cluster| {
        let view = wait_training(cluster, &id, 2)?;
        cluster.kill_worker(1)?;
        cluster.wait(&id, "the loss of a worker", is_held_by_w1)?;
        anyhow::Ok(view)
    };
    let before = lose_w2(&mut cluster)?;
    // `drain` returns when the worker is empty.
    cluster.ok(&["drain", "w1"])?;
    let view = cluster.wait(&id, "a checkpoint", |view| view.phase == "queued")?;
    ensure!(
        view.checkpoints.len() == 1 && before.step <= view.checkpoints[0].step,
        "{view:?} after {before:?}"
    );
    cluster.ok(&["undrain", "w1"])?;
    cluster.start_worker(1)?;
    let view = lose_w2(&mut cluster)?;
    ensure!(
        (view.restarts, view.checkpoints.len()) == (1, 1),
        "{view:?}"
    );
    let paused_at = check_nothing_lost(&cluster, &dataset, &id, 1)?;
    ensure!(view.step <= paused_at, "{paused_at} after {view:?}");
    cluster.stop()
}
