//! Invariants of units: each counts once, and only when its output is in the store; failed units
//! are named; the closing unit comes last; no job starts before its dependencies are done; all
//! kinds of jobs together respect devices and quotas.

use crate::world::World;
use crate::world::evaluations::orphan;
use crate::world::oracle::Oracle;
use crate::world::specs::Specs;
use crate::world::store::Store;
use coordinator_core::event::{
    Durable, JobPhase, JobRecord, Member, RESTARTS_WITHOUT_PROGRESS_MAX,
};
use proto::id::{Generation, JobId, WorkerId};
use proto::message::{DesiredState, UnitRange};
use proto::reason::{Cause, UnitError};
use proto::spec::{OnFailedUnit, UNIT_FAILURES_MAX};
use std::collections::{BTreeMap, BTreeSet};

/// What the world observed of units.
#[derive(Debug, Default)]
pub(crate) struct UnitHistory {
    /// How often a unit gave an error or its process died at it.
    failures: BTreeMap<(JobId, u64), u32>,
    /// The last lease of each worker, by job.
    leases: BTreeMap<(JobId, WorkerId), Vec<UnitRange>>,
    is_changed: bool,
    /// Generations that were asked to stop.
    pub(super) stopping: BTreeSet<(JobId, Generation)>,
}

impl UnitHistory {
    /// Failures of the unit that failed most often.
    fn most_failures(&self, job: &JobId) -> u32 {
        let units = self
            .failures
            .range((job.clone(), 0)..=(job.clone(), u64::MAX));
        units.map(|(_, failures)| *failures).max().unwrap_or(0)
    }

    pub(crate) fn failures(&self, job: &JobId, unit: u64) -> u32 {
        self.failures
            .get(&(job.clone(), unit))
            .copied()
            .unwrap_or(0)
    }

    pub(crate) fn on_stopping(&mut self, job: &JobId, generation: Generation) {
        self.stopping.insert((job.clone(), generation));
    }

    /// A new coordinator leases all units that are not done.
    pub(crate) fn forget_leases(&mut self) {
        self.leases.clear();
    }

    pub(crate) fn on_failed(&mut self, job: &JobId, unit: u64) {
        *self.failures.entry((job.clone(), unit)).or_default() += 1;
    }
}

impl Oracle {
    /// The coordinator sends a worker its leases.
    pub(crate) fn on_lease(&mut self, worker: &WorkerId, state: &DesiredState) {
        let leases = &mut self.units.leases;
        leases.retain(|(_, other), _| other != worker);
        for assignment in &state.assignments {
            let Some(order) = assignment.units() else {
                continue;
            };
            let own = order.leases.values().flatten().copied().collect();
            leases.insert((assignment.job.clone(), worker.clone()), own);
            self.units.is_changed = true;
        }
    }

    /// No two workers hold the same unit. Checked after all effects of an event.
    pub(crate) fn check_leases(&mut self, durable: &Durable) {
        if !std::mem::take(&mut self.units.is_changed) {
            return;
        }
        self.units.leases.retain(|(job, worker), _| {
            let record = durable.jobs.get(job);
            record.is_some_and(|record| members(record).iter().any(|it| it.worker == *worker))
        });
        let mut jobs: BTreeMap<&JobId, Vec<(UnitRange, &WorkerId)>> = BTreeMap::new();
        for ((job, worker), ranges) in &self.units.leases {
            let all = jobs.entry(job).or_default();
            all.extend(ranges.iter().map(|range| (*range, worker)));
        }
        let mut twice = None;
        for (job, mut all) in jobs {
            all.sort();
            let pair = all.windows(2).find(|pair| pair[1].0.first < pair[0].0.end);
            twice = twice.or_else(|| {
                let [(one, a), (_, b)] = pair? else {
                    return None;
                };
                Some(format!(
                    "units {one:?} of {job} are leased to {a} and to {b}"
                ))
            });
        }
        self.require(twice.is_none(), || twice.unwrap_or_default());
    }

