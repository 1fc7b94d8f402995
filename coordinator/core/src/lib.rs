//! What the cluster should do next: a pure machine. It keeps the queue, the workers' leases, generations and
//! checkpoint commits. It has no async, clock, randomness, sockets, files or logging; the coordinator's loop
//! calls [`Coordinator::handle`] and performs the effects in order.
//!
//! Its rules: what should be is said again on every report (law 5); nothing visible tells of what is not
//! saved (law 7); only the newest generation of a job publishes (law 4); every wait has a deadline (law 9).

mod apart;
mod clock;
mod commit;
mod control;
mod deadline;
pub mod event;
mod explain;
mod fleet;
mod halt;
mod invariant;
mod job;
mod ledger;
mod live;
mod outbox;
mod placement;
mod report;
mod request;
mod reserve;
mod schedule;
mod view;
mod why;

use apart::Apart;
use clock::Clock;
pub use deadline::Deadlines;
use event::{Counters, Durable, Effect, Event, Fact, Millis, Record, Reply};
use explain::Ending;
use fleet::{Arrival, Fleet};
use job::Job;
use outbox::Outbox;
use proto::checkpoint::CheckpointRef;
use proto::id::{JobId, WorkerId};
use proto::message::{DesiredState, Peer, RankPhase, RankReport, WorkerReport};
use report::{Oddity, Sense};
use schedule::Solved;
use std::collections::{BTreeMap, BTreeSet};
pub use view::{JobView, RankView, View, WorkerView};
pub use why::{WaitsFor, Why};

/// What the machine is told once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// URL under which `jobs/<job>/…` lies; handed to ranks.
    pub store_url: String,
    /// The one knob from which every time-out derives, in milliseconds (law 9).
    pub detect_within_ms: u64,
    /// Devices that a team may hold at one time; a team that is not named may hold any number.
    pub quotas: BTreeMap<String, u32>,
}

/// The machine.
#[derive(Debug)]
pub struct Coordinator {
    config: Config,
    deadlines: Deadlines,
    clock: Clock,
    counters: Counters,
    jobs: BTreeMap<JobId, Job>,
    fleet: Fleet,
    /// Who does not reach whom, as of the last event.
    apart: Apart,
    /// Names of workers that get nothing new and lose what they have.
    drained: BTreeSet<String>,
    solved: Solved,
    /// The next deadline, in the time of [`Clock`], as of the last event.
    due: Option<Millis>,
    /// When entries of ledgers were last saved.
    ledgered: Millis,
    /// Oddities that were noted, by worker and sort.
    noted: BTreeSet<(WorkerId, &'static str)>,
}

impl Coordinator {
    /// The machine as it was when `durable` was saved; `Durable::default()` for a new one. Generations that
    /// ran go on: their workers have some time to find the coordinator again.
    #[must_use]
    pub fn restore(config: Config, durable: Durable, now: Millis) -> Self {
        let deadlines = Deadlines::new(config.detect_within_ms);
        let clock = Clock::new(now);
        let mut fleet = Fleet::default();
        let mut jobs = BTreeMap::new();
        for (id, record) in durable.jobs {
            let job = Job::new(record, deadlines, clock.now());
            let device = job.record.spec.resources.device;
            for member in job.members().iter().chain(&job.record.reserves) {
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
            fleet,
            apart: Apart::default(),
            drained: durable.drained,
            solved: None,
            due: None,
            ledgered: 0,
            noted: BTreeSet::new(),
        };
        machine.due = machine.find_due();
        machine
    }

    /// Takes one event; the effects are to be performed in order. Never fails and never panics on strange
    /// input: what cannot be meant is refused or ignored, with a reason. Panics when its own invariants are
    /// broken: a crash and a restart are cheaper than a wrong checkpoint.
    pub fn handle(&mut self, now: Millis, event: Event) -> Vec<Effect> {
        let lived = self.clock.advance(now, self.due, self.deadlines.patience_ms());
        let mut outbox = Outbox::new(lived, now);
        match event {
            Event::Submit {
                request,
                spec,
                job_toml,
                dataset_version,
            } => {
                self.on_submit(request, *spec, job_toml, dataset_version, &mut outbox);
            }
            Event::Cancel { request, job } => self.on_cancel(request, &job, &mut outbox),
            Event::Pause { request, job, paused } => self.on_pause(request, &job, paused, &mut outbox),
            Event::Scale {
                request,
                job,
                workers,
            } => self.on_scale(request, &job, workers, &mut outbox),
            Event::Drain {
                request,
                worker,
                drained,
            } => {
                self.on_drain(request, &worker, drained, &mut outbox);
            }
            Event::Heard { report } => self.on_heard(&report, &mut outbox),
            Event::Disconnected { worker } => self.fleet.disconnect(&worker),
            Event::ManifestWritten {
                job,
                checkpoint,
                result,
            } => {
                self.on_manifest_written(&job, checkpoint, result, &mut outbox);
            }
            Event::Deadline => {}
        }
        self.expire(&mut outbox);
        self.see_who_is_apart(&mut outbox);
        self.tend_jobs(&mut outbox);
        self.place(&mut outbox);
        self.write_ledgers(&mut outbox);
        invariant::check(self);
        self.due = self.find_due();
        self.conclude(outbox)
    }

    /// When [`Event::Deadline`] is wanted, in the clock of the last event.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Millis> {
        self.due.map(|deadline| self.clock.wall_of(deadline))
    }

