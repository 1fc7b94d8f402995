//! Leases units to ranks and records completed units.

use super::job::{State, Units};
use super::participant::{Participant, RankUnits};
use super::pool::Failures;
use super::ranges::Ranges;
use crate::deadline::Deadlines;
use crate::outbox::Outbox;
use proto::id::{Rank, WorkerId};
use proto::limits::LEASE_RANGES;
use proto::message::{RankPhase, UnitRange};
use proto::reason::GenerationEnd;

impl Units {
    /// Leases more units to a rank that has few or none left. A rank that is still loading gets
    /// none: others may be faster.
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
            .participants
            .iter()
            .filter(|it| it.leaving.is_none())
            .map(rank_count)
            .sum();
        // When few units are left they are spread over the ranks, so that all finish together.
        let fair = (self.pool.open() / ranks.max(1) / 2).max(1);
        let Some(index) = running
            .participants
            .iter()
            .position(|participant| participant.worker() == worker)
        else {
            return;
        };
        let (before, rest) = running.participants.split_at_mut(index);
        let Some((participant, after)) = rest.split_first_mut() else {
            return;
        };
        let name = participant.member.worker.name.as_str();
        let leaving = participant.leaving.is_some();
        let Some(holder) = participant
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
        let reported_failed = &holder.reported_failed;
        let failed_on =
            |failures: &Failures, name: &str| failures.workers.iter().any(|worker| worker == name);
        let untried =
            |failures: &Failures| others().any(|it| !failed_on(failures, &it.member.worker.name));
        let may_retry = |unit: u64, failures: &Failures| {
            !(reported_failed.contains(&unit) || failed_on(failures, name) && untried(failures))
        };
        let room = LEASE_RANGES.saturating_sub(holder.lease.iter().count());
        let units = group.size().min(fair).saturating_sub(held);
        let taken = self.pool.take(units, room, may_retry);
        if taken.is_empty() {
            let only_here = |unit: &u64, failures: &Failures| {
                reported_failed.contains(unit) && !(failed_on(failures, name) && untried(failures))
            };
            // It retries them under the next generation, in which its old failure reports are void.
            let retry = held == 0 && self.pool.retry().any(|(unit, it)| only_here(unit, it));
            if retry {
                self.next_generation(worker, GenerationEnd::UnitsRetried, outbox);
            }
            return;
        }
        taken
            .into_iter()
            .for_each(|range| holder.lease.insert(range));
        holder.group = group;
        self.is_changed = true;
        outbox.send.insert(worker.name.clone());
    }

    /// Leases units to every rank that can work, if units became available.
    pub(super) fn lease_all(&mut self, deadlines: Deadlines, outbox: &mut Outbox) {
        let State::Running(running) = &mut self.state else {
            return;
        };
        if !std::mem::take(&mut running.units_freed) || self.pool.open() == 0 {
            return;
        }
        let ranks = running.participants.iter().flat_map(|participant| {
            let ranks = participant.ranks.iter().filter(|(_, rank)| can_work(rank));
            ranks.map(|(rank, _)| (participant.worker().clone(), *rank))
        });
        let ranks: Vec<(WorkerId, Rank)> = ranks.collect();
        for (worker, rank) in ranks {
            self.lease(&worker, rank, deadlines, outbox);
        }
    }

    pub(crate) fn has_unsaved(&self) -> bool {
        self.has_unsaved
    }

    /// Adds completed units to the record, which is saved with this input. They are removed from
    /// the leases.
    pub(crate) fn record_done_units(&mut self, outbox: &mut Outbox) {
        if !std::mem::take(&mut self.has_unsaved) {
            return;
        }
        let mut all = Ranges::default();
        for participant in self.participants_mut() {
            let mut changed = false;
            for rank in participant.ranks.values_mut() {
                let done = std::mem::take(&mut rank.done);
                changed |= !done.is_empty();
                done.iter().for_each(|range| all.insert(range));
            }
            if changed {
                outbox.send.insert(participant.member.worker.name.clone());
            }
        }
        self.pool.save(&all);
        self.rate.record(outbox.now, self.pool.done().count());
        self.is_changed = true;
        self.save(outbox);
    }

    /// Takes back the units of a rank: `done` are complete, and `lease` is to be leased again.
    pub(super) fn release(&mut self, lease: Ranges, done: Ranges) {
        self.has_unsaved |= !done.is_empty();
        done.iter().for_each(|range| self.pool.add_unsaved(range));
        lease.iter().for_each(|range| self.pool.give_back(range));
        self.mark_units_freed();
    }

    pub(super) fn mark_units_freed(&mut self) {
        self.is_changed = true;
        if let State::Running(running) = &mut self.state {
            running.units_freed = true;
        }
    }
}

fn rank_count(participant: &Participant) -> u64 {
    participant.ranks.len() as u64
}

/// True if the rank has loaded everything and can run units.
fn can_work(rank: &RankUnits) -> bool {
    match rank.live.phase {
        Some(RankPhase::Ready | RankPhase::Joining | RankPhase::Training) => rank.has_reported,
        None
        | Some(
            RankPhase::Starting
            | RankPhase::Broken { .. }
            | RankPhase::Finished
            | RankPhase::Failed { .. },
        ) => false,
    }
}

/// The units in a rank's order: those to run, and those that are completed but not saved.
pub(super) fn order_units(rank: &RankUnits) -> Vec<UnitRange> {
    let mut all = rank.lease.clone();
    rank.done.iter().for_each(|range| all.insert(range));
    all.to_vec()
}
