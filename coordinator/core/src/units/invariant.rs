//! What must hold of a job of units after every event.

use super::job::{State, Units};
use crate::fleet::Fleet;
use crate::record::{INCIDENTS_MAX, RESTARTS_WITHOUT_PROGRESS_MAX};
use proto::message::UnitRange;
use std::collections::BTreeSet;

impl Units {
    /// Panics with what is wrong.
    pub(crate) fn check(&mut self, fleet: &Fleet) {
        let (head, id) = (&self.head, &self.head.id);
        assert!(
            head.incidents.len() <= INCIDENTS_MAX,
            "{id}: too many incidents"
        );
        assert!(
            head.restarts_without_progress <= RESTARTS_WITHOUT_PROGRESS_MAX,
            "{id}: too many fruitless processes"
        );
        if let State::Running(running) = &self.state {
            assert!(!head.is_lost(), "{id} should have failed");
            assert!(!running.parts.is_empty(), "{id} runs without workers");
            let (mut workers, mut generations) = (BTreeSet::new(), BTreeSet::new());
            for part in &running.parts {
                let worker = part.worker();
                assert!(workers.insert(worker), "{id}: {worker} is a member twice");
                assert!(fleet.holds(worker), "{id}: its member {worker} is gone");
                assert!(
                    generations.insert(part.generation) && part.generation <= head.generation,
                    "{id}: generation {} of {worker} is not its own",
                    part.generation
                );
            }
        }
        if std::mem::take(&mut self.is_changed) {
            self.check_units();
        }
    }

    /// Every unit is in one place: to be leased, leased to one rank, done, or set aside.
    fn check_units(&self) {
        let ranks = self.parts().iter().flat_map(|part| part.ranks.values());
        let held = ranks.flat_map(|rank| rank.lease.iter().chain(rank.done.iter()));
        let mut all: Vec<UnitRange> = held.chain(self.pool.all()).collect();
        all.sort();
        let mut next = 0;
        for range in all {
            assert_eq!(
                range.first,
                next,
                "{}: unit {} is nowhere, or twice somewhere",
                self.head.id,
                range.first.min(next)
            );
            next = range.end;
        }
        assert_eq!(
            next,
            self.pool.plan().count,
            "{}: units are lost",
            self.head.id
        );
    }
}
