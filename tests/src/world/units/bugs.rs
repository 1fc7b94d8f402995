//! Planted bugs of units: they change the coordinator's messages before the workers receive them.

use crate::world::World;
use crate::world::bug::Bug;
use proto::id::{JobId, WorkerId};
use proto::message::{Assignment, DesiredState, Run, UnitRange};
use std::collections::BTreeMap;

/// State of these bugs.
#[derive(Debug, Default)]
pub(crate) struct UnitBugs {
    /// The last lease of each worker, by job.
    leases: BTreeMap<(JobId, WorkerId), Vec<UnitRange>>,
    /// The worker that held a unit first.
    first: BTreeMap<(JobId, u64), WorkerId>,
    /// The last assignments of units that each worker received before it was drained.
    sent: BTreeMap<WorkerId, Vec<Assignment>>,
}

impl World {
    /// The state that the worker receives instead.
    pub(crate) fn with_unit_bugs(
        &mut self,
        worker: &WorkerId,
        mut state: DesiredState,
    ) -> DesiredState {
        match self.bug {
            Some(Bug::UnitLeasedTwice) => self.lease_twice(worker, &mut state),
            Some(Bug::UnitNeverLeasedAgain) => self.lease_once(worker, &mut state),
            Some(Bug::DrainKeepsUnits) => self.keep_drained(worker, &mut state),
            _ => {}
        }
        state
    }

    fn lease_twice(&mut self, worker: &WorkerId, state: &mut DesiredState) {
        for assignment in &mut state.assignments {
            let job = assignment.job.clone();
            let Run::Units(order) = &mut assignment.run else {
                continue;
            };
            let own: Vec<UnitRange> = order.leases.values().flatten().copied().collect();
            let others = self.unit_bugs.leases.iter();
            let mut others = others.filter(|((of, other), _)| *of == job && other != worker);
            if let Some((_, theirs)) = others.next()
                && let Some(first) = order.leases.values_mut().next()
            {
                let disjoint = |range: &&UnitRange| {
                    own.iter()
                        .all(|own| own.end <= range.first || range.end <= own.first)
                };
                first.extend(theirs.iter().filter(disjoint));
                first.sort();
            }
            self.unit_bugs.leases.insert((job, worker.clone()), own);
        }
    }

    fn lease_once(&mut self, worker: &WorkerId, state: &mut DesiredState) {
        let first = &mut self.unit_bugs.first;
        for assignment in &mut state.assignments {
            let job = assignment.job.clone();
            let Run::Units(order) = &mut assignment.run else {
                continue;
            };
            for lease in order.leases.values_mut() {
                let units = lease.iter().flat_map(|range| range.first..range.end);
                let own = units.filter(|unit| {
                    let holder = first.entry((job.clone(), *unit));
                    holder.or_insert_with(|| worker.clone()) == worker
                });
                *lease = own.map(UnitRange::one).collect();
            }
        }
    }

    fn keep_drained(&mut self, worker: &WorkerId, state: &mut DesiredState) {
        if !self.durable.drained.contains(&worker.name) {
            let units = state.assignments.iter().filter(|it| it.units().is_some());
            let units: Vec<Assignment> = units.cloned().collect();
            self.unit_bugs.sent.insert(worker.clone(), units);
            return;
        }
        if let Some(sent) = self.unit_bugs.sent.get(worker) {
            state
                .assignments
                .retain(|assignment| assignment.units().is_none());
            state.assignments.extend(sent.iter().cloned());
        }
    }
}
