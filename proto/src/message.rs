//! What coordinator, daemons and ranks say to each other, as plain values. The machines and the
//! simulated world speak these; `wire.rs` turns them into protobuf and back at the edge of a
//! process. Ranks and their daemon exchange [`RankReport`] and [`RankOrder`] as one JSON object per
//! line over the daemon's Unix socket.

use crate::checkpoint::{CheckpointRef, ShardEntry};
use crate::id::{Generation, JobId, Rank, Step, WorkerId};
use crate::spec::DeviceKind;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// What a worker says of itself, whole, each time: a lost report is mended by the next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerReport {
    pub worker: WorkerId,
    pub device: DeviceKind,
    /// 0: it is leaving and takes nothing new.
    pub devices: u32,
    /// Every rank process the worker has, and those that ended and are not yet forgotten by the
    /// coordinator (an assignment that no longer names their generation makes the worker forget
    /// them).
    pub ranks: Vec<RankReport>,
    /// Where it answers other workers (`host:port`).
    pub peer_address: Option<String>,
    /// Of the peers that it was given, those that have not answered for too long.
    pub unreached: Vec<Unreached>,
}

/// A worker that does not answer another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unreached {
    pub peer: WorkerId,
    /// What came of the last attempt.
    pub error: String,
}

/// A worker with ranks of the same job, and where it answers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    pub worker: WorkerId,
    pub address: String,
}

/// One rank's state. A later report of the same rank replaces an earlier one, save that `steps` may
/// overlap.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RankReport {
    pub job: JobId,
    pub generation: Generation,
    pub rank: Rank,
    pub phase: RankPhase,
    /// Rank 0 of a generation: where its c10d store listens (`host:port`).
    pub store_address: Option<String>,
    /// Rank 0: finished steps that the coordinator has not acknowledged, oldest first, at most
    /// [`STEPS_MAX`].
    pub steps: Vec<StepReport>,
    /// Shards that this rank wrote and whose checkpoint is not yet known to be committed.
    pub shards: Vec<ShardReport>,
    /// What this rank's weights came to, newest last, at most [`DIGESTS_MAX`]. All ranks of a
    /// generation say the same of the same step.
    pub digests: Vec<WeightDigest>,
    /// What became of the units that it holds a lease of; empty in a gang.
    pub units: UnitReport,
    /// Where its thread is in a step, or which unit it is at; None: in none. Of a process that
    /// failed: where it was last.
    pub activity: Option<Activity>,
}

/// What a rank says of units that its lease still names. It repeats it until the lease names them
/// no more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitReport {
    /// Their outputs are in the store. Sorted, without overlap.
    pub done: Vec<UnitRange>,
    /// They gave an error and the process lives. By unit.
    pub failed: Vec<UnitFailure>,
}

/// Units `first` to `end - 1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitRange {
    pub first: u64,
    /// Larger than `first`.
    pub end: u64,
}

impl UnitRange {
    #[must_use]
    pub fn one(unit: u64) -> Self {
        Self {
            first: unit,
            end: unit + 1,
        }
    }

    /// How many units it names.
    #[must_use]
    pub fn count(self) -> u64 {
        self.end - self.first
    }

    #[must_use]
    pub fn contains(self, unit: u64) -> bool {
        (self.first..self.end).contains(&unit)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitFailure {
    pub unit: u64,
    /// The first line of why, with what and where.
    pub error: String,
}

/// Where a rank's thread is, and for how long: what a person is told while a step or a unit goes
/// on. Never reason enough for a report of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Activity {
    /// 0 with [`Stage::Unit`].
    pub step: Step,
    pub stage: Stage,
    pub for_ms: u64,
}

/// A piece of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Waiting for the object store and the decoder.
    Samples,
    /// Forward and backward of the rank's n-th micro-batch of the step, from 1 on, as far as they
    /// are its own.
    MicroBatch(u32),
    /// In a collective: it is done as soon as the slowest rank has come to it.
    Reduction,
    /// Clip, optimizer, moving average.
    Update,
    /// Hashing weights and optimizer state.
    Digest,
    /// Writing its share, which the object store may hold up.
    Checkpoint,
    /// No piece of a step: the unit of this number.
    Unit(u64),
}

