//! `coordinator why`: what a job waits for right now, as one value that becomes one sentence. It
//! changes nothing and decides nothing; it reads what placement, halts, commits and reports left
//! behind.

use crate::machine::Coordinator;
use crate::record::Millis;
use crate::shown::Why;
use proto::id::JobId;

impl Coordinator {
    /// What the job waits for at `now`, in the clock of the shell; None: there is no such job.
    #[must_use]
    pub fn why(&self, now: Millis, id: &JobId) -> Option<Why> {
        let job = self.jobs.get(id)?;
        let now = self.clock.at(now);
        let decision = self
            .solved
            .as_ref()
            .and_then(|(_, solution)| solution.get(id));
        Some(job.why(decision, &self.partitions, now))
    }
}
