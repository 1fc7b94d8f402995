//! Carries out what [`crate::placement`] decides: starts jobs whose workers are free, brings those that run over to the
//! workers that they should hold, and says of the rest what they wait for. It decides nothing about who goes first.

use crate::Coordinator;
use crate::apart::Apart;
use crate::event::{JobPhase, Member, Millis};
use crate::fleet;
use crate::halt::Planned;
use crate::job::Job;
use crate::live::RankLive;
use crate::outbox::Outbox;
use crate::placement::{self, Access, Decision, Demand, Problem, Seat, Solution};
use crate::report::runs;
use crate::reserve::Devices;
use proto::id::{JobId, WorkerId};
use proto::message::{Halt, RankPhase};
use std::collections::BTreeSet;

/// Reason of a job that somebody paused.
const PAUSED: &str = "somebody paused it; `coordinator resume` lets it go on";

impl Coordinator {
    /// Brings what runs nearer to what should run.
    pub(crate) fn place(&mut self, outbox: &mut Outbox) {
        let problem = self.problem(outbox.now);
        let solution = match self.solved.take() {
            Some((known, solution)) if known == problem => solution,
            Some(_) | None => placement::solve(&problem),
        };
        let mut used = self.used_devices();
        self.form_of_last_keepers(&mut used, outbox);
        for (id, decision) in &solution {
            self.carry_out(id, decision, &mut used, outbox);
        }
        for job in self.jobs.values_mut().filter(|job| job.record.paused) {
            match &job.record.phase {
                JobPhase::Queued { .. } => job.wait(PAUSED.to_owned(), outbox),
                JobPhase::Running { .. } => job.halt(Planned::Paused, Halt::Save, self.deadlines, outbox),
                JobPhase::Done { .. } | JobPhase::Failed { .. } | JobPhase::Cancelled { .. } => {}
            }
        }
        let mut freed = false;
        for job in self.jobs.values_mut() {
            freed |= job.let_go(outbox);
        }
        if freed {
            self.solved = Some((problem, solution));
            return self.place(outbox);
        }
        self.settle_reserves(&solution, &used, outbox);
        self.solved = Some((problem, solution));
    }

    fn problem(&self, now: Millis) -> Problem {
        let jobs = self.in_submit_order().into_iter();
        let present = self.fleet.iter().filter(|worker| worker.is_present());
        let seat = |worker: &fleet::Worker| Seat {
            worker: worker.id.clone(),
            device: worker.device,
            devices: worker.devices,
            access: if self.is_leaving(worker) {
                Access::Drained
            } else if worker.is_reachable() {
                Access::Open
            } else {
                Access::CutOff
            },
        };
        Problem {
            demands: jobs
                .filter_map(|id| self.jobs[id].demand(&self.apart, now))
                .collect(),
            seats: present.map(seat).collect(),
            quotas: self.config.quotas.clone(),
        }
    }

    fn carry_out(&mut self, id: &JobId, decision: &Decision, used: &mut Devices, outbox: &mut Outbox) {
        let Some(job) = self.jobs.get(id) else { return };
        let queued = matches!(job.record.phase, JobPhase::Queued { .. });
        match decision {
            Decision::Run(workers) if queued => self.start(id, workers, used, outbox),
            Decision::Run(_) if job.record.paused => {}
            Decision::Run(workers) => self.adjust(id, workers, used, outbox),
            Decision::Wait(shortage) if queued => {
                let kept = job.kept();
                self.tell(id, format!("{shortage}{kept}"), outbox);
            }
            Decision::Wait(shortage) => {
                let lack = shortage.to_string();
                self.halt(id, Planned::MakesWay { lack }, Halt::Save, outbox);
            }
        }
    }

