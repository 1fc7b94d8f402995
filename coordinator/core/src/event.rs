//! The face of the coordinator's machine: what it is told and what it wants done. Plain values, no
//! I/O. The shell turns the world into [`Input`]s and performs [`Effect`]s in order; a failed
//! `Save` ends the process (restart = restore), a failed `Send` is forgotten, because the same
//! state is sent again until it is true.

pub use crate::record::{
    Counters, Durable, FailedUnit, INCIDENTS_MAX, Incident, JobPhase, JobRecord, Member, Millis,
    NAMED_UNITS_MAX, RECORD_VERSION, RESTARTS_WITHOUT_PROGRESS_MAX, Record, UnitsRecord,
};
use proto::checkpoint::{CheckpointManifest, CheckpointRef};
use proto::id::{Generation, JobId, Step, WorkerId};
use proto::message::{DesiredState, StepReport, WorkerReport};
use proto::spec::JobSpec;

/// Ties a reply to whoever asked. Chosen by the shell, unique in one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub u64);

#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A checked job. `job_toml` is its canonical text, which means `spec`; `dataset_version` is
    /// that of its data set, and empty where that of another job is taken.
    Submit {
        request: RequestId,
        spec: Box<JobSpec>,
        job_toml: String,
        dataset_version: String,
    },
    Cancel {
        request: RequestId,
        job: JobId,
    },
    /// The job should not run, or should again.
    Pause {
        request: RequestId,
        job: JobId,
        paused: bool,
    },
    /// The job should have this many workers.
    Scale {
        request: RequestId,
        job: JobId,
        workers: u32,
    },
    /// The worker of that name should be empty, or may be used again.
    Drain {
        request: RequestId,
        worker: String,
        drained: bool,
    },
    /// A worker's report, on whatever stream it came; the first of a boot number is the worker's
    /// arrival.
    Received {
        report: WorkerReport,
    },
    /// The stream of this worker broke. Its ranks may go on; it has until its deadline to come
    /// back.
    Disconnected {
        worker: WorkerId,
    },
    /// The shell's answer to [`Effect::WriteManifest`].
    ManifestWritten {
        job: JobId,
        checkpoint: CheckpointRef,
        result: Result<(), String>,
    },
    /// Time has reached `next_deadline()` (or passed it, or not quite: the machine looks at `now`).
    Deadline,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Make these records durable, together, before anything after this effect is done.
    Save(Vec<Record>),
    /// Tell this worker what should be; drop it when the worker has no stream.
    Send {
        worker: WorkerId,
        state: DesiredState,
    },
    Reply {
        request: RequestId,
        reply: Reply,
    },
    /// Put the manifest where [`proto::checkpoint::checkpoint_folder`] says, only if there is none;
    /// if there is one and it is equal, that is success. Answer with [`Input::ManifestWritten`].
    /// Repeated after a restart.
    WriteManifest {
        manifest: Box<CheckpointManifest>,
    },
    /// Delete a checkpoint that retention no longer keeps: manifest first, then its shards. Best
    /// effort.
    DeleteCheckpoint {
        job: JobId,
        checkpoint: CheckpointRef,
    },
    /// Something worth a log line, a metric or a stored curve; never needed for correctness.
    Emit(Event),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Accepted {
        job: JobId,
    },
    /// The phase the job is in now.
    Phase {
        phase: String,
    },
    /// Whether the worker is drained from now on.
    Worker {
        worker: String,
        drained: bool,
    },
    /// The request makes no sense; names the field or job, and what would be right.
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
        reason: String,
    },
    JobQueued {
        job: JobId,
        reason: String,
    },
    GenerationFormed {
        job: JobId,
        generation: Generation,
        world: u32,
    },
    GenerationEnded {
        job: JobId,
        generation: Generation,
        reason: String,
    },
    /// A generation is asked to end in order.
    Stopping {
        job: JobId,
        generation: Generation,
        reason: String,
    },
    /// It has ended in order.
    Stopped {
        job: JobId,
        generation: Generation,
        reason: String,
    },
    /// This worker is to get processes ready for the next generation, or keep those that it has.
    StandbyAdded {
        job: JobId,
        generation: Generation,
        worker: WorkerId,
    },
    /// It could not, or does not any more.
    StandbyLost {
        job: JobId,
        generation: Generation,
        worker: WorkerId,
        reason: String,
    },
    /// First time that this step is seen in this generation.
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
    JobFailed {
        job: JobId,
        reason: String,
    },
    JobCancelled {
        job: JobId,
    },
    /// A unit gave an error, or its process ended; how often by now.
    UnitFailed {
        job: JobId,
        unit: u64,
        worker: WorkerId,
        failures: u32,
        error: String,
    },
    /// It failed too often and is not tried any more.
    UnitSetAside {
        job: JobId,
        unit: u64,
        error: String,
    },
    /// Two workers that are both heard do not reach each other; who says so.
    Parted {
        what: String,
    },
    /// A report that cannot be true and was ignored: who, what.
    Ignored {
        worker: WorkerId,
        what: String,
    },
}
