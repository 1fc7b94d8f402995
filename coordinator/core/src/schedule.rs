//! Applies the decisions of [`crate::placement`]: starts jobs whose workers are free, moves running
//! jobs to their assigned workers, and sets the reasons of waiting jobs. It does not decide about
//! priorities.

use crate::fleet;
use crate::format::names;
use crate::gang::{Change, Gang};
use crate::job::Job;
use crate::machine::Coordinator;
use crate::outbox::Outbox;
use crate::placement::{self, Access, Decision, Devices, NodeCapacity, Problem};
use crate::record::{Member, Millis};
use proto::id::{JobId, WorkerId};
use proto::message::GracefulStop;
use proto::reason::{StopCause, Stopped, Waiting};
use std::collections::BTreeSet;

impl Coordinator {
    /// Moves the running jobs towards the placement.
    pub(crate) fn schedule(&mut self, outbox: &mut Outbox) {
        let problem = self.problem(outbox.now);
        let solution = match self.last_placement.take() {
            Some((known, solution)) if known == problem => solution,
            Some(_) | None => placement::solve(&problem),
        };
        let mut used = self.used_devices();
        self.form_from_last_state_holders(&mut used, outbox);
        for (id, decision) in &solution {
            self.apply_decision(id, decision, &mut used, outbox);
        }
        for job in self.jobs.values_mut().filter(|job| job.head().paused) {
            // Each call affects one phase only.
            let because = job.head().paused_because.clone();
            job.wait(because.unwrap_or(Waiting::Paused), outbox);
            match job {
                Job::Gang(gang) => gang.graceful_stop(
                    StopCause::Paused,
                    GracefulStop::WithCheckpoint,
                    self.deadlines,
                    outbox,
                ),
                Job::Units(units) => {
                    units.release_all_but(&[], |_| StopCause::Paused, self.deadlines, outbox);
                }
            }
        }
        let mut freed = false;
        for job in self.jobs.values_mut() {
            freed |= job.release_workers(outbox);
        }
        if freed {
            self.last_placement = Some((problem, solution));
            return self.schedule(outbox);
        }
        self.sync_standbys(&solution, &used, outbox);
        self.last_placement = Some((problem, solution));
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
                .filter_map(|job| job.demand(&self.partitions, now))
                .collect(),
            nodes: present.map(node).collect(),
            quotas: self.config.quotas.clone(),
        }
    }

    fn apply_decision(
        &mut self,
        id: &JobId,
        decision: &Decision,
        used: &mut Devices,
        outbox: &mut Outbox,
    ) {
        let job = match self.jobs.get(id) {
            // Nothing has changed, as for most of many waiting jobs.
            Some(job) if job.has_decision(decision) => return,
            Some(Job::Gang(gang)) => gang,
            Some(Job::Units(_)) => return self.apply_units_decision(id, decision, used, outbox),
            None => return,
        };
        let queued = job.is_queued();
        match decision {
            Decision::Run(workers) if queued => self.start(id, workers, used, outbox),
            Decision::Run(_) if job.head.paused || job.is_time_up() => {}
            Decision::Run(workers) => self.adjust(id, workers, used, outbox),
            Decision::Wait(shortage) if queued => {
                let reason = Waiting::Shortage {
                    shortage: shortage.clone(),
                    state_holders: job.state_holders(),
                };
                self.set_reason(id, reason, outbox);
            }
            Decision::Wait(shortage) => {
                let shortage = shortage.clone();
                self.graceful_stop(
                    id,
                    StopCause::Preempted { shortage },
                    GracefulStop::WithCheckpoint,
                    outbox,
                );
            }
        }
    }

    /// Forms the first generation of a job, or the next one after a generation ended. Workers with
    /// live processes do not wait for others to start theirs, if there are enough of them.
    fn start(&mut self, id: &JobId, given: &[WorkerId], used: &mut Devices, outbox: &mut Outbox) {
        let Some(job) = self.jobs.get(id).and_then(Job::gang) else {
            return;
        };
        let needs = job.head.devices_per_worker();
        let ready = job.ready();
        let available: Vec<WorkerId> = given
            .iter()
            .filter(|it| ready.contains(it))
            .cloned()
            .collect();
        let workers = if job.head.min_workers() <= available.len() {
            available
        } else {
            given.to_vec()
        };
        let occupied = self.occupied(&workers, needs, used);
        if !occupied.is_empty() {
            let reason = self.waits_for_release(&occupied);
            return self.set_reason(id, reason, outbox);
        }
        for worker in &workers {
            *used.entry(worker.clone()).or_default() += needs;
        }
        if let Some(job) = self.jobs.get_mut(id).and_then(Job::gang_mut) {
            job.form(workers, outbox);
        }
    }

    /// If all standbys that hold uncommitted steps of a queued job must leave, they form a
    /// generation. It runs on workers that it should not use, so it is stopped at once with a
    /// checkpoint.
    fn form_from_last_state_holders(&mut self, used: &mut Devices, outbox: &mut Outbox) {
        let gangs = self.jobs.values().filter_map(Job::gang);
        let state_holders: Vec<_> = gangs
            .filter_map(|job| {
                let workers = self.last_state_holders(job);
                (!workers.is_empty()).then(|| (job.head.id.clone(), workers))
            })
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

    /// The survivors of a queued job, if all of them must leave and hold steps that no checkpoint
    /// contains. Under a network partition, only one side.
    fn last_state_holders(&self, job: &Gang) -> Vec<WorkerId> {
        let leaves = |standby: &Member| {
            let worker = self.fleet.reachable(&standby.worker.name);
            let worker = worker.filter(|worker| worker.id == standby.worker);
            worker.is_some_and(|worker| job.head.paused || self.is_leaving(worker))
        };
        if job.holds_steps_alone() && job.standby_members().iter().all(leaves) {
            let workers: Vec<&WorkerId> = job.standby_workers().collect();
            let mut together = self.partitions.choose_connected(&[], &workers, &[]);
            together.sort();
            together.into_iter().cloned().collect()
        } else {
            Vec::new()
        }
    }

    /// True if the worker is drained or its daemon is shutting down.
    pub(crate) fn is_leaving(&self, worker: &fleet::Worker) -> bool {
        self.drained.contains(&worker.id.name) || worker.devices == 0
    }

    /// Moves a running generation towards its assigned workers.
    fn adjust(&mut self, id: &JobId, given: &[WorkerId], used: &mut Devices, outbox: &mut Outbox) {
        let Some(job) = self.jobs.get(id).and_then(Job::gang) else {
            return;
        };
        let needs = job.head.devices_per_worker();
        let next = job.next_members(given);
        match job.change(&next) {
            Change::No => {}
            Change::Now(workers, why) => self.regroup(id, workers, why, used, outbox),
            Change::AtStep => {
                let to = next.iter().map(|worker| worker.name.clone()).collect();
                self.graceful_stop(
                    id,
                    StopCause::Moves { to },
                    GracefulStop::WithoutCheckpoint,
                    outbox,
                );
            }
            Change::Relocate => {
                let newcomer = |worker: &&WorkerId| !job.is_member(worker);
                let newcomers: Vec<WorkerId> = given.iter().filter(newcomer).cloned().collect();
                if newcomers.len() < given.len()
                    && self.occupied(&newcomers, needs, used).is_empty()
                {
                    // Newcomers prepare while the generation trains. If it is already stopped
                    // between steps, it regroups with them at once.
                    if job.is_between_steps() {
                        let why = Stopped::Continues { on: names(given) };
                        self.regroup(id, given.to_vec(), why, used, outbox);
                    }
                    return;
                }
                let to = given.iter().map(|worker| worker.name.clone()).collect();
                self.graceful_stop(
                    id,
                    StopCause::Moves { to },
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
        why: Stopped,
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

    fn set_reason(&mut self, id: &JobId, reason: Waiting, outbox: &mut Outbox) {
        if let Some(job) = self.jobs.get_mut(id) {
            job.wait(reason, outbox);
        }
    }

    fn graceful_stop(
        &mut self,
        id: &JobId,
        why: StopCause,
        how: GracefulStop,
        outbox: &mut Outbox,
    ) {
        if let Some(job) = self.jobs.get_mut(id).and_then(Job::gang_mut) {
            job.graceful_stop(why, how, self.deadlines, outbox);
        }
    }

    /// A job of units takes workers as they become free, and releases them one by one.
    fn apply_units_decision(
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
        let (given, shortage) = match decision {
            Decision::Run(workers) => (&workers[..], None),
            Decision::Wait(shortage) => (&[][..], Some(shortage)),
        };
        let new = given.iter().filter(|worker| !units.is_member(worker));
        let new: Vec<WorkerId> = new.cloned().collect();
        let occupied = self.occupied(&new, needs, used);
        let joining: Vec<WorkerId> = new
            .into_iter()
            .filter(|worker| !occupied.contains(worker))
            .collect();
        let reason = match shortage {
            Some(shortage) => Waiting::Shortage {
                shortage: shortage.clone(),
                state_holders: Vec::new(),
            },
            None => self.waits_for_release(&occupied),
        };
        let leaving: BTreeSet<WorkerId> = self
            .fleet
            .iter()
            .filter(|worker| self.is_leaving(worker))
            .map(|worker| worker.id.clone())
            .collect();
        let Some(Job::Units(units)) = self.jobs.get_mut(id) else {
            return;
        };
        let why = |worker: &WorkerId| match shortage {
            Some(shortage) => StopCause::Preempted {
                shortage: shortage.clone(),
            },
            None if leaving.contains(worker) => StopCause::Drained {
                worker: worker.name.clone(),
            },
            None => StopCause::NotNeeded {
                worker: worker.name.clone(),
            },
        };
        units.release_all_but(given, why, self.deadlines, outbox);
        for worker in joining {
            *used.entry(worker.clone()).or_default() += needs;
            units.join(worker, outbox);
        }
        units.wait(reason, outbox);
    }

    /// The workers that do not have enough free devices yet.
    fn occupied(&self, workers: &[WorkerId], needs: u32, used: &Devices) -> BTreeSet<WorkerId> {
        let room = |worker: &WorkerId| {
            let devices = self
                .fleet
                .reachable(&worker.name)
                .map_or(0, |available| available.devices);
            devices.saturating_sub(used.get(worker).copied().unwrap_or(0))
        };
        workers
            .iter()
            .filter(|worker| room(worker) < needs)
            .cloned()
            .collect()
    }

    /// The jobs that hold these workers, as the reason why another waits for them.
    fn waits_for_release(&self, workers: &BTreeSet<WorkerId>) -> Waiting {
        let uses_worker = |job: &&JobId| {
            self.jobs[*job]
                .members()
                .any(|member| workers.contains(&member.worker))
        };
        Waiting::Release {
            jobs: self.jobs.keys().filter(uses_worker).cloned().collect(),
            workers: names(workers),
        }
    }
}
