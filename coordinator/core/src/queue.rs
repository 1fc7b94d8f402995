//! The order in which waiting jobs would start, for pages.

use crate::machine::Coordinator;
use crate::placement::Decision;
use proto::id::JobId;
use std::cmp::Reverse;
use std::collections::BTreeMap;

impl Coordinator {
    /// Waiting jobs in the order in which the last placement considered them: higher priorities
    /// first, then teams with fewer devices for older jobs, then in submit order. Jobs that ask for
    /// no workers yet (paused, or waiting for another job) come last.
    #[must_use]
    pub fn queue(&self) -> Vec<&JobId> {
        let mut demands = BTreeMap::new();
        if let Some((problem, solution)) = &self.last_placement {
            // Devices given to the jobs of each team, in submit order.
            let mut given: BTreeMap<&str, u64> = BTreeMap::new();
            for demand in &problem.demands {
                let older = given.entry(&demand.team).or_insert(0);
                demands.insert(&demand.job, (Reverse(demand.priority), *older));
                if let Some(Decision::Run(workers)) = solution.get(&demand.job) {
                    *older += workers.len() as u64 * u64::from(demand.devices_per_worker);
                }
            }
        }
        let mut queue: Vec<&JobId> = self
            .in_submit_order()
            .into_iter()
            .filter(|job| job.is_queued())
            .map(|job| &job.head().id)
            .collect();
        // Stable, so that equal ones stay in submit order.
        queue.sort_by_key(|job| {
            let demand = demands.get(job).copied();
            (demand.is_none(), demand)
        });
        queue
    }
}
