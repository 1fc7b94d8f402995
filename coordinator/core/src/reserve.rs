//! Reserves: processes of a job that have no place in its generation. Beside a running generation they are newcomers,
//! which load everything before the others wait for them, or are left out because a member does not reach them; of a queued
//! job they are survivors, which keep the newest state in memory until there are enough workers again. A reserve is a
//! worker's part in the generation, numbered from its world on. It takes devices that nobody else is given, and gives them
//! back as soon as somebody is.
//! Who has a place is decided by [`crate::schedule`].

use crate::Coordinator;
use crate::apart::Apart;
use crate::deadline::Deadlines;
use crate::event::{Fact, JobPhase, Member, Millis};
use crate::fleet;
use crate::job::Job;
use crate::live::RankLive;
use crate::outbox::Outbox;
use crate::placement::{Decision, Solution};
use crate::report::runs;
use proto::id::{JobId, Rank, WorkerId};
use proto::message::{RankPhase, RankReport};
use std::collections::{BTreeMap, BTreeSet};

/// Devices by worker.
pub(crate) type Devices = BTreeMap<WorkerId, u32>;

impl Coordinator {
    /// Settles who is a reserve of what, when it is clear who has a place. Survivors come before newcomers.
    pub(crate) fn settle_reserves(&mut self, solution: &Solution, used: &Devices, outbox: &mut Outbox) {
        let mut free: Devices = self
            .fleet
            .iter()
            .filter(|worker| worker.is_present())
            .map(|worker| {
                let used = used.get(&worker.id).copied().unwrap_or(0);
                (worker.id.clone(), worker.devices.saturating_sub(used))
            })
            .collect();
        let leaving = |worker: &&fleet::Worker| self.is_leaving(worker);
        let leaving: BTreeSet<WorkerId> = self
            .fleet
            .iter()
            .filter(leaving)
            .map(|it| it.id.clone())
            .collect();
        for job in self.jobs.values_mut() {
            if matches!(job.record.phase, JobPhase::Queued { .. }) {
                job.keep_where_there_is_room(&leaving, &mut free, outbox);
            }
        }
        let runs = |job: &&mut Job| matches!(job.record.phase, JobPhase::Running { .. });
        let mut wanted: BTreeMap<JobId, Vec<WorkerId>> = BTreeMap::new();
        for job in self.jobs.values_mut().filter(runs) {
            let given: &[WorkerId] = match solution.get(&job.record.id) {
                Some(Decision::Run(workers)) if !job.record.paused => workers,
                Some(_) | None => &[],
            };
            wanted.insert(job.record.id.clone(), job.newcomers(given, &mut free));
        }
        for job in self.jobs.values_mut().filter(runs) {
            let mut wanted = wanted.remove(&job.record.id).unwrap_or_default();
            wanted.extend(job.left_out(&wanted, &self.apart, &self.drained, &mut free));
            job.get_ready(&wanted, outbox);
        }
    }
}

/// Takes that many devices, if they are there.
fn take(free: &mut Devices, worker: &WorkerId, needs: u32) -> bool {
    match free.get_mut(worker) {
        Some(free) if needs <= *free => {
            *free -= needs;
            true
        }
        Some(_) | None => false,
    }
}

impl Job {
    /// These members of the generation that ends keep what they hold, beside the newcomers that got ready for the next.
    pub(crate) fn keep(&mut self, survivors: Vec<Member>) {
        let world = self.members().iter().map(|member| member.ranks).sum();
        self.kept_world = Some(world);
        self.record.reserves.extend(survivors);
        self.live.reserves.append(&mut self.live.ranks);
        self.forget_lost_reserves();
    }

    /// A queued job's survivors stay where nobody else has a place, and where nobody wants the worker empty, if what they
    /// hold is elsewhere too. Once no manifest of the generation that ended is on its way, they leave it: the next number is
    /// a generation without members, in which they wait.
    fn keep_where_there_is_room(
        &mut self,
        leaving: &BTreeSet<WorkerId>,
        free: &mut Devices,
        outbox: &mut Outbox,
    ) {
        if self.record.reserves.is_empty() {
            return;
        }
        let unsaved = self.writing.is_some() || self.is_beyond_checkpoint();
        let holds = (unsaved || !self.record.paused) && !self.is_lost();
        let stays = |worker: &WorkerId| !leaving.contains(worker);
        let elsewhere = !unsaved || self.reserved().any(stays);
        let before = self.record.reserves.len();
        let reserves = std::mem::take(&mut self.record.reserves);
        let (kept, dropped): (Vec<Member>, Vec<Member>) = reserves.into_iter().partition(|it| {
            holds && !(elsewhere && leaving.contains(&it.worker)) && take(free, &it.worker, it.ranks)
        });
        tell(&dropped, outbox);
        self.record.reserves = kept;
        if self.writing.is_none() && self.kept_world.is_some() {
            tell(&self.record.reserves, outbox);
            self.record.generation = self.record.generation.next();
            let workers = self.reserved().cloned().collect();
            self.begin_live(&[], outbox.now);
            self.record.reserves.clear();
            self.add_reserves(workers, outbox);
        } else if self.record.reserves.len() != before {
            self.forget_lost_reserves();
            outbox.save.insert(self.record.id.clone());
        }
    }

