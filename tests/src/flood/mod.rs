//! A victim job trains beside each flood of [`attack`]: one sender that does too much of one thing.
//! The victim must lose no step, the coordinator must go on answering, and `coordinator why` must
//! name the flood. Called by `make chaos FLOOD=1` (`tests/src/bin/chaos.rs`), which prints the
//! victim's step rate with and without each flood, who took the processors meanwhile, the
//! coordinator's memory and its longest silence, and, with few steps, by
//! `tests/tests/cluster_flood.rs`.

mod attack;
mod cpu;
mod probe;
mod report;

use crate::cluster::job::{elastic, synthesize, wait_training};
use crate::cluster::watch::Watch;
use crate::cluster::{Cluster, Options as ClusterOptions};
use anyhow::{Context, Result, ensure};
pub use attack::Tally;
use attack::{Attack, Target};
pub use cpu::Cpu;
use probe::Probe;
use proto::phase::Phase;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

/// Until `coordinator why` names a flood: it must have gone on for some seconds.
const NAMED_WITHIN: Duration = Duration::from_secs(60);

/// What a flood consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Connections that never say a word.
    IdleConnections,
    /// Connections that say something which is no request.
    Garbage,
    /// Requests of 58 MB, and of 2 MB.
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

    /// The sender's address: not that of the victim and its user, and not that of another flood, so
    /// that none begins with what another one has used up.
    #[must_use]
    pub fn address(self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9 + self as u8))
    }

    /// The flood of this name: a part of its description.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|kind| kind.description().contains(name))
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

    /// Words of `coordinator why` of the victim: one of these.
    #[must_use]
    pub fn pressure(self) -> &'static [&'static str] {
        const DELAYING: &str = "the coordinator is delaying";
        const REFUSING: &str = "the coordinator is refusing";
        match self {
            Self::IdleConnections => &["refusing or closing"],
            Self::Garbage => &["end without a request"],
            Self::LargeMessages | Self::LongTexts | Self::Watches => &[REFUSING],
            // Delayed is who uses more than a share of a processor, which a sender alone on a fast
            // machine does sooner than one beside much else.
            Self::LargeJobs => &[DELAYING, "the coordinator is answering"],
            Self::InventedWorkers => &[DELAYING, "workers/s attach"],
            Self::Submits => &[DELAYING, REFUSING],
            Self::Reports => &["the coordinator is skipping"],
        }
    }

    /// Words of the warning in the coordinator's log, if the flood deserves one.
    #[must_use]
    pub fn warning(self) -> Option<&'static str> {
        match self {
            Self::IdleConnections => Some("too many connections"),
            Self::Garbage => Some("many connections ended without a request"),
            Self::Watches => Some("streams in progress, the most"),
            Self::LargeMessages | Self::LongTexts | Self::Submits => {
                Some("requests are refused again and again")
            }
            Self::InventedWorkers => Some("many workers came up within ten seconds"),
            // What it does is allowed, up to a share of a processor.
            Self::LargeJobs => None,
            Self::Reports => Some("a worker reports without a pause"),
        }
    }
}

/// How long the victim trains beside each flood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// So many steps, at whatever rate.
    Steps(u64),
    /// So long without and with the flood, by turns: half the time without it, half with it, and
    /// both again, so that whatever else changes on the machine meets both alike. The flood gets
    /// only a share of a processor.
    Time(Duration),
}

/// What the victim did in some time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rate {
    pub steps: u64,
    pub seconds: f64,
    pub cpu: Cpu,
}

#[allow(clippy::cast_precision_loss)] // Numbers of steps.
impl Rate {
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.steps as f64 / self.seconds
    }

    /// Per second of a processor that neither the flood nor other programs took.
    #[must_use]
    pub fn per_available_second(&self) -> f64 {
        self.steps as f64 / self.cpu.available()
    }

    fn add(&mut self, other: Self) {
        self.steps += other.steps;
        self.seconds += other.seconds;
        self.cpu = self.cpu + other.cpu;
    }
}

/// The victim beside one flood.
#[derive(Debug, Clone)]
pub struct Round {
    pub kind: Kind,
    /// Without the flood, in the same minutes. None: not measured.
    pub without: Option<Rate>,
    pub beside: Rate,
    /// Largest resident memory of the coordinator so far, in MB of 10^6 bytes.
    pub memory_mb: f64,
    pub longest_silence: Duration,
    pub probes: u64,
    pub tally: Tally,
    /// The coordinator's first line with [`Kind::warning`] since the flood began.
    pub warning: Option<String>,
    /// What `coordinator why` says of the flood.
    pub why: Option<String>,
}

