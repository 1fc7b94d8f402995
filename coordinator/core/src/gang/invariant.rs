//! Invariants of a gang, checked after every input.

use super::job::{Gang, State};
use super::running::Running;
use crate::fleet::Fleet;
use crate::record::{INCIDENTS_MAX, RESTARTS_WITHOUT_PROGRESS_MAX};
use proto::id::{Generation, Rank};
use std::collections::BTreeSet;

impl Gang {
    /// Panics if an invariant is broken.
    pub(crate) fn check(&self, fleet: &Fleet) {
        record(self);
        standbys(fleet, self);
        if let State::Running(running) = &self.state {
            check_running(fleet, self, running);
        }
    }
}

fn record(job: &Gang) {
    let (head, id) = (&job.head, &job.head.id);
    let rising = |pair: &[proto::checkpoint::CheckpointRef]| {
        pair[0].step < pair[1].step && pair[0].generation <= pair[1].generation
    };
    assert!(
        job.checkpoints.windows(2).all(rising),
        "{id}: committed checkpoints are not in order: {:?}",
        job.checkpoints
    );
    if let Some(newest) = job.checkpoints.last() {
        assert!(
            newest.generation <= head.generation,
            "{id}: a commit of a future generation"
        );
        assert!(
            newest.step <= job.steps_max(),
            "{id}: a commit after the last step"
        );
    }
    assert!(
        head.restarts_without_progress <= RESTARTS_WITHOUT_PROGRESS_MAX,
        "{id}: {} generations without progress",
        head.restarts_without_progress
    );
    assert!(
        head.incidents.len() <= INCIDENTS_MAX,
        "{id}: too many incidents"
    );
    let evaluations = &job.evaluations;
    for needed in evaluations.due.into_iter().chain(evaluations.best()) {
        assert!(
            job.checkpoints.contains(&needed),
            "{id}: the checkpoint of step {} is due for an evaluation or the best, and deleted",
            needed.step
        );
    }
    if let Some(writing) = &job.writing {
        assert_eq!(
            writing.checkpoint().generation,
            head.generation,
            "{id}: an older generation writes a manifest"
        );
    }
}

fn standbys(fleet: &Fleet, job: &Gang) {
    let id = &job.head.id;
    let mut ranks = Vec::new();
    for standby in job.standbys.members() {
        let worker = &standby.worker;
        assert!(fleet.is_alive(worker), "{id}: its standby {worker} is down");
        assert!(
            !job.is_member(worker),
            "{id}: {worker} is a member and on standby"
        );
        let world = job.running().map_or(0, Running::world);
        assert!(
            world <= standby.first_rank.0,
            "{id}: a standby has the rank of a member"
        );
        ranks.extend(standby.numbers());
    }
    ranks.sort();
    assert!(
        job.standbys.ranks().keys().copied().eq(ranks),
        "{id}: the tracked standby ranks are not those of its standbys"
    );
}

fn check_running(fleet: &Fleet, job: &Gang, running: &Running) {
    let id = &job.head.id;
    assert!(
        Generation(0) < job.head.generation,
        "{id} runs without a generation"
    );
    assert!(!job.head.must_fail(), "{id} should have failed");
    let mut next = 0;
    let mut workers = BTreeSet::new();
    for member in &running.members {
        let worker = &member.worker;
        assert_eq!(member.first_rank, Rank(next), "{id}: ranks have gaps");
        next += member.ranks;
        assert!(workers.insert(worker), "{id}: {worker} is a member twice");
        assert!(fleet.is_alive(worker), "{id}: its member {worker} is down");
    }
    assert!(0 < next, "{id} runs without ranks");
    assert!(
        running.ranks.keys().copied().eq((0..next).map(Rank)),
        "{id}: the tracked ranks are not those of its members"
    );
    assert!(
        job.newest.acknowledged <= job.steps_max().max(job.committed()),
        "{id}: a step after the last"
    );
}
