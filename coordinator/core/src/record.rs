//! What is durable: the records of jobs, counters and drained workers, and the state that they add
//! up to. How records of older releases are read stands in [`crate::stored`].

use proto::checkpoint::CheckpointRef;
use proto::id::{Generation, JobId, Rank, Step, WorkerId};
use proto::ledger::{Entry, Tip};
use proto::message::{SourceJob, UnitRange};
use proto::phase::Phase;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Milliseconds of the shell's clock since 1970. The machine never reads a clock. It may jump; the
/// machine survives.
pub type Millis = u64;

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
    /// Jobs whose record cannot be read, and why. They are shown as failed, and their records stay
    /// as they are.
    #[serde(default)]
    pub unreadable: BTreeMap<JobId, String>,
}

impl Durable {
    /// Applies one saved record; applying all of them in the order of their saves gives the state
    /// at the last save.
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

/// The form of records that this release writes; it reads those of older ones.
pub const RECORD_VERSION: u32 = 3;

/// Read by [`crate::stored`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JobRecord {
    /// [`RECORD_VERSION`].
    pub version: u32,
    pub id: JobId,
    /// The text that was submitted, byte for byte. What it means is read from it alone.
    pub job_toml: String,
    /// Of its data set; of a job that reads a trained job, that one's. Pinned at submit.
    pub dataset_version: String,
    /// The trained job that it reads, pinned. None: it reads none, or it is not clear yet which
    /// checkpoint.
    pub source: Option<SourceJob>,
    pub submitted_ms: Millis,
    /// Somebody wishes that it does not run.
    pub paused: bool,
    /// The scale that somebody wishes, instead of job.toml's `workers.max`.
    pub workers: Option<u32>,
    /// The newest generation that was ever formed; the next is one higher, for ever.
    pub generation: Generation,
    pub phase: JobPhase,
    /// Standbys: who has no place in its newest generation and is ready, or gets ready, for the
    /// next.
    pub standbys: Vec<Member>,
    /// Where its ledger ends.
    pub ledger: Tip,
    /// Committed checkpoints that still exist, oldest first.
    pub checkpoints: Vec<CheckpointRef>,
    /// The newest step that was ever reported or committed, as of the last end of a generation.
    pub reached: Step,
    /// Generations in a row that ended without a step beyond [`Self::reached`] and without a new
    /// commit; of units, processes in a row that ended with no unit in hand, since the last unit
    /// that was done.
    pub restarts_without_progress: u32,
    /// A rank failed in a way that another generation would repeat: there is none.
    pub permanent_failure: bool,
    pub restarts: u32,
    /// The newest [`INCIDENTS_MAX`] things that went wrong, oldest first.
    pub incidents: Vec<Incident>,
    /// How far its units are; None: it is a gang.
    pub units: Option<UnitsRecord>,
}

/// What is durable of a job of units.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct UnitsRecord {
    /// Units whose output is there: sorted ranges without overlap.
    pub done: Vec<UnitRange>,
    /// Units that are not tried any more.
    pub set_aside: Vec<UnitRange>,
    /// Units that failed and are not done, by number: those that are tried again, and the first
    /// [`NAMED_UNITS_MAX`] of those that are set aside.
    pub failed: Vec<FailedUnit>,
    /// The generation of each member, in their order.
    pub generations: Vec<Generation>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedUnit {
    pub unit: u64,
    /// Names of the workers on which it failed, once for each time.
    pub workers: Vec<String>,
    /// What it said last.
    pub error: String,
}

/// Units set aside that are named with their last error.
pub const NAMED_UNITS_MAX: usize = 100;

impl JobRecord {
    /// Of a job of whose record only the id is known, to be shown and never to be saved.
    pub(crate) fn unreadable(id: JobId, error: &str) -> Self {
        let record = Self {
            version: RECORD_VERSION,
            ledger: Tip::begin(&id, "", ""),
            id,
            job_toml: String::new(),
            dataset_version: String::new(),
            source: None,
            submitted_ms: 0,
            paused: false,
            workers: None,
            generation: Generation(0),
            phase: JobPhase::Done { ended_ms: 0 },
            standbys: Vec::new(),
            checkpoints: Vec::new(),
            reached: Step(0),
            restarts_without_progress: 0,
            permanent_failure: false,
            restarts: 0,
            incidents: Vec::new(),
            units: None,
        };
        record.into_unreadable(error)
    }

    /// The same, as it is shown where it cannot be understood.
    pub(crate) fn into_unreadable(mut self, error: &str) -> Self {
        self.phase = JobPhase::Failed {
            reason: format!("its record cannot be read: {error}"),
            ended_ms: self.submitted_ms,
        };
        self
    }

    /// Its phase as people see it.
    #[must_use]
    pub fn shown(&self) -> Phase {
        self.phase.shown().or_paused(self.paused)
    }

    /// Its phase in one word, for tables.
    #[must_use]
    pub fn word(&self) -> &'static str {
        self.shown().word()
    }
}

pub const INCIDENTS_MAX: usize = 32;

/// A job that ends this many generations in a row without getting further fails with the last
/// error: a fault that comes back every time is the job's own.
pub const RESTARTS_WITHOUT_PROGRESS_MAX: u32 = 5;

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

impl JobPhase {
    /// Done, failed or cancelled: it never changes again.
    #[must_use]
    pub fn is_over(&self) -> bool {
        match self {
            Self::Queued { .. } | Self::Running { .. } => false,
            Self::Done { .. } | Self::Failed { .. } | Self::Cancelled { .. } => true,
        }
    }

    /// As people see it, where nobody pauses the job.
    #[must_use]
    pub fn shown(&self) -> Phase {
        match self {
            Self::Queued { .. } => Phase::Queued,
            Self::Running { .. } => Phase::Running,
            Self::Done { .. } => Phase::Done,
            Self::Failed { .. } => Phase::Failed,
            Self::Cancelled { .. } => Phase::Cancelled,
        }
    }

    /// One word for tables.
    #[must_use]
    pub fn word(&self) -> &'static str {
        self.shown().word()
    }
}

/// One worker's part in a generation. Ranks are numbered over members in order, and over reserves
/// after them.
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

impl Member {
    /// Whether it is this member that runs the rank.
    #[must_use]
    pub fn runs(&self, rank: Rank) -> bool {
        self.first_rank <= rank && rank.0 - self.first_rank.0 < self.ranks
    }

    /// The ranks that it runs.
    pub fn numbers(&self) -> impl Iterator<Item = Rank> + use<> {
        (self.first_rank.0..self.first_rank.0.saturating_add(self.ranks)).map(Rank)
    }
}
