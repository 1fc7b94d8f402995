//! The model thread's handle to the daemon. Its messages go to the task in [`crate::connection`];
//! the daemon's orders reach it through the rank's state machine. Makes no decisions.

use crate::collective::{Aborter, CollectiveError, exit_now};
use crate::connection::{Connection, EXIT_STOPPED, Message, first_report};
use crate::deadline::Deadlines;
use crate::task::{Machine, PendingEffects, Shared, Task, lock};
use crate::watchdog::{Progress, Watchdog};
use anyhow::Context;
use proto::id::{Generation, Rank};
use proto::message::{GracefulStop, RankOrder, RankPhase, ShardReport, StepReport, WeightDigest};
use rank_core::gang::{self, GangRank};
use rank_core::state::StateLabel;
use rank_core::units::{self, UnitRank};
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc as threads;
use std::time::Instant;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

/// Capacity of the message channel. The model thread blocks when it is full.
const MESSAGES_MAX: usize = 64;

/// The model thread's end. Sending blocks only while the daemon does not read.
#[derive(Debug)]
pub(crate) struct Link {
    runtime: Handle,
    messages: mpsc::Sender<Message>,
    task: watch::Receiver<Task>,
    shared: Shared,
    effects: Mutex<threads::Receiver<PendingEffects>>,
    progress: Progress,
}

impl Link {
    /// Connects, reads the first order and starts the task on `runtime`.
    ///
    /// # Errors
    /// The socket is not that of the daemon, which is process `parent` of this user.
    pub(crate) fn connect(
        runtime: &Handle,
        socket: &Path,
        parent: i32,
    ) -> anyhow::Result<(Self, Task)> {
        runtime.block_on(async {
            let stream = UnixStream::connect(socket)
                .await
                .with_context(|| format!("cannot reach the daemon at {}", socket.display()))?;
            check_daemon(&stream, parent)
                .with_context(|| format!("refused the orders at {}", socket.display()))?;
            let (reader, writer) = stream.into_split();
            let mut lines = BufReader::new(reader).lines();
            let first = lines
                .next_line()
                .await?
                .context("the daemon disconnected before its first order")?;
            let task = match serde_json::from_str(&first)
                .context("cannot read the daemon's first order")?
            {
                RankOrder::Assignment {
                    assignment,
                    rank,
                    device,
                } => Task {
                    assignment: *assignment,
                    rank,
                    device,
                },
                RankOrder::Stop => exit_now(EXIT_STOPPED),
            };
            let (messages, receiver) = mpsc::channel(MESSAGES_MAX);
            let (task_sender, task_receiver) = watch::channel(task.clone());
            let shared = Shared::default();
            let (effects_sender, effects) = threads::channel();
            let deadlines = Deadlines::new(task.assignment.detect_within_ms);
            let progress = Progress::default();
            let connection = Connection {
                report: first_report(&task),
                writer,
                task: task_sender,
                shared: shared.clone(),
                effects: effects_sender,
                failed: false,
                watchdog: Watchdog::new(progress.clone(), deadlines, Instant::now()),
            };
            tokio::spawn(connection.run(lines, receiver, deadlines.heartbeat()));
            Ok((
                Self {
                    runtime: runtime.clone(),
                    messages,
                    task: task_receiver,
                    shared,
                    effects: Mutex::new(effects),
                    progress,
                },
                task,
            ))
        })
    }

    /// Starts the state machine of a training rank, which receives every later order. Returns the
    /// first order.
    ///
    /// # Errors
    /// The order is not for a gang.
    pub(crate) fn start_gang(&self, rules: gang::Rules) -> anyhow::Result<gang::Order> {
        let mut machine = self.shared.machine();
        let task = self.task.borrow();
        let first = gang::Order::of(&task.assignment, task.rank);
        let first = first.context("the order is not for a gang")?;
        *machine = Machine::Gang(GangRank::new(rules, first));
        Ok(first)
    }

    /// Starts the state machine of a rank that runs units, which receives every later order.
    pub(crate) fn start_units(&self) {
        let mut machine = self.shared.machine();
        let task = self.task.borrow();
        let first = units::Order::of(&task.assignment, task.rank);
        *machine = Machine::Units(UnitRank::new(first));
    }

