//! The rank's line to its daemon: one task owns the socket and the report. It beats when nothing happens, so
//! that a rank deep in a kernel is known to be alive, and it ends the process when the daemon says so or is
//! gone. Decides nothing about training. The model's thread talks to it through [`Link`].

use crate::collective::exit_now;
use crate::deadline::Deadlines;
use anyhow::{Context, bail};
use proto::message::{
    Assignment, DIGESTS_MAX, RankOrder, RankPhase, RankReport, STEPS_MAX, ShardReport, StepReport,
    WeightDigest,
};
use std::path::Path;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

/// Exit code when the daemon asked to stop, or went away.
const EXIT_STOPPED: i32 = 0;
const EXIT_ORPHANED: i32 = 3;

/// Words that may wait for the socket; the model's thread waits when there are more.
const WORDS_MAX: usize = 64;

/// What the model's thread tells.
#[derive(Debug)]
enum Word {
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

/// The model thread's end. Its calls wait only while the daemon does not read.
#[derive(Debug)]
pub(crate) struct Link {
    runtime: Handle,
    words: mpsc::Sender<Word>,
    assignment: watch::Receiver<Assignment>,
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
            let (sender, assignment) = watch::channel(task.assignment.clone());
            let beat = Deadlines::new(task.assignment.detect_within_ms).heartbeat();
            let conversation = Conversation {
                report: first_report(&task),
                writer,
                assignment: sender,
            };
            tokio::spawn(conversation.run(lines, said, beat));
            Ok((
                Self {
                    runtime: runtime.clone(),
                    words,
                    assignment,
                },
                task,
            ))
        })
    }

    pub(crate) fn phase(&self, phase: RankPhase) {
        self.say(Word::Phase(phase));
    }

    pub(crate) fn store_address(&self, address: String) {
        self.say(Word::StoreAddress(address));
    }

    pub(crate) fn step(&self, report: StepReport) {
        self.say(Word::Step(report));
    }

    pub(crate) fn shard(&self, report: ShardReport) {
        self.say(Word::Shard(report));
    }

    pub(crate) fn digest(&self, digest: WeightDigest) {
        self.say(Word::Digest(digest));
    }

    /// Whether the generation is to end in order.
    pub(crate) fn halts(&self) -> bool {
        self.assignment.borrow().halt
    }

    /// Says the last word and returns once the daemon can read it. The caller then leaves the process.
    pub(crate) fn last(&self, phase: RankPhase) {
        let (sender, receiver) = oneshot::channel();
        self.say(Word::Last(phase, sender));
        // Ignored: without an answer the task is gone, and the process with it.
        let _ = receiver.blocking_recv();
    }

    /// Waits until rank 0's store is known.
    pub(crate) fn wait_store_address(&self, deadlines: Deadlines) -> anyhow::Result<String> {
        let mut assignment = self.assignment.clone();
        self.runtime.block_on(async {
            let known = assignment.wait_for(|assignment| assignment.store_address.is_some());
            match tokio::time::timeout(deadlines.join(), known).await {
                Ok(Ok(found)) => found.store_address.clone().context("an address that is there"),
                Ok(Err(_)) => bail!("the daemon is gone"),
                Err(_) => bail!(
                    "rank 0 did not open its store within {} s",
                    deadlines.join().as_secs_f64()
                ),
            }
        })
    }

    fn say(&self, word: Word) {
        // Ignored: the task ends only by ending the process.
        let _ = self.words.blocking_send(word);
    }
}

fn first_report(task: &Task) -> RankReport {
    RankReport {
        job: task.assignment.job.clone(),
        generation: task.assignment.generation,
        rank: proto::id::Rank(task.rank),
        phase: RankPhase::Starting,
        store_address: None,
        steps: Vec::new(),
        shards: Vec::new(),
        digests: Vec::new(),
    }
}

struct Conversation {
    report: RankReport,
    writer: OwnedWriteHalf,
    assignment: watch::Sender<Assignment>,
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
                _ = ticks.tick() => self.send().await,
            }
        }
    }

    fn hear(&mut self, line: &str) {
        match serde_json::from_str(line) {
            Ok(RankOrder::Assignment { assignment, .. }) => {
                prune(&mut self.report, &assignment);
                // Ignored: the receiver lives as long as the process.
                let _ = self.assignment.send(*assignment);
            }
            Ok(RankOrder::Stop) => exit_now(EXIT_STOPPED),
            Err(error) => tracing::error!(%error, line, "cannot read the daemon's order; ignored"),
        }
    }

    async fn note(&mut self, word: Word) {
        match word {
            Word::Phase(phase) => self.report.phase = phase,
            Word::StoreAddress(address) => self.report.store_address = Some(address),
            Word::Step(step) => {
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
        let mut line = serde_json::to_vec(&self.report).expect("reports are plain data");
        line.push(b'\n');
        if self.writer.write_all(&line).await.is_err() {
            exit_now(EXIT_ORPHANED);
        }
    }
}

/// Drops what the coordinator knows already.
fn prune(report: &mut RankReport, assignment: &Assignment) {
    report
        .steps
        .retain(|step| step.step > assignment.acknowledged_step);
    report
        .shards
        .retain(|shard| shard.step > assignment.committed_step);
}
