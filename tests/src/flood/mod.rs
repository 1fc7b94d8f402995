//! A victim job trains beside each flood of [`attack`]: one sender that does too much of one thing.
//! The victim must lose no step, and the coordinator must go on answering. Called by
//! `make chaos FLOOD=1` (`tests/src/bin/chaos.rs`), which prints the victim's step rate with and
//! without each flood, the coordinator's memory and its longest silence, and, with few steps, by
//! `tests/tests/cluster_flood.rs`.

mod attack;
mod probe;

use crate::cluster::job::{elastic, synthesize, wait_training};
use crate::cluster::{Cluster, Options as ClusterOptions};
use anyhow::{Context, Result, ensure};
pub use attack::Tally;
use attack::{Attack, Target};
use probe::Probe;
use proto::phase::Phase;
use std::fmt;
use std::time::{Duration, Instant};

/// What a flood consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Connections that never say a word.
    IdleConnections,
    /// Connections that say something which is no request.
    Garbage,
    /// Requests of 58 MB.
    LargeMessages,
    /// A URL of 800 kB, 6.6 MB of prompts, and 256 errors in one text.
    LongTexts,
    /// The largest jobs that are admitted, only checked.
    LargeJobs,
    /// Jobs that wait for ever.
    Submits,
    /// Streams of views that nobody reads.
    Watches,
    /// Workers that report once, each with a new name.
    InventedWorkers,
    /// A worker that reports without a pause.
    Reports,
}

impl Kind {
    pub const ALL: [Self; 9] = [
        Self::IdleConnections,
        Self::Garbage,
        Self::LargeMessages,
        Self::LongTexts,
        Self::LargeJobs,
        Self::Watches,
        Self::InventedWorkers,
        Self::Reports,
        // Last, because its jobs go on waiting.
        Self::Submits,
    ];

    #[must_use]
    pub fn description(self) -> &'static str {
        match self {
            Self::IdleConnections => "idle connections",
            Self::Garbage => "connections with garbage",
            Self::LargeMessages => "requests of 58 MB",
            Self::LongTexts => "long URLs, prompts and errors",
            Self::LargeJobs => "the largest jobs that are admitted",
            Self::Submits => "jobs that wait",
            Self::Watches => "streams that nobody reads",
            Self::InventedWorkers => "invented workers",
            Self::Reports => "reports without a pause",
        }
    }

    /// Words of the refusal that a sender gets, if it gets any.
    #[must_use]
    pub fn refusal(self) -> Option<&'static str> {
        match self {
            Self::LargeMessages => Some("message length too large"),
            Self::LongTexts => Some("at most"),
            Self::Submits => Some("waiting jobs, and its quota is"),
            Self::Watches => Some("streams in progress"),
            Self::IdleConnections
            | Self::Garbage
            | Self::LargeJobs
            | Self::InventedWorkers
            | Self::Reports => None,
        }
    }

    /// Words of the warning in the coordinator's log, if the flood deserves one.
    #[must_use]
    pub fn warning(self) -> Option<&'static str> {
        match self {
            Self::IdleConnections => Some("too many connections"),
            Self::Watches => Some("streams in progress, the most"),
            // "requests are refused again and again" depends on how many there are in ten seconds.
            Self::LargeMessages | Self::LongTexts | Self::Submits => None,
            // What they do is allowed, or ends at once.
            Self::Garbage | Self::LargeJobs | Self::InventedWorkers | Self::Reports => None,
        }
    }
}

/// How long the victim trains beside each flood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    Steps(u64),
    Time(Duration),
}

/// The victim beside one flood, or without one.
#[derive(Debug, Clone)]
pub struct Round {
    /// None: undisturbed.
    pub kind: Option<Kind>,
    pub steps_per_second: f64,
    /// Largest resident memory of the coordinator so far, in MB of 10^6 bytes.
    pub memory_mb: f64,
    pub longest_silence: Duration,
    pub probes: u64,
    pub tally: Tally,
}

#[derive(Debug)]
pub struct Report {
    pub rounds: Vec<Round>,
    pub steps: u64,
    /// The coordinator's whole log.
    pub log: String,
}

/// Runs the victim beside each of these floods in turn, with an undisturbed round before each.
///
/// # Errors
/// The victim restarted, lost a step or failed, or the coordinator did not answer; the message ends
/// with the logs.
pub fn run(kinds: &[Kind], length: Length) -> Result<Report> {
    let cluster = Cluster::start(ClusterOptions::with_workers(1))?;
    let logs = |error: anyhow::Error| error.context(cluster.log_tail());
    let report = flood(&cluster, kinds, length).map_err(logs)?;
    cluster.stop()?;
    Ok(report)
}

