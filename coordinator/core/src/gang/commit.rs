//! Checkpoints: when all ranks of a generation have written their shards of a step, a manifest
//! commits them as a checkpoint (law 8), exactly once, and only for the newest generation (law 4).
//! This module decides what to write and to retain; the shell does the writing.

use super::job::Gang;
use super::writing::Writing;
use crate::deadline::{Deadlines, MANIFEST_ATTEMPTS_MAX};
use crate::event::Event;
use crate::head::Ended;
use crate::outbox::Outbox;
use proto::checkpoint::{CheckpointManifest, CheckpointRef};
use proto::id::{Rank, Step};
use proto::message::ShardReport;
use proto::reason::{Disagreement, Ending};
use std::collections::{BTreeMap, BTreeSet};

/// Requests the manifest of the next complete checkpoint of the running generation, unless one is
/// being written.
pub(super) fn begin(
    job: &mut Gang,
    deadlines: Deadlines,
    outbox: &mut Outbox,
) -> Result<(), Ending> {
    let Some(running) = job.running().filter(|_| job.writing.is_none()) else {
        return Ok(());
    };
    let world = running.ranks.len();
    let complete = running
        .shards
        .iter()
        .find(|(_, shards)| shards.len() == world);
    let Some((step, shards)) = complete else {
        return Ok(());
    };
    let manifest = manifest(job, *step, shards)?;
    outbox.write_manifest(manifest.clone());
    let retry_at = deadlines.manifest_retry(outbox.now);
    job.writing = Some(Writing {
        manifest,
        retry_at,
        attempts: 1,
        error: "no response".to_owned(),
    });
    Ok(())
}

fn manifest(
    job: &Gang,
    step: Step,
    shards: &BTreeMap<Rank, ShardReport>,
) -> Result<CheckpointManifest, Ending> {
    let digests: BTreeSet<&Option<String>> =
        shards.values().map(|shard| &shard.init_digest).collect();
    if 1 < digests.len() {
        let digests = digests.into_iter().cloned().collect();
        let shards = Disagreement::BaseWeights { digests };
        return Err(Ending::ShardsDisagree { step, shards });
    }
    let init_digest = shards
        .values()
        .next()
        .and_then(|shard| shard.init_digest.clone());
    let environments: BTreeSet<&str> = shards
        .values()
        .map(|shard| shard.environment.as_str())
        .collect();
    let mut entries: Vec<_> = shards.values().map(|shard| shard.shard.clone()).collect();
    entries.sort();
    Ok(CheckpointManifest {
        job: job.head.id.clone(),
        step,
        generation: job.head.generation,
        job_toml: job.head.effective_toml(),
        dataset_version: job.head.dataset_version.clone(),
        init_digest,
        shards: entries,
        // Lists all environments: results are bitwise comparable only if these are equal.
        environment: environments.into_iter().collect::<Vec<_>>().join(" + "),
        ranks: shards
            .iter()
            .map(|(rank, shard)| (*rank, shard.rank_environment.clone()))
            .collect(),
    })
}

/// Handles the result of a manifest write. Returns true if the checkpoint is now committed. An
/// unexpected result (a duplicate, or of an abandoned manifest) changes nothing.
pub(super) fn apply_result(
    job: &mut Gang,
    checkpoint: CheckpointRef,
    result: Result<(), String>,
    outbox: &mut Outbox,
) -> bool {
    let Some(writing) = job
        .writing
        .as_mut()
        .filter(|writing| writing.checkpoint() == checkpoint)
    else {
        return false;
    };
    if let Err(error) = result {
        // It is retried at its deadline, not immediately: an outage of the store usually lasts
        // longer.
        writing.error = error;
        return false;
    }
    let world = writing.manifest.shards.len();
    job.writing = None;
    job.checkpoints.push(checkpoint);
    job.head.committed_ms = Some(outbox.wall);
    job.ledger_commit(world, checkpoint.step);
    job.request_evaluation(checkpoint, outbox);
    job.head.restarts_without_progress = 0;
    // The timeout for the remaining shards starts again now.
    if let Some(running) = job.running_mut() {
        running.finished_at = None;
        running.shards = running
            .shards
            .split_off(&Step(checkpoint.step.0.saturating_add(1)));
    }
    job.save(outbox);
    job.send_to_members(outbox);
    true
}

/// Retries the manifest write when its result is overdue, or gives up after too many attempts.
pub(super) fn retry(
    job: &mut Gang,
    deadlines: Deadlines,
    outbox: &mut Outbox,
) -> Result<(), Ending> {
    let is_over = job.is_over();
    let Some(writing) = job
        .writing
        .as_mut()
        .filter(|writing| writing.retry_at <= outbox.now)
    else {
        return Ok(());
    };
    let given_up = MANIFEST_ATTEMPTS_MAX <= writing.attempts || is_over;
    if !given_up {
        writing.attempts += 1;
        writing.retry_at = deadlines.manifest_retry(outbox.now);
        outbox.write_manifest(writing.manifest.clone());
        return Ok(());
    }
    let (step, attempts, error) = (
        writing.manifest.step,
        writing.attempts,
        writing.error.clone(),
    );
    job.writing = None;
    Err(Ending::ManifestRefused {
        step,
        attempts,
        error,
    })
}

impl Gang {
    /// Handles the result of a manifest write. Returns true if the checkpoint is now committed.
    pub(crate) fn on_manifest_result(
        &mut self,
        checkpoint: CheckpointRef,
        result: Result<(), String>,
        outbox: &mut Outbox,
    ) -> bool {
        apply_result(self, checkpoint, result, outbox)
    }

    /// The checkpoint is due for an evaluation, if the job's plan says so.
    fn request_evaluation(&mut self, checkpoint: CheckpointRef, outbox: &mut Outbox) {
        let work = self.head.spec.training();
        let plan = work.and_then(|work| work.evaluation.as_deref());
        let is_due = plan.is_some_and(|plan| plan.is_due(checkpoint.step, self.steps_max()));
        // A user has cancelled it while the manifest was being written.
        if !is_due || matches!(self.ended(), Some(Ended::Cancelled { .. })) {
            return;
        }
        if let Some(former) = self.evaluations.due.replace(checkpoint) {
            self.evaluations.skipped += 1;
            outbox.emit(Event::EvaluationSkipped {
                job: self.head.id.clone(),
                step: former.step,
            });
        }
    }

    /// Removes surplus checkpoints from the record and requests their deletion. `pinned` are those
    /// that another job reads. Those that are evaluated and the best one stay, too.
    pub(crate) fn retain(&mut self, pinned: &BTreeSet<CheckpointRef>, outbox: &mut Outbox) {
        let surplus = self.checkpoints.len().saturating_sub(self.plan.keep);
        let old: Vec<CheckpointRef> = self.checkpoints[..surplus].to_vec();
        let is_kept = |it: &CheckpointRef| pinned.contains(it) || self.evaluations.keeps(*it);
        let old: Vec<CheckpointRef> = old.into_iter().filter(|it| !is_kept(it)).collect();
        for checkpoint in old {
            self.checkpoints.retain(|other| *other != checkpoint);
            self.save(outbox);
            outbox.delete(self.head.id.clone(), checkpoint);
        }
    }
}
