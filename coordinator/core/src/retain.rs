//! Checkpoint retention. Older checkpoints that another job reads are kept.

use crate::head::Head;
use crate::job::Job;
use crate::machine::Coordinator;
use crate::outbox::Outbox;
use proto::id::{JobId, Step};
use proto::sample::Weights;
use std::collections::BTreeSet;

impl Coordinator {
    /// Deletes surplus checkpoints of a job, unless another job reads or will read them.
    pub(crate) fn retain(&mut self, id: &JobId, outbox: &mut Outbox) {
        let heads = || {
            let live = self.jobs.values().filter(|job| !job.is_over());
            live.map(Job::head)
        };
        let pins = heads().flat_map(Head::pins);
        let pinned = pins.filter(|pin| pin.job == id).map(|pin| pin.checkpoint);
        // One that still waits for other jobs has pinned nothing yet. The newest checkpoint always
        // stays; a step that it names must, too.
        let waiting = heads().filter(|head| head.lacks_sources());
        let steps = waiting.flat_map(|head| head.spec.work.reads());
        let steps = steps.filter_map(|(job, weights)| match weights {
            Weights::Step(step) if job == id => Some(step),
            Weights::Step(_) | Weights::Newest | Weights::Base => None,
        });
        let steps: BTreeSet<Step> = steps.collect();
        let gang = self.jobs.get(id).and_then(Job::gang);
        let named = gang.into_iter().flat_map(|gang| &gang.checkpoints);
        let named = named.filter(|checkpoint| steps.contains(&checkpoint.step));
        let pinned = pinned.chain(named.copied()).collect();
        if let Some(job) = self.jobs.get_mut(id).and_then(Job::gang_mut) {
            job.retain(&pinned, outbox);
        }
    }
}
