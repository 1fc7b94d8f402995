//! What is shown of jobs and workers, as values.

use crate::record::{JobRecord, Millis};
use proto::id::{Rank, Step, WorkerId};
use proto::message::{RankPhase, StepReport};
use proto::spec::DeviceKind;

/// Everything at one moment. Jobs in submit order, workers by name.
#[derive(Debug, Clone)]
pub struct View<'a> {
    pub jobs: Vec<JobView<'a>>,
    pub workers: Vec<WorkerView<'a>>,
}

/// The durable record of a job and what its ranks last said.
#[derive(Debug, Clone)]
pub struct JobView<'a> {
    pub record: JobRecord,
    /// One per rank of the running generation, in rank order; empty when none runs.
    pub ranks: Vec<RankView<'a>>,
    /// The newest step that rank 0 of the newest generation reported; None before the first.
    pub last_step: Option<&'a StepReport>,
    /// How far the job is: the newest reported or committed step.
    pub step: Step,
    /// Why the running generation was asked to end in order, if it was.
    pub halting: Option<String>,
}

#[derive(Debug, Clone)]
pub struct RankView<'a> {
    pub rank: Rank,
    pub worker: &'a WorkerId,
    /// None: its worker has not reported it yet.
    pub phase: Option<&'a RankPhase>,
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
    pub apart: Vec<String>,
    /// The coordinator's clock when it last reported; None: not since the coordinator started.
    pub last_heard_ms: Option<Millis>,
}

/// Why a job is where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Why {
    /// One sentence without a full stop.
    pub sentence: String,
    /// One word for what holds the job: `over`, `paused`, `workers`, `connection`, `quota`, `settling`, `release`, `manifest`,
    /// `halting`, `forming`, `step`, `last-checkpoint` or `failed-rank`.
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
    pub(crate) fn new(constraint: &'static str, sentence: &str, remedy: Option<String>) -> Self {
        Self {
            sentence: sentence.to_owned(),
            constraint,
            remedy,
            waits_for: None,
        }
    }
}
