//! A hash of a world's trace from numbers alone: time, kind, ids, steps. It contains no names of
//! types or fields and no sentences, so that two versions of the code can be compared after
//! renames: the hash is the same if all decisions are. The number of each kind is therefore written
//! out here and must never be reused.

mod coordinator;
mod worker;

use super::ranks::Pid;
use coordinator_core::event::Member;
use proto::checkpoint::CheckpointRef;
use proto::id::{Generation, JobId, Rank, Step, WorkerId};
use proto::message::{
    Activity, Assignment, DesiredState, GangOrder, GracefulStop, RankPhase, RankReport, Run, Stage,
    UnitRange, UnitReport, WorkerReport,
};
use worker_core::event::RankKey;

/// A running hash of numbers. The hash of the standard library may change with the compiler.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct StableHasher(u64);

impl StableHasher {
    pub(crate) fn put(&mut self, number: impl Into<u64>) {
        let mut z = (self.0 ^ number.into()).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        self.0 = z ^ (z >> 31);
    }

    pub(crate) fn value(self) -> u64 {
        self.0
    }

    /// All elements and their count.
    fn all<'a, T: 'a>(
        &mut self,
        all: impl IntoIterator<Item = &'a T>,
        each: impl Fn(&mut Self, &T),
    ) {
        let mut count = 0_u64;
        for one in all {
            each(self, one);
            count += 1;
        }
        self.put(count);
    }

    fn some<T>(&mut self, value: Option<T>, each: impl Fn(&mut Self, T)) {
        self.put(value.is_some());
        if let Some(value) = value {
            each(self, value);
        }
    }

    /// An id, as text.
    fn id(&mut self, id: &str) {
        self.put(id.len() as u64);
        id.bytes().for_each(|byte| self.put(byte));
    }

    fn job(&mut self, job: &JobId) {
        self.id(&job.0);
    }

    fn worker(&mut self, worker: &WorkerId) {
        self.id(&worker.name);
        self.put(worker.boot);
    }

    fn checkpoint(&mut self, checkpoint: CheckpointRef) {
        self.put(checkpoint.step.0);
        self.put(checkpoint.generation.0);
    }

    fn key(&mut self, key: &RankKey) {
        self.job(&key.job);
        self.put(key.generation.0);
        self.put(key.rank.0);
    }

    fn of_worker(&mut self, kind: u8, worker: &WorkerId) {
        self.put(kind);
        self.worker(worker);
    }

    fn of_job(&mut self, kind: u8, job: &JobId) {
        self.put(kind);
        self.job(job);
    }

    fn of_step(&mut self, kind: u8, job: &JobId, step: Step) {
        self.of_job(kind, job);
        self.put(step.0);
    }

    fn of_generation(&mut self, kind: u8, job: &JobId, generation: Generation) {
        self.of_job(kind, job);
        self.put(generation.0);
    }

    fn units(&mut self, range: UnitRange) {
        self.put(range.first);
        self.put(range.end);
    }

    fn member(&mut self, member: &Member) {
        self.worker(&member.worker);
        self.put(member.first_rank.0);
        self.put(member.ranks);
    }
}

/// A value that can be added to the stable hash.
pub(crate) trait StableHash {
    fn stable_hash(&self, hasher: &mut StableHasher);
}

/// The source of an effect, or the receiver of an input.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Actor {
    Coordinator {
        boot: u64,
    },
    Daemon {
        node: usize,
        boot: u64,
    },
    /// A rank process.
    Process(Pid),
}

impl StableHash for Actor {
    fn stable_hash(&self, hasher: &mut StableHasher) {
        let (kind, id, boot) = match self {
            Self::Coordinator { boot } => (1_u8, 0, *boot),
            Self::Daemon { node, boot } => (2, *node as u64, *boot),
            Self::Process(pid) => (3, *pid, 0),
        };
        hasher.put(kind);
        hasher.put(id);
        hasher.put(boot);
    }
}

/// An order that a rank process received.
pub(crate) struct ReceivedOrder<'a>(pub(crate) Rank, pub(crate) &'a Assignment);

/// A shard that a rank process has put.
pub(crate) struct ShardPut<'a> {
    pub(crate) key: &'a RankKey,
    pub(crate) step: Step,
    /// The value of the toy model.
    pub(crate) value: u64,
}

impl StableHash for ReceivedOrder<'_> {
    fn stable_hash(&self, hasher: &mut StableHasher) {
        hasher.put(100_u8);
        hasher.put(self.0.0);
        self.1.stable_hash(hasher);
    }
}

