//! Conversion between plain messages and generated protobuf. Every incoming field is validated
//! here, once, so that machines only see valid values. No I/O; called by the gRPC shells.

mod activity;
mod environment;
mod failure;
mod peer;
mod reason;
mod terms;
mod units;

pub use terms::loss_terms;

use crate::checkpoint::{CheckpointRef, ShardEntry};
use crate::id::{Generation, JobId, Rank, Step, WorkerId};
use crate::limits::{
    ADDRESS_BYTES, DEVICES, ERROR_BYTES, JOB_TOML_BYTES, LIST, TEXT_BYTES, URL_BYTES, cut,
    is_worker_name,
};
use crate::message::{
    Assignment, DesiredState, GangOrder, GracefulStop, PhaseSeconds, RankPhase, RankReport,
    Refusal, Run, ShardReport, StepReport, StepTotals, WeightDigest, WorkerReport,
};
use crate::pb;
use crate::reason::RankFailure;
use crate::spec::DeviceKind;
use std::borrow::Cow;

/// A field with an invalid value. Becomes INVALID_ARGUMENT.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("field `{field}` is {value}; {expected}")]
pub struct WireError {
    pub field: &'static str,
    pub value: String,
    pub expected: Cow<'static, str>,
}

fn wrong<T>(
    field: &'static str,
    value: impl ToString,
    expected: impl Into<Cow<'static, str>>,
) -> Result<T, WireError> {
    Err(WireError {
        field,
        value: value.to_string(),
        expected: expected.into(),
    })
}

fn present<T>(field: &'static str, value: Option<T>) -> Result<T, WireError> {
    value.ok_or(WireError {
        field,
        value: "missing".into(),
        expected: "it must be given".into(),
    })
}

fn text(field: &'static str, value: String, length_max: usize) -> Result<String, WireError> {
    if value.is_empty() {
        return wrong(field, "empty", "it must be given");
    }
    short(field, value, length_max)
}

/// The same for a text that may be empty.
fn short(field: &'static str, value: String, length_max: usize) -> Result<String, WireError> {
    if length_max < value.len() {
        let found = format!("{} bytes long", value.len());
        return wrong(field, found, format!("at most {length_max} are accepted"));
    }
    Ok(value)
}

/// The text of an error. A long one is no reason to lose the report: it is cut.
fn error_text(field: &'static str, value: String) -> Result<String, WireError> {
    text(field, cut(&value, ERROR_BYTES), ERROR_BYTES)
}

fn bounded<T>(field: &'static str, list: Vec<T>) -> Result<Vec<T>, WireError> {
    if LIST < list.len() {
        let found = format!("{} entries long", list.len());
        return wrong(field, found, format!("at most {LIST} are accepted"));
    }
    Ok(list)
}

/// Validates a job id. It must be safe in a path of the object store.
pub fn job_id(value: String) -> Result<JobId, WireError> {
    let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if value.is_empty() || value.len() > 64 || !value.chars().all(is_allowed) {
        return wrong(
            "job",
            format!("{value:?}"),
            "it must be 1 to 64 lower-case letters, digits and dashes",
        );
    }
    Ok(JobId(value))
}

/// Validates a worker's name as its daemon's settings do.
pub fn worker_name(value: String) -> Result<String, WireError> {
    if is_worker_name(&value) {
        return Ok(value);
    }
    wrong(
        "worker.name",
        format!("{:?}, {} bytes long", cut(&value, TEXT_BYTES), value.len()),
        "it must be 1 to 64 letters, digits, dashes, underscores and dots",
    )
}

fn device_kind(value: &str) -> Result<DeviceKind, WireError> {
    match value {
        "cpu" => Ok(DeviceKind::Cpu),
        "cuda" => Ok(DeviceKind::Cuda),
        other => wrong("device", format!("{other:?}"), "it must be cpu or cuda"),
    }
}

impl DeviceKind {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

impl From<&WorkerId> for pb::WorkerId {
    fn from(id: &WorkerId) -> Self {
        Self {
            name: id.name.clone(),
            boot: id.boot,
        }
    }
}

impl TryFrom<pb::WorkerId> for WorkerId {
    type Error = WireError;