    /// Passes an input to the gang machine. The returned effects must be performed in order.
    pub(crate) fn handle(&self, input: gang::Input) -> Vec<gang::Effect> {
        match &mut *self.shared.machine() {
            Machine::Gang(machine) => machine.handle(input),
            Machine::None | Machine::Units(_) => Vec::new(),
        }
    }

    /// Passes an input to the units machine. The returned effects must be performed in order.
    pub(crate) fn handle_units(&self, input: units::Input) -> Vec<units::Effect> {
        match &mut *self.shared.machine() {
            Machine::Units(machine) => machine.handle(input),
            Machine::None | Machine::Gang(_) => Vec::new(),
        }
    }

    /// Blocks the idle model thread until an order causes effects of the gang machine.
    pub(crate) fn wait_gang_effects(&self) -> anyhow::Result<Vec<gang::Effect>> {
        let pending = lock(&self.effects);
        loop {
            if let PendingEffects::Gang(generation, effects) =
                pending.recv().context("the daemon disconnected")?
                // Drop the effects of a generation that the rank has left in the meantime.
                && self.gang(|machine| machine.serving().generation) == Some(generation)
            {
                return Ok(effects);
            }
        }
    }

    /// Blocks the idle model thread until an order causes effects of the units machine.
    pub(crate) fn wait_unit_effects(&self) -> anyhow::Result<Vec<units::Effect>> {
        let pending = lock(&self.effects);
        loop {
            if let PendingEffects::Units(effects) =
                pending.recv().context("the daemon disconnected")?
            {
                return Ok(effects);
            }
        }
    }

    fn gang<T>(&self, read: impl FnOnce(&GangRank) -> T) -> Option<T> {
        self.shared.machine().gang().map(read)
    }

    /// Sends the changed state of the units machine.
    pub(crate) fn report_units(&self) {
        self.send(Message::UnitsChanged);
    }

    /// Reports that a unit begins. Returns once the report is written to the socket, so that the
    /// daemon knows which unit was running if the process dies.
    pub(crate) fn begin_unit(&self, unit: u64) {
        self.progress.begin_unit(unit);
        let (sender, receiver) = oneshot::channel();
        self.send(Message::Flush(sender));
        // Ignored: the sender is dropped only when the process exits.
        let _ = receiver.blocking_recv();
    }

    /// The state that the process holds in memory.
    pub(crate) fn held(&self) -> Option<StateLabel> {
        self.gang(GangRank::held).flatten()
    }

    /// From now on this process reports as this rank of this generation.
    pub(crate) fn start_generation(&self, generation: Generation, rank: Rank) {
        self.progress.spans().generation(generation.0);
        self.send(Message::StartGeneration(generation, rank));
    }

    pub(crate) fn phase(&self, phase: RankPhase) {
        self.send(Message::Phase(phase));
    }

    pub(crate) fn store_address(&self, address: String) {
        self.send(Message::StoreAddress(address));
    }

    /// Every rank passes on every step: a rank that becomes rank 0 later must report them.
    pub(crate) fn step(&self, report: StepReport) {
        self.send(Message::Step(report));
    }

    pub(crate) fn shard(&self, report: ShardReport) {
        self.send(Message::Shard(report));
    }

    pub(crate) fn digest(&self, digest: WeightDigest) {
        self.send(Message::Digest(digest));
    }

    /// The progress that the watchdog observes.
    pub(crate) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// This process's current rank and generation, for error messages.
    pub(crate) fn rank_name(&self) -> String {
        let task = self.task.borrow();
        format!("rank {} of generation {}", task.rank, task.generation())
    }

    /// Whether the generation is to stop gracefully, and how.
    pub(crate) fn graceful_stop(&self) -> Option<GracefulStop> {
        self.gang(GangRank::graceful_stop).flatten()
    }

    /// True if a newer generation is ordered.
    pub(crate) fn is_superseded(&self, generation: Generation) -> bool {
        generation < self.task.borrow().generation()
    }

