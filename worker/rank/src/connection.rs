//! The task that owns the socket to the daemon and the rank's report. It sends the report
//! periodically as a heartbeat, also while the model thread is busy in a kernel. It passes every
//! order to the rank's state machine and aborts the model thread's collective if the machine
//! requests it. It ends the process when the daemon orders it or disconnects, or when the model
//! thread hangs. Started by [`crate::link`].

use crate::collective::{Aborter, exit_now};
use crate::task::{Machine, PendingEffects, Shared, Task};
use crate::watchdog::Watchdog;
use proto::id::{Generation, Rank};
use proto::message::{
    Assignment, DIGESTS_MAX, RankOrder, RankPhase, RankReport, STEPS_MAX, ShardReport, StepReport,
    StepTotals, UnitReport, WeightDigest,
};
use proto::reason::RankFailure;
use rank_core::{gang, units};
use std::sync::mpsc as threads;
use std::time::{Duration, Instant};
use tokio::io::{AsyncWriteExt, BufReader, Lines};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

/// Exit code when the daemon ordered the process to stop.
pub(crate) const EXIT_STOPPED: i32 = 0;
/// Exit code when the daemon disconnected.
const EXIT_ORPHANED: i32 = 3;
/// Exit code when the model thread hangs.
const EXIT_HUNG: i32 = 4;

/// Messages from the model thread. Each one updates the report and sends it.
#[derive(Debug)]
pub(crate) enum Message {
    /// From now on the process is this rank of this generation.
    StartGeneration(Generation, Rank),
    Phase(RankPhase),
    StoreAddress(String),
    Step(StepReport),
    Shard(ShardReport),
    Digest(WeightDigest),
    /// The state of the units machine changed.
    UnitsChanged,
    /// Acknowledged once all earlier messages are written to the socket.
    Flush(oneshot::Sender<()>),
    /// The final phase. Acknowledged once it is written to the socket.
    Final(RankPhase, oneshot::Sender<()>),
}

pub(crate) struct Connection {
    /// Every rank records steps here; only rank 0 sends them.
    pub(crate) report: RankReport,
    pub(crate) writer: OwnedWriteHalf,
    pub(crate) task: watch::Sender<Task>,
    pub(crate) shared: Shared,
    pub(crate) effects: threads::Sender<PendingEffects>,
    pub(crate) watchdog: Watchdog,
    /// The failed phase is final. The machine does not know about it and must not overwrite it.
    pub(crate) failed: bool,
}

