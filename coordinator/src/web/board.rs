//! What the pages show of the machine's state, copied out of it at one moment. Pure; made by the
//! daemon's loop for [`super::look`].

use crate::status::{self, Detail};
use coordinator_core::event::{JobPhase, Member};
use coordinator_core::{Coordinator, JobView, Why};
use proto::id::{JobId, WorkerId};
use proto::message::{PhaseSeconds, StepTotals};
use proto::pb;
use proto::phase::is_over;
use proto::reason::{Ending, Fault};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

/// Jobs that wait, and jobs that run, whose `why` is asked. More are on no page.
const EXPLAINED: usize = 64;
/// A step is overdue when it takes so many times as long as the one before …
const OVERDUE_STEPS: f64 = 10.0;
/// … and this much at least, as are other stages of which nothing is known.
const OVERDUE_MS: f64 = 60_000.0;

#[derive(Debug, Default)]
pub(crate) struct Board {
    /// Milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// In submit order.
    pub(crate) jobs: Vec<JobLine>,
    /// Indices into `jobs`, in the order in which they would start.
    pub(crate) queue: Vec<usize>,
    /// By name.
    pub(crate) workers: Vec<WorkerLine>,
}

/// A job, without its text.
#[derive(Debug, Default)]
pub(crate) struct JobLine {
    pub(crate) view: pb::JobView,
    /// Of the first [`EXPLAINED`] that wait or run.
    pub(crate) why: Option<Why>,
    pub(crate) last_incident: Option<pb::Incident>,
    pub(crate) priority: i32,
    /// What it asks for, such as `2–4 × 1 cuda`.
    pub(crate) asks: String,
    pub(crate) ranks: Vec<RankLine>,
}

/// What a rank does.
#[derive(Debug, Clone, Default)]
pub(crate) struct RankLine {
    pub(crate) rank: u32,
    pub(crate) worker: String,
    pub(crate) phase: String,
    /// Its stage and for how many milliseconds it had been in it at its last report.
    pub(crate) activity: Option<(String, u64)>,
    /// Seconds per step by phase, over all steps of its process. None: no step yet.
    pub(crate) step_seconds: Option<PhaseSeconds>,
}

#[derive(Debug, Default)]
pub(crate) struct WorkerLine {
    pub(crate) view: pb::WorkerView,
    pub(crate) devices: Vec<DeviceLine>,
}

/// A device and who holds it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DeviceLine {
    /// Empty: it is free.
    pub(crate) job: String,
    pub(crate) rank: u32,
    /// It prepares to join, or keeps a state.
    pub(crate) standby: bool,
}

impl WorkerLine {
    pub(crate) fn name(&self) -> &str {
        self.view.worker.as_ref().map_or("", |it| it.name.as_str())
    }

    /// One word: `down`, `sick`, `drained`, `cut off`, or `up`.
    pub(crate) fn state(&self) -> &'static str {
        if !self.view.up {
            "down"
        } else if self.view.sick.is_some() {
            "sick"
        } else if self.view.drained {
            "drained"
        } else if !self.view.unreachable.is_empty() {
            "cut off"
        } else {
            "up"
        }
    }
}

impl JobLine {
    pub(crate) fn is_over(&self) -> bool {
        is_over(&self.view.phase)
    }

    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self.view.phase.as_str(), "queued" | "paused")
    }

    /// For how long it has waited for one rank, in milliseconds, if that is far too long.
    pub(crate) fn overdue_ms(&self) -> Option<u64> {
        overdue_ms(self.why.as_ref()?, self.view.last_step.as_ref())
    }
}

/// For how long a job has waited for one rank, in milliseconds, if that is far longer than its
/// previous step.
#[allow(clippy::cast_precision_loss)] // Compared with a rough limit.
pub(crate) fn overdue_ms(why: &Why, last_step: Option<&pb::StepReport>) -> Option<u64> {
    let for_ms = why.waits_for.as_ref()?.for_ms;
    let seconds = last_step.and_then(|step| step.seconds);
    let step_ms = 1000.0 * seconds.map_or(0.0, |it| PhaseSeconds::from(it).total());
    let limit = OVERDUE_MS.max(OVERDUE_STEPS * step_ms);
    (limit < for_ms as f64).then_some(for_ms)
}

impl Board {
    /// `now`: milliseconds since 1970.
    pub(crate) fn of(
        machine: &Coordinator,
        last_steps: &BTreeMap<JobId, pb::StepReport>,
        sick: &BTreeMap<WorkerId, String>,
        store_url: &str,
        now: u64,
    ) -> Self {
        let view = machine.view();
        let mut holders: BTreeMap<&WorkerId, Vec<DeviceLine>> = BTreeMap::new();
        for job in &view.jobs {
            for (member, standby) in members(job) {
                let devices = holders.entry(&member.worker).or_default();
                devices.extend((0..member.ranks).map(|it| DeviceLine {
                    job: job.record.id.0.clone(),
                    rank: member.first_rank.0 + it,
                    standby,
                }));
            }
        }
        let workers = view.workers.iter().map(|worker| {
            let mut devices = holders.remove(worker.id).unwrap_or_default();
            let all = usize::try_from(worker.devices).unwrap_or(usize::MAX);
            devices.resize(all.max(devices.len()), DeviceLine::default());
            WorkerLine {
                view: pb::WorkerView {
                    sick: sick.get(worker.id).cloned(),
                    ..status::worker_view(worker, now)
                },
                devices,
            }
        });
        let workers = workers.collect();
        let mut jobs: Vec<JobLine> = view
            .jobs
            .iter()
            .map(|job| job_line(job, last_steps, store_url))
            .collect();
        let ids: HashMap<&str, usize> = view
            .jobs
            .iter()
            .enumerate()
            .map(|(index, job)| (job.record.id.0.as_str(), index))
            .collect();
        let queue: Vec<usize> = machine
            .queue()
            .into_iter()
            .filter_map(|job| ids.get(job.0.as_str()).copied())
            .collect();
        let is_running = |job: &JobLine| !job.is_over() && !job.is_waiting();
        let running = (0..jobs.len()).rev().filter(|it| is_running(&jobs[*it]));
        let running: Vec<usize> = running.take(EXPLAINED).collect();
        for index in queue.iter().take(EXPLAINED).chain(&running) {
            jobs[*index].why = machine.why(now, &view.jobs[*index].record.id);
        }
        Self {
            at_ms: now,
            jobs,
            queue,
            workers,
        }
    }