    /// No job runs before its dependencies are done, and no device is assigned twice. Checked after
    /// a whole save.
    pub(crate) fn on_saved(
        &mut self,
        durable: &Durable,
        specs: &Specs,
        devices: &BTreeMap<String, u32>,
    ) {
        let mut used: BTreeMap<&WorkerId, u32> = BTreeMap::new();
        for record in durable.jobs.values() {
            let members = members(record);
            if members.is_empty() {
                continue;
            }
            let Some(spec) = specs.get(&record.id) else {
                continue;
            };
            let waits = spec.after.iter().find(|id| {
                let other = durable.jobs.get(*id);
                !other.is_some_and(|other| matches!(other.phase, JobPhase::Done { .. }))
            });
            self.require(waits.is_none(), || {
                let other = waits.map_or("no job", |id| &id.0);
                format!("{} runs and waits for {other}", record.id)
            });
            for member in members {
                *used.entry(&member.worker).or_default() += member.ranks;
            }
        }
        let orphan = orphan(durable);
        self.require(orphan.is_none(), || {
            let orphan = orphan.map_or("", |id| &id.0);
            format!("{orphan} evaluates a job that is cancelled")
        });
        for (worker, used) in used {
            let has = devices.get(&worker.name).copied().unwrap_or(0);
            self.require(used <= has, || {
                format!("{worker} has {has} devices and {used} are assigned")
            });
        }
    }

    /// The sets of done and set-aside units only grow and are disjoint, except that a resumed job
    /// whose plan pauses for failed units tries these again. Outputs of done units are in the
    /// store; set-aside units have failed often enough.
    pub(crate) fn on_units_saved(
        &mut self,
        old: Option<&JobRecord>,
        new: &JobRecord,
        store: &Store,
        specs: &Specs,
    ) {
        let (Some(units), id) = (&new.units, &new.id) else {
            return;
        };
        let Some(plan) = specs.get(id).and_then(|spec| spec.work.units()) else {
            return self.require(false, || {
                format!("{id} has units in its record and none in its job.toml")
            });
        };
        let none = Vec::new();
        let before = old.and_then(|old| old.units.as_ref());
        let done_before = before.map_or(&none, |units| &units.done);
        let is_resumed = old.is_some_and(|old| old.paused) && !new.paused;
        let is_tried_again = is_resumed && plan.pause_above.is_some();
        let before = before.filter(|_| !is_tried_again);
        let aside_before = before.map_or(&none, |units| &units.set_aside);
        let over = |ranges: &[UnitRange]| ranges.iter().map(|range| range.count()).sum::<u64>();
        let count = over(&units.done) + over(&units.set_aside);
        self.require(count <= plan.count, || {
            format!("{id}: {count} of {} units have ended", plan.count)
        });
        for ranges in [&units.done, &units.set_aside] {
            let sorted = ranges.windows(2).all(|pair| pair[0].end < pair[1].first);
            self.require(sorted, || format!("{id}: a unit counts twice: {ranges:?}"));
        }
        let both = first_of(&units.done, &|unit| contains(&units.set_aside, unit));
        self.require(both.is_none(), || {
            format!("{id}: unit {both:?} is done and set aside")
        });
        for (ranges, before) in [(&units.done, done_before), (&units.set_aside, aside_before)] {
            let lost = before.iter().find(|range| !has_range(ranges, **range));
            self.require(lost.is_none(), || {
                format!("{id}: units {lost:?} had ended and are open again")
            });
        }
        for range in difference(&units.done, done_before) {
            let missing = (range.first..range.end).find(|unit| !store.has_unit(id, *unit));
            self.require(missing.is_none(), || {
                format!(
                    "unit {} of {id} counts as done, and its output is not in the store",
                    missing.unwrap_or(0)
                )
            });
        }
        for range in difference(&units.set_aside, aside_before) {
            for unit in range.first..range.end {
                let failures = self.units.failures(id, unit);
                self.require(UNIT_FAILURES_MAX <= failures, || {
                    format!("unit {unit} of {id} is set aside and failed {failures} times")
                });
            }
        }
    }

    /// A rank begins a unit. The closing unit needs all others.
    pub(crate) fn on_unit_begun(
        &mut self,
        durable: &Durable,
        specs: &Specs,
        store: &Store,
        job: &JobId,
        unit: u64,
    ) {
        let Some(record) = durable.jobs.get(job) else {
            return self.require(false, || {
                format!("unit {unit} of {job} is begun, and the job does not exist")
            });
        };
        let Some(plan) = specs.get(job).and_then(|spec| spec.work.units()) else {
            return self.require(false, || {
                format!("unit {unit} of {job} is begun, which has none")
            });
        };
        self.require(unit < plan.count, || {
            format!("unit {unit} of {job} is begun, which has {}", plan.count)
        });
        if plan.closing && unit + 1 == plan.count {
            let missing =
                (0..unit).find(|unit| !store.has_unit(job, *unit) && !is_set_aside(record, *unit));
            self.require(missing.is_none(), || {
                format!(
                    "the last unit of {job} is begun, and unit {} has no output",
                    missing.unwrap_or(0)
                )
            });
        }
    }
}

