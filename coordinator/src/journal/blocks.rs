//! Summaries of steps for curves: one of each [`BLOCK`] steps that are done, so that a curve of a
//! million steps is read as some thousand summaries. A later generation may do steps again; then
//! the summaries from there on are deleted before the first of these steps is written. Steps of
//! which there is no summary, such as those of an earlier release, are read one by one.

use crate::curve::{BLOCK, Curve, block_of};
use crate::store::{StateError, StateStore, blocks_prefix, ordered, steps_prefix};
use proto::id::JobId;
use proto::pb;
use slatedb::WriteBatch;
use std::collections::BTreeMap;

/// Jobs whose newest block is in memory; that of another is read again.
const JOBS_MAX: usize = 4096;

/// The newest block of each job, as far as it is done.
#[derive(Debug, Default)]
pub(super) struct Blocks(BTreeMap<JobId, Open>);

#[derive(Debug)]
struct Open {
    number: u64,
    curve: Curve,
}

impl Open {
    fn new(number: u64) -> Self {
        Self {
            number,
            curve: Curve::of_at_most(2, BLOCK),
        }
    }
}

impl Blocks {
    /// Whether what is in memory does not tell which steps are before this one in its block.
    pub(super) fn must_read(&self, job: &JobId, step: &pb::StepReport) -> bool {
        self.0
            .get(job)
            .is_none_or(|open| block_of(step.step) < open.number || step.step <= open.curve.last())
    }

    /// Reads the steps before this one in its block, and deletes the summaries of this block and of
    /// later ones.
    pub(super) async fn read(
        &mut self,
        store: &StateStore,
        job: &JobId,
        step: &pb::StepReport,
        batch: &mut WriteBatch,
    ) -> Result<(), StateError> {
        let number = block_of(step.step);
        let prefix = blocks_prefix(job);
        let stored = store.scan(&prefix, ordered(number).into_bytes(), usize::MAX);
        for (key, _) in stored.await? {
            batch.delete(key);
        }
        let mut open = Open::new(number);
        let count = usize::try_from(BLOCK).unwrap_or(usize::MAX);
        let first = ordered(number * BLOCK + 1).into_bytes();
        for (key, bytes) in store.scan(&steps_prefix(job), first, count).await? {
            let before: pb::StepReport = store.decode(&key, &bytes)?;
            if step.step <= before.step {
                break;
            }
            open.curve.add(&before);
        }
        if JOBS_MAX <= self.0.len() {
            self.0.pop_first();
        }
        self.0.insert(job.clone(), open);
        Ok(())
    }

    /// Adds a step to its block, and stores the summary of a block that is complete.
    pub(super) fn add(&mut self, job: &JobId, step: &pb::StepReport, batch: &mut WriteBatch) {
        let number = block_of(step.step);
        let open = self
            .0
            .entry(job.clone())
            .or_insert_with(|| Open::new(number));
        if open.number != number {
            // Its last steps were dropped.
            open.save(job, batch);
            *open = Open::new(number);
        }
        open.curve.add(step);
        if step.step.is_multiple_of(BLOCK) {
            open.save(job, batch);
        }
    }

    pub(super) fn forget(&mut self, job: &JobId) {
        self.0.remove(job);
    }
}

impl Open {
    fn save(&self, job: &JobId, batch: &mut WriteBatch) {
        let block = self.curve.block();
        // It cannot fail; without it the steps are read.
        if let Some(Ok(json)) = block.map(|it| serde_json::to_vec(&it)) {
            let key = format!("{}{}", blocks_prefix(job), ordered(self.number));
            batch.put(key, json);
        }
    }
}
