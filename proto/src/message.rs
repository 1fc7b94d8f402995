//! What coordinator, daemons and ranks say to each other, as plain values. The machines and the simulated world speak
//! these; `wire.rs` turns them into protobuf and back at the edge of a process. Ranks and their daemon exchange
//! [`RankReport`] and [`RankOrder`] as one JSON object per line over the daemon's Unix socket.

use crate::checkpoint::{CheckpointRef, ShardEntry};
use crate::id::{Generation, JobId, Rank, Step, WorkerId};
use crate::spec::{DeviceKind, Pairing, Task};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a worker says of itself, whole, each time: a lost report is mended by the next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerReport {
    pub worker: WorkerId,
    pub device: DeviceKind,
    /// 0: it is leaving and takes nothing new.
    pub devices: u32,
    /// Every rank process the worker has, and those that ended and are not yet forgotten by the coordinator (an
    /// assignment that no longer names their generation makes the worker forget them).
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

/// One rank's state. A later report of the same rank replaces an earlier one, save that `steps` may overlap.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RankReport {
    pub job: JobId,
    pub generation: Generation,
    pub rank: Rank,
    pub phase: RankPhase,
    /// Rank 0 of a generation: where its c10d store listens (`host:port`).
    pub store_address: Option<String>,
    /// Rank 0: finished steps that the coordinator has not acknowledged, oldest first, at most [`STEPS_MAX`].
    pub steps: Vec<StepReport>,
    /// Shards that this rank wrote and whose checkpoint is not yet known to be committed.
    pub shards: Vec<ShardReport>,
    /// What this rank's weights came to, newest last, at most [`DIGESTS_MAX`]. All ranks of a generation say the same
    /// of the same step.
    pub digests: Vec<WeightDigest>,
    /// Where its thread is in a step; None: in none.
    pub doing: Option<Doing>,
}

/// Where a rank's thread is, and for how long: what a person is told while a step goes on, or pictures are drawn. Never reason
/// enough for a report of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Doing {
    /// 0 with [`Piece::Picture`].
    pub step: Step,
    pub piece: Piece,
    pub for_ms: u64,
}

/// A piece of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Piece {
    /// Waiting for the object store and the decoder.
    Samples,
    /// Forward and backward of the rank's n-th micro-batch of the step, from 1 on, as far as they are its own.
    MicroBatch(u32),
    /// In a collective: it is done as soon as the slowest rank has come to it.
    Reduction,
    /// Clip, optimizer, moving average.
    Update,
    /// Hashing weights and optimizer state.
    Digest,
    /// Writing its share, which the object store may hold up.
    Checkpoint,
    /// No piece of a step: drawing the n-th picture of a request, from 1 on.
    Picture(u32),
}

impl Piece {
    /// Whether nobody and nothing outside the process is waited for in it.
    #[must_use]
    pub fn is_own(self) -> bool {
        match self {
            Self::MicroBatch(_) | Self::Update | Self::Digest | Self::Picture(_) => true,
            Self::Samples | Self::Reduction | Self::Checkpoint => false,
        }
    }
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Samples => f.write_str("the samples"),
            Self::MicroBatch(number) => write!(f, "micro-batch {number}"),
            Self::Reduction => f.write_str("the reduction"),
            Self::Update => f.write_str("the update"),
            Self::Digest => f.write_str("the digest"),
            Self::Checkpoint => f.write_str("the checkpoint"),
            Self::Picture(number) => write!(f, "picture {number}"),
        }
    }
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.piece {
            Piece::Picture(_) => write!(f, "{}", self.piece),
            piece => write!(f, "{piece} of step {}", self.step),
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
    /// A reserve: it has loaded everything, has no place in this generation and waits for one in which it has.
    Ready,
    /// It waits for the c10d store and the other ranks.
    Joining,
    Training,
    /// Its group is broken, by a peer that is gone or by a newer generation. The partial step is dropped; the process
    /// keeps its weights and optimizer state in memory and waits for the next generation.
    Broken {
        error: String,
    },
    /// All work is done and every shard is written. A rank that trained keeps its state until it is told to leave.
    Finished,
    /// The process ended or gave up; the first line of why, with what and where. `permanent`: another generation
    /// would fail in the same way, so there is none.
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
    /// What the loss is made of, by the architecture's names and in its order, before they are weighted against each
    /// other; at most [`TERMS_MAX`].
    pub terms: Vec<LossTerm>,
    pub gradient_norm: f64,
    pub learning_rate: f64,
    pub samples: u32,
    pub seconds: PhaseSeconds,
    /// Largest resident memory of the rank so far.
    pub peak_memory_bytes: u64,
    /// Steps so far whose update was left out, because a number was not finite. The loss of such a step is that of
    /// its finite samples, its gradient's norm is given as 0.
    pub skipped_steps: u64,
    /// What the loss is multiplied with before its gradient is taken, after this step; 1 except in fp16.
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
        self.data + self.forward + self.backward + self.communication + self.optimizer + self.checkpoint
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

/// The state after a step in one number: what `coordinator checkpoint digest` says of a checkpoint of that step.
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
    /// Every other worker with ranks of one of its jobs: it asks each again and again whether it is there.
    pub peers: Vec<Peer>,
}

