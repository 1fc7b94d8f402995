//! The face of the coordinator's machine: what it is told and what it wants done. Plain values, no I/O. The
//! shell turns the world into [`Event`]s and performs [`Effect`]s in order; a failed `Save` ends the process
//! (restart = restore), a failed `Send` is forgotten, because the same state is sent again until it is true.

use proto::checkpoint::{CheckpointManifest, CheckpointRef};
use proto::id::{Generation, JobId, Rank, Step, WorkerId};
use proto::ledger::{Entry, Tip};
use proto::message::{DesiredState, SourceJob, StepReport, WorkerReport};
use proto::spec::JobSpec;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Milliseconds of the shell's clock since 1970. The machine never reads a clock. It may jump; the machine
/// survives.
pub type Millis = u64;

/// Ties a reply to whoever asked. Chosen by the shell, unique in one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub u64);

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A checked job.
    Submit {
        request: RequestId,
        spec: Box<JobSpec>,
        job_toml: String,
        /// Of the data set that it pins; empty where another job's is taken.
        dataset_version: String,
    },
    Cancel {
        request: RequestId,
        job: JobId,
    },
    /// The job should not run, or should again.
    Pause {
        request: RequestId,
        job: JobId,
        paused: bool,
    },
    /// The job should have this many workers.
    Scale {
        request: RequestId,
        job: JobId,
        workers: u32,
    },
    /// The worker of that name should be empty, or may be used again.
    Drain {
        request: RequestId,
        worker: String,
        drained: bool,
    },
    /// A worker's report, on whatever stream it came; the first of a boot number is the worker's arrival.
    Heard {
        report: WorkerReport,
    },
    /// The stream of this worker broke. Its ranks may go on; it has until its deadline to come back.
    Disconnected {
        worker: WorkerId,
    },
    /// The shell's answer to [`Effect::WriteManifest`].
    ManifestWritten {
        job: JobId,
        checkpoint: CheckpointRef,
        result: Result<(), String>,
    },
    /// Time has reached `next_deadline()` (or passed it, or not quite: the machine looks at `now`).
    Deadline,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Make these records durable, together, before anything after this effect is done.
    Save(Vec<Record>),
    /// Tell this worker what should be; drop it when the worker has no stream.
    Send {
        worker: WorkerId,
        state: DesiredState,
    },
    Reply {
        request: RequestId,
        reply: Reply,
    },
    /// Put the manifest where [`proto::checkpoint::checkpoint_folder`] says, only if there is none; if there
    /// is one and it is equal, that is success. Answer with [`Event::ManifestWritten`]. Repeated after a
    /// restart.
    WriteManifest {
        manifest: Box<CheckpointManifest>,
    },
    /// Delete a checkpoint that retention no longer keeps: manifest first, then its shards. Best effort.
    DeleteCheckpoint {
        job: JobId,
        checkpoint: CheckpointRef,
    },
    /// Something worth a log line, a metric or a stored curve; never needed for correctness.
    Note(Fact),
}

/// One durable record; the key is its kind and id, a later record replaces an earlier one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Record {
    /// Numbers that outlive jobs.
    Counters(Counters),
    /// Names of all workers that are drained.
    Drained(BTreeSet<String>),
    Job(Box<JobRecord>),
    /// Entries to add to the job's ledger; its record of the same save names the last of them.
    Ledger {
        job: JobId,
        entries: Vec<Entry>,
    },
}

/// Everything a restart needs. `restore(durable)` is the whole recovery.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Durable {
    pub counters: Counters,
    pub drained: BTreeSet<String>,
    pub jobs: BTreeMap<JobId, JobRecord>,
}