    /// Jobs in submit order, workers by name.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        let mut used = self.used_devices();
        for reserve in self.jobs.values().flat_map(|job| &job.record.reserves) {
            *used.entry(reserve.worker.clone()).or_insert(0) += reserve.ranks;
        }
        let worker = |worker| view::worker(worker, &used, &self.drained);
        let mut workers: Vec<WorkerView<'_>> = self.fleet.iter().map(worker).collect();
        for worker in &mut workers {
            worker.apart = self
                .apart
                .from(worker.id)
                .map(|other| other.name.clone())
                .collect();
        }
        let jobs = self
            .in_submit_order()
            .into_iter()
            .map(|id| view::job(&self.jobs[id]))
            .collect();
        View { jobs, workers }
    }

    fn find_due(&self) -> Option<Millis> {
        let next = |job: &Job| job.next_deadline(self.deadlines, self.clock.now());
        self.jobs
            .values()
            .filter_map(next)
            .chain(self.fleet.next_deadline())
            .chain(
                self.jobs
                    .values()
                    .any(Job::has_ledger_pending)
                    .then(|| self.deadlines.ledger(self.ledgered)),
            )
            .min()
    }

    fn on_heard(&mut self, report: &WorkerReport, outbox: &mut Outbox) {
        let worker = &report.worker;
        match self.fleet.hear(report, self.deadlines, outbox.now, outbox.wall) {
            Arrival::Known => {}
            Arrival::Up => outbox.note(Fact::WorkerUp {
                worker: worker.clone(),
            }),
            Arrival::Replaced { old } => {
                self.noted.retain(|(noted, _)| *noted != old);
                let reason = format!("restarted as {worker}");
                outbox.note(Fact::WorkerDown {
                    worker: old.clone(),
                    reason,
                });
                outbox.note(Fact::WorkerUp {
                    worker: worker.clone(),
                });
                let ending = Ending::WorkerRestarted {
                    old: old.clone(),
                    new: worker.clone(),
                };
                self.end_generations_of(&old, &ending, outbox);
            }
            Arrival::Stale { newer } => {
                self.ignore(worker, &Oddity::OldBoot { newer }, outbox);
                return;
            }
        }
        // A report is answered with what should be, whether that changed or not.
        outbox.tell.insert(worker.name.clone());
        let mut failures: BTreeMap<JobId, Ending> = BTreeMap::new();
        for rank in &report.ranks {
            let Some(ending) = self.on_rank(worker, rank, outbox) else {
                continue;
            };
            let known = failures.get(&rank.job);
            if known.is_none_or(|known| known.is_hearsay() && !ending.is_hearsay()) {
                failures.insert(rank.job.clone(), ending);
            }
        }
        for (id, ending) in failures {
            if let Some(job) = self.jobs.get_mut(&id) {
                job.end_generation(&ending, self.deadlines, outbox);
            }
        }
    }

