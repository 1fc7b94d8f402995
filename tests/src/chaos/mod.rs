//! Chaos on real processes: a tiny elastic job on loopback, with everything on a real S3 server,
//! under random faults: ranks, daemons, the coordinator and the object store are killed, stopped
//! and continued; workers are drained, added and shut down. Faults overlap. Every job must end with
//! a clean audit and with the weights of an undisturbed run, bit for bit. As systemd would, it
//! restarts processes that have exited; it repairs nothing else.
//!
//! Called by `make chaos` (`tests/src/bin/chaos.rs`) and, with few faults, by
//! `tests/tests/cluster_chaos.rs`. It waits for completed steps, never for time; time only limits
//! the length of a fault and is reported.

mod fault;
mod observer;
mod summary;

use crate::cluster::job::{TinyJob, synthesize};
use crate::cluster::seaweedfs::{BUCKET, SeaweedFs};
use crate::cluster::{Cluster, Options as ClusterOptions};
use crate::world::Rng;
use anyhow::{Context, Result, bail, ensure};
pub use fault::Kind;
use fault::Undo;
use observer::{Observer, Seen};
use proto::phase::Phase;
use std::path::Path;
use std::time::{Duration, Instant};
pub use summary::Summary;

/// Workers that always run; one more is added and removed.
const WORKERS: usize = 3;
/// The most steps between two faults.
const UNDISTURBED_STEPS_MAX: u64 = 6;
/// A job that does no step in this time, with nothing stopped or down, hangs. Far above all
/// deadlines of the system.
const HANG: Duration = Duration::from_secs(180);
/// A listed fault that finds no target within this many jobs is an error.
const JOBS_MAX: u32 = 3;
const SLICE: Duration = Duration::from_millis(50);

/// The faults to inject.
#[derive(Debug, Clone)]
pub enum Faults {
    /// Random ones, until there were this many SIGKILLs.
    Kills(usize),
    /// Exactly these, in this order.
    Listed(Vec<Kind>),
}

#[derive(Debug, Clone)]
pub struct Options {
    pub seed: u64,
    pub faults: Faults,
    /// Steps of a job. A job that ends before the last fault is followed by another.
    pub steps: u64,
    /// The longest time that something stays stopped or down.
    pub longest: Duration,
}

/// Runs all jobs and faults to their end.
///
/// # Errors
/// The first failed check, with the seed and the location of the logs.
pub fn run(options: &Options) -> Result<Summary> {
    let directory = tempfile::tempdir().context("a folder for the object store")?;
    let seed = options.seed;
    let mut chaos = Chaos::start(options, directory.path())
        .with_context(|| format!("before chaos with seed {seed} begins"))?;
    match chaos.run() {
        Ok(()) => chaos.end(),
        Err(error) => {
            let (logs, explanation) = (chaos.cluster.log_tail(), chaos.explanation());
            bail!(
                "{logs}\n{explanation}\nchaos with seed {seed} fails after {} faults: {error:#}\n\
                logs are in {}, those of the object store in {}",
                chaos.summary.faults.len(),
                chaos.cluster.keep_directory().display(),
                directory.keep().display()
            )
        }
    }
}

struct Chaos<'a> {
    options: &'a Options,
    rng: Rng,
    cluster: Cluster,
    store: SeaweedFs,
    job: Job,
    /// The digest of an undisturbed job.
    expected: String,
    /// Faults to undo, and when.
    undos: Vec<(Instant, Undo)>,
    /// Faults after which fewer than two further steps have been reported.
    pending: Vec<PendingFault>,
    /// When the object store last had a fault: the coordinator may exit only because of that.
    store_fault_at: Option<Instant>,
    summary: Summary,
}

/// The job under test.
struct Job {
    id: String,
    observer: Observer,
    seen: Seen,
    /// When its newest step was reported; None before the first.
    stepped: Option<Instant>,
}

struct PendingFault {
    /// Its index in the summary.
    fault: usize,
    at: Instant,
    /// The first reported step after the fault. It may have been done before; the next one was not.
    first: Option<u64>,
    before: u64,
}

