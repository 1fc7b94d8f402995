//! Real processes on loopback: coordinators that are replaced, or are not there when they are
//! needed.
#![allow(clippy::unwrap_used)]

use anyhow::{Result, ensure};
use tests::cluster::command::run;
use tests::cluster::job::{TinyJob, synthesize};
use tests::cluster::process::{signal, wait_until_gone};
use tests::cluster::relay::Relay;
use tests::cluster::{Cluster, Options};

fn job(dataset: &str, workers: u32) -> String {
    let tiny = TinyJob {
        name: "tiny".to_owned(),
        dataset: dataset.to_owned(),
        workers,
        steps: 150,
        checkpoint_every: 20,
    };
    tiny.to_toml()
        .replace("[checkpoint]", "reduction = \"exact\"\n[checkpoint]")
}

/// The digest of this job when nothing happens to it.
fn undisturbed(cluster: &Cluster, job: &str) -> Result<String> {
    let id = cluster.submit(job)?;
    cluster.wait_done(&id)?;
    cluster.ok(&["checkpoint", "digest", &id])
}

/// It ends as if nothing had been.
fn ends_well(cluster: &Cluster, id: &str, expected: &str) -> Result<()> {
    cluster.wait_done(id)?;
    let audit = cluster.json(&["audit", id])?;
    ensure!(audit["clean"] == true && audit["steps"] == 150, "{audit}");
    let digest = cluster.ok(&["checkpoint", "digest", id])?;
    ensure!(digest == expected, "{digest} is not {expected}");
    Ok(())
}

/// The first coordinator stands still, a second one takes its place on the same store, and the job
/// goes on under it. When the first wakes up, with a request waiting for it, the store refuses what
/// it tries, and that is its end.
#[test]
fn a_second_coordinator_process_takes_over_and_the_first_is_refused() -> Result<()> {
    let mut cluster = Cluster::start(Options::with_workers(0))?;
    let relay = Relay::start(cluster.url())?;
    cluster.reach_coordinator_at(relay.url());
    cluster.start_worker(0)?;
    cluster.start_worker(1)?;
    let dataset = format!("file://{}", cluster.directory().join("figures").display());
    cluster.ok(&synthesize(&dataset))?;
    let job = job(&dataset, 2);
    let expected = undisturbed(&cluster, &job)?;

    let id = cluster.submit(&job)?;
    cluster.wait_step(&id, 10)?;
    let first = cluster.coordinator_pid()?;
    signal("STOP", first)?;
    let first = cluster.replace_coordinator()?;
    relay.lead_to(cluster.url());
    let step = cluster.wait(&id, "a view", |_| true)?.step;
    cluster.wait_step(&id, step + 3)?;

    // Asked while it stands still; answered when it wakes up.
    let cancel = cluster.client(&first.url, &["cancel", &id])?;
    let cancel = std::thread::spawn(move || run(cancel));
    signal("CONT", first.process.id())?;
    let refused = cancel.join().unwrap()?.failure()?;
    ensure!(
        refused.contains(&first.url) || refused.contains("stopping"),
        "{refused}"
    );
    let (status, said) = first.process.wait()?;
    ensure!(!status.success(), "the first ended with {status}");
    ensure!(
        said.contains("another coordinator took over the state"),
        "{said}"
    );

    ends_well(&cluster, &id, &expected)?;
    let view = cluster.json(&["describe", &id])?;
    ensure!(view["phase"] == "done" && view["restarts"] == 0, "{view}");
    cluster.stop()
}

/// A rank dies, and before anybody can form the next generation so does the coordinator. The others
/// wait, with all that they hold; when a coordinator is there again they go on, with no process
/// started anew but the one that died.
#[test]
fn a_generation_change_without_a_coordinator_waits_for_one() -> Result<()> {
    let mut cluster = Cluster::start(Options::with_workers(3))?;
    let dataset = format!("file://{}", cluster.directory().join("figures").display());
    cluster.ok(&synthesize(&dataset))?;
    let job = job(&dataset, 2).replace("max = 2", "max = 3").replace(
        "global_batch = 4\nmicro_batch = 2",
        "global_batch = 5\nmicro_batch = 1",
    );
    let expected = undisturbed(&cluster, &job)?;

    let id = cluster.submit(&job)?;
    let view = cluster.wait_step(&id, 10)?;
    ensure!(view.world == 3, "{view:?}");
    let survivors = [cluster.rank(0)?, cluster.rank(2)?];
    let victim = cluster.rank(1)?;
    cluster.kill_coordinator()?;
    signal("KILL", victim)?;
    wait_until_gone(victim)?;
    cluster.start_coordinator()?;
    cluster.wait(&id, "the next generation", |view| {
        1 < view.generation && view.phase == "training" && 11 < view.step
    })?;
    ensure!(
        survivors == [cluster.rank(0)?, cluster.rank(2)?],
        "a survivor was started anew"
    );
    ends_well(&cluster, &id, &expected)?;
    cluster.stop()
}
