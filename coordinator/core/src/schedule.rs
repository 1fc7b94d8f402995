//! Carries out what [`crate::placement`] decides: starts jobs whose workers are free, brings those
//! that run over to the workers that they should hold, and says of the rest what they wait for. It
//! decides nothing about who goes first.

use crate::fleet;
use crate::gang::{Change, Gang, Planned};
use crate::job::Job;
use crate::machine::Coordinator;
use crate::outbox::Outbox;
use crate::placement::{self, Access, Decision, Devices, NodeCapacity, Problem};
use crate::record::{Member, Millis};
use crate::words::listed;
use proto::id::{JobId, WorkerId};
use proto::message::GracefulStop;
use std::collections::BTreeSet;

/// Reason of a job that somebody paused.
const PAUSED: &str = "somebody paused it; `coordinator resume` lets it go on";

impl Coordinator {
    /// Brings what runs nearer to what should run.
    pub(crate) fn schedule(&mut self, outbox: &mut Outbox) {
        let problem = self.problem(outbox.now);
        let solution = match self.solved.take() {
            Some((known, solution)) if known == problem => solution,
            Some(_) | None => placement::solve(&problem),
        };
        let mut used = self.used_devices();
        self.form_of_last_state_holders(&mut used, outbox);
        for (id, decision) in &solution {
            self.carry_out(id, decision, &mut used, outbox);
        }
        for job in self.jobs.values_mut().filter(|job| job.head().paused) {
            // Each says something of its own phase alone.
            job.wait(PAUSED.to_owned(), outbox);
            match job {
                Job::Gang(gang) => gang.graceful_stop(
                    Planned::Paused,
                    GracefulStop::WithCheckpoint,
                    self.deadlines,
                    outbox,
                ),
                Job::Units(units) => {
                    units.leave_all_but(
                        &[],
                        |_| Planned::Paused.to_string(),
                        self.deadlines,
                        outbox,
                    );
                }
            }
        }
        let mut freed = false;
        for job in self.jobs.values_mut() {
            freed |= job.let_go(outbox);
        }
        if freed {
            self.solved = Some((problem, solution));
            return self.schedule(outbox);
        }
        self.sync_standbys(&solution, &used, outbox);
        self.solved = Some((problem, solution));
    }

    fn problem(&self, now: Millis) -> Problem {
        let jobs = self.in_submit_order().into_iter();
        let present = self.fleet.iter().filter(|worker| worker.is_present());
        let node = |worker: &fleet::Worker| NodeCapacity {
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
                .filter_map(|id| self.jobs[id].demand(&self.partitions, now))
                .collect(),
            nodes: present.map(node).collect(),
            quotas: self.config.quotas.clone(),
        }
    }

    fn carry_out(
        &mut self,
        id: &JobId,
        decision: &Decision,
        used: &mut Devices,
        outbox: &mut Outbox,
    ) {
        let job = match self.jobs.get(id) {
            Some(Job::Gang(gang)) => gang,
            Some(Job::Units(_)) => return self.carry_out_units(id, decision, used, outbox),
            None => return,
        };
        let queued = job.is_queued();
        match decision {
            Decision::Run(workers) if queued => self.start(id, workers, used, outbox),
            Decision::Run(_) if job.head.paused => {}
            Decision::Run(workers) => self.adjust(id, workers, used, outbox),
            Decision::Wait(shortage) if queued => {
                let kept = job.kept();
                self.set_reason(id, format!("{shortage}{kept}"), outbox);
            }
            Decision::Wait(shortage) => {
                let lack = shortage.to_string();
                self.graceful_stop(
                    id,
                    Planned::MakesWay { lack },
                    GracefulStop::WithCheckpoint,
                    outbox,
                );
            }
        }
    }

    /// Forms the first generation of a job, or the next after one that ended. Those whose processes
    /// live do not wait for others to start theirs, if they are enough.
    fn start(&mut self, id: &JobId, given: &[WorkerId], used: &mut Devices, outbox: &mut Outbox) {
        let Some(job) = self.jobs.get(id).and_then(Job::gang) else {
            return;
        };
        let needs = job.head.devices_per_worker();
        let ready = job.ready();
        let there: Vec<WorkerId> = given
            .iter()
            .filter(|it| ready.contains(it))
            .cloned()
            .collect();
        let workers = if job.head.least() <= there.len() {
            there
        } else {
            given.to_vec()
        };
        let occupied = self.occupied(&workers, needs, used);
        if !occupied.is_empty() {
            let reason = format!(
                "waits until {} let go of {}",
                self.holders(&occupied),
                listed(&occupied)
            );
            return self.set_reason(id, reason, outbox);
        }
        for worker in &workers {
            *used.entry(worker.clone()).or_default() += needs;
        }
        if let Some(job) = self.jobs.get_mut(id).and_then(Job::gang_mut) {
            job.form(workers, outbox);
        }
    }

    /// Who alone holds steps of a queued job and is to go forms a generation of it. It runs where
    /// it should not, so it is halted at once, with a checkpoint.
    fn form_of_last_state_holders(&mut self, used: &mut Devices, outbox: &mut Outbox) {
        let gangs = self.jobs.values().filter_map(Job::gang);
        let state_holders = gangs.map(|job| (job.head.id.clone(), self.last_state_holders(job)));
        let state_holders: Vec<_> = state_holders
            .filter(|(_, workers)| !workers.is_empty())
            .collect();
        for (id, workers) in state_holders {
            let Some(job) = self.jobs.get_mut(&id).and_then(Job::gang_mut) else {
                continue;
            };
            for worker in &workers {
                *used.entry(worker.clone()).or_default() += job.head.devices_per_worker();
            }
            job.form(workers, outbox);
        }
    }

