//! The state of the machine: jobs, workers, and the last placement. Other modules add the methods.

use crate::clock::Clock;
use crate::config::Config;
use crate::deadline::Deadlines;
use crate::fleet::Fleet;
use crate::job::Job;
use crate::partitions::Partitions;
use crate::placement::LastPlacement;
use crate::reading::Reading;
use crate::record::{Counters, Durable, JobRecord, Millis};
use proto::id::{JobId, WorkerId};
use proto::job::overrides::parse_with_overrides;
use proto::spec::JobSpec;
use std::collections::{BTreeMap, BTreeSet};

/// The coordinator's state machine.
#[derive(Debug)]
pub struct Coordinator {
    pub(crate) config: Config,
    pub(crate) deadlines: Deadlines,
    pub(crate) clock: Clock,
    pub(crate) counters: Counters,
    pub(crate) jobs: BTreeMap<JobId, Job>,
    /// Those of `jobs` whose newest record is archived.
    pub(crate) recalled: BTreeSet<JobId>,
    /// Placeholder records of jobs whose stored record cannot be read. They are shown but never
    /// saved.
    pub(crate) unreadable: BTreeMap<JobId, JobRecord>,
    pub(crate) fleet: Fleet,
    /// Pairs of live workers that cannot reach each other, as of the last input.
    pub(crate) partitions: Partitions,
    /// Names of drained workers: they get no new work and their work moves away.
    pub(crate) drained: BTreeSet<String>,
    pub(crate) last_placement: LastPlacement,
    /// The next deadline, in the time of [`Clock`], as of the last input.
    pub(crate) due: Option<Millis>,
    /// The same without those of leases, as of the last update.
    pub(crate) due_of_jobs: Option<Millis>,
    /// When all that follows from inputs and from the time was last done.
    pub(crate) updated_at: Millis,
    /// Number of inputs handled, including the current one.
    pub(crate) inputs: u64,
    /// When ledger entries were last saved.
    pub(crate) ledger_saved_at: Millis,
    /// Attempts to read the scores of evaluations, by their jobs.
    pub(crate) readings: BTreeMap<JobId, Reading>,
    /// Protocol violations that were already reported, by worker and kind.
    pub(crate) reported_violations: BTreeSet<(WorkerId, &'static str)>,
}

impl Coordinator {
    /// Restores the machine from `durable`; a new one starts from `Durable::default()`. Running
    /// generations continue: their workers have some time to reconnect to the coordinator.
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
            let spec = match parse_record(&record) {
                Ok(spec) => spec,
                Err(error) => {
                    unreadable.insert(id, record.into_unreadable(&error));
                    continue;
                }
            };
            let job = Job::new(record, spec, deadlines, clock.now());
            let device = job.head().spec.resources.device;
            for member in job.processes() {
                fleet.expect_return(
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
            recalled: durable.archived,
            unreadable,
            fleet,
            partitions: Partitions::default(),
            drained: durable.drained,
            last_placement: None,
            due: None,
            due_of_jobs: None,
            updated_at: 0,
            inputs: 0,
            ledger_saved_at: 0,
            readings: BTreeMap::new(),
            reported_violations: BTreeSet::new(),
        };
        machine.drop_unnamed();
        machine.due_of_jobs = machine.find_due_of_jobs();
        machine.due = machine.find_due();
        machine
    }

    /// When to send [`crate::event::Input::Deadline`], in the wall clock of the last input.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Millis> {
        self.due.map(|deadline| self.clock.wall_of(deadline))
    }

    pub(crate) fn find_due(&self) -> Option<Millis> {
        let leases = self.fleet.next_deadline();
        self.due_of_jobs.into_iter().chain(leases).min()
    }

    pub(crate) fn find_due_of_jobs(&self) -> Option<Millis> {
        let next = |job: &Job| job.next_deadline(self.deadlines, self.clock.now());
        self.jobs
            .values()
            .filter_map(next)
            .chain(self.next_reading())
            .chain(
                self.jobs
                    .values()
                    .any(Job::has_batch)
                    .then(|| self.deadlines.ledger(self.ledger_saved_at)),
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

    pub(crate) fn in_submit_order(&self) -> Vec<&Job> {
        let mut jobs: Vec<&Job> = self.jobs.values().collect();
        jobs.sort_by_key(|job| job.head().number);
        jobs
    }

    pub(crate) fn no_such_job(&self, id: &JobId) -> String {
        if self.unreadable.contains_key(id) {
            return format!("the record of job {id} cannot be read; see the job's reason");
        }
        let newest = self
            .in_submit_order()
            .last()
            .map(|newest| format!("; the newest is {}", newest.head().id));
        format!("there is no job {id}{}", newest.unwrap_or_default())
    }
}

/// What a stored job is: its text with its overrides.
pub(crate) fn parse_record(record: &JobRecord) -> Result<JobSpec, String> {
    parse_with_overrides(&record.id, &record.job_toml, &record.overrides)
}
