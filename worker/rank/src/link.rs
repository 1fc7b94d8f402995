//! The rank's line to its daemon: one task owns the socket and the report. It beats when nothing happens, so
//! that a rank deep in a kernel is known to be alive; it frees the model's thread from a collective when a newer
//! generation is ordered; and it ends the process when the daemon says so or is gone, or when that thread hangs. Decides
//! nothing about training.
//! The model's thread talks to it through [`Link`].

use crate::collective::{Aborter, CollectiveError, exit_now};
use crate::deadline::Deadlines;
use crate::watch::{Marks, Watch};
use anyhow::Context;
use proto::id::{Generation, Rank};
use proto::message::{
    Assignment, DIGESTS_MAX, Halt, RankOrder, RankPhase, RankReport, STEPS_MAX, ShardReport, StepReport,
    WeightDigest,
};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

/// Exit code when the daemon asked to stop, or went away.
const EXIT_STOPPED: i32 = 0;
const EXIT_ORPHANED: i32 = 3;
/// Exit code when the model's thread hangs.
const EXIT_HUNG: i32 = 4;

/// Words that may wait for the socket; the model's thread waits when there are more.
const WORDS_MAX: usize = 64;

/// What the model's thread tells.
#[derive(Debug)]
enum Word {
    /// It is a rank of this generation from now on.
    TakeUp(Generation, Rank),
    Phase(RankPhase),
    StoreAddress(String),
    Step(StepReport),
    Shard(ShardReport),
    Digest(WeightDigest),
    /// The last word, and whom to tell that it is on the wire.
    Last(RankPhase, oneshot::Sender<()>),
}

/// What the daemon gave this process to do.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub(crate) assignment: Assignment,
    pub(crate) rank: u32,
    /// The device of this node.
    pub(crate) device: u32,
}

impl Task {
    fn generation(&self) -> Generation {
        self.assignment.generation
    }

    fn store_address(&self) -> Option<&String> {
        self.assignment
            .gang()
            .and_then(|gang| gang.store_address.as_ref())
    }
}

/// Frees the model's thread from the group that it waits in.
type Interrupt = Arc<Mutex<Option<Aborter>>>;