impl StableHash for ShardPut<'_> {
    fn stable_hash(&self, hasher: &mut StableHasher) {
        hasher.put(101_u8);
        hasher.key(self.key);
        hasher.put(self.step.0);
        hasher.put(self.value);
    }
}

impl StableHash for WorkerReport {
    fn stable_hash(&self, hasher: &mut StableHasher) {
        hasher.worker(&self.worker);
        hasher.put(self.devices);
        hasher.all(&self.ranks, |hasher, rank| rank.stable_hash(hasher));
        hasher.all(&self.unreached, |hasher, it| hasher.worker(&it.peer));
    }
}

impl StableHash for RankReport {
    fn stable_hash(&self, hasher: &mut StableHasher) {
        hasher.job(&self.job);
        hasher.put(self.generation.0);
        hasher.put(self.rank.0);
        let phase = match &self.phase {
            RankPhase::Starting => 1_u8,
            RankPhase::Ready => 2,
            RankPhase::Joining => 3,
            RankPhase::Training => 4,
            RankPhase::Broken { .. } => 5,
            RankPhase::Finished => 6,
            RankPhase::Failed { failure } if !failure.is_permanent() => 7,
            RankPhase::Failed { .. } => 8,
        };
        hasher.put(phase);
        hasher.put(self.store_address.is_some());
        hasher.all(&self.steps, |hasher, step| hasher.put(step.step.0));
        hasher.all(&self.shards, |hasher, shard| hasher.put(shard.step.0));
        hasher.all(&self.digests, |hasher, digest| {
            hasher.put(digest.step.0);
            hasher.id(&digest.sha256);
        });
        hasher.some(self.activity, activity);
        // Skipped for ranks of gangs, as before units existed.
        let UnitReport { done, failed } = &self.units;
        if !done.is_empty() || !failed.is_empty() {
            hasher.put(1_u8);
            hasher.all(done, |hasher, range| hasher.units(*range));
            hasher.all(failed, |hasher, failure| hasher.put(failure.unit));
        }
    }
}

fn activity(hasher: &mut StableHasher, activity: Activity) {
    hasher.put(activity.step.0);
    let (stage, count) = match activity.stage {
        Stage::Samples => (1_u8, 0),
        Stage::MicroBatch(count) => (2, u64::from(count)),
        Stage::Reduction => (3, 0),
        Stage::Update => (4, 0),
        Stage::Digest => (5, 0),
        Stage::Checkpoint => (6, 0),
        Stage::Unit(unit) => (7, unit),
        Stage::Validation(count) => (8, u64::from(count)),
    };
    hasher.put(stage);
    hasher.put(count);
    hasher.put(activity.for_ms);
}

impl StableHash for DesiredState {
    fn stable_hash(&self, hasher: &mut StableHasher) {
        hasher.worker(&self.worker);
        hasher.all(&self.assignments, |hasher, it| it.stable_hash(hasher));
        hasher.all(&self.peers, |hasher, peer| hasher.worker(&peer.worker));
        if let Some(successor) = &self.successor {
            hasher.worker(&successor.worker);
        }
    }
}

impl StableHash for Assignment {
    fn stable_hash(&self, hasher: &mut StableHasher) {
        hasher.job(&self.job);
        hasher.put(self.generation.0);
        let kind = match &self.run {
            Run::Gang(_) => 1_u8,
            Run::Units(_) => 2,
        };
        hasher.put(kind);
        hasher.put(self.first_rank.0);
        hasher.put(self.ranks);
        match &self.run {
            Run::Gang(order) => order.stable_hash(hasher),
            Run::Units(order) => {
                hasher.some(
                    order.source.as_ref().and_then(|it| it.checkpoint),
                    StableHasher::checkpoint,
                );
                // Nothing for a job without models, as before evaluations existed.
                for model in &order.models {
                    hasher.some(model.checkpoint, StableHasher::checkpoint);
                }
                hasher.put(order.leases.len() as u64);
                for (rank, ranges) in &order.leases {
                    hasher.put(rank.0);
                    hasher.all(ranges, |hasher, range| hasher.units(*range));
                }
            }
        }
        let graceful_stop = match self.graceful_stop {
            None => 0_u8,
            Some(GracefulStop::WithoutCheckpoint) => 1,
            Some(GracefulStop::WithCheckpoint) => 2,
        };
        hasher.put(graceful_stop);
    }
}

impl StableHash for GangOrder {
    fn stable_hash(&self, hasher: &mut StableHasher) {
        hasher.put(self.world);
        hasher.put(self.store_address.is_some());
        hasher.some(self.resume, StableHasher::checkpoint);
        hasher.put(self.acknowledged_step.0);
        hasher.put(self.committed_step.0);
    }
}