    /// Forms the first generation of a job, or the next after one that ended. Those whose processes live do not wait for
    /// others to start theirs, if they are enough.
    fn start(&mut self, id: &JobId, given: &[WorkerId], used: &mut Devices, outbox: &mut Outbox) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        let needs = job.record.spec.resources.devices_per_worker;
        let ready = job.ready();
        let there: Vec<WorkerId> = given.iter().filter(|it| ready.contains(it)).cloned().collect();
        let workers = if job.least() <= there.len() {
            there
        } else {
            given.to_vec()
        };
        let occupied = self.occupied(&workers, needs, used);
        if !occupied.is_empty() {
            let reason = format!(
                "waits until {} let go of {}",
                self.holders(&occupied),
                names(&occupied)
            );
            return self.tell(id, reason, outbox);
        }
        for worker in &workers {
            *used.entry(worker.clone()).or_default() += needs;
        }
        if let Some(job) = self.jobs.get_mut(id) {
            job.form(workers, outbox);
        }
    }

    /// Who alone holds steps of a queued job and is to go forms a generation of it. It runs where it should not, so it is
    /// halted at once, with a checkpoint.
    fn form_of_last_keepers(&mut self, used: &mut Devices, outbox: &mut Outbox) {
        let keepers = self
            .jobs
            .iter()
            .map(|(id, job)| (id.clone(), self.last_keepers(job)));
        let keepers: Vec<_> = keepers.filter(|(_, workers)| !workers.is_empty()).collect();
        for (id, workers) in keepers {
            let Some(job) = self.jobs.get_mut(&id) else {
                continue;
            };
            for worker in &workers {
                *used.entry(worker.clone()).or_default() += job.record.spec.resources.devices_per_worker;
            }
            job.form(workers, outbox);
        }
    }

    /// The survivors of a queued job, if all of them are to go, and no checkpoint has what they hold; of those that do not
    /// reach each other, one side.
    fn last_keepers(&self, job: &Job) -> Vec<WorkerId> {
        let goes = |keeper: &Member| {
            let worker = self.fleet.reachable(&keeper.worker.name);
            let worker = worker.filter(|worker| worker.id == keeper.worker);
            worker.is_some_and(|worker| job.record.paused || self.is_leaving(worker))
        };
        let keepers = &job.record.reserves;
        let waits =
            matches!(job.record.phase, JobPhase::Queued { .. }) && job.writing.is_none() && !job.is_lost();
        if waits && job.is_beyond_checkpoint() && keepers.iter().all(goes) {
            let workers: Vec<&WorkerId> = job.reserved().collect();
            let mut together = self.apart.together(&[], &workers, &[]);
            together.sort();
            together.into_iter().cloned().collect()
        } else {
            Vec::new()
        }
    }

    /// Somebody drains it, or its daemon was asked to leave.
    pub(crate) fn is_leaving(&self, worker: &fleet::Worker) -> bool {
        self.drained.contains(&worker.id.name) || worker.devices == 0
    }

    /// Brings a running generation nearer to the workers that it is given.
    fn adjust(&mut self, id: &JobId, given: &[WorkerId], used: &mut Devices, outbox: &mut Outbox) {
        let Some(job) = self.jobs.get(id) else { return };
        let needs = job.record.spec.resources.devices_per_worker;
        let next = job.next_members(given);
        match job.change(&next) {
            Change::No => {}
            Change::Now(workers, why) => self.regroup(id, workers, &why, used, outbox),
            Change::AtStep => {
                let to = next.iter().map(|worker| worker.name.clone()).collect();
                self.halt(id, Planned::Moves { to }, Halt::Hold, outbox);
            }
            Change::Elsewhere => {
                let members = job.members();
                let newcomer = |worker: &&WorkerId| !members.iter().any(|it| it.worker == **worker);
                let newcomers: Vec<WorkerId> = given.iter().filter(newcomer).cloned().collect();
                if newcomers.len() < given.len() && self.occupied(&newcomers, needs, used).is_empty() {
                    // Newcomers get ready while it trains on; where it stands still already, it waits for them as one.
                    if job.is_between_steps() {
                        let why = format!("it goes on on {}", listed(given));
                        self.regroup(id, given.to_vec(), &why, used, outbox);
                    }
                    return;
                }
                let to = given.iter().map(|worker| worker.name.clone()).collect();
                self.halt(id, Planned::Moves { to }, Halt::Save, outbox);
            }
        }
    }

    fn regroup(
        &mut self,
        id: &JobId,
        workers: Vec<WorkerId>,
        why: &str,
        used: &mut Devices,
        outbox: &mut Outbox,
    ) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        for member in job.members() {
            if let Some(used) = used.get_mut(&member.worker) {
                *used = used.saturating_sub(member.ranks);
            }
        }
        for worker in &workers {
            *used.entry(worker.clone()).or_default() += job.record.spec.resources.devices_per_worker;
        }
        job.regroup(workers, why, outbox);
    }

    fn tell(&mut self, id: &JobId, reason: String, outbox: &mut Outbox) {
        if let Some(job) = self.jobs.get_mut(id) {
            job.wait(reason, outbox);
        }
    }

    fn halt(&mut self, id: &JobId, why: Planned, how: Halt, outbox: &mut Outbox) {
        if let Some(job) = self.jobs.get_mut(id) {
            job.halt(why, how, self.deadlines, outbox);
        }
    }

    /// Those of the workers that have no room yet.
    fn occupied(&self, workers: &[WorkerId], needs: u32, used: &Devices) -> BTreeSet<WorkerId> {
        let room = |worker: &WorkerId| {
            let devices = self
                .fleet
                .reachable(&worker.name)
                .map_or(0, |there| there.devices);
            devices.saturating_sub(used.get(worker).copied().unwrap_or(0))
        };
        workers
            .iter()
            .filter(|worker| room(worker) < needs)
            .cloned()
            .collect()
    }

    fn holders(&self, workers: &BTreeSet<WorkerId>) -> String {
        let here = |job: &&JobId| {
            self.jobs[*job]
                .members()
                .iter()
                .any(|member| workers.contains(&member.worker))
        };
        let jobs: Vec<&str> = self.jobs.keys().filter(here).map(|job| job.0.as_str()).collect();
        jobs.join(", ")
    }
}

