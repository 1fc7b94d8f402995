//! What the machine shows to whoever watches: status tables, metrics, tests. Borrowed, read-only; made on
//! demand by [`crate::Coordinator::view`], never stored.

use crate::event::{JobRecord, Millis};
use crate::fleet::Worker;
use crate::job::Job;
use crate::report::runs;
use proto::id::{Rank, Step, WorkerId};
use proto::message::{RankPhase, StepReport};
use proto::spec::DeviceKind;
use std::collections::{BTreeMap, BTreeSet};

/// Everything at one moment. Jobs in submit order, workers by name.
#[derive(Debug, Clone)]
pub struct View<'a> {
    pub jobs: Vec<JobView<'a>>,
    pub workers: Vec<WorkerView<'a>>,
}

/// The durable record of a job and what its ranks last said.
#[derive(Debug, Clone)]
pub struct JobView<'a> {
    pub record: &'a JobRecord,
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

pub(crate) fn job(job: &Job) -> JobView<'_> {
    let owner = |rank: Rank| job.members().iter().find(|member| runs(member, rank));
    let ranks = job.live.ranks.iter().filter_map(|(rank, live)| {
        Some(RankView {
            rank: *rank,
            worker: &owner(*rank)?.worker,
            phase: live.phase.as_ref(),
        })
    });
    JobView {
        record: &job.record,
        ranks: ranks.collect(),
        last_step: job.live.last_step.as_ref(),
        step: job.live.acknowledged.max(job.committed()),
        halting: job.halting(),
    }
}

pub(crate) fn worker<'a>(
    worker: &'a Worker,
    used: &BTreeMap<WorkerId, u32>,
    drained: &BTreeSet<String>,
) -> WorkerView<'a> {
    WorkerView {
        id: &worker.id,
        device: worker.device,
        devices: worker.devices,
        used: used.get(&worker.id).copied().unwrap_or(0),
        up: worker.is_up(),
        drained: drained.contains(&worker.id.name),
        apart: Vec::new(),
        last_heard_ms: worker.heard_wall,
    }
}
