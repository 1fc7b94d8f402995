//! The task that owns the socket to the daemon, and the report. It beats when nothing happens, so
//! that a rank deep in a kernel is known to be alive; it tells the rank's machine of every order,
//! and frees the model's thread from a collective where the machine wants that; and it ends the
//! process when the daemon says so or is gone, or when that thread hangs. Started by
//! [`crate::link`].

use crate::collective::{Aborter, exit_now};
use crate::task::{Machine, Shared, Task, Wanted};
use crate::watchdog::Watchdog;
use proto::id::{Generation, Rank};
use proto::message::{
    Assignment, DIGESTS_MAX, RankOrder, RankPhase, RankReport, STEPS_MAX, ShardReport, StepReport,
    UnitReport, WeightDigest,
};
use rank_core::{gang, units};
use std::sync::mpsc as threads;
use std::time::{Duration, Instant};
use tokio::io::{AsyncWriteExt, BufReader, Lines};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

/// Exit code when the daemon asked to stop, or went away.
pub(crate) const EXIT_STOPPED: i32 = 0;
const EXIT_ORPHANED: i32 = 3;
/// Exit code when the model's thread hangs.
const EXIT_HUNG: i32 = 4;

/// What the model's thread tells.
#[derive(Debug)]
pub(crate) enum Word {
    /// It is a rank of this generation from now on.
    TakeUp(Generation, Rank),
    Phase(RankPhase),
    StoreAddress(String),
    Step(StepReport),
    Shard(ShardReport),
    Digest(WeightDigest),
    /// The machine has something new to say.
    News,
    /// Whom to tell that all that was said before is on the wire.
    Flush(oneshot::Sender<()>),
    /// The last word, and whom to tell that it is on the wire.
    Last(RankPhase, oneshot::Sender<()>),
}

pub(crate) struct Conversation {
    /// Holds the steps whoever this rank is; only rank 0 sends them.
    pub(crate) report: RankReport,
    pub(crate) writer: OwnedWriteHalf,
    pub(crate) task: watch::Sender<Task>,
    pub(crate) shared: Shared,
    pub(crate) wants: threads::Sender<Wanted>,
    pub(crate) watch: Watchdog,
    /// Once said it is the last: the machine knows nothing of it.
    pub(crate) failed: bool,
}