    /// Of the workers that it is given, those that are no members.
    fn newcomers(&self, given: &[WorkerId], free: &mut Devices) -> Vec<WorkerId> {
        if self.record.spec.training().is_none() {
            return Vec::new();
        }
        let needs = self.record.spec.resources.devices_per_worker;
        let is_member = |worker: &&WorkerId| !self.members().iter().any(|it| it.worker == **worker);
        let rested = |worker: &&WorkerId| !self.resting.contains_key(*worker);
        let newcomers = given.iter().filter(is_member).filter(rested);
        newcomers
            .filter(|worker| take(free, worker, needs))
            .cloned()
            .collect()
    }

    /// Of those that were in reserve, those that have no place because a member does not reach them: they stay where nobody
    /// else has a place and the job could use them, with what they hold, and are asked on whether they are reached.
    fn left_out(
        &mut self,
        wanted: &[WorkerId],
        apart: &Apart,
        drained: &BTreeSet<String>,
        free: &mut Devices,
    ) -> Vec<WorkerId> {
        let mut workers = std::mem::take(&mut self.formerly_reserved);
        workers.extend(self.reserved().cloned());
        workers.sort();
        workers.dedup();
        let most = (self.most() as usize).saturating_sub(self.members().len() + wanted.len());
        let needs = self.record.spec.resources.devices_per_worker;
        let is_member = |worker: &WorkerId| self.members().iter().any(|it| it.worker == *worker);
        let stays = |worker: &WorkerId| {
            !self.record.paused
                && !is_member(worker)
                && !wanted.contains(worker)
                && !drained.contains(&worker.name)
                && !self.resting.contains_key(worker)
                && apart.from(worker).any(is_member)
        };
        workers.retain(|worker| stays(worker));
        workers.truncate(most);
        workers.retain(|worker| take(free, worker, needs));
        workers
    }

    /// These workers are its reserves, and no others.
    fn get_ready(&mut self, wanted: &[WorkerId], outbox: &mut Outbox) {
        let reserves = std::mem::take(&mut self.record.reserves);
        let (kept, dropped): (Vec<Member>, Vec<Member>) = reserves
            .into_iter()
            .partition(|reserve| wanted.contains(&reserve.worker));
        self.record.reserves = kept;
        if !dropped.is_empty() {
            tell(&dropped, outbox);
            self.forget_lost_reserves();
            outbox.save.insert(self.record.id.clone());
        }
        let known: Vec<&WorkerId> = self.reserved().collect();
        let new: Vec<WorkerId> = wanted
            .iter()
            .filter(|worker| !known.contains(worker))
            .cloned()
            .collect();
        self.add_reserves(new, outbox);
    }

    fn add_reserves(&mut self, workers: Vec<WorkerId>, outbox: &mut Outbox) {
        let ranks = self.record.spec.resources.devices_per_worker;
        for worker in workers {
            let first = self.live.next_rank;
            self.live.next_rank = first.saturating_add(ranks);
            for rank in first..self.live.next_rank {
                self.live.reserves.insert(Rank(rank), RankLive::new(outbox.now));
            }
            outbox.note(Fact::Reserved {
                job: self.record.id.clone(),
                generation: self.record.generation,
                worker: worker.clone(),
            });
            let first_rank = Rank(first);
            let reserve = Member {
                worker,
                first_rank,
                ranks,
            };
            tell(std::slice::from_ref(&reserve), outbox);
            self.record.reserves.push(reserve);
            outbox.save.insert(self.record.id.clone());
        }
    }

    /// Its workers with processes in reserve.
    pub(crate) fn reserved(&self) -> impl Iterator<Item = &WorkerId> {
        self.record.reserves.iter().map(|reserve| &reserve.worker)
    }

