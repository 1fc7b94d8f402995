//! Standbys: processes of a job that are not members of its generation. Standbys of a running
//! generation are newcomers, which load everything before the others wait for them, or are excluded
//! because a member cannot reach them. Standbys of a queued job are survivors, which keep the
//! newest state in memory until there are enough workers again. The ranks of standbys are numbered
//! from the world size. A standby uses devices that are not assigned otherwise, and releases them
//! as soon as they are. Placement decides the members.

use super::job::{Gang, State};
use crate::deadline::Deadlines;
use crate::event::Event;
use crate::outbox::Outbox;
use crate::partitions::Partitions;
use crate::placement::Devices;
use crate::rank::RankLive;
use crate::record::{Member, Millis};
use proto::id::WorkerId;
use proto::message::{RankPhase, RankReport};
use proto::reason::StandbyLoss;
use std::collections::BTreeSet;

/// Takes `needs` devices of the worker, if they are free.
fn take(free: &mut Devices, worker: &WorkerId, needs: u32) -> bool {
    match free.get_mut(worker) {
        Some(free) if needs <= *free => {
            *free -= needs;
            true
        }
        Some(_) | None => false,
    }
}

impl Gang {
    /// Keeps a queued job's survivors on devices that are not assigned otherwise. Survivors on
    /// leaving workers are dropped if their state also exists elsewhere. Once no manifest of the
    /// ended generation is being written, the survivors move to the next generation, which has no
    /// members, and wait there.
    pub(crate) fn retain_survivors(
        &mut self,
        leaving: &BTreeSet<WorkerId>,
        free: &mut Devices,
        outbox: &mut Outbox,
    ) {
        let State::Queued(queued) = &self.state else {
            return;
        };
        if self.standbys.members().is_empty() {
            return;
        }
        let already_moved = queued.ended_world.is_none();
        let unsaved = self.writing.is_some() || self.is_beyond_checkpoint();
        let keep = (unsaved || !self.head.paused) && !self.head.must_fail();
        let stays = |worker: &WorkerId| !leaving.contains(worker);
        let held_elsewhere = !unsaved || self.standby_workers().any(stays);
        let dropped = self.standbys.retain(|it| {
            keep && !(held_elsewhere && leaving.contains(&it.worker))
                && take(free, &it.worker, it.ranks)
        });
        outbox.send_to_all(&dropped);
        if self.writing.is_none() && !already_moved {
            outbox.send_to_all(self.standbys.members());
            let workers: Vec<WorkerId> = self.standby_workers().cloned().collect();
            self.begin(0);
            // Also if none of them is left: the record must not name a device that is another's.
            self.save(outbox);
            if let State::Queued(queued) = &mut self.state {
                queued.ended_world = None;
            }
            self.add_standbys(workers, outbox);
        } else if !dropped.is_empty() {
            self.save(outbox);
        }
    }

    /// True if the job waits and its survivors hold steps that no checkpoint contains.
    pub(crate) fn holds_steps_alone(&self) -> bool {
        let waits = self.is_queued() && self.writing.is_none() && !self.head.must_fail();
        waits && self.is_beyond_checkpoint()
    }

    /// The assigned workers that are not members yet, with their devices taken from `free`.
    pub(crate) fn newcomers(&self, given: &[WorkerId], free: &mut Devices) -> Vec<WorkerId> {
        let needs = self.head.devices_per_worker();
        let newcomers = given
            .iter()
            .filter(|worker| !self.is_member(worker) && !self.backing_off.contains_key(*worker));
        newcomers
            .filter(|worker| take(free, worker, needs))
            .cloned()
            .collect()
    }

    /// Standbys that cannot become members because a member cannot reach them. They keep their
    /// state on devices that are not assigned otherwise, as long as the job could use them, and
    /// their connections continue to be checked.
    pub(crate) fn excluded_standbys(
        &mut self,
        wanted: &[WorkerId],
        partitions: &Partitions,
        drained: &BTreeSet<String>,
        free: &mut Devices,
    ) -> Vec<WorkerId> {
        let former = self
            .running_mut()
            .map(|running| std::mem::take(&mut running.former_standbys));
        let mut workers = former.unwrap_or_default();
        workers.extend(self.standby_workers().cloned());
        workers.sort();
        workers.dedup();
        let limit =
            (self.head.max_workers() as usize).saturating_sub(self.members().len() + wanted.len());
        let needs = self.head.devices_per_worker();
        let stays = |worker: &WorkerId| {
            !self.head.paused
                && !self.is_member(worker)
                && !wanted.contains(worker)
                && !drained.contains(&worker.name)
                && !self.backing_off.contains_key(worker)
                && partitions
                    .unreachable_from(worker)
                    .any(|other| self.is_member(other))
        };
        workers.retain(|worker| stays(worker));
        workers.truncate(limit);
        workers.retain(|worker| take(free, worker, needs));
        workers
    }