fn flood(cluster: &Cluster, kinds: &[Kind], length: Length) -> Result<Report> {
    let dataset = format!("file://{}", cluster.directory().join("figures").display());
    cluster.ok(&synthesize(&dataset))?;
    let victim = cluster.submit(&elastic(&dataset, 1..=1, 1_000_000_000))?;
    wait_training(cluster, &victim, 1)?;
    let target = Target {
        address: cluster.url().trim_start_matches("http://").to_owned(),
        victim: victim.clone(),
        dataset,
    };
    let mut rounds = Vec::new();
    for kind in kinds {
        if let Length::Time(_) = length {
            let undisturbed = round(cluster, &target, None, length)?;
            rounds.push(undisturbed);
        }
        let disturbed = round(cluster, &target, Some(*kind), length)
            .with_context(|| format!("beside {}", kind.description()))?;
        rounds.push(disturbed);
    }
    let steps = check_victim(cluster, &victim)?;
    let log = cluster.coordinator_log()?;
    Ok(Report { rounds, steps, log })
}

fn round(cluster: &Cluster, target: &Target, kind: Option<Kind>, length: Length) -> Result<Round> {
    let attack = kind.map(|kind| Attack::start(kind, target));
    let mut watch = cluster.watch(&target.victim)?;
    // What is measured begins when the flood has.
    let begun = watch.until("the flood", |_| {
        attack.as_ref().is_none_or(Attack::has_begun)
    })?;
    let probe = Probe::start(cluster.url());
    let since = Instant::now();
    let end = watch.until("steps beside the flood", |view| match length {
        Length::Steps(steps) => begun.step + steps <= view.step,
        Length::Time(time) => time <= since.elapsed() && begun.step < view.step,
    })?;
    let seconds = since.elapsed().as_secs_f64();
    let why = cluster.run(&["why", &target.victim])?.success()?;
    ensure!(
        why.contains("training"),
        "why the victim is not done: {why}"
    );
    let (probes, longest_silence) = probe.stop()?;
    let tally = attack.map(Attack::stop).transpose()?.unwrap_or_default();
    ensure!(
        end.phase == Phase::Training && end.restarts == 0,
        "the victim was disturbed: {end:?}"
    );
    #[allow(clippy::cast_precision_loss)] // A number of steps.
    let steps_per_second = (end.step - begun.step) as f64 / seconds;
    Ok(Round {
        kind,
        steps_per_second,
        memory_mb: cluster.coordinator_memory_mb()?,
        longest_silence,
        probes,
        tally,
    })
}

/// Every step counts once, no generation ended, and the curve has every step.
fn check_victim(cluster: &Cluster, victim: &str) -> Result<u64> {
    cluster.ok(&["pause", victim])?;
    let view = cluster.wait(victim, "a pause", |view| view.phase == Phase::Paused)?;
    ensure!(view.restarts == 0, "the victim restarted: {view:?}");
    ensure!(view.incidents.is_empty(), "incidents: {:?}", view.incidents);
    let audit = cluster.json(&["audit", victim])?;
    ensure!(
        audit["clean"] == true && audit["steps"] == view.step,
        "the victim is at step {}, and its audit says {audit}",
        view.step
    );
    Ok(view.step)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "FLOOD: {} steps of the victim, none lost", self.steps)?;
        writeln!(
            f,
            "  {:<36} {:>8} {:>8} {:>8} {:>10} {:>9} {:>9}",
            "beside", "steps/s", "without", "memory", "silence", "sent", "refused"
        )?;
        let mut without: Option<f64> = None;
        for round in &self.rounds {
            let Some(kind) = round.kind else {
                without = Some(round.steps_per_second);
                continue;
            };
            let undisturbed = without.map_or("-".to_owned(), |rate| format!("{rate:.2}"));
            writeln!(
                f,
                "  {:<36} {:>8.2} {undisturbed:>8} {:>5.0} MB {:>8.2} s {:>9} {:>9}",
                kind.description(),
                round.steps_per_second,
                round.memory_mb,
                round.longest_silence.as_secs_f64(),
                round.tally.sent,
                round.tally.refused,
            )?;
            if let Some(words) = &round.tally.words {
                let words: String = words.chars().take(200).collect();
                writeln!(f, "    {words}")?;
            }
        }
        Ok(())
    }
}
