//! `make bench-recovery`: how long a job of four CPU ranks on loopback stalls when one of them is
//! killed (SIGKILL), from the kill to the first reported step that certainly began after it; median
//! and maximum over KILLS kills. The job may run on fewer ranks: the others continue at once, and
//! the fourth joins again when its process has started. `tests/bench/recovery_peers.py` does the
//! same to torchrun and torchft. Only measures.

use anyhow::{Context, Result};
use proto::pb::PhaseSeconds;
use proto::phase::Phase;
use std::time::{Duration, Instant};
use tests::cluster::job::{TinyJob, synthesize};
use tests::cluster::watch::Watch;
use tests::cluster::{Cluster, Options};

const WORKERS: usize = 4;
const FULL: u32 = 4;
const QUIET_STEPS: u64 = 5;

fn main() -> Result<()> {
    let kills = match std::env::args().nth(1) {
        Some(kills) => kills
            .parse()
            .with_context(|| format!("`{kills}` is not a number of kills"))?,
        None => 20,
    };
    let cluster = Cluster::start(Options::with_workers(WORKERS))?;
    let dataset = format!("file://{}", cluster.directory().join("figures").display());
    cluster.ok(&synthesize(&dataset))?;
    let endless = TinyJob {
        name: "recovery".to_owned(),
        dataset,
        workers: FULL,
        steps: 1_000_000,
        checkpoint_every: 1_000_000,
    };
    let id = cluster.submit(
        &endless
            .to_toml()
            .replace("min = 4", "min = 1")
            .replace("micro_batch = 2", "micro_batch = 1")
            .replace("[checkpoint]", "reduction = \"exact\"\n[checkpoint]"),
    )?;
    let times = measure(&cluster, &mut cluster.watch(&id)?, kills)?;
    let seconds = |time: Option<&Duration>| time.map_or(0.0, Duration::as_secs_f64);
    println!(
        "BENCH recovery from kill -9 of one of {WORKERS} ranks: median {:.2} s, longest {:.2} s, \
        {} of {kills} recovered",
        seconds(times.get(times.len() / 2)),
        seconds(times.last()),
        times.len()
    );
    cluster.ok(&["cancel", &id])?;
    cluster.stop()
}

/// How long the job stalled after each kill, shortest first.
fn measure(cluster: &Cluster, watch: &mut Watch, kills: usize) -> Result<Vec<Duration>> {
    let (mut times, mut quiet) = (Vec::new(), Vec::new());
    let mut step = 0;
    for kill in 0..kills {
        // Wait until all ranks train again and have done some undisturbed steps.
        let before = watch.until("training", |view| {
            view.phase == Phase::Training && view.world == FULL && step + QUIET_STEPS < view.step
        })?;
        quiet.extend(
            before
                .last_step
                .and_then(|last| last.seconds)
                .map(whole_step),
        );
        let victim = kill % WORKERS;
        let start = Instant::now();
        cluster.kill_rank(victim)?;
        // The first reported step may have been done before the kill; the next one was not.
        let reported = watch.until("a reported step", |view| {
            before.generation < view.generation
                && view.phase == Phase::Training
                && before.step <= view.step
        })?;
        let after = watch.until("the next step", |view| reported.step < view.step)?;
        let took = start.elapsed();
        step = after.step;
        println!(
            "kill {}: worker {}, step {}, {:.3} s",
            kill + 1,
            victim + 1,
            before.step,
            took.as_secs_f64()
        );
        times.push(took);
    }
    times.sort();
    quiet.sort_by(f64::total_cmp);
    if let Some(median) = quiet.get(quiet.len() / 2) {
        println!(
            "an undisturbed step takes {:.0} ms (median)",
            1000.0 * median
        );
    }
    Ok(times)
}

fn whole_step(seconds: PhaseSeconds) -> f64 {
    let PhaseSeconds {
        data,
        forward,
        backward,
        communication,
        optimizer,
        checkpoint,
        validation,
    } = seconds;
    data + forward + backward + communication + optimizer + checkpoint + validation
}
