//! What the machine holds: jobs, workers, and what was decided last. Its parts are the modules that
//! add to it.

use crate::clock::Clock;
use crate::config::Config;
use crate::deadline::Deadlines;
use crate::fleet::Fleet;
use crate::job::Job;
use crate::partitions::Partitions;
use crate::placement::Solved;
use crate::record::{Counters, Durable, JobRecord, Millis};
use proto::id::{JobId, WorkerId};
use std::collections::{BTreeMap, BTreeSet};

/// The machine.
#[derive(Debug)]
pub struct Coordinator {
    pub(crate) config: Config,
    pub(crate) deadlines: Deadlines,
    pub(crate) clock: Clock,
    pub(crate) counters: Counters,
    pub(crate) jobs: BTreeMap<JobId, Job>,
    /// Jobs whose record cannot be read, as they are shown. They are never saved.
    pub(crate) unreadable: BTreeMap<JobId, JobRecord>,
    pub(crate) fleet: Fleet,
    /// Who does not reach whom, as of the last event.
    pub(crate) partitions: Partitions,
    /// Names of workers that get nothing new and lose what they have.
    pub(crate) drained: BTreeSet<String>,
    pub(crate) solved: Solved,
    /// The next deadline, in the time of [`Clock`], as of the last event.
    pub(crate) due: Option<Millis>,
    /// Events so far, this one included.
    pub(crate) events: u64,
    /// When entries of ledgers were last saved.
    pub(crate) ledgered: Millis,
    /// Violations that were noted, by worker and kind.
    pub(crate) noted: BTreeSet<(WorkerId, &'static str)>,
}

impl Coordinator {
    /// The machine as it was when `durable` was saved; `Durable::default()` for a new one.
    /// Generations that ran go on: their workers have some time to find the coordinator again.
    #[must_use]
    pub fn restore(config: Config, durable: Durable, now: Millis) -> Self {
        let deadlines = Deadlines::new(config.detect_within_ms);
        let clock = Clock::new(now);
        let mut fleet = Fleet::default();
        let mut jobs = BTreeMap::new();
        let mut unreadable = BTreeMap::new();
        for (id, error) in durable.unreadable {
            unreadable.insert(id.clone(), JobRecord::unreadable(id, &error));
        }
        for (id, record) in durable.jobs {
            let spec = match proto::job::parse_stored(&id, &record.job_toml) {
                Ok(spec) => spec,
                Err(error) => {
                    unreadable.insert(id, record.into_unreadable(&error.to_string()));
                    continue;
                }
            };
            let job = Job::new(record, spec, deadlines, clock.now());
            let device = job.head().spec.resources.device;
            for member in job.processes() {
                fleet.expect(
                    &member.worker,
                    device,
                    member.ranks,
                    deadlines.reattach(clock.now()),
                );
            }
            jobs.insert(id, job);
        }
        let counters = durable.counters;
        let mut machine = Self {
            config,
            deadlines,
            clock,
            counters,
            jobs,
            unreadable,
            fleet,
            partitions: Partitions::default(),
            drained: durable.drained,
            solved: None,
            due: None,
            events: 0,
            ledgered: 0,
            noted: BTreeSet::new(),
        };
        machine.due = machine.find_due();
        machine
    }

    /// When [`crate::event::Input::Deadline`] is wanted, in the clock of the last event.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Millis> {
        self.due.map(|deadline| self.clock.wall_of(deadline))
    }

    pub(crate) fn find_due(&self) -> Option<Millis> {
        let next = |job: &Job| job.next_deadline(self.deadlines, self.clock.now());
        self.jobs
            .values()
            .filter_map(next)
            .chain(self.fleet.next_deadline())
            .chain(
                self.jobs
                    .values()
                    .any(Job::has_batch)
                    .then(|| self.deadlines.ledger(self.ledgered)),
            )
            .min()
    }

    pub(crate) fn used_devices(&self) -> BTreeMap<WorkerId, u32> {
        let mut used = BTreeMap::new();
        for member in self.jobs.values().flat_map(Job::members) {
            *used.entry(member.worker.clone()).or_insert(0) += member.ranks;
        }
        used
    }

    pub(crate) fn in_submit_order(&self) -> Vec<&JobId> {
        let mut ids: Vec<&JobId> = self.jobs.keys().collect();
        ids.sort_by_key(|id| self.jobs[*id].head().number);
        ids
    }

    pub(crate) fn no_such_job(&self, id: &JobId) -> String {
        if self.unreadable.contains_key(id) {
            return format!("the record of job {id} cannot be read; its reason says why");
        }
        let newest = self
            .in_submit_order()
            .last()
            .map(|newest| format!("; the newest is {newest}"));
        format!("there is no job {id}{}", newest.unwrap_or_default())
    }
}
