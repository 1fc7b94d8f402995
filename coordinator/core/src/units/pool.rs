//! The units that no rank holds: those to be leased, and those that are done or set aside. Every
//! unit of a job is either here exactly once or leased to one rank.

use super::ranges::Ranges;
use crate::record::{FailedUnit, NAMED_UNITS_MAX, UnitsRecord};
use proto::message::UnitRange;
use proto::reason::UnitError;
use proto::spec::UnitPlan;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug)]
pub(crate) struct Pool {
    plan: UnitPlan,
    /// Units to lease that never failed.
    open: Ranges,
    /// Failed units to lease again.
    retry: BTreeSet<u64>,
    /// Completed units according to the record.
    done: Ranges,
    /// Units completed by ranks that no longer exist, not in the record yet.
    unsaved: Ranges,
    set_aside: Ranges,
    /// Failures of units that are not done.
    failures: BTreeMap<u64, Failures>,
    /// The closing unit, while it must not be leased: it waits until all others are done or set
    /// aside.
    closing: Option<u64>,
}

/// How often a unit failed, and where.
#[derive(Debug, Clone)]
pub(crate) struct Failures {
    /// Names of workers, one per failure.
    pub(crate) workers: Vec<String>,
    /// The last error.
    pub(crate) error: UnitError,
}

impl Pool {
    /// Restores the pool from the record. Leased units are to be leased again. Numbers outside the
    /// plan are ignored.
    pub(crate) fn new(plan: UnitPlan, record: &UnitsRecord) -> Self {
        let all = UnitRange {
            first: 0,
            end: plan.count,
        };
        let known =
            |ranges: &[UnitRange]| Ranges::of(Ranges::of(ranges.iter().copied()).within(all));
        let (done, mut set_aside) = (known(&record.done), known(&record.set_aside));
        done.iter().for_each(|range| set_aside.remove(range));
        let mut pool = Self {
            plan,
            open: Ranges::of([all]),
            retry: BTreeSet::new(),
            failures: BTreeMap::new(),
            closing: None,
            unsaved: Ranges::default(),
            done,
            set_aside,
        };
        for range in pool.done.iter().chain(pool.set_aside.iter()) {
            pool.open.remove(range);
        }
        for failed in &record.failed {
            if pool.open.contains(failed.unit) {
                pool.open.remove(UnitRange::one(failed.unit));
                pool.retry.insert(failed.unit);
            } else if !pool.set_aside.contains(failed.unit) {
                continue;
            }
            let failures = Failures {
                workers: failed.workers.clone(),
                error: failed.error.clone(),
            };
            pool.failures.insert(failed.unit, failures);
        }
        pool.hold_back_closing();
        pool
    }

    fn hold_back_closing(&mut self) {
        let last = self.plan.count.saturating_sub(1);
        let waits = self.open.contains(last) || self.retry.contains(&last);
        if self.plan.closing && waits && self.finished_count() < last {
            self.open.remove(UnitRange::one(last));
            self.retry.remove(&last);
            self.closing = Some(last);
        }
    }

    /// Number of units that are done or set aside according to the record.
    fn finished_count(&self) -> u64 {
        self.done.count() + self.set_aside.count()
    }

    /// Makes the closing unit available if all others are done or set aside. Returns true if it
    /// became available now.
    pub(crate) fn open_closing(&mut self) -> bool {
        let ready = self.finished_count() + 1 == self.plan.count;
        let Some(closing) = self.closing.take_if(|_| ready) else {
            return false;
        };
        self.give_back(UnitRange::one(closing));
        true
    }

    pub(crate) fn plan(&self) -> UnitPlan {
        self.plan
    }

    /// True if every unit is done or set aside according to the record.
    pub(crate) fn is_over(&self) -> bool {
        self.finished_count() == self.plan.count
    }

    /// Number of units to lease now or later.
    pub(crate) fn waiting(&self) -> u64 {
        self.open.count() + self.retry.len() as u64 + u64::from(self.closing.is_some())
    }

    /// Number of units that can be leased now.
    pub(crate) fn open(&self) -> u64 {
        self.open.count() + self.retry.len() as u64
    }

    pub(crate) fn done(&self) -> &Ranges {
        &self.done
    }

    pub(crate) fn set_aside(&self) -> &Ranges {
        &self.set_aside
    }

    /// Failed units that can be leased again.
    pub(crate) fn retry(&self) -> impl Iterator<Item = (&u64, &Failures)> {
        self.retry
            .iter()
            .filter_map(|unit| self.failures.get_key_value(unit))
    }

    pub(crate) fn failures(&self) -> &BTreeMap<u64, Failures> {
        &self.failures
    }

    /// Number of failed units to retry.
    pub(crate) fn failed(&self) -> u64 {
        let tried = |unit: &&u64| !self.set_aside.contains(**unit);
        self.failures.keys().filter(tried).count() as u64
    }

