//! Assigns standbys after placement has assigned the members. [`crate::gang`] defines standbys.

use crate::fleet;
use crate::gang::Gang;
use crate::job::Job;
use crate::machine::Coordinator;
use crate::outbox::Outbox;
use crate::placement::{Decision, Devices, Solution};
use proto::id::{JobId, WorkerId};
use std::collections::{BTreeMap, BTreeSet};

impl Coordinator {
    /// Assigns standbys to gangs on the devices that no member uses. Survivors come before
    /// newcomers.
    pub(crate) fn sync_standbys(
        &mut self,
        solution: &Solution,
        used: &Devices,
        outbox: &mut Outbox,
    ) {
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
        for job in self.jobs.values_mut().filter_map(Job::gang_mut) {
            job.retain_survivors(&leaving, &mut free, outbox);
        }
        let runs = |job: &&mut Gang| job.is_running();
        let mut wanted: BTreeMap<JobId, Vec<WorkerId>> = BTreeMap::new();
        for job in self
            .jobs
            .values_mut()
            .filter_map(Job::gang_mut)
            .filter(runs)
        {
            let given: &[WorkerId] = match solution.get(&job.head.id) {
                Some(Decision::Run(workers)) if !job.head.paused => workers,
                Some(_) | None => &[],
            };
            wanted.insert(job.head.id.clone(), job.newcomers(given, &mut free));
        }
        for job in self
            .jobs
            .values_mut()
            .filter_map(Job::gang_mut)
            .filter(runs)
        {
            let mut wanted = wanted.remove(&job.head.id).unwrap_or_default();
            wanted.extend(job.excluded_standbys(
                &wanted,
                &self.partitions,
                &self.drained,
                &mut free,
            ));
            job.set_standbys(&wanted, outbox);
        }
    }
}