#[derive(Debug)]
pub struct Report {
    pub rounds: Vec<Round>,
    pub steps: u64,
}

/// Runs the victim beside each of these floods in turn.
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
        is_limited: matches!(length, Length::Time(_)),
    };
    let mut rounds = Vec::new();
    for kind in kinds {
        let beside = || format!("beside {}", kind.description());
        let round = match length {
            Length::Steps(_) => round(cluster, &target, *kind, length),
            Length::Time(time) => by_turns(cluster, &target, *kind, time / 2),
        };
        rounds.push(round.with_context(beside)?);
    }
    let steps = check_victim(cluster, &victim)?;
    Ok(Report { rounds, steps })
}

/// Without the flood, with it, and both again.
fn by_turns(cluster: &Cluster, target: &Target, kind: Kind, time: Duration) -> Result<Round> {
    let undisturbed = || {
        let mut watch = cluster.watch(&target.victim)?;
        watch.next_view()?;
        // As beside the flood, because the questions take some time of a processor, too.
        let probe = Probe::start(cluster.url());
        let rate = measure(cluster, &mut watch, Length::Time(time), || true)?;
        probe.stop()?;
        anyhow::Ok(rate)
    };
    let mut without = undisturbed()?;
    let mut all = round(cluster, target, kind, Length::Time(time))?;
    without.add(undisturbed()?);
    let again = round(cluster, target, kind, Length::Time(time))?;
    all.beside.add(again.beside);
    all.memory_mb = again.memory_mb;
    all.longest_silence = all.longest_silence.max(again.longest_silence);
    all.probes += again.probes;
    all.tally.sent += again.tally.sent;
    all.tally.refused += again.tally.refused;
    all.without = Some(without);
    Ok(all)
}

/// The victim's rate over this length, or for longer until `is_enough`.
fn measure(
    cluster: &Cluster,
    watch: &mut Watch,
    length: Length,
    is_enough: impl Fn() -> bool,
) -> Result<Rate> {
    // From one step to another.
    let begun = watch.next_view()?.context("the victim ended")?.step;
    let (since, cpu) = (Instant::now(), Cpu::now(cluster)?);
    let end = watch.until("steps and a warning", |view| {
        let is_long_enough = match length {
            Length::Steps(steps) => begun + steps <= view.step,
            Length::Time(time) => time <= since.elapsed() && begun < view.step,
        };
        is_long_enough && is_enough()
    })?;
    ensure!(
        end.phase == Phase::Training && end.restarts == 0,
        "the victim was disturbed: {end:?}"
    );
    Ok(Rate {
        steps: end.step - begun,
        seconds: since.elapsed().as_secs_f64(),
        cpu: Cpu::now(cluster)? - cpu,
    })
}

/// The flood goes on until the victim has trained for long enough, the coordinator has warned, and
/// `why` names the flood.
fn round(cluster: &Cluster, target: &Target, kind: Kind, length: Length) -> Result<Round> {
    let before = cluster.coordinator_log()?.len();
    let warning = || {
        let words = kind.warning()?;
        let log = cluster.coordinator_log().unwrap_or_default();
        let new = log.get(before..).unwrap_or_default();
        let line = new.lines().find(|line| line.contains(words));
        Some(line.map(str::to_owned))
    };
    let attack = Attack::start(kind, target);
    let mut watch = cluster.watch(&target.victim)?;
    // What is measured begins when the flood has.
    watch.until("the flood", |_| attack.has_begun())?;
    let probe = Probe::start(cluster.url());
    let beside = measure(cluster, &mut watch, length, || warning() != Some(None))?;
    let (probes, longest_silence) = probe.stop()?;
    let why = named(cluster, target, kind)?;
    let tally = attack.stop()?;
    Ok(Round {
        kind,
        without: None,
        beside,
        memory_mb: cluster.coordinator_memory_mb()?,
        longest_silence,
        probes,
        tally,
        warning: warning().flatten(),
        why,
    })
}

/// What `coordinator why` says of the flood.
fn named(cluster: &Cluster, target: &Target, kind: Kind) -> Result<Option<String>> {
    let since = Instant::now();
    loop {
        let why = cluster.run(&["why", &target.victim])?.success()?;
        ensure!(
            why.contains("training"),
            "why the victim is not done: {why}"
        );
        let words = kind.pressure();
        let address = kind.address().to_string();
        let line = why
            .lines()
            .find(|line| line.contains(&address) && words.iter().any(|words| line.contains(words)));
        if let Some(line) = line {
            return Ok(Some(line.to_owned()));
        }
        ensure!(
            since.elapsed() < NAMED_WITHIN,
            "why does not say {words:?} beside the flood: {why}"
        );
    }
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
