//! What a worker is told to do for a job of units.

use super::job::Units;
use super::lease::named;
use crate::config::Config;
use proto::id::WorkerId;
use proto::message::{Assignment, GracefulStop, Run, UnitOrder};

impl Units {
    /// What this worker should do for the job.
    pub(crate) fn assignment(&self, worker: &WorkerId, config: &Config) -> Option<Assignment> {
        let part = self.part(worker)?;
        let leases = part.ranks.iter().map(|(rank, units)| (*rank, named(units)));
        let head = &self.head;
        Some(Assignment {
            job: head.id.clone(),
            generation: part.generation,
            job_toml: head.job_toml.clone(),
            dataset_version: head.dataset_version.clone(),
            store_url: config.store_url.clone(),
            detect_within_ms: config.detect_within_ms,
            first_rank: part.member.first_rank,
            ranks: part.member.ranks,
            graceful_stop: part.leaving.as_ref().map(|_| GracefulStop::WithCheckpoint),
            run: Run::Units(UnitOrder {
                source: head.source.clone(),
                leases: leases.filter(|(_, named)| !named.is_empty()).collect(),
            }),
        })
    }
}
