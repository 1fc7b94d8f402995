//! Builds the read-only view for status tables, metrics and tests. [`Coordinator::view`] creates it
//! on demand; it is never stored.

use crate::deadline::Deadlines;
use crate::fleet::Worker;
use crate::gang::Gang;
use crate::job::Job;
use crate::machine::{Coordinator, parse_record};
use crate::partitions::Partitions;
use crate::record::JobRecord;
use crate::view_model::{JobView, View, Why, WorkerView};
use proto::id::{JobId, WorkerId};
use std::collections::{BTreeMap, BTreeSet};

impl Coordinator {
    /// Jobs in submit order, workers by name.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        let jobs = self.in_submit_order().into_iter();
        let jobs = jobs.map(|job| job.brief_view(self.clock.now()));
        let unreadable = self.unreadable.values().map(JobView::unreadable);
        View {
            jobs: unreadable.chain(jobs).collect(),
            workers: self.workers(),
        }
    }

    /// Workers by name.
    #[must_use]
    pub fn workers(&self) -> Vec<WorkerView<'_>> {
        let mut used = self.used_devices();
        let gangs = self.jobs.values().filter_map(Job::gang);
        for standby in gangs.flat_map(Gang::standby_members) {
            *used.entry(standby.worker.clone()).or_insert(0) += standby.ranks;
        }
        let mut jobs: BTreeMap<&WorkerId, Vec<&JobId>> = BTreeMap::new();
        for job in self.in_submit_order() {
            for member in job.members() {
                jobs.entry(&member.worker).or_default().push(&job.head().id);
            }
        }
        let workers = self.fleet.iter().map(|worker| {
            let jobs = jobs.remove(&worker.id).unwrap_or_default();
            view_worker(worker, jobs, &used, &self.drained)
        });
        let mut workers: Vec<WorkerView<'_>> = workers.collect();
        for worker in &mut workers {
            worker.unreachable = self
                .partitions
                .unreachable_from(worker.id)
                .map(|other| other.name.clone())
                .collect();
        }
        workers
    }

    /// One job, with its text.
    #[must_use]
    pub fn job_view(&self, id: &JobId) -> Option<JobView<'_>> {
        match self.jobs.get(id) {
            Some(job) => Some(job.view(self.clock.now())),
            None => self.unreadable.get(id).map(JobView::unreadable),
        }
    }

    /// The ended jobs in memory that are not archived: of this team, and of all.
    #[must_use]
    pub fn ended_jobs(&self, team: &str) -> (u64, u64) {
        let ended = self
            .jobs
            .iter()
            .filter(|(id, job)| job.is_over() && !self.recalled.contains(*id));
        let own = |job: &Job| u64::from(job.head().spec.resources.team == team);
        ended.fold((0, 0), |(some, all), (_, job)| (some + own(job), all + 1))
    }

    /// Whether a worker of this name was once assigned something.
    #[must_use]
    pub fn has_held(&self, worker: &str) -> bool {
        self.fleet.has_held(worker)
    }

    /// Whether the job is in memory.
    #[must_use]
    pub fn has_job(&self, id: &JobId) -> bool {
        self.jobs.contains_key(id) || self.unreadable.contains_key(id)
    }
}

fn view_worker<'a>(
    worker: &'a Worker,
    jobs: Vec<&'a JobId>,
    used: &BTreeMap<WorkerId, u32>,
    drained: &BTreeSet<String>,
) -> WorkerView<'a> {
    WorkerView {
        id: &worker.id,
        device: worker.device,
        devices: worker.devices,
        jobs,
        used: used.get(&worker.id).copied().unwrap_or(0),
        up: worker.is_up(),
        drained: drained.contains(&worker.id.name),
        unreachable: Vec::new(),
        last_heard_ms: worker.last_report_wall,
        displaced: worker.displaced(),
    }
}

/// A job that has ended and is not in the machine's memory, for views.
#[derive(Debug)]
pub struct EndedJob(Result<Job, JobRecord>);

impl EndedJob {
    #[must_use]
    pub fn new(record: JobRecord) -> Self {
        let no_deadlines = Deadlines::new(u64::MAX);
        Self(match parse_record(&record) {
            Ok(spec) => Ok(Job::new(record, spec, no_deadlines, 0)),
            Err(error) => Err(record.into_unreadable(&error)),
        })
    }

    #[must_use]
    pub fn view(&self) -> JobView<'_> {
        match &self.0 {
            Ok(job) => job.view(0),
            Err(record) => JobView::unreadable(record),
        }
    }

    /// Why it is in its state.
    #[must_use]
    pub fn why(&self) -> Option<Why> {
        let job = self.0.as_ref().ok()?;
        Some(job.why(None, &Partitions::default(), 0))
    }
}
