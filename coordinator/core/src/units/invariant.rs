//! Invariants of a job of units, checked after every input.

use super::job::{State, Units};
use crate::fleet::Fleet;
use crate::record::{INCIDENTS_MAX, RESTARTS_WITHOUT_PROGRESS_MAX};
use proto::message::UnitRange;
use std::collections::BTreeSet;

impl Units {
    /// Panics if an invariant is broken.
    pub(crate) fn check(&mut self, fleet: &Fleet) {
        let (head, id) = (&self.head, &self.head.id);
        assert!(
            head.incidents.len() <= INCIDENTS_MAX,
            "{id}: too many incidents"
        );
        assert!(
            head.restarts_without_progress <= RESTARTS_WITHOUT_PROGRESS_MAX,
            "{id}: too many processes without progress"
        );
        if let State::Running(running) = &self.state {
            assert!(!head.must_fail(), "{id} should have failed");
            assert!(
                !running.participants.is_empty(),
                "{id} runs without workers"
            );
            let (mut workers, mut generations) = (BTreeSet::new(), BTreeSet::new());
            for participant in &running.participants {
                let worker = participant.worker();
                assert!(workers.insert(worker), "{id}: {worker} is a member twice");
                assert!(fleet.is_alive(worker), "{id}: its member {worker} is down");
                assert!(
                    generations.insert(participant.generation)
                        && participant.generation <= head.generation,
                    "{id}: generation {} of {worker} is not unique, or from the future",
                    participant.generation
                );
            }
        }
        if std::mem::take(&mut self.is_changed) {
            self.check_units();
        }
    }

    /// Every unit is in exactly one place: to be leased, leased to one rank, done, or set aside.
    fn check_units(&self) {
        let ranks = self
            .participants()
            .iter()
            .flat_map(|participant| participant.ranks.values());
        let held = ranks.flat_map(|rank| rank.lease.iter().chain(rank.done.iter()));
        let mut all: Vec<UnitRange> = held.chain(self.pool.all()).collect();
        all.sort();
        let mut next = 0;
        for range in all {
            assert_eq!(
                range.first,
                next,
                "{}: unit {} is missing or in two places",
                self.head.id,
                range.first.min(next)
            );
            next = range.end;
        }
        assert_eq!(
            next,
            self.pool.plan().count,
            "{}: units are missing",
            self.head.id
        );
    }
}
