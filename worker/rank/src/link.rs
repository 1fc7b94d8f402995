//! The model thread's line to the daemon: what it says goes to the task in [`crate::conversation`],
//! and what the daemon ordered reaches it through the rank's machine. Decides nothing.

use crate::collective::{Aborter, CollectiveError, exit_now};
use crate::conversation::{Conversation, EXIT_STOPPED, Word, first_report};
use crate::deadline::Deadlines;
use crate::task::{Machine, Shared, Task, Wanted, lock};
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

/// Words that may wait for the socket; the model's thread waits when there are more.
const WORDS_MAX: usize = 64;

/// The model thread's end. Its calls wait only while the daemon does not read.
#[derive(Debug)]
pub(crate) struct Link {
    runtime: Handle,
    words: mpsc::Sender<Word>,
    task: watch::Receiver<Task>,
    shared: Shared,
    wanted: Mutex<threads::Receiver<Wanted>>,
    progress: Progress,
}

impl Link {
    /// Connects, reads the first order and starts the task on `runtime`.
    pub(crate) fn connect(runtime: &Handle, socket: &Path) -> anyhow::Result<(Self, Task)> {
        runtime.block_on(async {
            let stream = UnixStream::connect(socket)
                .await
                .with_context(|| format!("cannot reach the daemon at {}", socket.display()))?;
            let (reader, writer) = stream.into_split();
            let mut lines = BufReader::new(reader).lines();
            let first = lines
                .next_line()
                .await?
                .context("the daemon closed before it gave an order")?;
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
            let (words, said) = mpsc::channel(WORDS_MAX);
            let (sender, receiver) = watch::channel(task.clone());
            let shared = Shared::default();
            let (wants, wanted) = threads::channel();
            let deadlines = Deadlines::new(task.assignment.detect_within_ms);
            let progress = Progress::default();
            let conversation = Conversation {
                report: first_report(&task),
                writer,
                task: sender,
                shared: shared.clone(),
                wants,
                failed: false,
                watch: Watchdog::new(progress.clone(), deadlines, Instant::now()),
            };
            tokio::spawn(conversation.run(lines, said, deadlines.heartbeat()));
            Ok((
                Self {
                    runtime: runtime.clone(),
                    words,
                    task: receiver,
                    shared,
                    wanted: Mutex::new(wanted),
                    progress,
                },
                task,
            ))
        })
    }

    /// The process trains: from now on a machine hears every order. Returns the first.
    ///
    /// # Errors
    /// The order is not of a gang.
    pub(crate) fn train(&self, rules: gang::Rules) -> anyhow::Result<gang::Order> {
        let mut machine = self.shared.machine();
        let task = self.task.borrow();
        let first = gang::Order::of(&task.assignment, task.rank);
        let first = first.context("the order is for a rank that works alone")?;
        *machine = Machine::Gang(GangRank::new(rules, first));
        Ok(first)
    }

    /// The process works on units: from now on a machine hears every order.
    pub(crate) fn take_units(&self) {
        let mut machine = self.shared.machine();
        let task = self.task.borrow();
        let first = units::Order::of(&task.assignment, task.rank);
        *machine = Machine::Units(UnitRank::new(first));
    }

    /// Tells the machine what happened. What it wants is to be done in this order.
    pub(crate) fn tell(&self, event: gang::Input) -> Vec<gang::Effect> {
        match &mut *self.shared.machine() {
            Machine::Gang(machine) => machine.handle(event),
            Machine::None | Machine::Units(_) => Vec::new(),
        }
    }

    /// The same of a rank that works on units.
    pub(crate) fn tell_units(&self, event: units::Input) -> Vec<units::Effect> {
        match &mut *self.shared.machine() {
            Machine::Units(machine) => machine.handle(event),
            Machine::None | Machine::Gang(_) => Vec::new(),
        }
    }

    /// Waits until an order makes the machine want something of a thread that has nothing to do.
    /// The process may be told to leave instead.
    pub(crate) fn wait_wanted(&self) -> anyhow::Result<Vec<gang::Effect>> {
        let wanted = lock(&self.wanted);
        loop {
            if let Wanted::Gang(generation, effects) = wanted.recv().context("the daemon is gone")?
                // What was wanted in a generation that it has left meanwhile is void.
                && self.gang(|machine| machine.serving().generation) == Some(generation)
            {
                return Ok(effects);
            }
        }
    }

    /// The same of a rank that works on units.
    pub(crate) fn wait_units(&self) -> anyhow::Result<Vec<units::Effect>> {
        let wanted = lock(&self.wanted);
        loop {
            if let Wanted::Units(effects) = wanted.recv().context("the daemon is gone")? {
                return Ok(effects);
            }
        }
    }

    fn gang<T>(&self, read: impl FnOnce(&GangRank) -> T) -> Option<T> {
        self.shared.machine().gang().map(read)
    }

