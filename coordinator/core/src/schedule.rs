//! Carries out what [`crate::placement`] decides: starts jobs whose workers are free, halts those that should hold
//! others, and says of the rest what they wait for. It decides nothing about who goes first.

use crate::Coordinator;
use crate::event::{JobPhase, Millis};
use crate::fleet;
use crate::halt::Planned;
use crate::job::Job;
use crate::outbox::Outbox;
use crate::placement::{self, Access, Decision, Demand, Problem, Seat, Solution};
use proto::id::{JobId, WorkerId};
use proto::message::RankPhase;
use std::collections::{BTreeMap, BTreeSet};

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
        for (id, decision) in &solution {
            self.carry_out(id, decision, &mut used, outbox);
        }
        self.solved = Some((problem, solution));
        for job in self.jobs.values_mut().filter(|job| job.record.paused) {
            match &job.record.phase {
                JobPhase::Queued { .. } => job.wait(PAUSED.to_owned(), outbox),
                JobPhase::Running { .. } => job.halt(Planned::Paused, self.deadlines, outbox),
                JobPhase::Done { .. } | JobPhase::Failed { .. } | JobPhase::Cancelled { .. } => {}
            }
        }
        let mut freed = false;
        for job in self.jobs.values_mut() {
            freed |= job.let_go(outbox);
        }
        if freed {
            self.place(outbox);
        }
    }

    fn problem(&self, now: Millis) -> Problem {
        let jobs = self.in_submit_order().into_iter();
        let present = self.fleet.iter().filter(|worker| worker.is_present());
        let seat = |worker: &fleet::Worker| Seat {
            worker: worker.id.clone(),
            device: worker.device,
            devices: worker.devices,
            access: if self.drained.contains(&worker.id.name) {
                Access::Drained
            } else if worker.is_reachable() {
                Access::Open
            } else {
                Access::CutOff
            },
        };
        Problem {
            demands: jobs.filter_map(|id| self.jobs[id].demand(now)).collect(),
            seats: present.map(seat).collect(),
            quotas: self.config.quotas.clone(),
        }
    }

    fn carry_out(
        &mut self,
        id: &JobId,
        decision: &Decision,
        used: &mut BTreeMap<WorkerId, u32>,
        outbox: &mut Outbox,
    ) {
        let Some(job) = self.jobs.get(id) else { return };
        let queued = matches!(job.record.phase, JobPhase::Queued { .. });
        let workers = match decision {
            Decision::Run(workers) => workers,
            Decision::Wait(shortage) if queued => return self.tell(id, shortage.to_string(), outbox),
            Decision::Wait(shortage) => {
                let why = Planned::MakesWay {
                    lack: shortage.to_string(),
                };
                return self.halt(id, why, outbox);
            }
        };
        if !queued {
            if job.should_move(workers) {
                let to = workers.iter().map(|worker| worker.name.clone()).collect();
                self.halt(id, Planned::Moves { to }, outbox);
            }
            return;
        }
        let needs = job.record.spec.resources.devices_per_worker;
        let occupied = self.occupied(workers, needs, used);
        if !occupied.is_empty() {
            let reason = format!(
                "waits until {} let go of {}",
                self.holders(&occupied),
                names(&occupied)
            );
            return self.tell(id, reason, outbox);
        }
        for worker in workers {
            *used.entry(worker.clone()).or_default() += needs;
        }
        if let Some(job) = self.jobs.get_mut(id) {
            job.form(workers.clone(), outbox);
        }
    }

    fn tell(&mut self, id: &JobId, reason: String, outbox: &mut Outbox) {
        if let Some(job) = self.jobs.get_mut(id) {
            job.wait(reason, outbox);
        }
    }

    fn halt(&mut self, id: &JobId, why: Planned, outbox: &mut Outbox) {
        if let Some(job) = self.jobs.get_mut(id) {
            job.halt(why, self.deadlines, outbox);
        }
    }

    /// Those of the workers that have no room yet.
    fn occupied(
        &self,
        workers: &[WorkerId],
        needs: u32,
        used: &BTreeMap<WorkerId, u32>,
    ) -> BTreeSet<WorkerId> {
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
    fn demand(&self, now: Millis) -> Option<Demand> {
        let queued = match &self.record.phase {
            JobPhase::Queued { .. } => true,
            JobPhase::Running { .. } => false,
            JobPhase::Done { .. } | JobPhase::Failed { .. } | JobPhase::Cancelled { .. } => return None,
        };
        // While a manifest is on its way nobody knows from where the job would go on.
        if queued && (self.record.paused || self.writing.is_some() || self.is_lost()) {
            return None;
        }
        let resources = &self.record.spec.resources;
        let workers_max = self.record.workers.unwrap_or(resources.workers_max);
        Some(Demand {
            job: self.record.id.clone(),
            number: self.number,
            priority: resources.priority,
            team: resources.team.clone(),
            workers_min: resources.workers_min.min(workers_max),
            workers_max,
            devices_per_worker: resources.devices_per_worker,
            device: resources.device,
            settling: queued && now < self.settle_until,
            holds: self
                .members()
                .iter()
                .map(|member| member.worker.clone())
                .collect(),
        })
    }

    /// Until when it would rather have all workers that it can use, if it waits for that.
    pub(crate) fn settles_until(&self, now: Millis) -> Option<Millis> {
        self.demand(now)
            .filter(|demand| demand.settling)
            .map(|_| self.settle_until)
    }

    /// Whether it should go over to these workers now. To grow is worth a halt only once the generation has made a step.
    fn should_move(&self, workers: &[WorkerId]) -> bool {
        let held: BTreeSet<&WorkerId> = self.members().iter().map(|member| &member.worker).collect();
        let given: BTreeSet<&WorkerId> = workers.iter().collect();
        let grows = held.is_subset(&given);
        let trains = |rank: &crate::live::RankLive| rank.phase == Some(RankPhase::Training);
        let stepped = self.live.last_step.is_some() && self.live.ranks.values().all(trains);
        held != given && (!grows || stepped)
    }
}

fn names(workers: &BTreeSet<WorkerId>) -> String {
    let names: Vec<&str> = workers.iter().map(|worker| worker.name.as_str()).collect();
    names.join(", ")
}

/// What placement decided last, and on what.
pub(crate) type Solved = Option<(Problem, Solution)>;