    /// Sets its standbys to exactly these workers.
    pub(crate) fn set_standbys(&mut self, wanted: &[WorkerId], outbox: &mut Outbox) {
        let dropped = self
            .standbys
            .retain(|standby| wanted.contains(&standby.worker));
        if !dropped.is_empty() {
            outbox.send_to_all(&dropped);
            self.save(outbox);
        }
        let new = |worker: &&WorkerId| !self.is_standby(worker);
        let new: Vec<WorkerId> = wanted.iter().filter(new).cloned().collect();
        self.add_standbys(new, outbox);
    }

    fn add_standbys(&mut self, workers: Vec<WorkerId>, outbox: &mut Outbox) {
        let ranks = self.head.devices_per_worker();
        for worker in workers {
            outbox.emit(Event::StandbyAdded {
                job: self.head.id.clone(),
                generation: self.head.generation,
                worker: worker.clone(),
            });
            let standby = self.standbys.add(worker, ranks, outbox.now);
            outbox.send_to_all(std::slice::from_ref(standby));
            self.save(outbox);
        }
    }

    fn is_standby(&self, worker: &WorkerId) -> bool {
        self.standby_workers().any(|standby| standby == worker)
    }

    /// Names of the workers that hold the state of a waiting job.
    pub(crate) fn state_holders(&self) -> Vec<String> {
        self.standby_workers().map(|it| it.name.clone()).collect()
    }

    /// The standbys that could become members at once: of a running generation those that have
    /// loaded everything, of a queued job those that are not loading.
    pub(crate) fn ready(&self) -> Vec<WorkerId> {
        let queued = self.is_queued();
        let is_ready = |standby: &&Member| {
            standby
                .numbers()
                .all(|rank| match self.standbys.ranks().get(&rank) {
                    Some(live) if queued => live.phase != Some(RankPhase::Starting),
                    Some(live) => live.phase == Some(RankPhase::Ready),
                    None => false,
                })
        };
        let ready = self.standby_members().iter().filter(is_ready);
        ready.map(|standby| standby.worker.clone()).collect()
    }

    /// Applies the report of a standby.
    pub(crate) fn receive_standby(
        &mut self,
        worker: &WorkerId,
        report: &RankReport,
        deadlines: Deadlines,
        outbox: &mut Outbox,
    ) {
        if let Some(live) = self.standbys.rank_mut(report.rank) {
            live.apply(&report.phase, outbox.now);
        }
        if let RankPhase::Failed { failure } = &report.phase {
            let loss = StandbyLoss::Failed(failure.clone());
            self.lose_standby(worker, loss, deadlines, outbox);
        }
    }

    /// Drops standbys that their workers do not report, and ends expired back-offs.
    pub(super) fn expire_standbys(&mut self, deadlines: Deadlines, outbox: &mut Outbox) {
        self.backing_off.retain(|_, until| outbox.now < *until);
        let overdue = |live: &RankLive| deadlines.report_timeout(live.last_report) <= outbox.now;
        let late = self
            .standbys
            .ranks()
            .iter()
            .filter(|(_, live)| overdue(live));
        let workers: Vec<WorkerId> = late
            .filter_map(|(rank, _)| self.standby_members().iter().find(|it| it.runs(*rank)))
            .map(|standby| standby.worker.clone())
            .collect();
        for worker in workers {
            self.lose_standby(&worker, StandbyLoss::NotReported, deadlines, outbox);
        }
    }

    pub(super) fn next_standby_deadline(&self, deadlines: Deadlines) -> Option<Millis> {
        let last_report = self
            .standbys
            .ranks()
            .values()
            .map(|live| live.last_report)
            .min();
        let due = last_report.map(|last_report| deadlines.report_timeout(last_report));
        let again = self.backing_off.values().min().copied();
        due.into_iter().chain(again).min()
    }

    /// A standby on this worker failed. The worker gets a back-off; no rank waits for the standby.
    fn lose_standby(
        &mut self,
        worker: &WorkerId,
        reason: StandbyLoss,
        deadlines: Deadlines,
        outbox: &mut Outbox,
    ) {
        if !self.is_standby(worker) {
            return;
        }
        if self.is_running() {
            let until = deadlines.standby_backoff(outbox.now);
            self.backing_off.insert(worker.clone(), until);
        }
        outbox.emit(Event::StandbyLost {
            job: self.head.id.clone(),
            generation: self.head.generation,
            worker: worker.clone(),
            reason,
        });
        outbox.send.insert(worker.name.clone());
        self.drop_standby(worker, outbox);
    }

    /// Removes the standby of a worker that is down or no longer runs its process.
    pub(super) fn drop_standby(&mut self, worker: &WorkerId, outbox: &mut Outbox) {
        if !self
            .standbys
            .retain(|standby| standby.worker != *worker)
            .is_empty()
        {
            self.save(outbox);
        }
    }
}