    /// Takes one rank's report; the reason if it ends its generation.
    fn on_rank(&mut self, worker: &WorkerId, report: &RankReport, outbox: &mut Outbox) -> Option<Ending> {
        match report::judge(self.jobs.get(&report.job), worker, report) {
            Sense::Live => {}
            Sense::Reserve => {
                let job = self.jobs.get_mut(&report.job)?;
                job.hear_reserve(worker, report, self.deadlines, outbox);
                return self.of_ended(worker, report, outbox);
            }
            Sense::Late => {
                let newest = self.jobs.get(&report.job)?.record.generation;
                if report.generation < newest && failure(worker, report).is_none() {
                    let (job, said) = (report.job.clone(), report.generation);
                    self.ignore(worker, &Oddity::OldGeneration { job, said, newest }, outbox);
                }
                return self.of_ended(worker, report, outbox);
            }
            Sense::Odd(oddity) => {
                self.ignore(worker, &oddity, outbox);
                return None;
            }
        }
        let job = self.jobs.get_mut(&report.job)?;
        let (steps_max, committed) = (job.steps_max(), job.committed());
        let news = job.live.take(report, outbox.now, steps_max, committed);
        if news.for_all {
            job.tell_members(outbox);
        }
        for step in &news.steps {
            job.ledger_step(step);
        }
        let disagreement = job.ledger_digests(report.rank, &report.digests);
        for step in news.steps {
            let (job, generation) = (report.job.clone(), report.generation);
            outbox.note(Fact::Stepped {
                job,
                generation,
                report: step,
            });
        }
        for oddity in news.oddities {
            self.ignore(worker, &oddity, outbox);
        }
        disagreement.or_else(|| failure(worker, report))
    }

    /// What is told late of a generation that ended may still say who was to blame. It ends nothing.
    fn of_ended(&mut self, worker: &WorkerId, report: &RankReport, outbox: &mut Outbox) -> Option<Ending> {
        let ending = failure(worker, report)?;
        let rank = Some((report.generation, report.rank));
        self.jobs
            .get_mut(&report.job)?
            .amend(worker, rank, &ending, outbox);
        None
    }

    fn ignore(&mut self, worker: &WorkerId, oddity: &Oddity, outbox: &mut Outbox) {
        if self.noted.insert((worker.clone(), oddity.sort())) {
            outbox.note(Fact::Ignored {
                worker: worker.clone(),
                what: oddity.to_string(),
            });
        }
    }