    /// Registers the aborter of the generation's group and drops the previous one. An order for a
    /// newer generation aborts the group's collectives.
    pub(crate) fn set_aborter(&self, generation: Generation, aborter: Option<Aborter>) {
        let mut current = self.shared.aborter();
        *current = aborter;
        if self.is_superseded(generation)
            && let Some(aborter) = current.take()
        {
            aborter.abort();
        }
    }

    /// Sends the final phase. Returns once it is written to the socket; the caller then exits.
    pub(crate) fn send_final(&self, phase: RankPhase) {
        let (sender, receiver) = oneshot::channel();
        self.send(Message::Final(phase, sender));
        // Ignored: the sender is dropped only when the process exits.
        let _ = receiver.blocking_recv();
    }

    /// Waits for the rendezvous address (rank 0's store). The coordinator sends it once every rank
    /// has loaded, which may take as long as an outage of the object store.
    pub(crate) fn wait_store_address(
        &self,
        generation: Generation,
        deadlines: Deadlines,
    ) -> anyhow::Result<String> {
        let mut task = self.task.clone();
        self.runtime.block_on(async {
            let known = task
                .wait_for(|task| generation < task.generation() || task.store_address().is_some());
            let Ok(found) = tokio::time::timeout(deadlines.outage(), known).await else {
                return Err(CollectiveError {
                    action: "rendezvous".into(),
                    reason: format!(
                        "another rank is still loading after {} s",
                        deadlines.outage().as_secs_f64()
                    ),
                }
                .into());
            };
            let found = found.context("the daemon disconnected")?;
            if generation < found.generation() {
                return Err(superseded(generation).into());
            }
            let address = found.store_address().cloned();
            address.context("the order has no store address")
        })
    }

    /// Runs `work` until a newer generation is ordered.
    pub(crate) fn unless_superseded<T>(
        &self,
        generation: Generation,
        work: impl Future<Output = T>,
    ) -> Result<T, CollectiveError> {
        let mut task = self.task.clone();
        self.runtime.block_on(async {
            tokio::select! {
                done = work => Ok(done),
                _ = task.wait_for(|task| generation < task.generation()) => {
                    Err(superseded(generation))
                }
            }
        })
    }

    /// Runs the uninterruptible `wait` on a separate thread until a newer generation is ordered.
    /// The thread is then abandoned.
    pub(crate) fn unless_superseded_blocking<T: Send + 'static>(
        &self,
        generation: Generation,
        wait: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let mut task = self.task.clone();
        self.runtime.block_on(async {
            let waiting = tokio::task::spawn_blocking(wait);
            tokio::select! {
                outcome = waiting => Ok(outcome.context("rendezvous")??),
                _ = task.wait_for(|task| generation < task.generation()) => {
                    Err(superseded(generation).into())
                }
            }
        })
    }

    fn send(&self, message: Message) {
        // Cannot fail: the task ends only with the process.
        let _ = self.messages.blocking_send(message);
    }
}

/// Orders may only come from the daemon that started this process: whoever listens at the socket
/// instead could make this user's process read and write as it likes.
fn check_daemon(stream: &UnixStream, parent: i32) -> anyhow::Result<()> {
    let peer = stream.peer_cred().context("cannot tell who listens")?;
    let (uid, own) = (peer.uid(), rustix::process::geteuid().as_raw());
    anyhow::ensure!(
        uid == own && peer.pid() == Some(parent),
        "process {} of user {uid} listens, expected process {parent} of user {own}, the daemon",
        peer.pid().unwrap_or_default()
    );
    Ok(())
}

pub(crate) fn superseded(generation: Generation) -> CollectiveError {
    CollectiveError {
        action: format!("generation {generation}"),
        reason: "superseded by a newer generation".into(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn orders_come_from_the_daemon_alone() {
        let (stream, _daemon) = UnixStream::pair().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        check_daemon(&stream, own).unwrap();
        let error = check_daemon(&stream, own + 1).unwrap_err().to_string();
        let uid = rustix::process::geteuid().as_raw();
        let expected = format!(
            "process {own} of user {uid} listens, expected process {} of user {uid}, the daemon",
            own + 1
        );
        assert_eq!(error, expected);
    }
}
