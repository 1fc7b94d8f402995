//! What must hold after every event, in production too: a crash and a restart from durable state
//! are cheaper than a wrong checkpoint. Each is about the machine's own doing; bad input cannot
//! break one.

use crate::machine::Coordinator;

/// Panics with what is wrong.
pub(crate) fn check(coordinator: &mut Coordinator) {
    for (id, job) in &mut coordinator.jobs {
        assert_eq!(*id, job.head().id, "a job is kept under its own id");
        job.check(&coordinator.fleet);
    }
}
