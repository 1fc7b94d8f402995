//! Chaos on real processes: a tiny elastic job on loopback, with everything on a real S3 server,
//! while a seed decides who is killed, stopped and continued, drained, added and asked to leave:
//! ranks, daemons, the coordinator, the object store. Faults overlap. Every job must end with a
//! clean audit and, to the last bit, with the weights of a run that nobody disturbed. It does for
//! the processes what systemd would: who is gone is started again. It never mends anything by hand.
//!
//! Called by `make chaos` (`tests/src/bin/chaos.rs`) and, with few faults, by
//! `tests/tests/cluster_chaos.rs`. What it waits for is steps that were done; time is only how long
//! a fault lasts, and what it reports.

mod observer;
mod strike;
mod summary;

use crate::cluster::job::{TinyJob, synthesize};
use crate::cluster::seaweedfs::{BUCKET, SeaweedFs};
use crate::cluster::{Cluster, Options as ClusterOptions};
use crate::world::Rng;
use anyhow::{Context, Result, bail, ensure};
use observer::{Observer, Seen};
use proto::phase::Phase;
use std::path::Path;
use std::time::{Duration, Instant};
pub use strike::Kind;
use strike::Undo;
pub use summary::Summary;

/// Workers that are always wanted; one more comes and goes.
const WORKERS: usize = 3;
/// Steps of a job between two strikes at most.
const QUIET_STEPS_MAX: u64 = 6;
/// A job that does no step for so long, though nothing is stopped or down, hangs. Far above any
/// deadline of the system.
const HANG: Duration = Duration::from_secs(180);
/// A planned strike that hit nobody in so many jobs hits nobody ever.
const JOBS_MAX: u32 = 3;
const SLICE: Duration = Duration::from_millis(50);

/// Which strikes there are.
#[derive(Debug, Clone)]
pub enum Strikes {
    /// As the seed says, until there were so many SIGKILLs.
    Kills(usize),
    /// Exactly these, in this order.
    These(Vec<Kind>),
}

#[derive(Debug, Clone)]
pub struct Options {
    pub seed: u64,
    pub strikes: Strikes,
    /// Steps of a job. A job that ends before the last strike is followed by another.
    pub steps: u64,
    /// Longest time that something stays stopped or down.
    pub longest: Duration,
}

/// Runs it to its end.
///
/// # Errors
/// The first thing that is not as it should be, with the seed and where the logs lie.
pub fn run(options: &Options) -> Result<Summary> {
    let directory = tempfile::tempdir().context("a folder for the object store")?;
    let seed = options.seed;
    let mut chaos = Chaos::start(options, directory.path())
        .with_context(|| format!("before chaos with seed {seed} begins"))?;
    match chaos.live() {
        Ok(()) => chaos.end(),
        Err(error) => {
            let (said, why) = (chaos.cluster.last_words(), chaos.why());
            bail!(
                "{said}\n{why}\nchaos with seed {seed} fails after {} strikes: {error:#}\nlogs \
                lie in {}, the object store's in {}",
                chaos.summary.strikes.len(),
                chaos.cluster.keep().display(),
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
    /// The digest of a job that nobody disturbed.
    expected: String,
    /// What will be taken back, and when.
    undos: Vec<(Instant, Undo)>,
    /// Strikes after which two further steps are not told yet.
    open: Vec<Open>,
    /// When the object store was last touched: only then may the coordinator end by itself.
    store_struck: Option<Instant>,
    summary: Summary,
}

/// The job that is disturbed.
struct Job {
    id: String,
    observer: Observer,
    seen: Seen,
    /// When its newest step was told; None before the first.
    stepped: Option<Instant>,
}

struct Open {
    /// Its place in the summary.
    strike: usize,
    at: Instant,
    /// The first step that is told after it may have been done before; the next one was not.
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
        ensure!(view.restarts == 0, "nobody disturbed {id}: {view:?}");
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
            open: Vec::new(),
            store_struck: None,
        })
    }

    fn live(&mut self) -> Result<()> {
        let mut planned = match &self.options.strikes {
            Strikes::These(kinds) => kinds.clone().into_iter(),
            Strikes::Kills(_) => Vec::new().into_iter(),
        };
        loop {
            let kind = match self.options.strikes {
                Strikes::These(_) => planned.next(),
                Strikes::Kills(wanted) => {
                    (self.summary.kills() < wanted).then(|| Kind::drawn(&mut self.rng))
                }
            };
            let Some(kind) = kind else { break };
            // Now and then the next fault comes before the last one is got over; never a third.
            let at_once = self.open.len() == 1 && self.rng.chance(300);
            if !at_once {
                let steps = self.rng.between(1, QUIET_STEPS_MAX);
                self.go_on(steps)?;
            }
            // What the seed draws may hit nobody; what is planned waits until whom it is for is
            // there again.
            let planned = matches!(self.options.strikes, Strikes::These(_));
            while !self.strike(kind)? && planned {
                self.calm_down()?;
                self.go_on(1)?;
                ensure!(
                    self.summary.jobs() < JOBS_MAX,
                    "{} hits nobody",
                    kind.words()
                );
            }
        }
        self.calm_down()?;
        self.until("the end of the job", |chaos| chaos.job.seen.is_over())?;
        self.check_end()
    }

    /// Waits until every strike is got over and the job has done some steps more.
    fn go_on(&mut self, steps: u64) -> Result<()> {
        self.until("steps after the last strike", |chaos| {
            chaos.open.is_empty() || chaos.job.seen.is_over()
        })?;
        let until = self.job.seen.step + steps;
        self.until("quiet steps", |chaos| {
            chaos.job.seen.is_over() || chaos.job.stepped.is_some() && until <= chaos.job.seen.step
        })?;
        if self.job.seen.is_over() {
            self.calm_down()?;
            self.check_end()?;
            self.job = Job::submit(&self.cluster, self.options.steps)?;
            self.open.clear();
            self.until("the next job's first step", |chaos| {
                chaos.job.stepped.is_some()
            })?;
        }
        Ok(())
    }

    /// Waits until everything that was stopped, downed or drained is back.
    fn calm_down(&mut self) -> Result<()> {
        self.until("everything to be back", |chaos| {
            chaos.undos.is_empty() && chaos.is_whole()
        })
    }

    /// Hears of the job and tends the processes until `condition` is true.
    fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) -> Result<()> {
        let mut since = Instant::now();
        let mut before = (self.job.seen.step, self.undos.len());
        loop {
            self.tend()?;
            if condition(self) {
                return Ok(());
            }
            self.hear(SLICE)?;
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

    /// Takes in what is told of the job, for a moment.
    fn hear(&mut self, within: Duration) -> Result<()> {
        if self.job.seen.is_over() {
            // Nothing more is told; what is waited for are processes.
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
        for open in &mut self.open {
            if open.first.is_none() && steps && open.at <= seen.at && open.before < seen.step {
                open.first = Some(seen.step);
            }
        }
        let summary = &mut self.summary;
        self.open.retain(|open| {
            let over = open.first.is_some_and(|first| first < seen.step) || seen.is_over();
            if over {
                summary.got_over(open.strike, seen.at.duration_since(open.at));
            }
            !over
        });
        Ok(())
    }

    /// The job has ended: it must be as if nothing had been.
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

    /// What the coordinator says of the job, for people.
    fn why(&self) -> String {
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

/// Five micro-batches, so that no world but one divides them evenly; any world from one on will do.
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