impl<'a> Chaos<'a> {
    fn start(options: &'a Options, directory: &Path) -> Result<Self> {
        let store = SeaweedFs::start(directory)?;
        let cluster = Cluster::start(ClusterOptions {
            workers: WORKERS,
            store: Some(format!("s3://{BUCKET}/store")),
            environment: store.environment(),
            network: None,
        })?;
        cluster.ok(&synthesize(&dataset()))?;
        let id = cluster.submit(&job_toml(options.steps))?;
        let view = cluster.wait_done(&id)?;
        ensure!(
            view.restarts == 0,
            "{id} restarted without a fault: {view:?}"
        );
        let expected = cluster
            .ok(&["checkpoint", "digest", &id])?
            .trim()
            .to_owned();
        let job = Job::submit(&cluster, options.steps)?;
        Ok(Self {
            options,
            rng: Rng::new(options.seed, 4),
            cluster,
            store,
            job,
            summary: Summary::new(options.seed, options.steps, &expected),
            expected,
            undos: Vec::new(),
            pending: Vec::new(),
            store_fault_at: None,
        })
    }

    fn run(&mut self) -> Result<()> {
        let mut planned = match &self.options.faults {
            Faults::Listed(kinds) => kinds.clone().into_iter(),
            Faults::Kills(_) => Vec::new().into_iter(),
        };
        loop {
            let kind = match self.options.faults {
                Faults::Listed(_) => planned.next(),
                Faults::Kills(wanted) => {
                    (self.summary.kills() < wanted).then(|| Kind::random(&mut self.rng))
                }
            };
            let Some(kind) = kind else { break };
            // Sometimes a second fault is injected before recovery from the first; never a third.
            let at_once = self.pending.len() == 1 && self.rng.chance(300);
            if !at_once {
                let steps = self.rng.between(1, UNDISTURBED_STEPS_MAX);
                self.wait_undisturbed_steps(steps)?;
            }
            // A random fault may find no target; a listed one waits until its target is back.
            let planned = matches!(self.options.faults, Faults::Listed(_));
            while !self.inject(kind)? && planned {
                self.wait_recovered()?;
                self.wait_undisturbed_steps(1)?;
                ensure!(
                    self.summary.jobs() < JOBS_MAX,
                    "{} finds no target",
                    kind.description()
                );
            }
        }
        self.wait_recovered()?;
        self.until("the end of the job", |chaos| chaos.job.seen.is_over())?;
        self.check_end()
    }

    /// Waits until the job has recovered from every fault and has done `steps` more steps.
    fn wait_undisturbed_steps(&mut self, steps: u64) -> Result<()> {
        self.until("steps after the last fault", |chaos| {
            chaos.pending.is_empty() || chaos.job.seen.is_over()
        })?;
        let until = self.job.seen.step + steps;
        self.until("undisturbed steps", |chaos| {
            chaos.job.seen.is_over() || chaos.job.stepped.is_some() && until <= chaos.job.seen.step
        })?;
        if self.job.seen.is_over() {
            self.wait_recovered()?;
            self.check_end()?;
            self.job = Job::submit(&self.cluster, self.options.steps)?;
            self.pending.clear();
            self.until("the next job's first step", |chaos| {
                chaos.job.stepped.is_some()
            })?;
        }
        Ok(())
    }

    /// Waits until everything that was stopped, killed or drained is back.
    fn wait_recovered(&mut self) -> Result<()> {
        self.until("everything to be back", |chaos| {
            chaos.undos.is_empty() && chaos.all_running()
        })
    }