/// A worker's part in one generation of one job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    pub job: JobId,
    pub generation: Generation,
    pub work: Work,
    /// Canonical job.toml; already validated by the coordinator.
    pub job_toml: String,
    pub dataset_version: String,
    /// This worker runs ranks `first_rank .. first_rank + ranks`, each on a device that the worker chooses. Those from
    /// `world` on are reserves: processes that get ready, or keep what they hold, and wait for the next generation.
    pub first_rank: Rank,
    pub ranks: u32,
    pub world: u32,
    /// Known once rank 0 has reported it.
    pub store_address: Option<String>,
    /// The checkpoint to start from; None: step 0.
    pub resume: Option<CheckpointRef>,
    /// URL of the store under which `jobs/<job>/…` lies.
    pub store_url: String,
    /// Steps up to this one are known to the coordinator and need not be reported again.
    pub acknowledged_step: Step,
    /// Checkpoints up to this step are committed; shards up to it need not be reported again.
    pub committed_step: Step,
    /// The generation is to end in order. The ranks agree among themselves on the step; once said it is not taken back
    /// for this generation, though [`Halt::Save`] may follow [`Halt::Hold`].
    pub halt: Option<Halt>,
    /// The knob again: a rank is told nothing but its assignment.
    pub detect_within_ms: u64,
}

/// How a generation ends in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Halt {
    /// Finish the step together, keep everything in memory and wait: some of the processes go on in the next generation.
    Hold,
    /// Finish the step together and write a checkpoint of it: none of them does.
    Save,
}

impl Assignment {
    /// Whether it is for ranks that have no place in the generation.
    #[must_use]
    pub fn is_reserve(&self) -> bool {
        self.world <= self.first_rank.0
    }
}

/// What a generation is for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    Train,
    /// Draw pictures with a checkpoint of another job, on one rank, and write them to
    /// `jobs/<this job>/pictures/`.
    Sample(SampleRequest),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleRequest {
    /// The trained job.
    pub source: JobId,
    /// None: the base weights of `source`, untrained (to compare with).
    pub checkpoint: Option<CheckpointRef>,
    /// Samples to draw, of held-out characters where the job holds some out; with `references` there is one subject.
    pub count: u32,
    /// Requests that were stored before there was a choice were DDIM.
    #[serde(default)]
    pub method: SampleMethod,
    pub steps: u32,
    /// Classifier-free guidance scale.
    pub guidance: f64,
    /// Scale of guidance by the references; requests that were stored before there was one had 1.
    #[serde(default = "unguided")]
    pub reference_guidance: f64,
    /// A picture of every subject and prompt with each. The first one chooses the samples.
    pub seeds: Vec<u64>,
    /// What the prompt says of a sample, where no `prompts` are given.
    pub prompt: SamplePrompt,
    pub prompts: Vec<String>,
    /// What to draw from; empty: what training would show beside each sample.
    pub references: Vec<NamedReference>,
    /// How references are chosen and cut; None: as the job says.
    pub task: Option<Task>,
    /// Where references come from; None: as the job says.
    pub pairing: Option<Pairing>,
    /// Words whose attention over the references is drawn too.
    pub attention: Vec<Concept>,
}

impl SampleRequest {
    /// One picture of one sample, with the defaults of `coordinator sample`.
    #[must_use]
    pub fn of(source: JobId) -> Self {
        Self {
            source,
            checkpoint: None,
            count: 1,
            method: SampleMethod::Ddim,
            steps: 50,
            guidance: 7.5,
            reference_guidance: 1.0,
            seeds: vec![0],
            prompt: SamplePrompt::Full,
            prompts: Vec::new(),
            references: Vec::new(),
            task: None,
            pairing: None,
            attention: Vec::new(),
        }
    }

    /// Subjects times prompts times seeds.
    #[must_use]
    pub fn pictures(&self) -> u64 {
        u64::from(self.count) * self.prompts.len().max(1) as u64 * self.seeds.len() as u64
    }
}

/// What a reference shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Concept {
    Face,
    Clothes,
    Figure,
}

impl Concept {
    pub const ALL: [Self; 3] = [Self::Face, Self::Clothes, Self::Figure];

    /// The word that the text encoder reads (paper, section 5.1).
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Face => "face",
            Self::Clothes => "clothes",
            Self::Figure => "figure",
        }
    }
}

/// A reference that somebody asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedReference {
    /// None: as the task has it.
    pub concept: Option<Concept>,
    pub from: PictureSource,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PictureSource {
    /// A sample of the job's data set; what the concept wants is cut out of it.
    Sample { id: String },
    /// A picture that lies at `jobs/<source>/references/<sha256>` in the store; it is shown whole.
    File { name: String, sha256: String },
}

fn unguided() -> f64 {
    1.0
}

/// How noise becomes a picture (notes 5.4).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SampleMethod {
    #[default]
    Ddim,
    Pndm,
    /// DPM-Solver++(2M).
    DpmSolver,
}

impl SampleMethod {
    /// More would begin past the end of the noise schedule.
    #[must_use]
    pub fn steps_max(self) -> u32 {
        match self {
            Self::Ddim | Self::Pndm => 500,
            Self::DpmSolver => 999,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SamplePrompt {
    /// The target's own prompt.
    Full,
    /// The target's prompt without the tags that name hair, eyes, skin, accessories or clothes, on a white ground:
    /// whatever of these the picture shows, the references have told, and the figure can be found in it.
    Pose,
    Empty,
}

/// What a daemon tells a rank process. One process serves in one generation after another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RankOrder {
    /// First line on the socket, and again whenever the assignment changes (the store's address becomes known, steps are
    /// acknowledged, a checkpoint is committed). A newer generation ends the running one: the process drops the partial
    /// step and joins the newer one, with the state that it holds.
    Assignment {
        assignment: Box<Assignment>,
        rank: Rank,
        device: u32,
    },
    /// Leave now; nothing more will be read.
    Stop,
}
