//! A worker's assignment for a gang.

use super::job::{Gang, State};
use crate::config::Config;
use crate::record::Member;
use proto::id::WorkerId;
use proto::message::{Assignment, GangOrder, Run};

impl Gang {
    /// What this worker should run for the job.
    pub(crate) fn assignment(&self, worker: &WorkerId, config: &Config) -> Option<Assignment> {
        let of_worker = |member: &&Member| member.worker == *worker;
        let own = self.members().iter().find(of_worker);
        let member = own.or_else(|| self.standby_members().iter().find(of_worker))?;
        let running = self.running().filter(|_| own.is_some());
        let world = match &self.state {
            State::Queued(queued) => queued.ended_world.unwrap_or(0),
            State::Running(running) => running.world(),
            State::Ended(_) => 0,
        };
        let head = &self.head;
        Some(Assignment {
            job: head.id.clone(),
            generation: head.generation,
            job_toml: head.effective_toml(),
            dataset_version: head.dataset_version.clone(),
            store_url: config.store_url.clone(),
            detect_within_ms: config.detect_within_ms,
            first_rank: member.first_rank,
            ranks: member.ranks,
            graceful_stop: running
                .and_then(|running| running.graceful_stop.as_ref())
                .map(|graceful_stop| graceful_stop.how),
            run: Run::Gang(GangOrder {
                world,
                store_address: running.and_then(|running| running.rendezvous()).cloned(),
                resume: self.newest.resume,
                acknowledged_step: self.saved_step(),
                committed_step: self.committed(),
            }),
        })
    }
}
