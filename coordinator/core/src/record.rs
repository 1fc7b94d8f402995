//! Durable state: the records of jobs, counters and drained workers, and the state they combine to.
//! [`crate::stored`] reads records of older releases.

use crate::evaluation::Evaluations;
use proto::account::Account;
use proto::checkpoint::CheckpointRef;
use proto::during::Parent;
use proto::id::{Generation, JobId, Rank, Step, WorkerId};
use proto::job::overrides::{Override, parse_with_overrides};
use proto::ledger::{Entry, Tip};
use proto::message::{SourceJob, UnitRange};
use proto::phase::Phase;
use proto::reason::{Cause, Fault, UnitError, Waiting, data_or_sentence};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Milliseconds since 1970 of the shell's clock. The machine never reads a clock and tolerates
/// jumps.
pub type Millis = u64;

/// One durable record. Its key is its kind and id; a later record replaces an earlier one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Record {
    /// Counters that outlive jobs.
    Counters(Counters),
    /// Names of all drained workers.
    Drained(BTreeSet<String>),
    Job(Box<JobRecord>),
    /// An ended job that leaves the coordinator's memory. A later [`Record::Job`] brings it back.
    Archived(Box<JobRecord>),
    /// A job of which nothing is kept.
    Deleted(JobId),
    /// Entries to append to the job's ledger. The job's record in the same save names the last one.
    Ledger {
        job: JobId,
        entries: Vec<Entry>,
    },
}

/// Everything that a restart needs. `restore(durable)` is the whole recovery.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Durable {
    pub counters: Counters,
    pub drained: BTreeSet<String>,
    /// All jobs, or all but archived ones that no other job names.
    pub jobs: BTreeMap<JobId, JobRecord>,
    /// Those of `jobs` that are archived.
    #[serde(default)]
    pub archived: BTreeSet<JobId>,
    /// Jobs whose records cannot be read, with the error. They are shown as failed, and their
    /// stored records are not changed.
    #[serde(default)]
    pub unreadable: BTreeMap<JobId, String>,
}

impl Durable {
    /// Applies one saved record. Applying all records in save order yields the state at the last
    /// save.
    pub fn apply(&mut self, record: Record) {
        match record {
            Record::Counters(counters) => self.counters = counters,
            Record::Drained(drained) => self.drained = drained,
            // A restart needs only the end of each ledger, which is in the job's record.
            Record::Ledger { .. } => {}
            Record::Job(job) => {
                self.archived.remove(&job.id);
                self.jobs.insert(job.id.clone(), *job);
            }
            Record::Archived(job) => {
                self.archived.insert(job.id.clone());
                self.jobs.insert(job.id.clone(), *job);
            }
            Record::Deleted(job) => {
                self.archived.remove(&job);
                self.jobs.remove(&job);
            }
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Number of jobs ever submitted. The next job gets the next number.
    pub jobs: u64,
}

/// The record version that this release writes. It also reads older versions.
pub const RECORD_VERSION: u32 = 3;

/// A tag that the model does not read whole in some samples, because their prompt is too long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostTag {
    pub tag: String,
    pub samples: u64,
}

/// How many samples a job uses otherwise than its data set has them, as counted at submission.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Adapted {
    /// Samples that it trains on.
    pub training: u64,
    /// By `data.holdout`.
    pub held_out: u64,
    /// Because of their rating, or because pairing b needs another image.
    pub left_out: u64,
    /// Training samples whose image is smaller than `data.resolution`.
    pub enlarged: u64,
    /// Training samples of which the model sees mostly padding.
    pub padded: u64,
    /// Training samples with fewer other images than references.
    pub repeated: u64,
}

/// What the user who submitted a job says about it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct About {
    /// The user. Empty: not said.
    pub owner: String,
    pub labels: BTreeMap<String, String>,
    pub note: String,
}