    /// Who keeps the state of a job that waits, as the end of a sentence.
    pub(crate) fn kept(&self) -> String {
        let names: Vec<&str> = self.reserved().map(|worker| worker.name.as_str()).collect();
        match names.is_empty() {
            true => String::new(),
            false => format!("; its state is kept by {}", names.join(", ")),
        }
    }

    /// Those whose processes could take a place at once: beside a running generation when they have loaded everything,
    /// of a queued job when they are not loading still.
    pub(crate) fn ready(&self) -> Vec<WorkerId> {
        let queued = matches!(self.record.phase, JobPhase::Queued { .. });
        let is_ready = |reserve: &&Member| {
            let mut ranks = reserve.first_rank.0..reserve.first_rank.0.saturating_add(reserve.ranks);
            ranks.all(|rank| match self.live.reserves.get(&Rank(rank)) {
                Some(live) if queued => live.phase != Some(RankPhase::Starting),
                Some(live) => live.phase == Some(RankPhase::Ready),
                None => false,
            })
        };
        let ready = self.record.reserves.iter().filter(is_ready);
        ready.map(|reserve| reserve.worker.clone()).collect()
    }

    /// Takes the report of a reserve.
    pub(crate) fn hear_reserve(
        &mut self,
        worker: &WorkerId,
        report: &RankReport,
        deadlines: Deadlines,
        outbox: &mut Outbox,
    ) {
        if let Some(live) = self.live.reserves.get_mut(&report.rank) {
            live.take(&report.phase, outbox.now);
        }
        if let RankPhase::Failed { error, .. } = &report.phase {
            self.lose_reserve(worker, error, deadlines, outbox);
        }
    }

    /// Gives up reserves whose worker does not report them, and lets those try again that failed some time ago.
    pub(crate) fn tend_reserves(&mut self, deadlines: Deadlines, outbox: &mut Outbox) {
        self.resting.retain(|_, until| outbox.now < *until);
        let overdue = |live: &RankLive| deadlines.roll_call(live.heard) <= outbox.now;
        let late = self.live.reserves.iter().filter(|(_, live)| overdue(live));
        let of_rank = |rank: &Rank| self.record.reserves.iter().find(|it| runs(it, *rank));
        let workers: Vec<WorkerId> = late
            .filter_map(|(rank, _)| of_rank(rank))
            .map(|reserve| reserve.worker.clone())
            .collect();
        for worker in workers {
            self.lose_reserve(&worker, "its worker does not run it", deadlines, outbox);
        }
    }

    pub(crate) fn next_reserve_deadline(&self, deadlines: Deadlines) -> Option<Millis> {
        let heard = self.live.reserves.values().map(|live| live.heard).min();
        let due = heard.map(|heard| deadlines.roll_call(heard));
        let rested = self.resting.values().min().copied();
        due.into_iter().chain(rested).min()
    }

    /// A reserve on this worker cannot go on. Another is not tried there for a while: nobody waits for it.
    fn lose_reserve(&mut self, worker: &WorkerId, reason: &str, deadlines: Deadlines, outbox: &mut Outbox) {
        if !self.reserved().any(|reserved| reserved == worker) {
            return;
        }
        if matches!(self.record.phase, JobPhase::Running { .. }) {
            self.resting.insert(worker.clone(), deadlines.rest(outbox.now));
        }
        outbox.note(Fact::ReserveLost {
            job: self.record.id.clone(),
            generation: self.record.generation,
            worker: worker.clone(),
            reason: reason.to_owned(),
        });
        outbox.tell.insert(worker.name.clone());
        self.drop_reserve(worker, outbox);
    }

    /// The worker is gone, or has no process of the job any more.
    pub(crate) fn drop_reserve(&mut self, worker: &WorkerId, outbox: &mut Outbox) {
        let before = self.record.reserves.len();
        self.record.reserves.retain(|reserve| reserve.worker != *worker);
        if self.record.reserves.len() != before {
            self.forget_lost_reserves();
            outbox.save.insert(self.record.id.clone());
        }
    }

    fn forget_lost_reserves(&mut self) {
        let reserves = &self.record.reserves;
        let is_reserved = |rank: &Rank| reserves.iter().any(|reserve| runs(reserve, *rank));
        self.live.reserves.retain(|rank, _| is_reserved(rank));
    }
}

fn tell(reserves: &[Member], outbox: &mut Outbox) {
    let names = reserves.iter().map(|reserve| reserve.worker.name.clone());
    outbox.tell.extend(names);
}
