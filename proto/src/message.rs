//! Messages between coordinator, daemons and ranks, as plain values. The machines and the simulator
//! use these; `wire.rs` converts them from and to protobuf at the edge of a process. Ranks and
//! their daemon exchange [`RankReport`] and [`RankOrder`] as one JSON object per line over the
//! daemon's Unix socket.

use crate::checkpoint::{CheckpointRef, ShardEntry};
use crate::environment::RankEnvironment;
use crate::id::{Generation, JobId, Rank, Step, WorkerId};
use crate::reason::RankFailure;
use crate::spec::DeviceKind;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// The complete state of a worker. Every report is complete, so that the next one makes up for a
/// lost one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerReport {
    pub worker: WorkerId,
    pub device: DeviceKind,
    /// 0: the worker is shutting down and accepts no new ranks.
    pub devices: u32,
    /// All rank processes of the worker. An exited process is included until the worker's
    /// assignments no longer name its generation.
    pub ranks: Vec<RankReport>,
    /// Where it answers pings of other workers (`host:port`).
    pub peer_address: Option<String>,
    /// The assigned peers that have not answered pings for too long.
    pub unreached: Vec<Unreached>,
}

/// A peer that does not answer pings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unreached {
    pub peer: WorkerId,
    /// The error of the last ping.
    pub error: String,
}

/// Another worker with ranks of the same job, and its ping address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    pub worker: WorkerId,
    pub address: String,
}

/// The state of one rank. A later report of the same rank replaces an earlier one; their `steps`
/// may overlap.
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
    /// Digests of this rank's weights, newest last, at most [`DIGESTS_MAX`]. All ranks of a
    /// generation must report the same digest for the same step.
    pub digests: Vec<WeightDigest>,
    /// Outcomes of the units in its lease; empty in a gang.
    pub units: UnitReport,
    /// What its compute thread is doing; None: neither a step nor a unit. After a failure: its last
    /// activity.
    pub activity: Option<Activity>,
    /// What its process has done since it began; None: not a rank of a gang, or no step yet.
    #[serde(default)]
    pub totals: Option<StepTotals>,
}

/// What a rank process has done since it began, over all generations. Counts only rise, so that a
/// reader that misses reports misses nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepTotals {
    /// The last step that it finished.
    pub step: Step,
    /// How many steps it finished. A step that is repeated from an older state counts again.
    pub steps: u64,
    /// This rank's own wall-clock seconds of all of them.
    pub seconds: PhaseSeconds,
}

/// Outcomes of units that are in the rank's lease. The rank repeats them until its lease no longer
/// contains the units.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitReport {
    /// Units whose outputs are in the store. Sorted, without overlap.
    pub done: Vec<UnitRange>,
    /// Units that failed without ending the process. Sorted by unit.
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

    /// The number of units in the range.
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
    /// The first line of the error, with its context.
    pub error: String,
}

/// What a rank's compute thread is doing, and for how long. Shown to users while a step or a unit
/// is in progress. A change of activity alone does not trigger a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Activity {
    /// 0 with [`Stage::Unit`].
    pub step: Step,
    pub stage: Stage,
    pub for_ms: u64,
}

/// A stage of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Waiting for the object store and the decoder.
    Samples,
    /// Forward and backward of the rank's n-th micro-batch of the step (counted from 1), without
    /// collectives.
    MicroBatch(u32),
    /// In a collective, which completes once the slowest rank has reached it.
    Reduction,
    /// Gradient clipping, optimizer, moving average.
    Update,
    /// Hashing weights and optimizer state.
    Digest,
    /// Writing its shard of a checkpoint, which the object store may delay.
    Checkpoint,
    /// Forward of the rank's n-th validation batch after the step (counted from 1).
    Validation(u32),
    /// Processing the unit of this number; not part of a step.
    Unit(u64),
}

