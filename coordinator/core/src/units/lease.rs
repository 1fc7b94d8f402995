//! Which units a rank is leased, and when the record says what was done.

use super::job::{State, Units};
use super::part::{Part, RankUnits};
use super::pool::Failures;
use super::ranges::Ranges;
use crate::deadline::Deadlines;
use crate::outbox::Outbox;
use proto::id::{Rank, WorkerId};
use proto::message::{RankPhase, UnitRange};

impl Units {
    /// Leases more units to a rank that has few left, or none. One that still loads has none:
    /// others may be faster.
    pub(super) fn lease(
        &mut self,
        worker: &WorkerId,
        rank: Rank,
        deadlines: Deadlines,
        outbox: &mut Outbox,
    ) {
        let State::Running(running) = &mut self.state else {
            return;
        };
        let ranks: u64 = running
            .parts
            .iter()
            .filter(|it| it.leaving.is_none())
            .map(count)
            .sum();
        // Few units are shared out, so that all ranks end together.
        let fair = (self.pool.open() / ranks.max(1) / 2).max(1);
        let Some(index) = running
            .parts
            .iter()
            .position(|part| part.worker() == worker)
        else {
            return;
        };
        let (before, standby_backoff) = running.parts.split_at_mut(index);
        let Some((part, after)) = standby_backoff.split_first_mut() else {
            return;
        };
        let name = part.member.worker.name.as_str();
        let leaving = part.leaving.is_some();
        let Some(holder) = part
            .ranks
            .get_mut(&rank)
            .filter(|it| !leaving && can_work(it))
        else {
            return;
        };
        let held = holder.lease.count();
        let mut group = holder.group;
        if group.low() < held {
            return;
        }
        group.next(outbox.now, deadlines.group_ms());
        let others = || {
            before
                .iter()
                .chain(after.iter())
                .filter(|it| it.leaving.is_none())
        };
        let told_failed = &holder.told_failed;
        let failed_on =
            |failures: &Failures, name: &str| failures.workers.iter().any(|worker| worker == name);
        let elsewhere = |failures: &Failures| {
            others().any(|part| !failed_on(failures, &part.member.worker.name))
        };
        let may = |unit: u64, failures: &Failures| {
            !(told_failed.contains(&unit) || failed_on(failures, name) && elsewhere(failures))
        };
        let taken = self
            .pool
            .take(group.size().min(fair).saturating_sub(held), may);
        if taken.is_empty() {
            let only_here = |unit: &u64, failures: &Failures| {
                told_failed.contains(unit) && !(failed_on(failures, name) && elsewhere(failures))
            };
            // It begins again under the next generation, in which what it said of them is over.
            let again = held == 0 && self.pool.again().any(|(unit, it)| only_here(unit, it));
            if again {
                self.next_generation(worker, "units that failed are tried again", outbox);
            }
            return;
        }
        taken
            .into_iter()
            .for_each(|range| holder.lease.insert(range));
        holder.group = group;
        self.is_changed = true;
        outbox.tell.insert(worker.name.clone());
    }

    /// Leases units to every rank that could have some, where some became free.
    pub(super) fn lease_all(&mut self, deadlines: Deadlines, outbox: &mut Outbox) {
        let State::Running(running) = &mut self.state else {
            return;
        };
        if !std::mem::take(&mut running.has_news) || self.pool.open() == 0 {
            return;
        }
        let ranks = running.parts.iter().flat_map(|part| {
            let ranks = part.ranks.iter().filter(|(_, rank)| can_work(rank));
            ranks.map(|(rank, _)| (part.worker().clone(), *rank))
        });
        let ranks: Vec<(WorkerId, Rank)> = ranks.collect();
        for (worker, rank) in ranks {
            self.lease(&worker, rank, deadlines, outbox);
        }
    }

    pub(crate) fn has_unsaved(&self) -> bool {
        self.has_unsaved
    }

    /// The record says from now on what was done; it is to be saved with this event. Leases name
    /// those units no more.
    pub(crate) fn put_into_record(&mut self, outbox: &mut Outbox) {
        if !std::mem::take(&mut self.has_unsaved) {
            return;
        }
        let mut all = Ranges::default();
        for part in self.parts_mut() {
            let mut told = false;
            for rank in part.ranks.values_mut() {
                let done = std::mem::take(&mut rank.done);
                told |= !done.is_empty();
                done.iter().for_each(|range| all.insert(range));
            }
            if told {
                outbox.tell.insert(part.member.worker.name.clone());
            }
        }
        self.pool.save(&all);
        self.rate.note(outbox.now, self.pool.done().count());
        self.is_changed = true;
        self.save(outbox);
    }

    /// A rank holds these units no more: what it did is done, and the rest is to be leased.
    pub(super) fn release(&mut self, lease: Ranges, done: Ranges) {
        self.has_unsaved |= !done.is_empty();
        done.iter().for_each(|range| self.pool.add_unsaved(range));
        lease.iter().for_each(|range| self.pool.give_back(range));
        self.has_free_units();
    }

    pub(super) fn has_free_units(&mut self) {
        self.is_changed = true;
        if let State::Running(running) = &mut self.state {
            running.has_news = true;
        }
    }
}

fn count(part: &Part) -> u64 {
    part.ranks.len() as u64
}

/// It has loaded everything, and works on.
fn can_work(rank: &RankUnits) -> bool {
    match rank.live.phase {
        Some(RankPhase::Ready | RankPhase::Joining | RankPhase::Training) => rank.is_known,
        None
        | Some(
            RankPhase::Starting
            | RankPhase::Broken { .. }
            | RankPhase::Finished
            | RankPhase::Failed { .. },
        ) => false,
    }
}

/// What an order names: units to do, and those that are done and not saved.
pub(super) fn named(rank: &RankUnits) -> Vec<UnitRange> {
    let mut all = rank.lease.clone();
    rank.done.iter().for_each(|range| all.insert(range));
    all.to_vec()
}
