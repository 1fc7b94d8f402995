//! Checkpoints: when all ranks of a generation have written their shards of a step, one manifest makes them a
//! checkpoint (law 8), once, by the newest generation only (law 4). Here is decided what is written and kept;
//! writing is the shell's work.

use crate::deadline::{Deadlines, MANIFEST_ATTEMPTS_MAX};
use crate::event::{JobPhase, Millis};
use crate::explain::Ending;
use crate::job::Job;
use crate::outbox::Outbox;
use proto::checkpoint::{CheckpointManifest, CheckpointRef};
use proto::id::{Rank, Step};
use proto::message::ShardReport;
use std::collections::{BTreeMap, BTreeSet};

/// Checkpoints of one generation that may lack shards at one time; the oldest are given up first.
pub(crate) const PENDING_MAX: usize = 8;

/// A manifest that was handed to the shell and not yet answered.
#[derive(Debug)]
pub(crate) struct Writing {
    manifest: CheckpointManifest,
    /// It is handed over again then.
    pub(crate) retry_at: Millis,
    attempts: u32,
    /// The last answer.
    error: String,
}

impl Writing {
    pub(crate) fn checkpoint(&self) -> CheckpointRef {
        CheckpointRef {
            step: self.manifest.step,
            generation: self.manifest.generation,
        }
    }
}

/// Hands the next complete checkpoint of the running generation to the shell, unless one is on its way.
pub(crate) fn begin(job: &mut Job, deadlines: Deadlines, outbox: &mut Outbox) -> Result<(), Ending> {
    if job.writing.is_some() || !matches!(job.record.phase, JobPhase::Running { .. }) {
        return Ok(());
    }
    let world = job.live.ranks.len();
    let complete = job.live.shards.iter().find(|(_, shards)| shards.len() == world);
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
    job: &Job,
    step: Step,
    shards: &BTreeMap<Rank, ShardReport>,
) -> Result<CheckpointManifest, Ending> {
    let digests: BTreeSet<&Option<String>> = shards.values().map(|shard| &shard.init_digest).collect();
    if 1 < digests.len() {
        let what = format!("ranks began from different base weights: {digests:?}");
        return Err(Ending::ShardsDisagree { step, what });
    }
    let init_digest = shards.values().next().and_then(|shard| shard.init_digest.clone());
    let environments: BTreeSet<&str> = shards.values().map(|shard| shard.environment.as_str()).collect();
    let mut entries: Vec<_> = shards.values().map(|shard| shard.shard.clone()).collect();
    entries.sort();
    Ok(CheckpointManifest {
        job: job.record.id.clone(),
        step,
        generation: job.record.generation,
        job_toml: job.record.job_toml.clone(),
        dataset_version: job.record.dataset_version.clone(),
        init_digest,
        shards: entries,
        // Mixed machines are named side by side: bits are comparable only where these agree.
        environment: environments.into_iter().collect::<Vec<_>>().join(" + "),
    })
}

/// Takes the shell's answer. True when the checkpoint is now committed. An answer that nobody waits for
/// (doubled, or to a manifest that was given up) changes nothing.
pub(crate) fn answered(
    job: &mut Job,
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
        // It is tried again at its deadline, not at once: a store that is down stays down for a while.
        writing.error = error;
        return false;
    }
    let world = writing.manifest.shards.len();
    job.writing = None;
    job.record.checkpoints.push(checkpoint);
    job.ledger_commit(world, checkpoint.step);
    job.record.fruitless = 0;
    // What still waits to be written has its time from now on.
    job.live.finished_at = None;
    job.live.shards = job
        .live
        .shards
        .split_off(&Step(checkpoint.step.0.saturating_add(1)));
    outbox.save.insert(job.record.id.clone());
    job.tell_members(outbox);
    true
}

/// Tries again, or gives up, when the answer is due.
pub(crate) fn retry(job: &mut Job, deadlines: Deadlines, outbox: &mut Outbox) -> Result<(), Ending> {
    let Some(writing) = job
        .writing
        .as_mut()
        .filter(|writing| writing.retry_at <= outbox.now)
    else {
        return Ok(());
    };
    let given_up = MANIFEST_ATTEMPTS_MAX <= writing.attempts || job.record.phase.is_over();
    if !given_up {
        writing.attempts += 1;
        writing.retry_at = deadlines.manifest_retry(outbox.now);
        outbox.write_manifest(writing.manifest.clone());
        return Ok(());
    }
    let (step, attempts, error) = (writing.manifest.step, writing.attempts, writing.error.clone());
    job.writing = None;
    Err(Ending::ManifestRefused {
        step,
        attempts,
        error,
    })
}

/// Takes the checkpoints that are too many out of the record and names them for deletion. `pinned` are those
/// that another job reads.
pub(crate) fn retain(job: &mut Job, pinned: &BTreeSet<CheckpointRef>, outbox: &mut Outbox) {
    let Some(training) = job.record.spec.training() else {
        return;
    };
    let keep = training.checkpoint.keep.max(1) as usize;
    let surplus = job.record.checkpoints.len().saturating_sub(keep);
    let old: Vec<CheckpointRef> = job.record.checkpoints[..surplus].to_vec();
    for checkpoint in old.into_iter().filter(|checkpoint| !pinned.contains(checkpoint)) {
        job.record.checkpoints.retain(|kept| *kept != checkpoint);
        outbox.save.insert(job.record.id.clone());
        outbox.delete(job.record.id.clone(), checkpoint);
    }
}
