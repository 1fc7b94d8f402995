//! The story of a world as numbers alone: time, kind, ids, steps. No name of a type or field and no
//! sentence goes in, so that two versions of the code, between which things were renamed and
//! reworded, can be compared: where they decide the same, the hash is the same. Therefore the
//! number of each kind is written out here and is never given to another.

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

/// A running hash of numbers. It is not the standard library's, whose values may change with the
/// compiler.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn put(&mut self, number: impl Into<u64>) {
        let mut z = (self.0 ^ number.into()).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        self.0 = z ^ (z >> 31);
    }

    pub(crate) fn value(self) -> u64 {
        self.0
    }

    /// How many there are, and each of them.
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

    /// An id as a person types it.
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

/// What goes into the hash of numbers.
pub(crate) trait Numbered {
    fn number(&self, numbers: &mut Numbers);
}

/// Who was told something, or wants it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Who {
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

impl Numbered for Who {
    fn number(&self, numbers: &mut Numbers) {
        let (kind, id, boot) = match self {
            Self::Coordinator { boot } => (1_u8, 0, *boot),
            Self::Daemon { node, boot } => (2, *node as u64, *boot),
            Self::Process(pid) => (3, *pid, 0),
        };
        numbers.put(kind);
        numbers.put(id);
        numbers.put(boot);
    }
}

/// A rank process is told what it should be.
pub(crate) struct RankTold<'a>(pub(crate) Rank, pub(crate) &'a Assignment);

/// A rank process has put its shard of a checkpoint.
pub(crate) struct ShardPut<'a> {
    pub(crate) key: &'a RankKey,
    pub(crate) step: Step,
    /// What the toy came to.
    pub(crate) value: u64,
}

impl Numbered for RankTold<'_> {
    fn number(&self, numbers: &mut Numbers) {
        numbers.put(100_u8);
        numbers.put(self.0.0);
        self.1.number(numbers);
    }
}

impl Numbered for ShardPut<'_> {
    fn number(&self, numbers: &mut Numbers) {
        numbers.put(101_u8);
        numbers.key(self.key);
        numbers.put(self.step.0);
        numbers.put(self.value);
    }
}

impl Numbered for WorkerReport {
    fn number(&self, numbers: &mut Numbers) {
        numbers.worker(&self.worker);
        numbers.put(self.devices);
        numbers.all(&self.ranks, |numbers, rank| rank.number(numbers));
        numbers.all(&self.unreached, |numbers, it| numbers.worker(&it.peer));
    }
}

impl Numbered for RankReport {
    fn number(&self, numbers: &mut Numbers) {
        numbers.job(&self.job);
        numbers.put(self.generation.0);
        numbers.put(self.rank.0);
        let phase = match &self.phase {
            RankPhase::Starting => 1_u8,
            RankPhase::Ready => 2,
            RankPhase::Joining => 3,
            RankPhase::Training => 4,
            RankPhase::Broken { .. } => 5,
            RankPhase::Finished => 6,
            RankPhase::Failed {
                permanent: false, ..
            } => 7,
            RankPhase::Failed {
                permanent: true, ..
            } => 8,
        };
        numbers.put(phase);
        numbers.put(self.store_address.is_some());
        numbers.all(&self.steps, |numbers, step| numbers.put(step.step.0));
        numbers.all(&self.shards, |numbers, shard| numbers.put(shard.step.0));
        numbers.all(&self.digests, |numbers, digest| {
            numbers.put(digest.step.0);
            numbers.id(&digest.sha256);
        });
        numbers.some(self.activity, activity);
        // Ranks of gangs have none, as before there were units.
        let UnitReport { done, failed } = &self.units;
        if !done.is_empty() || !failed.is_empty() {
            numbers.put(1_u8);
            numbers.all(done, |numbers, range| numbers.units(*range));
            numbers.all(failed, |numbers, failure| numbers.put(failure.unit));
        }
    }
}

fn activity(numbers: &mut Numbers, activity: Activity) {
    numbers.put(activity.step.0);
    let (stage, count) = match activity.stage {
        Stage::Samples => (1_u8, 0),
        Stage::MicroBatch(count) => (2, u64::from(count)),
        Stage::Reduction => (3, 0),
        Stage::Update => (4, 0),
        Stage::Digest => (5, 0),
        Stage::Checkpoint => (6, 0),
        Stage::Unit(unit) => (7, unit),
    };
    numbers.put(stage);
    numbers.put(count);
    numbers.put(activity.for_ms);
}

impl Numbered for DesiredState {
    fn number(&self, numbers: &mut Numbers) {
        numbers.worker(&self.worker);
        numbers.all(&self.assignments, |numbers, it| it.number(numbers));
        numbers.all(&self.peers, |numbers, peer| numbers.worker(&peer.worker));
    }
}

impl Numbered for Assignment {
    fn number(&self, numbers: &mut Numbers) {
        numbers.job(&self.job);
        numbers.put(self.generation.0);
        let kind = match &self.run {
            Run::Gang(_) => 1_u8,
            Run::Units(_) => 2,
        };
        numbers.put(kind);
        numbers.put(self.first_rank.0);
        numbers.put(self.ranks);
        match &self.run {
            Run::Gang(order) => order.number(numbers),
            Run::Units(order) => {
                numbers.some(
                    order.source.as_ref().and_then(|it| it.checkpoint),
                    Numbers::checkpoint,
                );
                numbers.put(order.leases.len() as u64);
                for (rank, ranges) in &order.leases {
                    numbers.put(rank.0);
                    numbers.all(ranges, |numbers, range| numbers.units(*range));
                }
            }
        }
        let graceful_stop = match self.graceful_stop {
            None => 0_u8,
            Some(GracefulStop::WithoutCheckpoint) => 1,
            Some(GracefulStop::WithCheckpoint) => 2,
        };
        numbers.put(graceful_stop);
    }
}

impl Numbered for GangOrder {
    fn number(&self, numbers: &mut Numbers) {
        numbers.put(self.world);
        numbers.put(self.store_address.is_some());
        numbers.some(self.resume, Numbers::checkpoint);
        numbers.put(self.acknowledged_step.0);
        numbers.put(self.committed_step.0);
    }
}
