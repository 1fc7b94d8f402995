//! The interface of the coordinator's state machine: its inputs and effects. Plain values, no I/O.
//! The shell supplies [`Input`]s and performs [`Effect`]s in order. A failed `Save` ends the
//! process (restart = restore). A failed `Send` is ignored, because the desired state is sent again
//! on every report.

pub use crate::evaluation::{Evaluation, EvaluationState, Evaluations, Unscored};
pub use crate::record::{
    About, Adapted, Counters, Durable, FailedUnit, INCIDENTS_MAX, Incident, JobPhase, JobRecord,
    LostTag, Member, Millis, NAMED_UNITS_MAX, RECORD_VERSION, RESTARTS_WITHOUT_PROGRESS_MAX,
    Record, UnitsRecord,
};
use proto::checkpoint::{CheckpointManifest, CheckpointRef};
use proto::during::Scored;
use proto::id::{Generation, JobId, Step, WorkerId};
use proto::job::overrides::Override;
use proto::message::{DesiredState, StepReport, Successor, WorkerReport};
use proto::reason::{
    Cause, Ending, GenerationEnd, StandbyLoss, StopCause, Stopped, UnitError, UnreachablePair,
    Violation, Waiting,
};
use proto::spec::JobSpec;

/// Matches a reply to its request. Chosen by the shell, unique within one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// What is pinned of a job's data set at submission.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DatasetPin {
    /// Empty if the job uses the data set of another job.
    pub version: String,
    /// Training samples whose prompt is longer than what the text encoder reads. None if it reads
    /// no prompts.
    pub cut_prompts: Option<u64>,
    /// The tags that are cut off most often, the most frequent first.
    pub lost_tags: Vec<LostTag>,
    /// What else becomes of its samples. None if the job has no data set.
    pub adapted: Option<Adapted>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A validated job. `job_toml` is its canonical text, which parses to `spec`.
    Submit {
        request: RequestId,
        spec: Box<JobSpec>,
        job_toml: String,
        dataset: DatasetPin,
        about: About,
        /// Records of the archived jobs that it names.
        archived: Vec<JobRecord>,
    },
    /// Continue a failed or cancelled job from its last checkpoint, with these changes of its
    /// job.toml. `archived` is its record if it is archived.
    Retry {
        request: RequestId,
        job: JobId,
        overrides: Vec<Override>,
        archived: Vec<JobRecord>,
    },
    /// Delete an ended job. `archived` is its record if it is archived.
    Delete {
        request: RequestId,
        job: JobId,
        archived: Vec<JobRecord>,
    },
    Cancel {
        request: RequestId,
        job: JobId,
    },
    /// Pauses or resumes the job.
    Pause {
        request: RequestId,
        job: JobId,
        paused: bool,
    },
    /// Sets the job's number of workers.
    Scale {
        request: RequestId,
        job: JobId,
        workers: u32,
    },
    /// Drains or undrains the worker of that name.
    Drain {
        request: RequestId,
        worker: String,
        drained: bool,
    },
    /// A worker's report, from any stream. The first report with a boot number registers the
    /// worker.
    Received {
        report: WorkerReport,
    },
    /// The stream of this worker broke. Its ranks may still run; it has until its lease expires to
    /// reconnect.
    Disconnected {
        worker: WorkerId,
    },
    /// The result of [`Effect::WriteManifest`].
    ManifestWritten {
        job: JobId,
        checkpoint: CheckpointRef,
        result: Result<(), String>,
    },
    /// The result of [`Effect::ReadScores`].
    ScoresRead {
        evaluation: JobId,
        result: Result<Scored, String>,
    },
    /// The timer for `next_deadline()` fired. It may be early or late: the machine checks `now`.
    Deadline,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Make these records durable atomically, before any later effect is performed.
    Save(Vec<Record>),
    /// Send the desired state to this worker. Dropped if the worker has no stream.
    Send {
        worker: WorkerId,
        state: DesiredState,
    },
    Reply {
        request: RequestId,
        reply: Reply,
    },
    /// Write the manifest into [`proto::checkpoint::checkpoint_folder`] unless one exists there. An
    /// existing equal manifest counts as success. Respond with [`Input::ManifestWritten`]. May be
    /// repeated after a restart.
    WriteManifest {
        manifest: Box<CheckpointManifest>,
    },
    /// Delete a checkpoint that is no longer retained: first the manifest, then its shards. Best
    /// effort.
    DeleteCheckpoint {
        job: JobId,
        checkpoint: CheckpointRef,
    },
    /// Read the scores that the closing unit of this evaluation of one model has written. Respond
    /// with [`Input::ScoresRead`]. May be repeated.
    ReadScores {
        evaluation: JobId,
    },
    /// An event for logs, metrics and stored curves. Not needed for correctness.
    Emit(Event),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Accepted {
        job: JobId,
    },
    /// The job's current phase.
    Phase {
        phase: String,
    },
    /// The job is deleted.
    Deleted {
        job: JobId,
    },
    /// Whether the worker is now drained.
    Worker {
        worker: String,
        drained: bool,
    },
    /// The request is invalid. The reason names the field or job and a valid alternative.
    Refused {
        reason: String,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    WorkerUp {
        worker: WorkerId,
    },
    WorkerDown {
        worker: WorkerId,
        reason: Ending,
    },
    /// These workers never held anything and have been gone for long.
    WorkersForgotten {
        workers: Vec<WorkerId>,
    },
    JobQueued {
        job: JobId,
        reason: Waiting,
    },
    GenerationFormed {
        job: JobId,
        generation: Generation,
        world: u32,
    },
    GenerationEnded {
        job: JobId,
        generation: Generation,
        reason: GenerationEnd,
    },
    /// A graceful stop of a generation was requested.
    Stopping {
        job: JobId,
        generation: Generation,
        reason: StopCause,
    },
    /// The graceful stop is complete.
    Stopped {
        job: JobId,
        generation: Generation,
        reason: Stopped,
    },
    /// This worker should start standby processes for the next generation, or keep running ones.
    StandbyAdded {
        job: JobId,
        generation: Generation,
        worker: WorkerId,
    },
    /// The standby failed to start, or stopped running.
    StandbyLost {
        job: JobId,
        generation: Generation,
        worker: WorkerId,
        reason: StandbyLoss,
    },
    /// The first report of this step in this generation.
    Stepped {
        job: JobId,
        generation: Generation,
        report: StepReport,
    },
    Committed {
        job: JobId,
        checkpoint: CheckpointRef,
    },
    JobDone {
        job: JobId,
        step: Step,
    },
    /// `evaluation` is to evaluate the checkpoint of this step.
    EvaluationSubmitted {
        job: JobId,
        step: Step,
        evaluation: JobId,
    },
    EvaluationScored {
        job: JobId,
        step: Step,
        evaluation: JobId,
        scored: Scored,
    },
    /// The checkpoint has no scores. It may get some if a user retries the evaluation.
    EvaluationUnscored {
        job: JobId,
        step: Step,
        evaluation: JobId,
        why: Unscored,
    },
    /// The checkpoint of this step is not evaluated, because a newer one is due and no evaluation
    /// could begin meanwhile.
    EvaluationSkipped {
        job: JobId,
        step: Step,
    },
    JobFailed {
        job: JobId,
        cause: Cause,
    },
    JobCancelled {
        job: JobId,
    },
    /// A unit returned an error, or its process ended. `failures` is its total so far.
    UnitFailed {
        job: JobId,
        unit: u64,
        worker: WorkerId,
        failures: u32,
        error: UnitError,
    },
    /// The unit failed too often and is not retried.
    UnitSetAside {
        job: JobId,
        unit: u64,
        error: UnitError,
    },
    /// Two live workers cannot reach each other.
    Unreachable {
        pair: UnreachablePair,
    },
    /// `worker` still reports although `by`, of the same name, has replaced it: two nodes have one
    /// name. It is told to leave.
    WorkerDisplaced {
        worker: WorkerId,
        by: Successor,
    },
    /// An impossible report from `worker`, which was ignored.
    Ignored {
        worker: WorkerId,
        violation: Violation,
    },
}
