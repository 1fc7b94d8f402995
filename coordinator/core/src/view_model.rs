//! Views of jobs and workers, as plain values.

use crate::fleet::Displaced;
use crate::record::{JobRecord, Millis};
use proto::id::{JobId, Rank, Step, WorkerId};
use proto::message::{Activity, RankPhase, StepReport, StepTotals};
use proto::reason::{StopCause, UnitError, Waiting};
use proto::spec::{DeviceKind, JobSpec};

/// All jobs, in submit order, and all workers, by name.
#[derive(Debug, Clone)]
pub struct View<'a> {
    pub jobs: Vec<JobView<'a>>,
    pub workers: Vec<WorkerView<'a>>,
}

/// A job's durable record and the last reports of its ranks.
#[derive(Debug, Clone)]
pub struct JobView<'a> {
    /// Without its text and the job that it reads, if it is one of all jobs: each may have 1 MiB.
    pub record: JobRecord,
    /// Parsed from its text. None if its record cannot be read.
    pub spec: Option<&'a JobSpec>,
    /// One per rank of the running generation, in rank order. For a job of units, one per rank of
    /// each worker; each worker's ranks are numbered from 0. Empty if none runs.
    pub ranks: Vec<RankView<'a>>,
    /// The newest step that rank 0 of the newest generation reported. None before the first.
    pub last_step: Option<&'a StepReport>,
    /// The newest reported or committed step.
    pub step: Step,
    /// Why a graceful stop of the running generation was requested, if it was.
    pub stopping: Option<StopCause>,
    /// The progress of its units. None if it is a gang.
    pub units: Option<UnitsView>,
}

/// The saved progress of a job of units.
#[derive(Debug, Clone, PartialEq)]
pub struct UnitsView {
    pub total: u64,
    pub done: u64,
    /// Leased to ranks and not known to be done.
    pub leased: u64,
    /// Failed too often and not retried.
    pub set_aside: u64,
    /// Failed and to be retried.
    pub failed: u64,
    /// Units completed per second, over the last minute.
    pub per_second: f64,
    /// The first units that were set aside.
    pub named: Vec<SetAside>,
}

/// A unit that failed too often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    pub unit: u64,
    /// Names of the workers on which it failed, one per failure.
    pub workers: Vec<String>,
    /// The last error.
    pub error: UnitError,
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
    /// None if its worker has not reported it yet.
    pub phase: Option<&'a RankPhase>,
    /// What it was doing at the last report.
    pub activity: Option<Activity>,
    /// What its process had done at the last report.
    pub totals: Option<StepTotals>,
}

#[derive(Debug, Clone)]
pub struct WorkerView<'a> {
    pub id: &'a WorkerId,
    pub device: DeviceKind,
    pub devices: u32,
    /// The jobs that run on it, in submit order.
    pub jobs: Vec<&'a JobId>,
    /// Devices that running generations hold.
    pub used: u32,
    /// False after its lease has expired.
    pub up: bool,
    /// It is drained: it gets no new work and its work moves away.
    pub drained: bool,
    /// Names of the workers that it shares a job with and cannot reach.
    pub unreachable: Vec<String>,
    /// The coordinator's clock at its last report. None if it has not reported since the
    /// coordinator started.
    pub last_heard_ms: Option<Millis>,
    /// An older daemon of the same name that was told to leave.
    pub displaced: Option<Displaced<'a>>,
}

/// Why a job is in its current state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Why {
    /// One sentence without a full stop.
    pub sentence: String,
    /// The limiting constraint in one word: `over`, `paused`, `workers`, `connection`, `quota`,
    /// `grace-period`, `release`, `manifest`, `stopping`, `forming`, `step`, `last-checkpoint`,
    /// `failed-rank`, `units`, `dependency` or `dependency-failed`.
    pub constraint: &'static str,
    /// What would let it continue. None if nothing is needed.
    pub remedy: Option<String>,
    /// The rank that blocks all others.
    pub waits_for: Option<WaitsFor>,
}

/// A rank, its activity, and the duration of that activity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitsFor {
    pub rank: Rank,
    pub worker: WorkerId,
    /// Its activity, in a few words.
    pub phase: String,
    pub for_ms: u64,
}

impl Why {
    /// The job waits for a dependency and asks for no workers yet.
    pub(crate) fn blocked(reason: &Waiting) -> Self {
        let (constraint, remedy) = match reason {
            Waiting::DependencyFailed { job, dependencies } => {
                let retry = dependencies.first().map_or_else(String::new, |first| {
                    format!("`coordinator retry {}`, or ", first.job)
                });
                let remedy = format!("{retry}`coordinator cancel {job}`");
                ("dependency-failed", Some(remedy))
            }
            _ => ("dependency", None),
        };
        Self::new(constraint, &format!("it {reason}"), remedy)
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