impl Job {
    /// What it asks of placement, if it wants to run.
    fn demand(&self, apart: &Apart, now: Millis) -> Option<Demand> {
        if !self.asks() {
            return None;
        }
        let queued = matches!(self.record.phase, JobPhase::Queued { .. });
        let resources = &self.record.spec.resources;
        let workers_max = self.most();
        Some(Demand {
            job: self.record.id.clone(),
            number: self.number,
            priority: resources.priority,
            team: resources.team.clone(),
            workers_min: self.record.spec.resources.workers_min.min(workers_max),
            workers_max,
            devices_per_worker: resources.devices_per_worker,
            device: resources.device,
            warm: if queued { self.ready() } else { Vec::new() },
            // A generation that trains is taken apart by what its ranks do, not by what daemons say.
            apart: apart.beyond(self.members().iter().map(|member| &member.worker)),
            settling: self.settles(now),
            holds: self
                .members()
                .iter()
                .map(|member| member.worker.clone())
                .collect(),
        })
    }

    /// Until when it would rather have all workers that it can use, if it waits for that.
    pub(crate) fn settles_until(&self, now: Millis) -> Option<Millis> {
        (self.asks() && self.settles(now)).then_some(self.settle_until)
    }

    /// True while it wants to run, be it that it does.
    fn asks(&self) -> bool {
        match &self.record.phase {
            // While a manifest is on its way nobody knows from where the job would go on.
            JobPhase::Queued { .. } => !(self.record.paused || self.writing.is_some() || self.is_lost()),
            JobPhase::Running { .. } => true,
            JobPhase::Done { .. } | JobPhase::Failed { .. } | JobPhase::Cancelled { .. } => false,
        }
    }

    fn settles(&self, now: Millis) -> bool {
        let queued = matches!(self.record.phase, JobPhase::Queued { .. });
        queued && now < self.settle_until && self.ready().len() < self.least()
    }