impl Stage {
    /// Whether the stage waits for nothing outside the process.
    #[must_use]
    pub fn is_own(self) -> bool {
        match self {
            Self::MicroBatch(_)
            | Self::Update
            | Self::Digest
            | Self::Validation(_)
            | Self::Unit(_) => true,
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
            Self::Validation(number) => write!(f, "validation batch {number}"),
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

/// Longest `steps` list; older entries are dropped first, which only leaves a gap in the loss
/// curve.
pub const STEPS_MAX: usize = 512;
/// Longest `digests` list; older entries are dropped first.
pub const DIGESTS_MAX: usize = 8;
/// Name of the validation loss among the terms of a step, and, followed by an underscore and the
/// name of a term, of the validation of that term.
pub const VALIDATION: &str = "validation";
/// Longest `terms` list; far more than any architecture has.
pub const TERMS_MAX: usize = 32;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RankPhase {
    /// The process starts, loads weights, opens the data set.
    Starting,
    /// A standby that has loaded everything. It is not a member of this generation and waits for
    /// one that includes it.
    Ready,
    /// It waits for the c10d store and the other ranks.
    Joining,
    Training,
    /// Its process group is broken, because a peer exited or a newer generation exists. The partial
    /// step is dropped. The process keeps its weights and optimizer state in memory and waits for
    /// the next generation.
    Broken {
        error: String,
    },
    /// All work is done and every shard is written. A rank that trained keeps its state in memory
    /// until it receives [`RankOrder::Stop`].
    Finished,
    /// The process exited or gave up.
    Failed {
        failure: RankFailure,
    },
}

/// One optimizer update as measured by rank 0. Losses are means over the global batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepReport {
    pub step: Step,
    /// The total loss.
    pub loss: f64,
    /// The terms of the loss before weighting, with the architecture's names and in its order, then
    /// those of a validation after this step ([`VALIDATION`]); at most [`TERMS_MAX`].
    pub terms: Vec<LossTerm>,
    pub gradient_norm: f64,
    pub learning_rate: f64,
    pub samples: u32,
    pub seconds: PhaseSeconds,
    /// Largest resident memory of the rank's process on the host so far.
    pub peak_memory_bytes: u64,
    /// Largest memory of tensors on the rank's GPU so far, as c10's caching allocator counts it
    /// (`torch.cuda.max_memory_allocated`); 0 on a CPU.
    pub peak_device_memory_bytes: u64,
    /// Number of steps so far whose update was skipped because the loss or a gradient was not
    /// finite. The loss of such a step is that of its finite samples; its gradient norm is reported
    /// as 0.
    pub skipped_steps: u64,
    /// The factor of the loss scaler after this step; 1 except in fp16.
    pub loss_scale: f64,
}

impl LossTerm {
    /// Whether the term belongs to the validation after the step, and not to its loss.
    #[must_use]
    pub fn is_validation(&self) -> bool {
        let rest = self.name.strip_prefix(VALIDATION);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
    }
}

/// A named term of the loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossTerm {
    /// Lower-case letters, digits and underscores.
    pub name: String,
    pub value: f64,
}

/// Wall-clock seconds of one step by phase; their sum is the duration of the step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseSeconds {
    /// Waiting for samples.
    pub data: f64,
    pub forward: f64,
    pub backward: f64,
    /// Waiting for other ranks' gradients after this rank's backward has finished.
    pub communication: f64,
    /// Gradient clipping and update.
    pub optimizer: f64,
    /// Writing a checkpoint.
    pub checkpoint: f64,
    /// Validation after the step, including the wait for its samples and for other ranks.
    pub validation: f64,
}

impl PhaseSeconds {
    /// The phases by name, in execution order.
    #[must_use]
    pub fn phases(&self) -> [(&'static str, f64); 7] {
        [
            ("data", self.data),
            ("forward", self.forward),
            ("backward", self.backward),
            ("communication", self.communication),
            ("optimizer", self.optimizer),
            ("checkpoint", self.checkpoint),
            ("validation", self.validation),
        ]
    }

    /// Both together, phase by phase.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            data: self.data + other.data,
            forward: self.forward + other.forward,
            backward: self.backward + other.backward,
            communication: self.communication + other.communication,
            optimizer: self.optimizer + other.optimizer,
            checkpoint: self.checkpoint + other.checkpoint,
            validation: self.validation + other.validation,
        }
    }

    #[must_use]
    pub fn total(&self) -> f64 {
        self.data
            + self.forward
            + self.backward
            + self.communication
            + self.optimizer
            + self.checkpoint
            + self.validation
    }
}

/// A rank's shard of a checkpoint that is completely written to the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardReport {
    pub step: Step,
    pub shard: ShardEntry,
    /// See [`crate::checkpoint::CheckpointManifest`]; equal on all ranks of a generation.
    pub init_digest: Option<String>,
    pub environment: String,
    pub rank_environment: RankEnvironment,
}

/// The digest of the state after a step. Equal to what `coordinator checkpoint digest` prints for a
/// checkpoint of that step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightDigest {
    pub step: Step,
    pub sha256: String,
}

/// The complete desired state of a worker. Every message is complete (law 5).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DesiredState {
    pub worker: WorkerId,
    /// At most one per job.
    pub assignments: Vec<Assignment>,
    /// The one setting from which every timeout of the worker derives, in milliseconds (law 9).
    pub detect_within_ms: u64,
    /// All other workers with ranks of one of its jobs. The worker pings each of them repeatedly.
    pub peers: Vec<Peer>,
    /// What the receiver could not accept. Empty where the state is made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<Refusal>,
    /// Another daemon of the same name took this worker's place; it must leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successor: Option<Successor>,
}

/// The daemon that took the place of another one of its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Successor {
    pub worker: WorkerId,
    /// Where it answers pings.
    pub address: Option<String>,
}