    /// Takes units for a rank, failed ones first, in at most `ranges` ranges. `may_retry` decides
    /// whether this rank may retry a failed unit.
    pub(crate) fn take(
        &mut self,
        limit: u64,
        ranges: usize,
        may_retry: impl Fn(u64, &Failures) -> bool,
    ) -> Vec<UnitRange> {
        let mut taken = Vec::new();
        for unit in &self.retry {
            let failures = self.failures.get(unit);
            if (taken.len() as u64) < limit
                && taken.len() < ranges
                && failures.is_none_or(|it| may_retry(*unit, it))
            {
                taken.push(UnitRange::one(*unit));
            }
        }
        for range in &taken {
            self.retry.remove(&range.first);
        }
        let rest = limit.saturating_sub(taken.len() as u64);
        taken.extend(self.open.take(rest));
        for surplus in taken.drain(ranges.min(taken.len())..) {
            self.open.insert(surplus);
        }
        taken
    }

    /// Takes the units of a range that can be leased, because a rank already holds them.
    pub(crate) fn claim(&mut self, range: UnitRange) -> Vec<UnitRange> {
        let mut claimed = self.open.within(range);
        claimed.iter().for_each(|it| self.open.remove(*it));
        let retry: Vec<u64> = self.retry.range(range.first..range.end).copied().collect();
        for unit in retry {
            self.retry.remove(&unit);
            claimed.push(UnitRange::one(unit));
        }
        claimed
    }

    /// Returns units that a rank held and did not complete, to be leased again.
    pub(crate) fn give_back(&mut self, range: UnitRange) {
        self.open.insert(range);
        let failed: Vec<u64> = self
            .failures
            .range(range.first..range.end)
            .map(|it| *it.0)
            .collect();
        for unit in failed {
            self.open.remove(UnitRange::one(unit));
            self.retry.insert(unit);
        }
    }

    /// Records the failure of a leased unit, which is to be leased again. Returns its number of
    /// failures.
    pub(crate) fn fail(&mut self, unit: u64, worker: &str, error: UnitError) -> u32 {
        let failures = self.failures.entry(unit).or_insert_with(|| Failures {
            workers: Vec::new(),
            error: error.clone(),
        });
        failures.workers.push(worker.to_owned());
        failures.error = error;
        self.retry.insert(unit);
        u32::try_from(failures.workers.len()).unwrap_or(u32::MAX)
    }

    /// Sets a failed unit aside, so that it is not leased again. Only [`NAMED_UNITS_MAX`] units
    /// keep their failures.
    pub(crate) fn set_aside_failed(&mut self, unit: u64) {
        self.retry.remove(&unit);
        self.set_aside.insert(UnitRange::one(unit));
        let named = self
            .failures
            .keys()
            .filter(|it| self.set_aside.contains(**it));
        if NAMED_UNITS_MAX < named.count() {
            self.failures.remove(&unit);
        }
    }

    /// Makes all units that were set aside available again, as if they had never failed.
    pub(crate) fn retry_set_aside(&mut self) {
        for range in std::mem::take(&mut self.set_aside).iter() {
            let units = self.failures.range(range.first..range.end);
            let units: Vec<u64> = units.map(|(unit, _)| *unit).collect();
            for unit in units {
                self.failures.remove(&unit);
            }
            self.open.insert(range);
        }
        self.hold_back_closing();
    }

    /// Adds units that were completed by a rank that no longer exists.
    pub(crate) fn add_unsaved(&mut self, range: UnitRange) {
        self.unsaved.insert(range);
    }

    /// Adds these units and the unsaved ones to the completed units of the record.
    pub(crate) fn save(&mut self, done: &Ranges) {
        let unsaved = std::mem::take(&mut self.unsaved);
        for range in unsaved.iter().chain(done.iter()) {
            self.done.insert(range);
            let units = self.failures.range(range.first..range.end);
            let units: Vec<u64> = units.map(|(unit, _)| *unit).collect();
            for unit in units {
                self.failures.remove(&unit);
            }
        }
    }

    pub(crate) fn record(&self) -> UnitsRecord {
        let failed = |(unit, failures): (&u64, &Failures)| FailedUnit {
            unit: *unit,
            workers: failures.workers.clone(),
            error: failures.error.clone(),
        };
        UnitsRecord {
            done: self.done.to_vec(),
            set_aside: self.set_aside.to_vec(),
            failed: self.failures.iter().map(failed).collect(),
            generations: Vec::new(),
        }
    }

    /// All ranges, to check that no unit is in two places.
    pub(crate) fn all(&self) -> impl Iterator<Item = UnitRange> {
        let alone = self.retry.iter().chain(&self.closing);
        self.open
            .iter()
            .chain(self.done.iter())
            .chain(self.unsaved.iter())
            .chain(self.set_aside.iter())
            .chain(alone.map(|unit| UnitRange::one(*unit)))
    }
}
