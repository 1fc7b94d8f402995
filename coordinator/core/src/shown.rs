//! What is shown of jobs and workers, as values.

use crate::record::{JobRecord, Millis};
use proto::id::{JobId, Rank, Step, WorkerId};
use proto::message::{Activity, RankPhase, StepReport};
use proto::spec::{DeviceKind, JobSpec};

/// How the reason of a job begins that waits for one that will not be done.
pub(crate) const DEPENDENCY_FAILED: &str = "dependency-failed";

/// Everything at one moment. Jobs in submit order, workers by name.
#[derive(Debug, Clone)]
pub struct View<'a> {
    pub jobs: Vec<JobView<'a>>,
    pub workers: Vec<WorkerView<'a>>,
}

/// What is durable of a job and what its ranks last said.
#[derive(Debug, Clone)]
pub struct JobView<'a> {
    pub record: JobRecord,
    /// What its text means; None where its record cannot be read.
    pub spec: Option<&'a JobSpec>,
    /// One per rank of the running generation, in rank order; of units one per rank of each worker,
    /// whose ranks are numbered from 0 on. Empty when none runs.
    pub ranks: Vec<RankView<'a>>,
    /// The newest step that rank 0 of the newest generation reported; None before the first.
    pub last_step: Option<&'a StepReport>,
    /// How far the job is: the newest reported or committed step.
    pub step: Step,
    /// Why the running generation was asked to end in order, if it was.
    pub stopping: Option<String>,
    /// How far its units are; None: it is a gang.
    pub units: Option<UnitsView>,
}

/// How far a job of units is, as far as it is saved.
#[derive(Debug, Clone, PartialEq)]
pub struct UnitsView {
    pub total: u64,
    pub done: u64,
    /// Of ranks, and not known to be done.
    pub leased: u64,
    /// Not tried any more.
    pub set_aside: u64,
    /// Failed, and to be tried again.
    pub failed: u64,
    /// Units that were done in a second, over the last minute.
    pub per_second: f64,
    /// The first of those that are set aside.
    pub named: Vec<SetAside>,
}

/// A unit that failed too often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    pub unit: u64,
    /// Names of the workers on which it failed, once for each time.
    pub workers: Vec<String>,
    /// What it said last.
    pub error: String,
}

impl JobView<'_> {
    pub(crate) fn unreadable(record: &JobRecord) -> Self {
        Self {
            record: record.clone(),
            spec: None,
            ranks: Vec::new(),
            last_step: None,
            step: Step(0),
            stopping: None,
            units: None,
        }
    }
}

#[derive(Debug, Clone)]
pub struct RankView<'a> {
    pub rank: Rank,
    pub worker: &'a WorkerId,
    /// None: its worker has not reported it yet.
    pub phase: Option<&'a RankPhase>,
    /// Where it was when it was last heard.
    pub activity: Option<Activity>,
}

#[derive(Debug, Clone)]
pub struct WorkerView<'a> {
    pub id: &'a WorkerId,
    pub device: DeviceKind,
    pub devices: u32,
    /// Devices that running generations hold.
    pub used: u32,
    /// False once its lease has run out.
    pub up: bool,
    /// Somebody drains it: it gets nothing new and loses what it has.
    pub drained: bool,
    /// Names of the workers that it shares a job with and has no connection to.
    pub unreachable: Vec<String>,
    /// The coordinator's clock when it last reported; None: not since the coordinator started.
    pub last_heard_ms: Option<Millis>,
}

/// Why a job is where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Why {
    /// One sentence without a full stop.
    pub sentence: String,
    /// One word for what holds the job: `over`, `paused`, `workers`, `connection`, `quota`,
    /// `in_grace_period`, `release`, `manifest`, `stopping`, `forming`, `step`, `last-checkpoint`,
    /// `failed-rank`, `units`, `dependency` or `dependency-failed`.
    pub constraint: &'static str,
    /// What would let it go on; None where nothing is needed.
    pub remedy: Option<String>,
    /// The rank that all others wait for.
    pub waits_for: Option<WaitsFor>,
}

/// A rank, where it is, and for how long it has been there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitsFor {
    pub rank: Rank,
    pub worker: WorkerId,
    /// What it does there, in a few words.
    pub phase: String,
    pub for_ms: u64,
}

impl Why {
    /// It does not ask for workers yet.
    pub(crate) fn held_up(reason: &str, id: &JobId) -> Self {
        let failed = reason.starts_with(DEPENDENCY_FAILED);
        let remedy = failed
            .then(|| format!("`coordinator cancel {id}`, and a new job after one that is done"));
        Self::new(
            if failed {
                DEPENDENCY_FAILED
            } else {
                "dependency"
            },
            &format!("it {reason}"),
            remedy,
        )
    }

    pub(crate) fn new(constraint: &'static str, sentence: &str, remedy: Option<String>) -> Self {
        Self {
            sentence: sentence.to_owned(),
            constraint,
            remedy,
            waits_for: None,
        }
    }
}
