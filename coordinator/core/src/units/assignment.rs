//! A worker's assignment for a job of units.

use super::job::Units;
use super::lease::order_units;
use crate::config::Config;
use proto::id::WorkerId;
use proto::message::{Assignment, GracefulStop, Run, UnitOrder};

impl Units {
    /// What this worker should run for the job.
    pub(crate) fn assignment(&self, worker: &WorkerId, config: &Config) -> Option<Assignment> {
        let participant = self.participant(worker)?;
        let leases = participant
            .ranks
            .iter()
            .map(|(rank, units)| (*rank, order_units(units)));
        let head = &self.head;
        Some(Assignment {
            job: head.id.clone(),
            generation: participant.generation,
            job_toml: head.effective_toml(),
            dataset_version: head.dataset_version.clone(),
            store_url: config.store_url.clone(),
            detect_within_ms: config.detect_within_ms,
            first_rank: participant.member.first_rank,
            ranks: participant.member.ranks,
            graceful_stop: participant
                .leaving
                .as_ref()
                .map(|_| GracefulStop::WithCheckpoint),
            run: Run::Units(UnitOrder {
                source: head.source(),
                models: head.models(),
                leases: leases.filter(|(_, units)| !units.is_empty()).collect(),
            }),
        })
    }
}
