//! Real processes on loopback: a coordinator is replaced, or is down when it is needed.
#![allow(clippy::unwrap_used)]

use anyhow::{Result, ensure};
use tests::cluster::command::run;
use tests::cluster::job::{TinyJob, synthesize};
use tests::cluster::process::{signal, wait_until_exited};
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

/// The digest of this job without faults.
fn undisturbed(cluster: &Cluster, job: &str) -> Result<String> {
    let id = cluster.submit(job)?;
    cluster.wait_done(&id)?;
    cluster.ok(&["checkpoint", "digest", &id])
}

/// The job is done, with a clean audit and the expected weights.
fn ends_well(cluster: &Cluster, id: &str, expected: &str) -> Result<()> {
    cluster.wait_done(id)?;
    let audit = cluster.json(&["audit", id])?;
    ensure!(audit["clean"] == true && audit["steps"] == 150, "{audit}");
    let digest = cluster.ok(&["checkpoint", "digest", id])?;
    ensure!(digest == expected, "{digest} is not {expected}");
    Ok(())
}

/// The first coordinator is stopped, a second one takes over on the same store, and the job
/// continues under it. When the first one continues, with a request waiting, the store fences off
/// its write, and it exits.
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
    relay.switch_to(cluster.url());
    let step = cluster.wait(&id, "a view", |_| true)?.step;
    cluster.wait_step(&id, step + 3)?;

    // Sent while the process is stopped; answered when it continues.
    let cancel = cluster.client(&first.url, &["cancel", &id])?;
    let cancel = std::thread::spawn(move || run(cancel));
    signal("CONT", first.process.id())?;
    let refused = cancel.join().unwrap()?.failure()?;
    ensure!(
        refused.contains(&first.url) || refused.contains("stopping"),
        "{refused}"
    );
    let (status, output) = first.process.wait()?;
    ensure!(
        !status.success(),
        "the first coordinator exited with {status}"
    );
    ensure!(
        output.contains("another coordinator took over the state"),
        "{output}"
    );

    ends_well(&cluster, &id, &expected)?;
    let view = cluster.json(&["describe", &id])?;
    ensure!(view["phase"] == "done" && view["restarts"] == 0, "{view}");
    cluster.stop()
}

/// A rank dies, and so does the coordinator before it can form the next generation. The survivors
/// keep their state and wait; once a coordinator is back they continue. Only the rank that died is
/// restarted.
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
    wait_until_exited(victim)?;
    cluster.start_coordinator()?;
    cluster.wait(&id, "the next generation", |view| {
        1 < view.generation && view.phase == "training" && 11 < view.step
    })?;
    ensure!(
        survivors == [cluster.rank(0)?, cluster.rank(2)?],
        "a survivor was restarted"
    );
    ends_well(&cluster, &id, &expected)?;
    cluster.stop()
}