/// A part of a desired state that its receiver refuses, because a field is beyond what it accepts
/// ([`crate::limits`]). The rest of the state is valid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    pub job: JobId,
    pub generation: Generation,
    pub first_rank: Rank,
    /// 0: the refused part names no ranks, so that nothing but a log can say it.
    pub ranks: u32,
    /// Field, value, and what is accepted.
    pub error: String,
}

impl Default for Refusal {
    fn default() -> Self {
        Self {
            job: JobId(String::new()),
            generation: Generation(0),
            first_rank: Rank(0),
            ranks: 0,
            error: String::new(),
        }
    }
}

/// The ranks of one generation of one job that a worker runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    pub job: JobId,
    /// In a gang, all workers share one generation; in a job of units, each worker has its own.
    pub generation: Generation,
    /// Canonical job.toml; already validated by the coordinator.
    pub job_toml: String,
    pub dataset_version: String,
    /// URL of the object store that contains `jobs/<job>/…`.
    pub store_url: String,
    /// Same as [`DesiredState::detect_within_ms`], because a rank receives only its assignment.
    pub detect_within_ms: u64,
    /// This worker runs ranks `first_rank .. first_rank + ranks`, each on a device that the worker
    /// chooses.
    pub first_rank: Rank,
    pub ranks: u32,
    /// Requests that the generation stop gracefully. The request is never withdrawn for this
    /// generation, but [`GracefulStop::WithCheckpoint`] may follow
    /// [`GracefulStop::WithoutCheckpoint`]. The ranks of a gang agree among themselves on the last
    /// step. A rank of a job of units finishes its current unit and begins no other, for either
    /// kind of stop.
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

/// Order for ranks that train together as a gang.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GangOrder {
    /// World size of the generation. Ranks numbered from here on are standbys: processes that load
    /// everything, or keep the state they hold, and wait for the next generation.
    pub world: u32,
    /// Known once rank 0 has reported it.
    pub store_address: Option<String>,
    /// The checkpoint to resume from; None: start at step 0.
    pub resume: Option<CheckpointRef>,
    /// Steps up to this one are known to the coordinator and need not be reported again.
    pub acknowledged_step: Step,
    /// Checkpoints up to this step are committed; shards up to it need not be reported again.
    pub committed_step: Step,
}

/// Order for ranks that process units independently.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitOrder {
    /// The trained job whose weights the units use.
    pub source: Option<SourceJob>,
    /// `[evaluate]`: the job whose weights each model uses, in order. Their texts together are not
    /// longer than one may be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<SourceJob>,
    /// Units leased to each rank that are not known to be done, sorted, without overlap. A rank
    /// without an entry has no lease. A unit that a lease no longer contains is acknowledged or was
    /// leased to another rank.
    pub leases: BTreeMap<Rank, Vec<UnitRange>>,
}

/// A trained job as a source for other jobs. Its job.toml and checkpoint are pinned, so that later
/// changes to the job have no effect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceJob {
    pub job_toml: String,
    /// None: the job's initial weights, untrained.
    pub checkpoint: Option<CheckpointRef>,
}

/// How a generation stops gracefully.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GracefulStop {
    /// All ranks finish the current step, keep their state in memory and wait. Used if some of the
    /// processes continue in the next generation.
    WithoutCheckpoint,
    /// All ranks finish the current step and write a checkpoint of it. Used if no process
    /// continues.
    WithCheckpoint,
}

impl Assignment {
    /// Whether its ranks are standbys, that is, not members of the generation.
    #[must_use]
    pub fn is_standby(&self) -> bool {
        self.gang()
            .is_some_and(|gang| gang.world <= self.first_rank.0)
    }

    /// The order of a gang.
    #[must_use]
    pub fn gang(&self) -> Option<&GangOrder> {
        match &self.run {
            Run::Gang(order) => Some(order),
            Run::Units(_) => None,
        }
    }

    /// The order of a job of units.
    #[must_use]
    pub fn units(&self) -> Option<&UnitOrder> {
        match &self.run {
            Run::Gang(_) => None,
            Run::Units(order) => Some(order),
        }
    }

    /// The world size of a gang; in a job of units, the number of this worker's ranks.
    #[must_use]
    pub fn world(&self) -> u32 {
        self.gang().map_or(self.ranks, |gang| gang.world)
    }
}

/// Orders of a daemon to a rank process. One process serves in successive generations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RankOrder {
    /// Sent as the first line on the socket, and again whenever the assignment changes (the store
    /// address becomes known, steps are acknowledged, a checkpoint is committed). A newer
    /// generation replaces the running one: the process drops the partial step and joins the newer
    /// generation with the state that it holds.
    Assignment {
        assignment: Box<Assignment>,
        rank: Rank,
        device: u32,
    },
    /// Exit now. No other order follows.
    Stop,
}