/// The model thread's end. Its calls wait only while the daemon does not read.
#[derive(Debug)]
pub(crate) struct Link {
    runtime: Handle,
    words: mpsc::Sender<Word>,
    task: watch::Receiver<Task>,
    interrupt: Interrupt,
    marks: Marks,
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
            let task = match serde_json::from_str(&first).context("cannot read the daemon's first order")? {
                RankOrder::Assignment {
                    assignment,
                    rank,
                    device,
                } => Task {
                    assignment: *assignment,
                    rank: rank.0,
                    device,
                },
                RankOrder::Stop => exit_now(EXIT_STOPPED),
            };
            let (words, said) = mpsc::channel(WORDS_MAX);
            let (sender, receiver) = watch::channel(task.clone());
            let interrupt = Interrupt::default();
            let deadlines = Deadlines::new(task.assignment.detect_within_ms);
            let marks = Marks::default();
            let conversation = Conversation {
                report: first_report(&task),
                writer,
                task: sender,
                interrupt: Arc::clone(&interrupt),
                watch: Watch::new(marks.clone(), deadlines, Instant::now()),
            };
            tokio::spawn(conversation.run(lines, said, deadlines.heartbeat()));
            Ok((
                Self {
                    runtime: runtime.clone(),
                    words,
                    task: receiver,
                    interrupt,
                    marks,
                },
                task,
            ))
        })
    }

    /// From now on this process speaks as a rank of the task's generation.
    pub(crate) fn take_up(&self, task: &Task) {
        self.say(Word::TakeUp(task.generation(), Rank(task.rank)));
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
    pub(crate) fn marks(&self) -> &Marks {
        &self.marks
    }

    /// This process as it is called now.
    pub(crate) fn who(&self) -> String {
        let task = self.task.borrow();
        format!("rank {} of generation {}", task.rank, task.generation())
    }

    /// Whether the generation is to end in order, and how.
    pub(crate) fn halt(&self) -> Option<Halt> {
        self.task.borrow().assignment.halt
    }

    /// Whether a newer generation than this is ordered.
    pub(crate) fn is_over(&self, generation: Generation) -> bool {
        generation < self.task.borrow().generation()
    }

    /// From now on an order for a newer generation ends the collectives of this group. Any older group is forgotten.
    pub(crate) fn guard(&self, generation: Generation, aborter: Option<Aborter>) {
        let mut interrupt = self.interrupt.lock().unwrap_or_else(PoisonError::into_inner);
        *interrupt = aborter;
        if self.is_over(generation)
            && let Some(aborter) = interrupt.take()
        {
            aborter.abort();
        }
    }

    /// Waits for the order of a generation after this one, or, with state that is not `saved`, for the order to write
    /// a checkpoint of it (then None). The process may be told to leave instead.
    pub(crate) fn next_task(&self, generation: Generation, saved: bool) -> anyhow::Result<Option<Task>> {
        let mut task = self.task.clone();
        let is_newer = |task: &Task| generation < task.generation();
        let next = self.runtime.block_on(
            task.wait_for(|task| is_newer(task) || !saved && task.assignment.halt == Some(Halt::Save)),
        );
        let next = next.context("the daemon is gone")?;
        Ok(is_newer(&next).then(|| next.clone()))
    }

    /// Says the last word and returns once the daemon can read it. The caller then leaves the process.
    pub(crate) fn last(&self, phase: RankPhase) {
        let (sender, receiver) = oneshot::channel();
        self.say(Word::Last(phase, sender));
        // Ignored: without an answer the task is gone, and the process with it.
        let _ = receiver.blocking_recv();
    }

    /// Waits until the coordinator tells where rank 0's store is: when no rank is loading any more, which may take as long as
    /// a store is waited for.
    pub(crate) fn wait_store_address(
        &self,
        generation: Generation,
        deadlines: Deadlines,
    ) -> anyhow::Result<String> {
        let mut task = self.task.clone();
        self.runtime.block_on(async {
            let known =
                task.wait_for(|task| generation < task.generation() || task.store_address().is_some());
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

    /// Waits for object storage, until a newer generation is ordered: nobody then waits for this any more.
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

    /// Waits for what cannot be interrupted, on a thread of its own, which is left behind when a newer generation is
    /// ordered first.
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

fn first_report(task: &Task) -> RankReport {
    RankReport {
        job: task.assignment.job.clone(),
        generation: task.assignment.generation,
        rank: Rank(task.rank),
        phase: RankPhase::Starting,
        store_address: None,
        steps: Vec::new(),
        shards: Vec::new(),
        digests: Vec::new(),
        doing: None,
    }
}

struct Conversation {
    /// Holds the steps whoever this rank is; only rank 0 sends them.
    report: RankReport,
    writer: OwnedWriteHalf,
    task: watch::Sender<Task>,
    interrupt: Interrupt,
    watch: Watch,
}

impl Conversation {
    async fn run(
        mut self,
        mut lines: Lines<BufReader<OwnedReadHalf>>,
        mut said: mpsc::Receiver<Word>,
        beat: std::time::Duration,
    ) {
        let mut ticks = tokio::time::interval(beat);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                line = lines.next_line() => match line {
                    Ok(Some(line)) => self.hear(&line),
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
            self.report.phase = RankPhase::Failed {
                error,
                permanent: false,
            };
            self.send().await;
            exit_now(EXIT_HUNG)
        }
        self.send().await;
    }

    fn hear(&mut self, line: &str) {
        match serde_json::from_str(line) {
            Ok(RankOrder::Assignment {
                assignment,
                rank,
                device,
            }) => self.take_order(Task {
                assignment: *assignment,
                rank: rank.0,
                device,
            }),
            Ok(RankOrder::Stop) => exit_now(EXIT_STOPPED),
            Err(error) => tracing::error!(%error, line, "cannot read the daemon's order; ignored"),
        }
    }

    fn take_order(&mut self, task: Task) {
        let known = self.task.borrow().generation();
        if task.generation() < known {
            return;
        }
        prune(&mut self.report, &task.assignment);
        let newer = known < task.generation();
        // Ignored: the receiver lives as long as the process.
        let _ = self.task.send(task);
        if newer {
            let group = self
                .interrupt
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            group.into_iter().for_each(Aborter::abort);
        }
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
            Word::Last(phase, told) => {
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
        self.report.doing = self.watch.doing(Instant::now());
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

/// Drops what the coordinator knows already.
fn prune(report: &mut RankReport, assignment: &Assignment) {
    let Some(gang) = assignment.gang() else { return };
    report.steps.retain(|step| step.step > gang.acknowledged_step);
    report.shards.retain(|shard| shard.step > gang.committed_step);
}
