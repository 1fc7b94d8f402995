//! Checkpoints: when all ranks of a generation have written their shards of a step, one manifest
//! makes them a checkpoint (law 8), once, by the newest generation only (law 4). Here is decided
//! what is written and kept; writing is the shell's work.

use super::job::Gang;
use super::writing::Writing;
use crate::deadline::{Deadlines, MANIFEST_ATTEMPTS_MAX};
use crate::explain::Ending;
use crate::outbox::Outbox;
use proto::checkpoint::{CheckpointManifest, CheckpointRef};
use proto::id::{Rank, Step};
use proto::message::ShardReport;
use std::collections::{BTreeMap, BTreeSet};

/// Hands the next complete checkpoint of the running generation to the shell, unless one is on its
/// way.
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
        error: "no answer".to_owned(),
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
        let what = format!("ranks began from different base weights: {digests:?}");
        return Err(Ending::ShardsDisagree { step, what });
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
        job_toml: job.head.job_toml.clone(),
        dataset_version: job.head.dataset_version.clone(),
        init_digest,
        shards: entries,
        // Mixed machines are named side by side: bits are comparable only where these agree.
        environment: environments.into_iter().collect::<Vec<_>>().join(" + "),
    })
}

/// Takes the shell's answer. True when the checkpoint is now committed. An answer that nobody waits
/// for (doubled, or to a manifest that was given up) changes nothing.
pub(super) fn answered(
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
        // It is tried again at its deadline, not at once: a store that is down stays down for a
        // while.
        writing.error = error;
        return false;
    }
    let world = writing.manifest.shards.len();
    job.writing = None;
    job.checkpoints.push(checkpoint);
    job.ledger_commit(world, checkpoint.step);
    job.head.restarts_without_progress = 0;
    // What still waits to be written has its time from now on.
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

/// Tries again, or gives up, when the answer is due.
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
    /// Takes the shell's answer. True when the checkpoint is now committed.
    pub(crate) fn manifest_answered(
        &mut self,
        checkpoint: CheckpointRef,
        result: Result<(), String>,
        outbox: &mut Outbox,
    ) -> bool {
        answered(self, checkpoint, result, outbox)
    }

    /// Takes the checkpoints that are too many out of the record and names them for deletion.
    /// `pinned` are those that another job reads.
    pub(crate) fn retain(&mut self, pinned: &BTreeSet<CheckpointRef>, outbox: &mut Outbox) {
        let surplus = self.checkpoints.len().saturating_sub(self.plan.keep);
        let old: Vec<CheckpointRef> = self.checkpoints[..surplus].to_vec();
        for checkpoint in old
            .into_iter()
            .filter(|checkpoint| !pinned.contains(checkpoint))
        {
            self.checkpoints.retain(|kept| *kept != checkpoint);
            self.save(outbox);
            outbox.delete(self.head.id.clone(), checkpoint);
        }
    }
}