impl Stage {
    /// Whether nobody and nothing outside the process is waited for in it.
    #[must_use]
    pub fn is_own(self) -> bool {
        match self {
            Self::MicroBatch(_) | Self::Update | Self::Digest | Self::Unit(_) => true,
            Self::Samples | Self::Reduction | Self::Checkpoint => false,
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Samples => f.write_str("the samples"),
            Self::MicroBatch(number) => write!(f, "micro-batch {number}"),
            Self::Reduction => f.write_str("the reduction"),
            Self::Update => f.write_str("the update"),
            Self::Digest => f.write_str("the digest"),
            Self::Checkpoint => f.write_str("the checkpoint"),
            Self::Unit(number) => write!(f, "unit {number}"),
        }
    }
}

impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.stage {
            Stage::Unit(_) => write!(f, "{}", self.stage),
            stage => write!(f, "{stage} of step {}", self.step),
        }
    }
}

/// How a daemon begins to tell of a rank that it did not hear.
pub const SILENT: &str = "silent for";
/// How a rank begins to tell that its own thread does not come on.
pub const HANGS: &str = "hangs in";

/// Longest `steps` list; older entries are dropped first (the curve gets a gap, nothing else).
pub const STEPS_MAX: usize = 512;
/// Longest `digests` list; older entries are dropped first.
pub const DIGESTS_MAX: usize = 8;
/// Longest `terms` list; no architecture comes near.
pub const TERMS_MAX: usize = 32;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RankPhase {
    /// The process starts, loads weights, opens the data set.
    Starting,
    /// A reserve: it has loaded everything, has no place in this generation and waits for one in
    /// which it has.
    Ready,
    /// It waits for the c10d store and the other ranks.
    Joining,
    Training,
    /// Its group is broken, by a peer that is gone or by a newer generation. The partial step is
    /// dropped; the process keeps its weights and optimizer state in memory and waits for the next
    /// generation.
    Broken {
        error: String,
    },
    /// All work is done and every shard is written. A rank that trained keeps its state until it is
    /// told to leave.
    Finished,
    /// The process ended or gave up; the first line of why, with what and where. `permanent`:
    /// another generation would fail in the same way, so there is none.
    Failed {
        error: String,
        permanent: bool,
    },
}

/// One optimizer update, as rank 0 saw it; the loss is the mean over the global batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepReport {
    pub step: Step,
    /// The whole loss.
    pub loss: f64,
    /// What the loss is made of, by the architecture's names and in its order, before they are
    /// weighted against each other; at most [`TERMS_MAX`].
    pub terms: Vec<LossTerm>,
    pub gradient_norm: f64,
    pub learning_rate: f64,
    pub samples: u32,
    pub seconds: PhaseSeconds,
    /// Largest resident memory of the rank so far.
    pub peak_memory_bytes: u64,
    /// Steps so far whose update was left out, because a number was not finite. The loss of such a
    /// step is that of its finite samples, its gradient's norm is given as 0.
    pub skipped_steps: u64,
    /// What the loss is multiplied with before its gradient is taken, after this step; 1 except in
    /// fp16.
    pub loss_scale: f64,
}

/// A part of a loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossTerm {
    /// Lower-case letters, digits and underscores.
    pub name: String,
    pub value: f64,
}

/// Wall seconds of one step by phase; together they are the step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseSeconds {
    /// Waiting for samples.
    pub data: f64,
    pub forward: f64,
    pub backward: f64,
    /// Waiting for other ranks' gradients after the own backward is done.
    pub communication: f64,
    /// Clip and update.
    pub optimizer: f64,
    /// Writing a checkpoint.
    pub checkpoint: f64,
}

impl PhaseSeconds {
    #[must_use]
    pub fn total(&self) -> f64 {
        self.data
            + self.forward
            + self.backward
            + self.communication
            + self.optimizer
            + self.checkpoint
    }
}

/// A rank's share of a checkpoint lies in the store, whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardReport {
    pub step: Step,
    pub shard: ShardEntry,
    /// See [`crate::checkpoint::CheckpointManifest`]; all ranks of a generation say the same.
    pub init_digest: Option<String>,
    pub environment: String,
}

/// The state after a step in one number: what `coordinator checkpoint digest` says of a checkpoint
/// of that step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightDigest {
    pub step: Step,
    pub sha256: String,
}