impl About {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The durable state of a job. Deserialized by [`crate::stored`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JobRecord {
    /// [`RECORD_VERSION`].
    pub version: u32,
    pub id: JobId,
    /// The submitted text, byte for byte. The spec is parsed from it alone.
    pub job_toml: String,
    /// What users have set since (`coordinator retry --set`), oldest first.
    pub overrides: Vec<Override>,
    /// For how long all its ranks have trained, in milliseconds, over all generations, as of this
    /// save; 0 for units.
    pub trained_ms: u64,
    /// Version of its data set, or that of the trained job that it reads. Pinned at submission.
    pub dataset_version: String,
    /// Training samples whose prompt is cut, as counted at submission. None: not counted, or the
    /// job reads no prompts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut_prompts: Option<u64>,
    /// The tags that are cut off most often, the most frequent first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lost_tags: Vec<LostTag>,
    /// What else becomes of its samples. None: not counted, or the job has no data set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapted: Option<Adapted>,
    /// The trained job that it reads, pinned to a checkpoint. None if it reads no job, or the
    /// checkpoint is not known yet.
    pub source: Option<SourceJob>,
    /// The trained jobs that the models of an evaluation are from, in their order, pinned to
    /// checkpoints. Empty until all checkpoints are known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<SourceJob>,
    /// The training job whose checkpoint it evaluates, if the coordinator submitted it for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// The evaluations of its checkpoints. None: there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evaluations: Option<Evaluations>,
    pub submitted_ms: Millis,
    /// A user paused the job, or [`Self::paused_because`] did.
    pub paused: bool,
    /// Why it was paused, if not by a user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused_because: Option<Waiting>,
    /// The number of workers set by a user; overrides job.toml's `workers.max`.
    pub workers: Option<u32>,
    /// The newest generation ever formed. Generation numbers only increase.
    pub generation: Generation,
    pub phase: JobPhase,
    /// Standbys: not members of the newest generation, but ready or preparing for the next one.
    pub standbys: Vec<Member>,
    /// The end of its ledger.
    pub ledger: Tip,
    /// Committed checkpoints that still exist, oldest first.
    pub checkpoints: Vec<CheckpointRef>,
    /// The newest step ever reported or committed, as of the end of the last generation.
    pub reached: Step,
    /// Number of consecutive generations that ended without a step beyond [`Self::reached`] and
    /// without a new commit. For a job of units: consecutive processes that ended without a current
    /// unit since a unit was last completed.
    pub restarts_without_progress: u32,
    /// A rank failed in a way that another generation would repeat, so none is started.
    pub permanent_failure: bool,
    pub restarts: u32,
    /// The newest [`INCIDENTS_MAX`] incidents, oldest first.
    pub incidents: Vec<Incident>,
    /// The state of its units. None if it is a gang.
    pub units: Option<UnitsRecord>,
    #[serde(skip_serializing_if = "About::is_empty")]
    pub about: About,
    /// Where the time of its devices went, up to this save.
    pub account: Account,
    /// All incidents since it was submitted, by kind ([`Fault::word`]).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub faults: BTreeMap<String, u64>,
    /// When its newest checkpoint was committed. None: not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub committed_ms: Option<Millis>,
}

/// The durable state of a job of units.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct UnitsRecord {
    /// Completed units as sorted, disjoint ranges.
    pub done: Vec<UnitRange>,
    /// Units that failed too often and are not retried.
    pub set_aside: Vec<UnitRange>,
    /// Units that failed and are not done, by number: those to be retried, and the first
    /// [`NAMED_UNITS_MAX`] of those set aside.
    pub failed: Vec<FailedUnit>,
    /// The generation of each member, in member order.
    pub generations: Vec<Generation>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedUnit {
    pub unit: u64,
    /// Names of the workers on which it failed, one per failure.
    pub workers: Vec<String>,
    /// The last error.
    pub error: UnitError,
}

/// Maximum number of units set aside that are listed with their last error.
pub const NAMED_UNITS_MAX: usize = 100;

impl JobRecord {
    /// A placeholder for a job of whose record only the id is known. It is shown but never saved.
    pub(crate) fn unreadable(id: JobId, error: &str) -> Self {
        let record = Self {
            version: RECORD_VERSION,
            ledger: Tip::begin(&id, "", ""),
            id,
            job_toml: String::new(),
            overrides: Vec::new(),
            trained_ms: 0,
            dataset_version: String::new(),
            cut_prompts: None,
            lost_tags: Vec::new(),
            adapted: None,
            source: None,
            models: Vec::new(),
            parent: None,
            evaluations: None,
            submitted_ms: 0,
            paused: false,
            paused_because: None,
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
            about: About::default(),
            account: Account::default(),
            faults: BTreeMap::new(),
            committed_ms: None,
        };
        record.into_unreadable(error)
    }

    /// Marks the record as unreadable, for display.
    pub(crate) fn into_unreadable(mut self, error: &str) -> Self {
        self.phase = JobPhase::Failed {
            cause: Cause::Unreadable {
                error: error.to_owned(),
            },
            ended_ms: self.submitted_ms,
        };
        self
    }

    /// Jobs that it waits for or reads. Empty if its text cannot be read.
    #[must_use]
    pub fn names(&self) -> Vec<JobId> {
        let spec = parse_with_overrides(&self.id, &self.job_toml, &self.overrides);
        spec.map_or_else(
            |_| Vec::new(),
            |spec| {
                let read = spec.work.read_jobs().cloned();
                spec.after.iter().cloned().chain(read).collect()
            },
        )
    }

    /// The phase shown to users.
    #[must_use]
    pub fn shown(&self) -> Phase {
        self.phase.shown().or_paused(self.paused)
    }

    /// The phase in one word, for tables.
    #[must_use]
    pub fn word(&self) -> &'static str {
        self.shown().word()
    }
}

pub const INCIDENTS_MAX: usize = 32;

/// A job fails with its last error after this many consecutive generations without progress: a
/// fault that recurs every time is caused by the job itself.
pub const RESTARTS_WITHOUT_PROGRESS_MAX: u32 = 5;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobPhase {
    /// Waits for workers; `reason` names what is missing.
    Queued {
        #[serde(deserialize_with = "data_or_sentence")]
        reason: Waiting,
    },
    /// A generation exists. The ranks' reports tell whether it is forming or training.
    Running {
        members: Vec<Member>,
    },
    Done {
        ended_ms: Millis,
    },
    Failed {
        #[serde(alias = "reason", deserialize_with = "data_or_sentence")]
        cause: Cause,
        ended_ms: Millis,
    },
    Cancelled {
        ended_ms: Millis,
    },
}

impl JobPhase {
    /// Done, failed or cancelled: final phases.
    #[must_use]
    pub fn is_over(&self) -> bool {
        match self {
            Self::Queued { .. } | Self::Running { .. } => false,
            Self::Done { .. } | Self::Failed { .. } | Self::Cancelled { .. } => true,
        }
    }

    /// The phase shown to users, ignoring a pause.
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

/// One worker's ranks in a generation. Ranks are numbered across members in order, then across
/// standbys.
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
    /// What happened to which rank or worker, and the consequence.
    #[serde(deserialize_with = "data_or_sentence")]
    pub what: Fault,
    /// When a later generation did its first step. None: not yet, or the job has units. Saved with
    /// whatever is saved next, so a coordinator that restarts soon after may not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovered_ms: Option<Millis>,
}

impl Member {
    /// True if this member runs the rank.
    #[must_use]
    pub fn runs(&self, rank: Rank) -> bool {
        self.first_rank <= rank && rank.0 - self.first_rank.0 < self.ranks
    }

    /// The ranks that this member runs.
    pub fn numbers(&self) -> impl Iterator<Item = Rank> + use<> {
        (self.first_rank.0..self.first_rank.0.saturating_add(self.ranks)).map(Rank)
    }
}