    fn try_from(id: pb::WorkerId) -> Result<Self, WireError> {
        Ok(Self {
            name: worker_name(id.name)?,
            boot: id.boot,
        })
    }
}

impl From<&WorkerReport> for pb::WorkerReport {
    fn from(report: &WorkerReport) -> Self {
        Self {
            worker: Some((&report.worker).into()),
            device: report.device.name().into(),
            devices: report.devices,
            ranks: report.ranks.iter().map(Into::into).collect(),
            logs: Vec::new(),
            peer_address: report.peer_address.clone(),
            unreached: report.unreached.iter().map(Into::into).collect(),
            answers: Vec::new(),
            sick: None,
        }
    }
}

impl TryFrom<pb::WorkerReport> for WorkerReport {
    type Error = WireError;

    /// The plain report has no log lines; the caller must take them out first.
    fn try_from(report: pb::WorkerReport) -> Result<Self, WireError> {
        // 0 is allowed: a worker that is shutting down offers no devices.
        if DEVICES < report.devices {
            let expected = format!("a worker has at most {DEVICES} devices");
            return wrong("devices", report.devices, expected);
        }
        Ok(Self {
            worker: present("worker", report.worker)?.try_into()?,
            device: device_kind(&report.device)?,
            devices: report.devices,
            ranks: bounded("ranks", report.ranks)?
                .into_iter()
                .map(rank_or_failure)
                .collect::<Result<_, _>>()?,
            peer_address: report.peer_address.map(peer::address).transpose()?,
            unreached: bounded("unreached", report.unreached)?
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
        })
    }
}

/// A rank's report, or the failure of a rank whose report has an invalid field, so that it cannot
/// stop the other ranks of its worker.
fn rank_or_failure(report: pb::RankReport) -> Result<RankReport, WireError> {
    let (job, generation, rank) = (report.job.clone(), report.generation, report.rank);
    report.try_into().or_else(|error: WireError| {
        let text = format!("the rank's report is refused: {error}");
        Ok(RankReport {
            job: job_id(job)?,
            generation: Generation(generation),
            rank: Rank(rank),
            phase: RankPhase::Failed {
                failure: RankFailure::error(&text, false),
            },
            store_address: None,
            steps: Vec::new(),
            shards: Vec::new(),
            digests: Vec::new(),
            units: Default::default(),
            activity: None,
            totals: None,
        })
    })
}

impl From<&RankReport> for pb::RankReport {
    fn from(report: &RankReport) -> Self {
        use pb::rank_report::Phase;
        let (phase, error, failure) = match &report.phase {
            RankPhase::Starting => (Phase::Starting, "", None),
            RankPhase::Ready => (Phase::Ready, "", None),
            RankPhase::Joining => (Phase::Joining, "", None),
            RankPhase::Training => (Phase::Training, "", None),
            RankPhase::Finished => (Phase::Finished, "", None),
            RankPhase::Broken { error } => (Phase::Broken, error.as_str(), None),
            RankPhase::Failed { failure } => (Phase::Failed, "", Some(failure.into())),
        };
        Self {
            job: report.job.0.clone(),
            generation: report.generation.0,
            rank: report.rank.0,
            phase: phase.into(),
            error: error.to_owned(),
            store_address: report.store_address.clone(),
            steps: report.steps.iter().map(Into::into).collect(),
            shards: report.shards.iter().map(Into::into).collect(),
            digests: report.digests.iter().map(Into::into).collect(),
            units: Some((&report.units).into()),
            activity: report.activity.as_ref().map(Into::into),
            failure,
            totals: report.totals.as_ref().map(Into::into),
        }
    }
}

impl From<&StepTotals> for pb::StepTotals {
    fn from(totals: &StepTotals) -> Self {
        Self {
            step: totals.step.0,
            steps: totals.steps,
            seconds: Some(totals.seconds.into()),
        }
    }
}

impl TryFrom<pb::StepTotals> for StepTotals {
    type Error = WireError;

    fn try_from(totals: pb::StepTotals) -> Result<Self, WireError> {
        Ok(Self {
            step: Step(totals.step),
            steps: totals.steps,
            seconds: present("totals.seconds", totals.seconds)?.into(),
        })
    }
}

impl From<PhaseSeconds> for pb::PhaseSeconds {
    fn from(seconds: PhaseSeconds) -> Self {
        Self {
            data: seconds.data,
            forward: seconds.forward,
            backward: seconds.backward,
            communication: seconds.communication,
            optimizer: seconds.optimizer,
            checkpoint: seconds.checkpoint,
            validation: seconds.validation,
        }
    }
}

impl From<pb::PhaseSeconds> for PhaseSeconds {
    fn from(seconds: pb::PhaseSeconds) -> Self {
        Self {
            data: seconds.data,
            forward: seconds.forward,
            backward: seconds.backward,
            communication: seconds.communication,
            optimizer: seconds.optimizer,
            checkpoint: seconds.checkpoint,
            validation: seconds.validation,
        }
    }
}

impl TryFrom<pb::RankReport> for RankReport {
    type Error = WireError;

