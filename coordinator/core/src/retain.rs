//! Checkpoint retention. Older checkpoints that another job reads are kept.

use crate::job::Job;
use crate::machine::Coordinator;
use crate::outbox::Outbox;
use proto::id::JobId;

impl Coordinator {
    /// Deletes surplus checkpoints of a job, unless another job reads them.
    pub(crate) fn retain(&mut self, id: &JobId, outbox: &mut Outbox) {
        let pins = self.jobs.values().filter(|job| !job.is_over());
        let pins = pins.flat_map(|job| job.head().pins());
        let pinned = pins.filter(|pin| pin.job == id).map(|pin| pin.checkpoint);
        let pinned = pinned.collect();
        if let Some(job) = self.jobs.get_mut(id).and_then(Job::gang_mut) {
            job.retain(&pinned, outbox);
        }
    }
}