impl Conversation {
    pub(crate) async fn run(
        mut self,
        mut lines: Lines<BufReader<OwnedReadHalf>>,
        mut said: mpsc::Receiver<Word>,
        beat: Duration,
    ) {
        let mut ticks = tokio::time::interval(beat);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                line = lines.next_line() => match line {
                    Ok(Some(line)) => self.hear(&line).await,
                    Ok(None) | Err(_) => exit_now(EXIT_ORPHANED),
                },
                Some(word) = said.recv() => self.note(word).await,
                _ = ticks.tick() => self.beat().await,
            }
        }
    }

    async fn beat(&mut self) {
        let hangs = self.watch.look(Instant::now());
        if let Some(error) = hangs {
            // Nothing is logged: the thread that hangs may hold whatever a log line needs.
            self.fail(error).await;
            exit_now(EXIT_HUNG)
        }
        self.send().await;
    }

    async fn fail(&mut self, error: String) {
        self.failed = true;
        self.report.phase = RankPhase::Failed {
            error,
            permanent: false,
        };
        self.send().await;
    }

    async fn hear(&mut self, line: &str) {
        match serde_json::from_str(line) {
            Ok(RankOrder::Assignment {
                assignment,
                rank,
                device,
            }) => {
                let task = Task {
                    assignment: *assignment,
                    rank,
                    device,
                };
                if self.take_order(task) {
                    self.send().await;
                }
            }
            Ok(RankOrder::Stop) => exit_now(EXIT_STOPPED),
            Err(error) => tracing::error!(%error, line, "cannot read the daemon's order; ignored"),
        }
    }

    /// True when there is something to say because of it.
    fn take_order(&mut self, task: Task) -> bool {
        let known = self.task.borrow().generation();
        if task.generation() < known {
            return false;
        }
        prune(&mut self.report, &task.assignment);
        let (assignment, rank) = (task.assignment.clone(), task.rank);
        // Ignored: the receiver lives as long as the process.
        let _ = self.task.send(task);
        match &mut *self.shared.machine() {
            Machine::None => false,
            Machine::Gang(machine) => {
                let Some(order) = gang::Order::of(&assignment, rank) else {
                    return false;
                };
                let effects = machine.handle(gang::Input::Ordered(order));
                if effects.contains(&gang::Effect::Abort) {
                    let group = self.shared.interrupt().take();
                    group.into_iter().for_each(Aborter::abort);
                } else if !effects.is_empty() {
                    self.want(Wanted::Gang(machine.serving().generation, effects));
                }
                false
            }
            Machine::Units(machine) => {
                let order = units::Order::of(&assignment, rank);
                let mut effects = machine.handle(units::Input::Ordered(order));
                let news = effects.contains(&units::Effect::Report);
                effects.retain(|effect| *effect != units::Effect::Report);
                if !effects.is_empty() {
                    self.want(Wanted::Units(effects));
                }
                news
            }
        }
    }

    fn want(&self, wanted: Wanted) {
        // Ignored: the model's thread ends only with the process.
        let _ = self.wants.send(wanted);
    }

    async fn note(&mut self, word: Word) {
        match word {
            Word::TakeUp(generation, rank) => {
                if generation != self.report.generation {
                    (self.report.generation, self.report.rank) = (generation, rank);
                    self.report.phase = RankPhase::Joining;
                    self.report.store_address = None;
                    self.report.shards.clear();
                    self.report.digests.clear();
                }
            }
            Word::Phase(phase) => self.report.phase = phase,
            Word::StoreAddress(address) => self.report.store_address = Some(address),
            Word::Step(step) => {
                // A step that is done again, from older state, is the one that counts.
                self.report.steps.retain(|known| known.step < step.step);
                self.report.steps.push(step);
                let excess = self.report.steps.len().saturating_sub(STEPS_MAX);
                self.report.steps.drain(..excess);
            }
            Word::Shard(shard) => self.report.shards.push(shard),
            Word::Digest(digest) => {
                self.report.digests.push(digest);
                let excess = self.report.digests.len().saturating_sub(DIGESTS_MAX);
                self.report.digests.drain(..excess);
            }
            Word::News => {}
            Word::Flush(told) => {
                self.send().await;
                // Ignored: the model's thread ends only with the process.
                let _ = told.send(());
                return;
            }
            Word::Last(phase, told) => {
                self.failed = true;
                self.report.phase = phase;
                self.send().await;
                // Ignored: nobody waits when the process is on its way out already.
                let _ = told.send(());
                return;
            }
        }
        self.send().await;
    }

    async fn send(&mut self) {
        if let Machine::Units(machine) = &*self.shared.machine() {
            let says = machine.says();
            (self.report.generation, self.report.rank) = (says.generation, says.rank);
            self.report.units = says.units;
            if !self.failed {
                self.report.phase = says.phase;
            }
        }
        self.report.activity = self.watch.activity(Instant::now());
        let steps = match self.report.rank {
            Rank(0) => None,
            // Others keep theirs for themselves.
            Rank(_) => Some(std::mem::take(&mut self.report.steps)),
        };
        let mut line = serde_json::to_vec(&self.report).expect("reports are plain data");
        if let Some(steps) = steps {
            self.report.steps = steps;
        }
        line.push(b'\n');
        if self.writer.write_all(&line).await.is_err() {
            exit_now(EXIT_ORPHANED);
        }
    }
}

/// What a process says before it has done anything.
pub(crate) fn first_report(task: &Task) -> RankReport {
    RankReport {
        job: task.assignment.job.clone(),
        generation: task.assignment.generation,
        rank: task.rank,
        phase: RankPhase::Starting,
        store_address: None,
        steps: Vec::new(),
        shards: Vec::new(),
        digests: Vec::new(),
        units: UnitReport::default(),
        activity: None,
    }
}

/// Drops what the coordinator knows already.
fn prune(report: &mut RankReport, assignment: &Assignment) {
    let Some(gang) = assignment.gang() else {
        return;
    };
    report
        .steps
        .retain(|step| step.step > gang.acknowledged_step);
    report
        .shards
        .retain(|shard| shard.step > gang.committed_step);
}