    fn try_from(report: pb::RankReport) -> Result<Self, WireError> {
        use pb::rank_report::Phase;
        let phase = match Phase::try_from(report.phase) {
            Ok(Phase::Starting) => RankPhase::Starting,
            Ok(Phase::Ready) => RankPhase::Ready,
            Ok(Phase::Joining) => RankPhase::Joining,
            Ok(Phase::Training) => RankPhase::Training,
            Ok(Phase::Finished) => RankPhase::Finished,
            Ok(Phase::Broken) => RankPhase::Broken {
                error: error_text("error", report.error)?,
            },
            Ok(Phase::Failed) => RankPhase::Failed {
                failure: present("failure", report.failure)?.try_into()?,
            },
            Ok(Phase::Unspecified) | Err(_) => {
                return wrong(
                    "phase",
                    report.phase,
                    "it must be one of the phases in train.proto",
                );
            }
        };
        Ok(Self {
            job: job_id(report.job)?,
            generation: Generation(report.generation),
            rank: Rank(report.rank),
            phase,
            store_address: report
                .store_address
                .map(|it| text("store_address", it, ADDRESS_BYTES))
                .transpose()?,
            steps: bounded("steps", report.steps)?
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
            shards: bounded("shards", report.shards)?
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
            digests: bounded("digests", report.digests)?
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
            units: report
                .units
                .map(TryInto::try_into)
                .transpose()?
                .unwrap_or_default(),
            // A newer worker may be in a stage that this release does not know.
            activity: report
                .activity
                .filter(|it| pb::activity::Stage::try_from(it.stage).is_ok())
                .map(TryInto::try_into)
                .transpose()?,
            totals: report.totals.map(TryInto::try_into).transpose()?,
        })
    }
}

impl From<&StepReport> for pb::StepReport {
    fn from(report: &StepReport) -> Self {
        Self {
            step: report.step.0,
            loss: report.loss,
            loss_target: 0.0,
            loss_face: 0.0,
            gradient_norm: report.gradient_norm,
            learning_rate: report.learning_rate,
            samples: report.samples,
            seconds: Some(report.seconds.into()),
            peak_memory_bytes: report.peak_memory_bytes,
            peak_device_memory_bytes: report.peak_device_memory_bytes,
            skipped_steps: report.skipped_steps,
            loss_scale: report.loss_scale,
            terms: report.terms.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::StepReport> for StepReport {
    type Error = WireError;

    fn try_from(report: pb::StepReport) -> Result<Self, WireError> {
        Ok(Self {
            step: Step(report.step),
            loss: report.loss,
            terms: terms::checked(&report)?,
            gradient_norm: report.gradient_norm,
            learning_rate: report.learning_rate,
            samples: report.samples,
            seconds: present("steps.seconds", report.seconds)?.into(),
            peak_memory_bytes: report.peak_memory_bytes,
            peak_device_memory_bytes: report.peak_device_memory_bytes,
            skipped_steps: report.skipped_steps,
            loss_scale: report.loss_scale,
        })
    }
}

impl From<&ShardReport> for pb::ShardReport {
    fn from(report: &ShardReport) -> Self {
        Self {
            step: report.step.0,
            path: report.shard.path.clone(),
            size_bytes: report.shard.size_bytes,
            sha256: report.shard.sha256.clone(),
            init_digest: report.init_digest.clone(),
            environment: report.environment.clone(),
            rank_environment: Some((&report.rank_environment).into()),
        }
    }
}

impl TryFrom<pb::ShardReport> for ShardReport {
    type Error = WireError;

    fn try_from(report: pb::ShardReport) -> Result<Self, WireError> {
        let path = text("shards.path", report.path, TEXT_BYTES)?;
        if path.contains('/') || path.starts_with('.') {
            return wrong(
                "shards.path",
                format!("{path:?}"),
                "it must be a plain file name",
            );
        }
        Ok(Self {
            step: Step(report.step),
            shard: ShardEntry {
                path,
                size_bytes: report.size_bytes,
                sha256: sha256("shards.sha256", report.sha256)?,
            },
            init_digest: report
                .init_digest
                .map(|it| short("shards.init_digest", it, TEXT_BYTES))
                .transpose()?,
            environment: short("shards.environment", report.environment, TEXT_BYTES)?,
            rank_environment: present("shards.rank_environment", report.rank_environment)?
                .try_into()?,
        })
    }
}

impl From<&WeightDigest> for pb::WeightDigest {
    fn from(digest: &WeightDigest) -> Self {
        Self {
            step: digest.step.0,
            sha256: digest.sha256.clone(),
        }
    }
}

impl TryFrom<pb::WeightDigest> for WeightDigest {
    type Error = WireError;

    fn try_from(digest: pb::WeightDigest) -> Result<Self, WireError> {
        Ok(Self {
            step: Step(digest.step),
            sha256: sha256("digests.sha256", digest.sha256)?,
        })
    }
}

fn sha256(field: &'static str, value: String) -> Result<String, WireError> {
    if value.len() != 64 || !value.chars().all(|c| c.is_ascii_hexdigit()) {
        return wrong(field, format!("{value:?}"), "it must be 64 hex digits");
    }
    Ok(value)
}

impl From<&DesiredState> for pb::DesiredState {
    fn from(state: &DesiredState) -> Self {
        Self {
            worker: Some((&state.worker).into()),
            assignments: state.assignments.iter().map(Into::into).collect(),
            detect_within_ms: state.detect_within_ms,
            peers: state.peers.iter().map(Into::into).collect(),
            successor: state.successor.as_ref().map(Into::into),
            probe: None,
        }
    }
}

impl TryFrom<pb::DesiredState> for DesiredState {
    type Error = WireError;

    /// An assignment or a peer with an invalid field is refused alone: the other jobs of the worker
    /// must not wait for it.
    fn try_from(state: pb::DesiredState) -> Result<Self, WireError> {
        let mut refused = Vec::new();
        let mut assignments = Vec::new();
        for wire in bounded("assignments", state.assignments)? {
            let identity = Refusal {
                job: job_id(wire.job.clone()).unwrap_or_else(|_| JobId(String::new())),
                generation: Generation(wire.generation),
                first_rank: Rank(wire.first_rank),
                ranks: wire.ranks,
                error: String::new(),
            };
            match Assignment::try_from(wire) {
                Ok(assignment) => assignments.push(assignment),
                Err(error) => refused.push(identity.with(&error)),
            }
        }
        let mut peers = Vec::new();
        for wire in bounded("peers", state.peers)? {
            match wire.try_into() {
                Ok(peer) => peers.push(peer),
                Err(error) => refused.push(Refusal::default().with(&error)),
            }
        }
        Ok(Self {
            worker: present("worker", state.worker)?.try_into()?,
            assignments,
            detect_within_ms: detect_within(state.detect_within_ms)?,
            peers,
            refused,
            successor: state.successor.map(TryInto::try_into).transpose()?,
        })
    }
}

impl Refusal {
    /// Ranks that do not exist cannot be reported as failed.
    fn with(mut self, error: &WireError) -> Self {
        let names_ranks = !self.job.0.is_empty()
            && self.ranks <= DEVICES
            && self.first_rank.0.checked_add(self.ranks).is_some();
        if !names_ranks {
            self.ranks = 0;
        }
        self.error = error.to_string();
        self
    }
}

fn detect_within(ms: u64) -> Result<u64, WireError> {
    if ms == 0 {
        return wrong("detect_within_ms", 0, "it must be positive");
    }
    Ok(ms)
}

fn graceful_stop_to_wire(graceful_stop: Option<GracefulStop>) -> pb::assignment::GracefulStop {
    match graceful_stop {
        None => pb::assignment::GracefulStop::None,
        Some(GracefulStop::WithoutCheckpoint) => pb::assignment::GracefulStop::WithoutCheckpoint,
        Some(GracefulStop::WithCheckpoint) => pb::assignment::GracefulStop::WithCheckpoint,
    }
}

fn graceful_stop_from_wire(graceful_stop: i32) -> Result<Option<GracefulStop>, WireError> {
    match pb::assignment::GracefulStop::try_from(graceful_stop) {
        Ok(pb::assignment::GracefulStop::None) => Ok(None),
        Ok(pb::assignment::GracefulStop::WithoutCheckpoint) => {
            Ok(Some(GracefulStop::WithoutCheckpoint))
        }
        Ok(pb::assignment::GracefulStop::WithCheckpoint) => Ok(Some(GracefulStop::WithCheckpoint)),
        Err(_) => wrong(
            "graceful_stop",
            graceful_stop,
            "it must be one of the values in train.proto",
        ),
    }
}

impl From<&Assignment> for pb::Assignment {
    fn from(assignment: &Assignment) -> Self {
        use pb::assignment::Run as Wire;
        Self {
            job: assignment.job.0.clone(),
            generation: assignment.generation.0,
            job_toml: assignment.job_toml.clone(),
            dataset_version: assignment.dataset_version.clone(),
            store_url: assignment.store_url.clone(),
            detect_within_ms: assignment.detect_within_ms,
            first_rank: assignment.first_rank.0,
            ranks: assignment.ranks,
            graceful_stop: graceful_stop_to_wire(assignment.graceful_stop).into(),
            run: Some(match &assignment.run {
                Run::Gang(order) => Wire::Gang(order.into()),
                Run::Units(order) => Wire::Units(order.into()),
            }),
        }
    }
}

impl TryFrom<pb::Assignment> for Assignment {
    type Error = WireError;

    fn try_from(assignment: pb::Assignment) -> Result<Self, WireError> {
        use pb::assignment::Run as Wire;
        let last_rank = u64::from(assignment.first_rank) + u64::from(assignment.ranks);
        let run = match present("run", assignment.run)? {
            Wire::Gang(order) => Run::Gang(order.try_into()?),
            Wire::Units(order) => Run::Units(order.try_into()?),
        };
        let world = match &run {
            Run::Gang(order) => u64::from(order.world),
            Run::Units(_) => last_rank,
        };
        // Either all ranks of a worker are members of the generation or all are standbys.
        let is_split = u64::from(assignment.first_rank) < world && world < last_rank;
        if DEVICES < assignment.ranks {
            let expected = format!("a worker has at most {DEVICES} devices");
            return wrong("ranks", assignment.ranks, expected);
        }
        if assignment.ranks == 0 || is_split || u64::from(u32::MAX) < last_rank {
            let value = format!("{} from {}", assignment.ranks, assignment.first_rank);
            return wrong(
                "ranks",
                value,
                "a worker has at least one rank, and its ranks are either all below the world size \
                or, as standbys, all at or above it",
            );
        }
        Ok(Self {
            job: job_id(assignment.job)?,
            generation: Generation(assignment.generation),
            job_toml: text("job_toml", assignment.job_toml, JOB_TOML_BYTES)?,
            dataset_version: short("dataset_version", assignment.dataset_version, TEXT_BYTES)?,
            store_url: text("store_url", assignment.store_url, URL_BYTES)?,
            detect_within_ms: detect_within(assignment.detect_within_ms)?,
            first_rank: Rank(assignment.first_rank),
            ranks: assignment.ranks,
            graceful_stop: graceful_stop_from_wire(assignment.graceful_stop)?,
            run,
        })
    }
}

impl From<&GangOrder> for pb::GangOrder {
    fn from(order: &GangOrder) -> Self {
        Self {
            world: order.world,
            store_address: order.store_address.clone(),
            resume: order.resume.map(Into::into),
            acknowledged_step: order.acknowledged_step.0,
            committed_step: order.committed_step.0,
        }
    }
}

impl TryFrom<pb::GangOrder> for GangOrder {
    type Error = WireError;

    fn try_from(order: pb::GangOrder) -> Result<Self, WireError> {
        Ok(Self {
            world: order.world,
            store_address: order
                .store_address
                .map(|it| text("store_address", it, ADDRESS_BYTES))
                .transpose()?,
            resume: order.resume.map(Into::into),
            acknowledged_step: Step(order.acknowledged_step),
            committed_step: Step(order.committed_step),
        })
    }
}

impl From<CheckpointRef> for pb::CheckpointRef {
    fn from(checkpoint: CheckpointRef) -> Self {
        Self {
            step: checkpoint.step.0,
            generation: checkpoint.generation.0,
        }
    }
}

impl From<pb::CheckpointRef> for CheckpointRef {
    fn from(checkpoint: pb::CheckpointRef) -> Self {
        Self {
            step: Step(checkpoint.step),
            generation: Generation(checkpoint.generation),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::RankEnvironment;
    use crate::message::{UnitFailure, UnitRange, UnitReport, Unreached};
    use crate::reason::RankFailure;

    fn report() -> WorkerReport {
        WorkerReport {
            worker: WorkerId {
                name: "w1".into(),
                boot: 7,
            },
            device: DeviceKind::Cpu,
            devices: 2,
            ranks: vec![RankReport {
                job: JobId("demo-1".into()),
                generation: Generation(3),
                rank: Rank(1),
                phase: RankPhase::Failed {
                    failure: RankFailure::error("no space", true),
                },
                store_address: Some("127.0.0.1:5".into()),
                totals: Some(StepTotals {
                    step: Step(9),
                    steps: 3,
                    seconds: PhaseSeconds {
                        forward: 1.5,
                        ..PhaseSeconds::default()
                    },
                }),
                steps: Vec::new(),
                shards: vec![ShardReport {
                    step: Step(9),
                    shard: ShardEntry {
                        path: "a".into(),
                        size_bytes: 1,
                        sha256: "0".repeat(64),
                    },
                    init_digest: None,
                    environment: "cpu".into(),
                    rank_environment: RankEnvironment {
                        host: "node-1".into(),
                        address: "10.0.0.1".into(),
                        release: "0.1.0 (commit aa)".into(),
                        libtorch: "2.10.0".into(),
                        device: "a CPU".into(),
                        numerics: "AVX2, TF32 off".into(),
                        driver: "550".into(),
                    },
                }],
                digests: vec![WeightDigest {
                    step: Step(8),
                    sha256: "f".repeat(64),
                }],
                units: UnitReport {
                    done: vec![UnitRange { first: 2, end: 5 }],
                    failed: vec![UnitFailure {
                        unit: 7,
                        error: "no such id".into(),
                    }],
                },
                activity: None,
            }],
            peer_address: Some("10.0.0.1:7073".into()),
            unreached: vec![Unreached {
                peer: WorkerId {
                    name: "w2".into(),
                    boot: 9,
                },
                error: "connection refused".into(),
            }],
        }
    }

    #[test]
    fn a_report_crosses_the_wire_unchanged() {
        let wire = pb::WorkerReport::from(&report());
        assert_eq!(WorkerReport::try_from(wire), Ok(report()));
    }

    #[test]
    fn a_wrong_field_is_named() {
        let broken = |change: fn(&mut pb::WorkerReport)| {
            let mut wire = pb::WorkerReport::from(&report());
            change(&mut wire);
            let rank = wire.ranks[0].clone();
            let report = WorkerReport::try_from(wire);
            report
                .map_err(|error| error.to_string())
                .and_then(|_| RankReport::try_from(rank).map_err(|error| error.to_string()))
        };
        let expect = |change, message: &str| assert_eq!(broken(change), Err(message.to_owned()));
        expect(
            |it| it.worker = None,
            "field `worker` is missing; it must be given",
        );
        expect(
            |it| it.device = "tpu".into(),
            "field `device` is \"tpu\"; it must be cpu or cuda",
        );
        expect(
            |it| it.devices = 5000,
            "field `devices` is 5000; a worker has at most 64 devices",
        );
        expect(
            |it| it.ranks[0].phase = 77,
            "field `phase` is 77; it must be one of the phases in train.proto",
        );
        expect(
            |it| it.ranks[0].shards[0].path = "../x".into(),
            "field `shards.path` is \"../x\"; it must be a plain file name",
        );
        expect(
            |it| it.ranks[0].shards[0].rank_environment = None,
            "field `shards.rank_environment` is missing; it must be given",
        );
        expect(
            |it| {
                let shard = &mut it.ranks[0].shards[0];
                shard.rank_environment.get_or_insert_default().device = "x".repeat(2000);
            },
            "field `shards.rank_environment` is 2000 bytes long; at most 1024 are accepted",
        );
        expect(
            |it| it.ranks[0].digests[0].sha256 = "f".into(),
            "field `digests.sha256` is \"f\"; it must be 64 hex digits",
        );
        expect(
            |it| it.ranks[0].job = "../x".into(),
            "field `job` is \"../x\"; it must be 1 to 64 lower-case letters, digits and dashes",
        );
        expect(
            |it| it.peer_address = Some("nowhere".into()),
            "field `peer_address` is \"nowhere\"; it must be host:port",
        );
        expect(
            |it| it.unreached[0].peer = None,
            "field `unreached.peer` is missing; it must be given",
        );
    }
}