impl Durable {
    /// Applies one saved record; applying all of them in the order of their saves gives the state at the last
    /// save.
    pub fn apply(&mut self, record: Record) {
        match record {
            Record::Counters(counters) => self.counters = counters,
            Record::Drained(drained) => self.drained = drained,
            // A restart needs only where each ledger ends, which the job's record says.
            Record::Ledger { .. } => {}
            Record::Job(job) => {
                self.jobs.insert(job.id.clone(), *job);
            }
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Jobs ever submitted: the next job's number is one more.
    pub jobs: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    pub id: JobId,
    pub spec: JobSpec,
    pub job_toml: String,
    pub dataset_version: String,
    /// The trained job that it reads, pinned.
    #[serde(default)]
    pub source: Option<SourceJob>,
    pub submitted_ms: Millis,
    /// Somebody wishes that it does not run.
    pub paused: bool,
    /// The scale that somebody wishes, instead of job.toml's `workers.max`.
    pub workers: Option<u32>,
    /// The newest generation that was ever formed; the next is one higher, for ever.
    pub generation: Generation,
    pub phase: JobPhase,
    /// Who has no place in its newest generation and is ready, or gets ready, for the next.
    #[serde(default)]
    pub reserves: Vec<Member>,
    /// Where its ledger ends.
    pub ledger: Tip,
    /// Committed checkpoints that still exist, oldest first.
    pub checkpoints: Vec<CheckpointRef>,
    /// The newest step that was ever reported or committed, as of the last end of a generation.
    #[serde(default)]
    pub reached: Step,
    /// Generations in a row that ended without a step beyond [`Self::reached`] and without a new commit.
    pub fruitless: u32,
    /// A rank failed in a way that another generation would repeat: there is none.
    pub hopeless: bool,
    pub restarts: u32,
    /// The newest [`INCIDENTS_MAX`] things that went wrong, oldest first.
    pub incidents: Vec<Incident>,
}

impl JobRecord {
    /// Its phase in one word, for tables.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match &self.phase {
            JobPhase::Queued { .. } if self.paused => "paused",
            JobPhase::Running { .. } if self.paused => "pausing",
            phase => phase.word(),
        }
    }
}

pub const INCIDENTS_MAX: usize = 32;

/// A job that ends this many generations in a row without getting further fails with the last error: a fault that
/// comes back every time is the job's own.
pub const FRUITLESS_MAX: u32 = 5;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobPhase {
    /// Waits for workers; `reason` says for what.
    Queued {
        reason: String,
    },
    /// A generation exists. Whether it is forming or training is seen from its ranks' reports.
    Running {
        members: Vec<Member>,
    },
    Done {
        ended_ms: Millis,
    },
    Failed {
        reason: String,
        ended_ms: Millis,
    },
    Cancelled {
        ended_ms: Millis,
    },
}

/// One worker's part in a generation. Ranks are numbered over members in order, and over reserves after them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub worker: WorkerId,
    pub first_rank: Rank,
    pub ranks: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    pub at_ms: Millis,
    pub generation: Generation,
    /// Who, what, and what follows; one sentence.
    pub what: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Accepted {
        job: JobId,
    },
    /// The phase the job is in now.
    Phase {
        phase: String,
    },
    /// Whether the worker is drained from now on.
    Worker {
        worker: String,
        drained: bool,
    },
    /// The request makes no sense; names the field or job, and what would be right.
    Refused {
        reason: String,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub enum Fact {
    WorkerUp {
        worker: WorkerId,
    },
    WorkerDown {
        worker: WorkerId,
        reason: String,
    },
    JobQueued {
        job: JobId,
        reason: String,
    },
    GenerationFormed {
        job: JobId,
        generation: Generation,
        world: u32,
    },
    GenerationEnded {
        job: JobId,
        generation: Generation,
        reason: String,
    },
    /// A generation is asked to end in order.
    Halting {
        job: JobId,
        generation: Generation,
        reason: String,
    },
    /// It has ended in order.
    Halted {
        job: JobId,
        generation: Generation,
        reason: String,
    },
    /// This worker is to get processes ready for the next generation, or keep those that it has.
    Reserved {
        job: JobId,
        generation: Generation,
        worker: WorkerId,
    },
    /// It could not, or does not any more.
    ReserveLost {
        job: JobId,
        generation: Generation,
        worker: WorkerId,
        reason: String,
    },
    /// First time that this step is seen in this generation.
    Stepped {
        job: JobId,
        generation: Generation,
        report: StepReport,
    },
    Committed {
        job: JobId,
        checkpoint: CheckpointRef,
    },
    JobDone {
        job: JobId,
        step: Step,
    },
    JobFailed {
        job: JobId,
        reason: String,
    },
    JobCancelled {
        job: JobId,
    },
    /// Two workers that are both heard do not reach each other; who says so.
    Parted {
        what: String,
    },
    /// A report that cannot be true and was ignored: who, what.
    Ignored {
        worker: WorkerId,
        what: String,
    },
}