/// What a worker should be doing, whole, each time (law 5).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DesiredState {
    pub worker: WorkerId,
    /// At most one per job.
    pub assignments: Vec<Assignment>,
    /// The one knob from which every time-out of the worker derives, in milliseconds (law 9).
    pub detect_within_ms: u64,
    /// Every other worker with ranks of one of its jobs: it asks each again and again whether it is
    /// there.
    pub peers: Vec<Peer>,
}

/// A worker's part in one generation of one job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    pub job: JobId,
    /// In a gang one number for all its workers; in a job of units one for each worker.
    pub generation: Generation,
    /// Canonical job.toml; already validated by the coordinator.
    pub job_toml: String,
    pub dataset_version: String,
    /// URL of the store under which `jobs/<job>/…` lies.
    pub store_url: String,
    /// The knob again: a rank is told nothing but its assignment.
    pub detect_within_ms: u64,
    /// This worker runs ranks `first_rank .. first_rank + ranks`, each on a device that the worker
    /// chooses.
    pub first_rank: Rank,
    pub ranks: u32,
    /// The generation is to end in order. Once said it is not taken back for this generation,
    /// though [`GracefulStop::WithCheckpoint`] may follow [`GracefulStop::WithoutCheckpoint`]. A
    /// gang's ranks agree among themselves on the step; a rank of units ends the unit that it is at
    /// and takes no other, whichever of the two it is told.
    pub graceful_stop: Option<GracefulStop>,
    pub run: Run,
}

/// How a job's ranks work together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Run {
    Gang(GangOrder),
    Units(UnitOrder),
}

/// What ranks that step together need to know.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GangOrder {
    /// Ranks of the generation. Those numbered from here on are reserves: processes that get ready,
    /// or keep what they hold, and wait for the next generation.
    pub world: u32,
    /// Known once rank 0 has reported it.
    pub store_address: Option<String>,
    /// The checkpoint to start from; None: step 0.
    pub resume: Option<CheckpointRef>,
    /// Steps up to this one are known to the coordinator and need not be reported again.
    pub acknowledged_step: Step,
    /// Checkpoints up to this step are committed; shards up to it need not be reported again.
    pub committed_step: Step,
}

/// What ranks that work on units, each alone, need to know.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitOrder {
    /// The trained job that the units are made with.
    pub source: Option<SourceJob>,
    /// Units leased to each rank that are not known to be done, sorted, without overlap. A rank
    /// that is not named holds none. A unit that a lease no longer names is acknowledged, or
    /// somebody else's.
    pub leases: BTreeMap<Rank, Vec<UnitRange>>,
}

/// A trained job, as other jobs read it: its text and checkpoint are pinned, so later changes to it
/// change nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceJob {
    pub job_toml: String,
    /// None: the weights that it began from, untrained.
    pub checkpoint: Option<CheckpointRef>,
}

/// How a generation ends in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GracefulStop {
    /// Finish the step together, keep everything in memory and wait: some of the processes go on in
    /// the next generation.
    WithoutCheckpoint,
    /// Finish the step together and write a checkpoint of it: none of them does.
    WithCheckpoint,
}

impl Assignment {
    /// Whether it is for ranks that have no place in the generation.
    #[must_use]
    pub fn is_standby(&self) -> bool {
        self.gang()
            .is_some_and(|gang| gang.world <= self.first_rank.0)
    }

    /// The order of ranks that step together.
    #[must_use]
    pub fn gang(&self) -> Option<&GangOrder> {
        match &self.run {
            Run::Gang(order) => Some(order),
            Run::Units(_) => None,
        }
    }

    /// The order of ranks that work on units.
    #[must_use]
    pub fn units(&self) -> Option<&UnitOrder> {
        match &self.run {
            Run::Gang(_) => None,
            Run::Units(order) => Some(order),
        }
    }

    /// Ranks that work together: all of a gang, those of one worker where each works alone.
    #[must_use]
    pub fn world(&self) -> u32 {
        self.gang().map_or(self.ranks, |gang| gang.world)
    }
}

/// What a daemon tells a rank process. One process serves in one generation after another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RankOrder {
    /// First line on the socket, and again whenever the assignment changes (the store's address
    /// becomes known, steps are acknowledged, a checkpoint is committed). A newer generation ends
    /// the running one: the process drops the partial step and joins the newer one, with the state
    /// that it holds.
    Assignment {
        assignment: Box<Assignment>,
        rank: Rank,
        device: u32,
    },
    /// Leave now; nothing more will be read.
    Stop,
}