    /// The machine has something new to say.
    pub(crate) fn news(&self) {
        self.say(Word::News);
    }

    /// A unit is begun. Returns when the daemon can read that: should the process die of it, it is
    /// known which one it was.
    pub(crate) fn begin_unit(&self, unit: u64) {
        self.progress.unit(unit);
        let (sender, receiver) = oneshot::channel();
        self.say(Word::Flush(sender));
        // Ignored: without an answer the task is gone, and the process with it.
        let _ = receiver.blocking_recv();
    }

    /// What the process holds.
    pub(crate) fn held(&self) -> Option<StateLabel> {
        self.gang(GangRank::held).flatten()
    }

    /// From now on this process speaks as a rank of this generation.
    pub(crate) fn take_up(&self, generation: Generation, rank: Rank) {
        self.say(Word::TakeUp(generation, rank));
    }

    pub(crate) fn phase(&self, phase: RankPhase) {
        self.say(Word::Phase(phase));
    }

    pub(crate) fn store_address(&self, address: String) {
        self.say(Word::StoreAddress(address));
    }

    /// Every rank tells every step: who becomes rank 0 later can still report them.
    pub(crate) fn step(&self, report: StepReport) {
        self.say(Word::Step(report));
    }

    pub(crate) fn shard(&self, report: ShardReport) {
        self.say(Word::Shard(report));
    }

    pub(crate) fn digest(&self, digest: WeightDigest) {
        self.say(Word::Digest(digest));
    }

    /// Where the model's thread says what it is about to do in a step.
    pub(crate) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// This process as it is called now.
    pub(crate) fn who(&self) -> String {
        let task = self.task.borrow();
        format!("rank {} of generation {}", task.rank, task.generation())
    }

    /// Whether the generation is to end in order, and how.
    pub(crate) fn graceful_stop(&self) -> Option<GracefulStop> {
        self.gang(GangRank::graceful_stop).flatten()
    }

    /// Whether a newer generation than this is ordered.
    pub(crate) fn is_over(&self, generation: Generation) -> bool {
        generation < self.task.borrow().generation()
    }

    /// From now on an order for a newer generation ends the collectives of this group. Any older
    /// group is forgotten.
    pub(crate) fn guard(&self, generation: Generation, aborter: Option<Aborter>) {
        let mut interrupt = self.shared.interrupt();
        *interrupt = aborter;
        if self.is_over(generation)
            && let Some(aborter) = interrupt.take()
        {
            aborter.abort();
        }
    }

    /// Says the last word and returns once the daemon can read it. The caller then leaves the
    /// process.
    pub(crate) fn last(&self, phase: RankPhase) {
        let (sender, receiver) = oneshot::channel();
        self.say(Word::Last(phase, sender));
        // Ignored: without an answer the task is gone, and the process with it.
        let _ = receiver.blocking_recv();
    }

    /// Waits until the coordinator tells where rank 0's store is: when no rank is loading any more,
    /// which may take as long as a store is waited for.
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
                    action: "meeting the other ranks".into(),
                    reason: format!(
                        "one of them still loads after {} s",
                        deadlines.outage().as_secs_f64()
                    ),
                }
                .into());
            };
            let found = found.context("the daemon is gone")?;
            if generation < found.generation() {
                return Err(superseded(generation).into());
            }
            let address = found.store_address().cloned();
            address.context("an address that is there")
        })
    }

    /// Waits for object storage, until a newer generation is ordered: nobody then waits for this
    /// any more.
    pub(crate) fn unless_superseded<T>(
        &self,
        generation: Generation,
        work: impl Future<Output = T>,
    ) -> Result<T, CollectiveError> {
        let mut task = self.task.clone();
        self.runtime.block_on(async {
            tokio::select! {
                done = work => Ok(done),
                _ = task.wait_for(|task| generation < task.generation()) => Err(superseded(generation)),
            }
        })
    }

    /// Waits for what cannot be interrupted, on a thread of its own, which is left behind when a
    /// newer generation is ordered first.
    pub(crate) fn unless_over<T: Send + 'static>(
        &self,
        generation: Generation,
        wait: impl FnOnce() -> Result<T, CollectiveError> + Send + 'static,
    ) -> anyhow::Result<T> {
        let mut task = self.task.clone();
        self.runtime.block_on(async {
            let waiting = tokio::task::spawn_blocking(wait);
            tokio::select! {
                outcome = waiting => Ok(outcome.context("meeting the other ranks")??),
                _ = task.wait_for(|task| generation < task.generation()) => Err(superseded(generation).into()),
            }
        })
    }

    fn say(&self, word: Word) {
        // Ignored: the task ends only by ending the process.
        let _ = self.words.blocking_send(word);
    }
}

pub(crate) fn superseded(generation: Generation) -> CollectiveError {
    CollectiveError {
        action: format!("generation {generation}"),
        reason: "a newer generation takes its place".into(),
    }
}