    /// The survivors of a queued job, if all of them are to go, and no checkpoint has what they
    /// hold; of those that do not reach each other, one side.
    fn last_state_holders(&self, job: &Gang) -> Vec<WorkerId> {
        let goes = |keeper: &Member| {
            let worker = self.fleet.reachable(&keeper.worker.name);
            let worker = worker.filter(|worker| worker.id == keeper.worker);
            worker.is_some_and(|worker| job.head.paused || self.is_leaving(worker))
        };
        if job.holds_steps_alone() && job.standby_members().iter().all(goes) {
            let workers: Vec<&WorkerId> = job.standby_workers().collect();
            let mut together = self.partitions.together(&[], &workers, &[]);
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
        let Some(job) = self.jobs.get(id).and_then(Job::gang) else {
            return;
        };
        let needs = job.head.devices_per_worker();
        let next = job.next_members(given);
        match job.change(&next) {
            Change::No => {}
            Change::Now(workers, why) => self.regroup(id, workers, &why, used, outbox),
            Change::AtStep => {
                let to = next.iter().map(|worker| worker.name.clone()).collect();
                self.graceful_stop(
                    id,
                    Planned::Moves { to },
                    GracefulStop::WithoutCheckpoint,
                    outbox,
                );
            }
            Change::Elsewhere => {
                let newcomer = |worker: &&WorkerId| !job.is_member(worker);
                let newcomers: Vec<WorkerId> = given.iter().filter(newcomer).cloned().collect();
                if newcomers.len() < given.len()
                    && self.occupied(&newcomers, needs, used).is_empty()
                {
                    // Newcomers get ready while it trains on; where it stands still already, it
                    // waits for them as one.
                    if job.is_between_steps() {
                        let why = format!("it goes on on {}", listed(given));
                        self.regroup(id, given.to_vec(), &why, used, outbox);
                    }
                    return;
                }
                let to = given.iter().map(|worker| worker.name.clone()).collect();
                self.graceful_stop(
                    id,
                    Planned::Moves { to },
                    GracefulStop::WithCheckpoint,
                    outbox,
                );
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
        let Some(job) = self.jobs.get_mut(id).and_then(Job::gang_mut) else {
            return;
        };
        for member in job.members() {
            if let Some(used) = used.get_mut(&member.worker) {
                *used = used.saturating_sub(member.ranks);
            }
        }
        for worker in &workers {
            *used.entry(worker.clone()).or_default() += job.head.devices_per_worker();
        }
        job.regroup(workers, why, outbox);
    }

    fn set_reason(&mut self, id: &JobId, reason: String, outbox: &mut Outbox) {
        if let Some(job) = self.jobs.get_mut(id) {
            job.wait(reason, outbox);
        }
    }

    fn graceful_stop(&mut self, id: &JobId, why: Planned, how: GracefulStop, outbox: &mut Outbox) {
        if let Some(job) = self.jobs.get_mut(id).and_then(Job::gang_mut) {
            job.graceful_stop(why, how, self.deadlines, outbox);
        }
    }

    /// A job of units takes workers as they become free, and gives them back one by one.
    fn carry_out_units(
        &mut self,
        id: &JobId,
        decision: &Decision,
        used: &mut Devices,
        outbox: &mut Outbox,
    ) {
        let Some(Job::Units(units)) = self.jobs.get(id) else {
            return;
        };
        let needs = units.head.devices_per_worker();
        let (given, lack) = match decision {
            Decision::Run(workers) => (&workers[..], None),
            Decision::Wait(shortage) => (&[][..], Some(shortage.to_string())),
        };
        let new = given.iter().filter(|worker| !units.is_member(worker));
        let new: Vec<WorkerId> = new.cloned().collect();
        let occupied = self.occupied(&new, needs, used);
        let wanted: Vec<WorkerId> = new
            .into_iter()
            .filter(|worker| !occupied.contains(worker))
            .collect();
        let reason = match &lack {
            Some(lack) => lack.clone(),
            None => format!(
                "waits until {} let go of {}",
                self.holders(&occupied),
                listed(&occupied)
            ),
        };
        let empty: BTreeSet<WorkerId> = self
            .fleet
            .iter()
            .filter(|worker| self.is_leaving(worker))
            .map(|worker| worker.id.clone())
            .collect();
        let Some(Job::Units(units)) = self.jobs.get_mut(id) else {
            return;
        };
        let why = |worker: &WorkerId| match &lack {
            Some(lack) => Planned::MakesWay { lack: lack.clone() }.to_string(),
            None if empty.contains(worker) => format!("{} is to be empty", worker.name),
            None => format!(
                "{} is needed more elsewhere, or not needed any more",
                worker.name
            ),
        };
        units.leave_all_but(given, why, self.deadlines, outbox);
        for worker in wanted {
            *used.entry(worker.clone()).or_default() += needs;
            units.join(worker, outbox);
        }
        units.wait(reason, outbox);
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
                .any(|member| workers.contains(&member.worker))
        };
        let jobs: Vec<&str> = self
            .jobs
            .keys()
            .filter(here)
            .map(|job| job.0.as_str())
            .collect();
        jobs.join(", ")
    }
}