    /// The fewest workers that it runs on.
    pub(crate) fn least(&self) -> usize {
        self.record.spec.resources.workers_min.min(self.most()).max(1) as usize
    }

    /// The most workers that it can use, as somebody wishes or job.toml says.
    pub(crate) fn most(&self) -> u32 {
        let wished = self.record.workers;
        wished.unwrap_or(self.record.spec.resources.workers_max)
    }

    /// Of the workers that it is given, its members and those that are ready to join them.
    fn next_members(&self, given: &[WorkerId]) -> Vec<WorkerId> {
        let ready = self.ready();
        let there = |worker: &&WorkerId| self.is_member(worker) || ready.contains(worker);
        given.iter().filter(there).cloned().collect()
    }

    fn is_member(&self, worker: &WorkerId) -> bool {
        self.members().iter().any(|member| member.worker == *worker)
    }

    /// How its generation should go over to the next, which would have the members `next`.
    fn change(&self, next: &[WorkerId]) -> Change {
        let stays = next.iter().filter(|worker| self.is_member(worker)).count();
        let enough = 0 < stays && self.least() <= next.len();
        let now = || Change::Now(next.to_vec(), format!("it goes on on {}", listed(next)));
        if self.is_between_steps() {
            return if enough { now() } else { Change::Elsewhere };
        }
        if let Some(warm) = self.warm_members(next).filter(|warm| self.least() <= warm.len()) {
            let why = format!("{} do not wait for others to start", listed(&warm));
            return Change::Now(warm, why);
        }
        let grows = stays == self.members().len();
        let phases = || self.live.ranks.values().map(|rank| &rank.phase);
        if grows {
            // Worth a stop only once the generation has made a step, and once for all that get ready.
            let stepped =
                self.live.last_step.is_some() && phases().all(|it| *it == Some(RankPhase::Training));
            let settled = self.ready().len() == self.record.reserves.len();
            return if stays < next.len() && stepped && settled {
                Change::AtStep
            } else {
                Change::No
            };
        }
        if !enough {
            return Change::Elsewhere;
        }
        let forms = phases().all(|it| matches!(it, None | Some(RankPhase::Starting | RankPhase::Joining)));
        if forms && self.record.spec.training().is_some() {
            return now();
        }
        Change::AtStep
    }

    /// While a generation forms of processes that live on and others that are just started: those that are not starting
    /// any more. None: nobody need wait for a start, or it is not clear yet.
    fn warm_members(&self, next: &[WorkerId]) -> Option<Vec<WorkerId>> {
        let ranks = || self.live.ranks.values();
        let known = |rank: &RankLive| matches!(rank.phase, Some(RankPhase::Starting | RankPhase::Joining));
        let starts = |rank: &RankLive| rank.phase == Some(RankPhase::Starting);
        if self.record.spec.training().is_none() || !ranks().all(known) || ranks().all(|it| it.cold) {
            return None;
        }
        let cold = |member: &&Member| {
            let own = self.live.ranks.iter().filter(|(rank, _)| runs(member, **rank));
            own.map(|(_, live)| live).any(starts)
        };
        let cold: Vec<&WorkerId> = self.members().iter().filter(cold).map(|it| &it.worker).collect();
        if cold.is_empty() {
            return None;
        }
        let warm = next.iter().filter(|worker| !cold.contains(worker)).cloned();
        Some(warm.collect())
    }
}

/// How a generation goes over to the next.
enum Change {
    No,
    /// At once, to these workers, and why: nobody is in the middle of a step.
    Now(Vec<WorkerId>, String),
    /// After the step that is under way.
    AtStep,
    /// Too few of its processes would go on.
    Elsewhere,
}

fn listed(workers: &[WorkerId]) -> String {
    names(&workers.iter().cloned().collect())
}

fn names(workers: &BTreeSet<WorkerId>) -> String {
    let names: Vec<&str> = workers.iter().map(|worker| worker.name.as_str()).collect();
    names.join(", ")
}

/// What placement decided last, and on what.
pub(crate) type Solved = Option<(Problem, Solution)>;