/// The members of a running job.
pub(super) fn members(record: &JobRecord) -> &[Member] {
    match &record.phase {
        JobPhase::Running { members } => members,
        _ => &[],
    }
}

fn is_set_aside(record: &JobRecord, unit: u64) -> bool {
    let units = record.units.as_ref();
    units.is_some_and(|units| contains(&units.set_aside, unit))
}

fn contains(ranges: &[UnitRange], unit: u64) -> bool {
    ranges
        .iter()
        .any(|range| (range.first..range.end).contains(&unit))
}

fn has_range(ranges: &[UnitRange], range: UnitRange) -> bool {
    let index = ranges.partition_point(|it| it.end < range.end);
    ranges
        .get(index)
        .is_some_and(|it| it.first <= range.first && range.end <= it.end)
}

fn first_of(ranges: &[UnitRange], holds: &dyn Fn(u64) -> bool) -> Option<u64> {
    None.or_else(|| {
        ranges
            .iter()
            .flat_map(|range| range.first..range.end)
            .find(|unit| holds(*unit))
    })
}

/// The parts of `ranges` that are not in `before`; both are sorted.
fn difference(ranges: &[UnitRange], before: &[UnitRange]) -> Vec<UnitRange> {
    let mut new = Vec::new();
    let mut before = before.iter().copied().peekable();
    for range in ranges {
        let mut first = range.first;
        while let Some(known) = before.next_if(|known| known.end <= range.end) {
            if first < known.first {
                new.push(UnitRange {
                    first,
                    end: known.first,
                });
            }
            first = first.max(known.end);
        }
        if first < range.end {
            new.push(UnitRange {
                first,
                end: range.end,
            });
        }
    }
    new
}

impl World {
    /// Checks the end of a job of units: every unit has one output, or is named as failed often
    /// enough.
    pub(crate) fn check_units_end(&self, record: &JobRecord) -> Result<(), String> {
        let id = &record.id;
        let plan = self.specs.get(id).and_then(|spec| spec.work.units());
        let (Some(plan), Some(units)) = (plan, &record.units) else {
            return Err(format!("{id} has units in only one of record and job.toml"));
        };
        let (outputs, of) = self.store.count_units(id);
        if outputs != of {
            return Err(format!("{id} has {outputs} outputs of {of} units"));
        }
        match &record.phase {
            JobPhase::Done { .. } => {
                let missing = (0..plan.count).find(|unit| {
                    !self.store.has_unit(id, *unit) && !contains(&units.set_aside, *unit)
                });
                if let Some(unit) = missing {
                    return Err(format!(
                        "{id} is done, and unit {unit} has no output and is not set aside"
                    ));
                }
                if plan.on_failed == OnFailedUnit::Stop && !units.set_aside.is_empty() {
                    return Err(format!(
                        "{id} is done, and set units aside that should have stopped it"
                    ));
                }
                let empty = |error: &UnitError| *error == UnitError::Text(String::new());
                let named = units.failed.iter().all(|failed| !empty(&failed.error));
                if !named {
                    return Err(format!("{id} does not say why its units failed"));
                }
                Ok(())
            }
            JobPhase::Failed { cause, .. } => {
                self.check_failed_units(record, cause, plan.on_failed)
            }
            JobPhase::Cancelled { .. } | JobPhase::Queued { .. } | JobPhase::Running { .. } => {
                Ok(())
            }
        }
    }

    /// The job failed because of a unit that failed often enough, or of processes without progress.
    fn check_failed_units(
        &self,
        record: &JobRecord,
        cause: &Cause,
        on_failed: OnFailedUnit,
    ) -> Result<(), String> {
        let id = &record.id;
        let stopped = on_failed == OnFailedUnit::Stop
            && self.oracle.units.most_failures(id) >= UNIT_FAILURES_MAX;
        let explained = match cause {
            Cause::AllUnitsSetAside { .. } | Cause::NoSource { .. } => true,
            Cause::Text { .. }
            | Cause::Fault { .. }
            | Cause::NoProgress { .. }
            | Cause::TimeLimit { .. }
            | Cause::Unreadable { .. } => false,
        };
        if stopped || explained || RESTARTS_WITHOUT_PROGRESS_MAX <= record.restarts_without_progress
        {
            return Ok(());
        }
        Err(format!(
            "{id} failed, and none of its units failed often enough: {cause}"
        ))
    }
}
