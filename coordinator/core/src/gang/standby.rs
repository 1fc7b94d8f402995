//! Standbys: processes of a job that have no place in its generation. Beside a running generation
//! they are newcomers, which load everything before the others wait for them, or are left out
//! because a member does not reach them; of a queued job they are survivors, which keep the newest
//! state in memory until there are enough workers again. A standby is a worker's part in the
//! generation, numbered from its world on. It takes devices that nobody else is given, and gives
//! them back as soon as somebody is. Who has a place is decided by placement.

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
use std::collections::BTreeSet;

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

impl Gang {
    /// A queued job's survivors stay where nobody else has a place, and where nobody wants the
    /// worker empty, if what they hold is elsewhere too. Once no manifest of the generation that
    /// ended is on its way, they leave it: the next number is a generation without members, in
    /// which they wait.
    pub(crate) fn keep_where_there_is_room(
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
        let told = queued.kept_world.is_none();
        let unsaved = self.writing.is_some() || self.is_beyond_checkpoint();
        let holds = (unsaved || !self.head.paused) && !self.head.is_lost();
        let stays = |worker: &WorkerId| !leaving.contains(worker);
        let elsewhere = !unsaved || self.standby_workers().any(stays);
        let dropped = self.standbys.part(|it| {
            holds
                && !(elsewhere && leaving.contains(&it.worker))
                && take(free, &it.worker, it.ranks)
        });
        outbox.send_to_all(&dropped);
        if self.writing.is_none() && !told {
            outbox.send_to_all(self.standbys.members());
            let workers: Vec<WorkerId> = self.standby_workers().cloned().collect();
            self.begin(0);
            if let State::Queued(queued) = &mut self.state {
                queued.kept_world = None;
            }
            self.add_standbys(workers, outbox);
        } else if !dropped.is_empty() {
            self.save(outbox);
        }
    }

    /// True of a job that waits, and whose survivors hold steps that no checkpoint has.
    pub(crate) fn holds_steps_alone(&self) -> bool {
        let waits = self.is_queued() && self.writing.is_none() && !self.head.is_lost();
        waits && self.is_beyond_checkpoint()
    }

    /// Of the workers that it is given, those that are no members.
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

    /// Of those that were on standby, those that have no place because a member does not reach
    /// them: they stay where nobody else has a place and the job could use them, with what they
    /// hold, and are asked on whether they are reached.
    pub(crate) fn left_out(
        &mut self,
        wanted: &[WorkerId],
        partitions: &Partitions,
        drained: &BTreeSet<String>,
        free: &mut Devices,
    ) -> Vec<WorkerId> {
        let formerly = self
            .running_mut()
            .map(|running| std::mem::take(&mut running.formerly_standby));
        let mut workers = formerly.unwrap_or_default();
        workers.extend(self.standby_workers().cloned());
        workers.sort();
        workers.dedup();
        let most = (self.head.most() as usize).saturating_sub(self.members().len() + wanted.len());
        let needs = self.head.devices_per_worker();
        let stays = |worker: &WorkerId| {
            !self.head.paused
                && !self.is_member(worker)
                && !wanted.contains(worker)
                && !drained.contains(&worker.name)
                && !self.backing_off.contains_key(worker)
                && partitions.from(worker).any(|other| self.is_member(other))
        };
        workers.retain(|worker| stays(worker));
        workers.truncate(most);
        workers.retain(|worker| take(free, worker, needs));
        workers
    }

    /// These workers are its standbys, and no others.
    pub(crate) fn get_ready(&mut self, wanted: &[WorkerId], outbox: &mut Outbox) {
        let dropped = self
            .standbys
            .part(|standby| wanted.contains(&standby.worker));
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

    /// Who keeps the state of a job that waits, as the end of a sentence.
    pub(crate) fn kept(&self) -> String {
        let names: Vec<&str> = self.standby_workers().map(|it| it.name.as_str()).collect();
        match names.is_empty() {
            true => String::new(),
            false => format!("; its state is kept by {}", names.join(", ")),
        }
    }

    /// Those whose processes could take a place at once: beside a running generation when they have
    /// loaded everything, of a queued job when they are not loading still.
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

    /// Takes the report of a standby.
    pub(crate) fn receive_standby(
        &mut self,
        worker: &WorkerId,
        report: &RankReport,
        deadlines: Deadlines,
        outbox: &mut Outbox,
    ) {
        if let Some(live) = self.standbys.rank_mut(report.rank) {
            live.take(&report.phase, outbox.now);
        }
        if let RankPhase::Failed { error, .. } = &report.phase {
            self.lose_standby(worker, error, deadlines, outbox);
        }
    }

    /// Gives up standbys whose worker does not report them, and lets those try again that failed
    /// some time ago.
    pub(super) fn tend_standbys(&mut self, deadlines: Deadlines, outbox: &mut Outbox) {
        self.backing_off.retain(|_, until| outbox.now < *until);
        let overdue = |live: &RankLive| deadlines.report_timeout(live.heard) <= outbox.now;
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
            self.lose_standby(&worker, "its worker does not run it", deadlines, outbox);
        }
    }

    pub(super) fn next_standby_deadline(&self, deadlines: Deadlines) -> Option<Millis> {
        let heard = self.standbys.ranks().values().map(|live| live.heard).min();
        let due = heard.map(|heard| deadlines.report_timeout(heard));
        let again = self.backing_off.values().min().copied();
        due.into_iter().chain(again).min()
    }

    /// A standby on this worker cannot go on. Another is not tried there for a while: nobody waits
    /// for it.
    fn lose_standby(
        &mut self,
        worker: &WorkerId,
        reason: &str,
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
            reason: reason.to_owned(),
        });
        outbox.tell.insert(worker.name.clone());
        self.drop_standby(worker, outbox);
    }

    /// The worker is gone, or has no process of the job any more.
    pub(super) fn drop_standby(&mut self, worker: &WorkerId, outbox: &mut Outbox) {
        if !self
            .standbys
            .part(|standby| standby.worker != *worker)
            .is_empty()
        {
            self.save(outbox);
        }
    }
}