impl Connection {
    pub(crate) async fn run(
        mut self,
        mut lines: Lines<BufReader<OwnedReadHalf>>,
        mut messages: mpsc::Receiver<Message>,
        heartbeat: Duration,
    ) {
        let mut ticks = tokio::time::interval(heartbeat);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                line = lines.next_line() => match line {
                    Ok(Some(line)) => self.receive(&line).await,
                    Ok(None) | Err(_) => exit_now(EXIT_ORPHANED),
                },
                Some(message) = messages.recv() => self.apply(message).await,
                _ = ticks.tick() => self.on_heartbeat().await,
            }
        }
    }

    async fn on_heartbeat(&mut self) {
        if let Some(failure) = self.watchdog.check(Instant::now()) {
            // Do not log here: the hanging thread may hold a lock that logging needs.
            self.fail(failure).await;
            exit_now(EXIT_HUNG)
        }
        self.send().await;
    }

    async fn fail(&mut self, failure: RankFailure) {
        self.failed = true;
        self.report.phase = RankPhase::Failed { failure };
        self.send().await;
    }

    async fn receive(&mut self, line: &str) {
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
                if self.apply_order(task) {
                    self.send().await;
                }
            }
            Ok(RankOrder::Stop) => exit_now(EXIT_STOPPED),
            Err(error) => {
                tracing::error!(%error, line, "ignoring an unreadable order from the daemon");
            }
        }
    }

    /// Returns true if the report must be sent because of the order.
    fn apply_order(&mut self, task: Task) -> bool {
        let known = self.task.borrow().generation();
        if task.generation() < known {
            return false;
        }
        prune(&mut self.report, &task.assignment);
        let (assignment, rank) = (task.assignment.clone(), task.rank);
        // Cannot fail: the receiver lives as long as the process.
        let _ = self.task.send(task);
        match &mut *self.shared.machine() {
            Machine::None => false,
            Machine::Gang(machine) => {
                let Some(order) = gang::Order::of(&assignment, rank) else {
                    return false;
                };
                let effects = machine.handle(gang::Input::Ordered(order));
                if effects.contains(&gang::Effect::Abort) {
                    let aborter = self.shared.aborter().take();
                    aborter.into_iter().for_each(Aborter::abort);
                } else if !effects.is_empty() {
                    self.forward(PendingEffects::Gang(machine.serving().generation, effects));
                }
                false
            }
            Machine::Units(machine) => {
                let order = units::Order::of(&assignment, rank);
                let mut effects = machine.handle(units::Input::Ordered(order));
                let changed = effects.contains(&units::Effect::Report);
                effects.retain(|effect| *effect != units::Effect::Report);
                if !effects.is_empty() {
                    self.forward(PendingEffects::Units(effects));
                }
                changed
            }
        }
    }

    fn forward(&self, effects: PendingEffects) {
        // Cannot fail: the model thread ends only with the process.
        let _ = self.effects.send(effects);
    }

    async fn apply(&mut self, message: Message) {
        match message {
            Message::StartGeneration(generation, rank) => {
                if generation != self.report.generation {
                    (self.report.generation, self.report.rank) = (generation, rank);
                    self.report.phase = RankPhase::Joining;
                    self.report.store_address = None;
                    self.report.shards.clear();
                    self.report.digests.clear();
                }
            }
            Message::Phase(phase) => self.report.phase = phase,
            Message::StoreAddress(address) => self.report.store_address = Some(address),
            Message::Step(step) => {
                let before = self.report.totals.unwrap_or_default();
                self.report.totals = Some(StepTotals {
                    step: step.step,
                    steps: before.steps + 1,
                    seconds: before.seconds.plus(&step.seconds),
                });
                // A step that is repeated from older state replaces the reports from there on.
                self.report.steps.retain(|known| known.step < step.step);
                self.report.steps.push(step);
                let excess = self.report.steps.len().saturating_sub(STEPS_MAX);
                self.report.steps.drain(..excess);
            }
            Message::Shard(shard) => self.report.shards.push(shard),
            Message::Digest(digest) => {
                self.report.digests.push(digest);
                let excess = self.report.digests.len().saturating_sub(DIGESTS_MAX);
                self.report.digests.drain(..excess);
            }
            Message::UnitsChanged => {}
            Message::Flush(sent) => {
                self.send().await;
                // Cannot fail: the model thread ends only with the process.
                let _ = sent.send(());
                return;
            }
            Message::Final(phase, sent) => {
                self.failed = true;
                self.report.phase = phase;
                self.send().await;
                // Ignored: nobody waits if the process is already exiting.
                let _ = sent.send(());
                return;
            }
        }
        self.send().await;
    }

    async fn send(&mut self) {
        if let Machine::Units(machine) = &*self.shared.machine() {
            let status = machine.says();
            (self.report.generation, self.report.rank) = (status.generation, status.rank);
            self.report.units = status.units;
            if !self.failed {
                self.report.phase = status.phase;
            }
        }
        self.report.activity = self.watchdog.activity(Instant::now());
        let steps = match self.report.rank {
            Rank(0) => None,
            // Other ranks keep their steps in case they become rank 0.
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

/// The report of a process that has not started any work.
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
        totals: None,
    }
}

/// Drops what the coordinator has acknowledged.
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
