//! The units that no rank holds: those to be leased, and those that need nobody any more. Every
//! unit of a job is here once, or in the lease of one rank.

use super::ranges::Ranges;
use crate::record::{FailedUnit, NAMED_UNITS_MAX, UnitsRecord};
use proto::message::UnitRange;
use proto::spec::UnitPlan;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug)]
pub(crate) struct Pool {
    plan: UnitPlan,
    /// To be leased; they never failed.
    open: Ranges,
    /// To be leased again; they failed.
    again: BTreeSet<u64>,
    /// Done, as the record says.
    done: Ranges,
    /// Done by ranks that are gone; the record does not say so yet.
    unsaved: Ranges,
    set_aside: Ranges,
    /// Of units that are not done.
    failures: BTreeMap<u64, Failures>,
    /// The unit that is leased when all others are done or set aside.
    closing: Option<u64>,
}

/// How often a unit failed, and where.
#[derive(Debug, Clone)]
pub(crate) struct Failures {
    /// Names of workers, one for each time.
    pub(crate) workers: Vec<String>,
    /// The last.
    pub(crate) error: String,
}

impl Pool {
    /// As the record says; what was leased is to be leased again. Numbers that the plan does not
    /// have are left out.
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
            again: BTreeSet::new(),
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
                pool.again.insert(failed.unit);
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
        let waits = self.open.contains(last) || self.again.contains(&last);
        if self.plan.closing && waits && self.over() < last {
            self.open.remove(UnitRange::one(last));
            self.again.remove(&last);
            self.closing = Some(last);
        }
    }

    /// Done or set aside, as the record says.
    fn over(&self) -> u64 {
        self.done.count() + self.set_aside.count()
    }

    /// Lets the closing unit be leased if all others are over. True when it may be now and might
    /// not before.
    pub(crate) fn open_closing(&mut self) -> bool {
        let ready = self.over() + 1 == self.plan.count;
        let Some(closing) = self.closing.take_if(|_| ready) else {
            return false;
        };
        self.give_back(UnitRange::one(closing));
        true
    }

    pub(crate) fn plan(&self) -> UnitPlan {
        self.plan
    }

    /// Every unit is done or set aside, as the record says.
    pub(crate) fn is_over(&self) -> bool {
        self.over() == self.plan.count
    }

    /// Units that are to be leased, now or later.
    pub(crate) fn waiting(&self) -> u64 {
        self.open.count() + self.again.len() as u64 + u64::from(self.closing.is_some())
    }

    /// Units that can be leased now.
    pub(crate) fn open(&self) -> u64 {
        self.open.count() + self.again.len() as u64
    }

    pub(crate) fn done(&self) -> &Ranges {
        &self.done
    }

    pub(crate) fn set_aside(&self) -> &Ranges {
        &self.set_aside
    }

    /// Units that failed and can be leased again.
    pub(crate) fn again(&self) -> impl Iterator<Item = (&u64, &Failures)> {
        self.again
            .iter()
            .filter_map(|unit| self.failures.get_key_value(unit))
    }

    pub(crate) fn failures(&self) -> &BTreeMap<u64, Failures> {
        &self.failures
    }

    /// Units that failed and are to be tried again.
    pub(crate) fn failed(&self) -> u64 {
        let tried = |unit: &&u64| !self.set_aside.contains(**unit);
        self.failures.keys().filter(tried).count() as u64
    }

    /// Takes units for a rank, those that failed elsewhere first. `may` says of one that failed
    /// whether this rank may have it.
    pub(crate) fn take(
        &mut self,
        most: u64,
        may: impl Fn(u64, &Failures) -> bool,
    ) -> Vec<UnitRange> {
        let mut taken = Vec::new();
        for unit in &self.again {
            let failures = self.failures.get(unit);
            if (taken.len() as u64) < most && failures.is_none_or(|it| may(*unit, it)) {
                taken.push(UnitRange::one(*unit));
            }
        }
        for range in &taken {
            self.again.remove(&range.first);
        }
        let standby_backoff = most.saturating_sub(taken.len() as u64);
        taken.extend(self.open.take(standby_backoff));
        taken
    }

    /// Takes what of a range can be leased: a rank holds it already.
    pub(crate) fn claim(&mut self, range: UnitRange) -> Vec<UnitRange> {
        let mut claimed = self.open.within(range);
        claimed.iter().for_each(|it| self.open.remove(*it));
        let again: Vec<u64> = self.again.range(range.first..range.end).copied().collect();
        for unit in again {
            self.again.remove(&unit);
            claimed.push(UnitRange::one(unit));
        }
        claimed
    }

    /// Units that a rank held, and did not do, are to be leased.
    pub(crate) fn give_back(&mut self, range: UnitRange) {
        self.open.insert(range);
        let failed: Vec<u64> = self
            .failures
            .range(range.first..range.end)
            .map(|it| *it.0)
            .collect();
        for unit in failed {
            self.open.remove(UnitRange::one(unit));
            self.again.insert(unit);
        }
    }

    /// A unit that a rank held failed, and is to be leased again. How often it has failed now.
    pub(crate) fn fail(&mut self, unit: u64, worker: &str, error: String) -> u32 {
        let failures = self.failures.entry(unit).or_insert_with(|| Failures {
            workers: Vec::new(),
            error: String::new(),
        });
        failures.workers.push(worker.to_owned());
        failures.error = error;
        self.again.insert(unit);
        u32::try_from(failures.workers.len()).unwrap_or(u32::MAX)
    }

    /// A unit that failed is not leased any more. Only so many are named later.
    pub(crate) fn set_aside_failed(&mut self, unit: u64) {
        self.again.remove(&unit);
        self.set_aside.insert(UnitRange::one(unit));
        let named = self
            .failures
            .keys()
            .filter(|it| self.set_aside.contains(**it));
        if NAMED_UNITS_MAX < named.count() {
            self.failures.remove(&unit);
        }
    }

    /// Units of a rank that is gone were done.
    pub(crate) fn add_unsaved(&mut self, range: UnitRange) {
        self.unsaved.insert(range);
    }

    /// The record says from now on that these are done too, beside those of ranks that are gone.
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

    /// Every range of it, to prove that none is anywhere twice.
    pub(crate) fn all(&self) -> impl Iterator<Item = UnitRange> {
        let alone = self.again.iter().chain(&self.closing);
        self.open
            .iter()
            .chain(self.done.iter())
            .chain(self.unsaved.iter())
            .chain(self.set_aside.iter())
            .chain(alone.map(|unit| UnitRange::one(*unit)))
    }
}
