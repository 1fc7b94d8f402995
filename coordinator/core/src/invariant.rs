//! Invariants that are checked after every input, also in production: a crash and a restart from
//! durable state are cheaper than a wrong checkpoint. They depend only on the machine's own logic;
//! bad input cannot break them.

use crate::machine::Coordinator;

/// Panics if an invariant is broken.
pub(crate) fn check(coordinator: &mut Coordinator) {
    for (id, job) in &mut coordinator.jobs {
        assert_eq!(*id, job.head().id, "a job is stored under another id");
        job.check(&coordinator.fleet);
    }
}