    pub(crate) fn job(&self, id: &str) -> Option<&JobLine> {
        self.jobs.iter().find(|job| job.view.job == id)
    }
}

/// Incidents on the worker of this name, of the jobs in memory, the newest first, `limit` of them.
pub(crate) fn incidents_on(
    machine: &Coordinator,
    worker: &str,
    limit: usize,
) -> Vec<(JobId, pb::Incident)> {
    let view = machine.view();
    let jobs = view.jobs.iter();
    let all = jobs.flat_map(|job| {
        let id = &job.record.id;
        job.record.incidents.iter().map(move |it| (id, it))
    });
    let mut here: Vec<_> = all.filter(|(_, it)| is_on(&it.what, worker)).collect();
    here.sort_by_key(|(_, it)| Reverse(it.at_ms));
    let newest = here.into_iter().take(limit);
    newest
        .map(|(job, it)| (job.clone(), status::incident(it)))
        .collect()
}

/// Whether a fault names this worker.
fn is_on(fault: &Fault, worker: &str) -> bool {
    match fault {
        Fault::Generation { ending, .. }
        | Fault::Process { ending, .. }
        | Fault::Worker { ending } => match ending {
            Ending::RankFailed { worker: of, .. }
            | Ending::GroupBroken { worker: of, .. }
            | Ending::RankMissing { worker: of, .. }
            | Ending::WorkerLost { worker: of, .. }
            | Ending::WorkerRestarted { old: of, .. } => of.name == worker,
            Ending::Partitioned { pairs } => {
                let of = pairs.iter().map(|it| &it.workers);
                of.into_iter().any(|(a, b)| a == worker || b == worker)
            }
            Ending::WeightsDisagree { .. }
            | Ending::ShardsDisagree { .. }
            | Ending::ManifestRefused { .. }
            | Ending::LastCheckpointMissing { .. } => false,
        },
        Fault::Unit { workers, .. } => workers.iter().any(|it| it == worker),
        Fault::UnitsOverdue { worker: of, .. } => of == worker,
        Fault::Text { .. } | Fault::StopOverdue { .. } => false,
    }
}

/// Its members, and then its standbys.
fn members<'a>(job: &'a JobView<'_>) -> impl Iterator<Item = (&'a Member, bool)> {
    let members: &[Member] = match &job.record.phase {
        JobPhase::Running { members } => members,
        JobPhase::Queued { .. }
        | JobPhase::Done { .. }
        | JobPhase::Failed { .. }
        | JobPhase::Cancelled { .. } => &[],
    };
    let standbys = job.record.standbys.iter().map(|it| (it, true));
    members.iter().map(|it| (it, false)).chain(standbys)
}

fn job_line(
    job: &JobView<'_>,
    last_steps: &BTreeMap<JobId, pb::StepReport>,
    store_url: &str,
) -> JobLine {
    let last_step = last_steps.get(&job.record.id);
    let ranks = job.ranks.iter().map(|it| RankLine {
        rank: it.rank.0,
        worker: it.worker.name.clone(),
        phase: it.phase.map_or("not reported", |it| it.word()).to_owned(),
        activity: it.activity.map(|it| (it.stage.to_string(), it.for_ms)),
        step_seconds: it.totals.and_then(per_step),
    });
    JobLine {
        view: status::job_view(job, last_step, store_url, Detail::Brief),
        why: None,
        last_incident: job.record.incidents.last().map(status::incident),
        priority: job.spec.map_or(0, |spec| spec.resources.priority),
        asks: job.spec.map_or_else(String::new, |spec| {
            let it = &spec.resources;
            let workers = if it.workers_min == it.workers_max {
                it.workers_min.to_string()
            } else {
                format!("{}–{}", it.workers_min, it.workers_max)
            };
            format!("{workers} × {} {}", it.devices_per_worker, it.device.name())
        }),
        ranks: ranks.collect(),
    }
}

/// None: it has not finished a step.
#[allow(clippy::cast_precision_loss)] // Steps of a process.
fn per_step(totals: StepTotals) -> Option<PhaseSeconds> {
    let steps = totals.steps as f64;
    let it = totals.seconds;
    (0.0 < steps).then(|| PhaseSeconds {
        data: it.data / steps,
        forward: it.forward / steps,
        backward: it.backward / steps,
        communication: it.communication / steps,
        optimizer: it.optimizer / steps,
        checkpoint: it.checkpoint / steps,
        validation: it.validation / steps,
    })
}
