//! `coordinator why`: what a job currently waits for, as one value that becomes one sentence. It is
//! read-only: it derives the answer from placement, graceful stops, commits and reports.

use crate::machine::Coordinator;
use crate::record::Millis;
use crate::view_model::Why;
use proto::id::JobId;

impl Coordinator {
    /// What the job waits for at `now`, in the shell's clock. None if there is no such job.
    #[must_use]
    pub fn why(&self, now: Millis, id: &JobId) -> Option<Why> {
        let job = self.jobs.get(id)?;
        let now = self.clock.at(now);
        let decision = self
            .last_placement
            .as_ref()
            .and_then(|(_, solution)| solution.get(id));
        let mut why = job.why(decision, &self.partitions, now);
        why.sentence += &self.evaluations_text(id);
        if let Some(parent) = &job.head().parent {
            why.sentence += &format!("; it evaluates a checkpoint of {}", parent.job);
        }
        Some(why)
    }
}