    /// Receives views and supervises processes until `condition` is true.
    fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) -> Result<()> {
        let mut since = Instant::now();
        let mut before = (self.job.seen.step, self.undos.len());
        loop {
            self.supervise()?;
            if condition(self) {
                return Ok(());
            }
            self.receive_view(SLICE)?;
            let now = (self.job.seen.step, self.undos.len());
            if now != before || !self.undos.is_empty() {
                (before, since) = (now, Instant::now());
            }
            ensure!(
                since.elapsed() < HANG,
                "{} hangs: no {what} within {} s; it is {:?}",
                self.job.id,
                HANG.as_secs(),
                self.job.seen
            );
        }
    }

    /// Processes the next view of the job, if one arrives in time.
    fn receive_view(&mut self, within: Duration) -> Result<()> {
        if self.job.seen.is_over() {
            // No more views follow; the caller waits for processes.
            std::thread::sleep(within);
            return Ok(());
        }
        let Some(seen) = self.job.observer.next(within)? else {
            return Ok(());
        };
        if let Some(phase @ (Phase::Failed | Phase::Cancelled)) = Phase::of(&seen.phase) {
            bail!("{} {phase}: {}", self.job.id, seen.reason);
        }
        let steps = self.job.seen.step < seen.step;
        if steps {
            if let Some(before) = self.job.stepped {
                self.summary.waited(seen.at.duration_since(before));
            }
            self.job.stepped = Some(seen.at);
        }
        self.job.seen = seen;
        let seen = &self.job.seen;
        for pending in &mut self.pending {
            if pending.first.is_none()
                && steps
                && pending.at <= seen.at
                && pending.before < seen.step
            {
                pending.first = Some(seen.step);
            }
        }
        let summary = &mut self.summary;
        self.pending.retain(|pending| {
            let over = pending.first.is_some_and(|first| first < seen.step) || seen.is_over();
            if over {
                summary.recovered(pending.fault, seen.at.duration_since(pending.at));
            }
            !over
        });
        Ok(())
    }

    /// The job has ended: it must equal the undisturbed run.
    fn check_end(&mut self) -> Result<()> {
        let id = self.job.id.clone();
        let view = self.cluster.json(&["describe", &id])?;
        ensure!(
            view["phase"] == Phase::Done.word(),
            "{id} is not done: {view}"
        );
        let incidents = view["incidents"].as_array().map_or(0, Vec::len);
        ensure!(
            !view["incidents"].to_string().contains("panic"),
            "a rank of {id} panicked: {view}"
        );
        let audit = self.cluster.json(&["audit", &id])?;
        ensure!(
            audit["clean"] == true && audit["steps"] == self.options.steps,
            "the audit of {id} is not clean: {audit}"
        );
        self.cluster.ok(&["checkpoint", "verify", &id])?;
        let digest = self
            .cluster
            .ok(&["checkpoint", "digest", &id])?
            .trim()
            .to_owned();
        ensure!(
            digest == self.expected,
            "{id} ends with {digest}, and the undisturbed run with {}",
            self.expected
        );
        let generation = view["generation"].as_u64().unwrap_or(0);
        self.summary.job_done(incidents, generation);
        Ok(())
    }

    fn end(self) -> Result<Summary> {
        self.cluster.stop()?;
        Ok(self.summary)
    }

    /// The output of `coordinator why`, for the error message.
    fn explanation(&self) -> String {
        if !self.coordinator_answers() {
            return "the coordinator is down or stopped\n".to_owned();
        }
        let answer = self.cluster.run(&["why", &self.job.id]);
        answer.map_or_else(
            |error| error.to_string(),
            |outcome| outcome.stdout + &outcome.stderr,
        )
    }
}

impl Job {
    fn submit(cluster: &Cluster, steps: u64) -> Result<Self> {
        let id = cluster.submit(&job_toml(steps))?;
        Ok(Self {
            observer: Observer::start(cluster.url(), &id),
            id,
            seen: Seen::nothing(),
            stepped: None,
        })
    }
}

fn dataset() -> String {
    format!("s3://{BUCKET}/figures")
}

/// Five micro-batches, which only a world of one divides evenly. The job runs on one worker or
/// more.
fn job_toml(steps: u64) -> String {
    let tiny = TinyJob {
        name: "chaos".to_owned(),
        dataset: dataset(),
        workers: 1,
        steps,
        checkpoint_every: 10,
    };
    let text = tiny.to_toml();
    let text = text.replace(
        "workers = { min = 1, max = 1 }",
        "workers = { min = 1, max = 4 }",
    );
    let text = text.replace(
        "global_batch = 4\nmicro_batch = 2",
        "global_batch = 5\nmicro_batch = 1",
    );
    text.replace("[checkpoint]", "reduction = \"exact\"\n[checkpoint]")
}