    fn on_manifest_written(
        &mut self,
        id: &JobId,
        checkpoint: CheckpointRef,
        result: Result<(), String>,
        outbox: &mut Outbox,
    ) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        if commit::answered(job, checkpoint, result, outbox) {
            outbox.note(Fact::Committed {
                job: id.clone(),
                checkpoint,
            });
            self.retain(id, outbox);
        }
    }

    /// Saves the entries of ledgers that are new, if the last save of that kind is a while ago or the job is saved anyway.
    fn write_ledgers(&mut self, outbox: &mut Outbox) {
        let due = self.deadlines.ledger(self.ledgered) <= outbox.now;
        for (id, job) in &mut self.jobs {
            if !(due || outbox.save.contains(id)) {
                continue;
            }
            if let Some(record) = job.take_ledger() {
                outbox.ledgers.push(record);
                outbox.save.insert(id.clone());
                job.tell_members(outbox);
                self.ledgered = outbox.now;
            }
        }
    }

    fn retain(&mut self, id: &JobId, outbox: &mut Outbox) {
        let pins = self.jobs.values().filter_map(Job::pin);
        let pinned = pins
            .filter(|(source, _)| *source == id)
            .map(|(_, checkpoint)| checkpoint)
            .collect();
        if let Some(job) = self.jobs.get_mut(id) {
            commit::retain(job, &pinned, outbox);
        }
    }

    fn end_generations_of(&mut self, worker: &WorkerId, ending: &Ending, outbox: &mut Outbox) {
        for job in self.jobs.values_mut() {
            job.amend(worker, None, ending, outbox);
            job.drop_reserve(worker, outbox);
            if job.members().iter().any(|member| member.worker == *worker) {
                job.end_generation(ending, self.deadlines, outbox);
            }
        }
    }

    /// Ends the leases whose time is over, and what depended on them.
    fn expire(&mut self, outbox: &mut Outbox) {
        for worker in self.fleet.expire(outbox.now) {
            let silent_for_ms = self.config.detect_within_ms;
            let ending = Ending::WorkerLost {
                worker: worker.clone(),
                silent_for_ms,
            };
            outbox.note(Fact::WorkerDown {
                worker: worker.clone(),
                reason: ending.to_string(),
            });
            self.end_generations_of(&worker, &ending, outbox);
        }
    }

    fn see_who_is_apart(&mut self, outbox: &mut Outbox) {
        let apart = self.fleet.apart();
        for what in apart.beside(&self.apart) {
            outbox.note(Fact::Parted { what });
        }
        self.apart = apart;
    }

    /// Moves every job on as far as it goes by itself.
    fn tend_jobs(&mut self, outbox: &mut Outbox) {
        let mut no_longer_read = Vec::new();
        for job in self.jobs.values_mut() {
            job.tend_reserves(self.deadlines, outbox);
            let pinned = job.pin().map(|(source, _)| source.clone());
            let endings = [
                commit::retry(job, self.deadlines, outbox).err(),
                commit::begin(job, self.deadlines, outbox).err(),
                job.overdue(self.deadlines, outbox.now),
                job.torn(&self.apart, self.deadlines, outbox.now),
            ];
            for ending in endings.into_iter().flatten() {
                job.end_generation(&ending, self.deadlines, outbox);
            }
            if job.live.all_finished() && job.live.finished_at.is_none() {
                job.live.finished_at = Some(outbox.now);
            }
            if job.settle(outbox) {
                no_longer_read.extend(pinned);
            }
        }
        for source in no_longer_read {
            self.retain(&source, outbox);
        }
    }

    /// Turns what was gathered into effects.
    fn conclude(&self, mut outbox: Outbox) -> Vec<Effect> {
        for (request, id) in std::mem::take(&mut outbox.phases) {
            if let Some(job) = self.jobs.get(&id) {
                let phase = job.record.word().to_owned();
                outbox.reply(request, Reply::Phase { phase });
            }
        }
        let jobs = outbox.save.iter().filter_map(|id| self.jobs.get(id));
        let mut records: Vec<Record> = jobs
            .map(|job| Record::Job(Box::new(job.record.clone())))
            .collect();
        records.append(&mut outbox.ledgers);
        if outbox.save_drained {
            records.insert(0, Record::Drained(self.drained.clone()));
        }
        if outbox.save_counters {
            records.insert(0, Record::Counters(self.counters));
        }
        let workers = outbox.tell.iter().filter_map(|name| self.fleet.reachable(name));
        let states = workers.map(|worker| self.desired(&worker.id)).collect();
        outbox.into_effects(records, states)
    }

    fn desired(&self, worker: &WorkerId) -> DesiredState {
        let Config {
            store_url,
            detect_within_ms,
            ..
        } = &self.config;
        let assignment = |job: &Job| job.assignment(worker, store_url, *detect_within_ms);
        DesiredState {
            worker: worker.clone(),
            assignments: self.jobs.values().filter_map(assignment).collect(),
            detect_within_ms: *detect_within_ms,
            peers: self.peers(worker),
        }
    }

    /// The other workers with ranks of a job that has ranks on this one.
    fn peers(&self, worker: &WorkerId) -> Vec<Peer> {
        let mut others = BTreeSet::new();
        for job in self.jobs.values() {
            let workers = || {
                job.members()
                    .iter()
                    .chain(&job.record.reserves)
                    .map(|it| &it.worker)
            };
            if workers().any(|it| it == worker) {
                others.extend(workers().filter(|it| *it != worker));
            }
        }
        others.into_iter().filter_map(|it| self.fleet.peer(it)).collect()
    }

    fn used_devices(&self) -> BTreeMap<WorkerId, u32> {
        let mut used = BTreeMap::new();
        for member in self.jobs.values().flat_map(Job::members) {
            *used.entry(member.worker.clone()).or_insert(0) += member.ranks;
        }
        used
    }

    fn in_submit_order(&self) -> Vec<&JobId> {
        let mut ids: Vec<&JobId> = self.jobs.keys().collect();
        ids.sort_by_key(|id| self.jobs[*id].number);
        ids
    }
}

fn failure(worker: &WorkerId, report: &RankReport) -> Option<Ending> {
    let (rank, worker) = (report.rank, worker.clone());
    match &report.phase {
        RankPhase::Failed { error, permanent } => Some(Ending::RankFailed {
            rank,
            worker,
            error: error.clone(),
            permanent: *permanent,
        }),
        RankPhase::Broken { error } => Some(Ending::GroupBroken {
            rank,
            worker,
            error: error.clone(),
        }),
        RankPhase::Starting
        | RankPhase::Ready
        | RankPhase::Joining
        | RankPhase::Training
        | RankPhase::Finished => None,
    }
}
