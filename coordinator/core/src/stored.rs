//! Reads job records of every release. Version 1 had no version number, contained the parsed job,
//! and stored a sampling job as a gang with the text of the job that it read.

use crate::evaluation::Evaluations;
use crate::record::{
    About, Adapted, Incident, JobPhase, JobRecord, LostTag, Member, Millis, RECORD_VERSION,
    UnitsRecord,
};
use proto::account::Account;
use proto::checkpoint::CheckpointRef;
use proto::during::Parent;
use proto::id::{Generation, JobId, Step};
use proto::job::overrides::Override;
use proto::ledger::Tip;
use proto::message::{SourceJob, UnitRange};
use proto::reason::Waiting;
use proto::sample::{Concept, NamedReference, SampleMethod, SamplePrompt, SampleWork, Weights};
use proto::spec::{JobSpec, OnFailedUnit, Pairing, Resources, Task, Work};
use serde::{Deserialize, Deserializer, de};
use std::collections::BTreeMap;

/// A stored record of any version.
#[derive(Debug, Deserialize)]
struct StoredJob {
    #[serde(default = "first_version")]
    version: u32,
    id: JobId,
    /// Version 1.
    spec: Option<OldSpec>,
    /// Version 1.
    work: Option<OldWork>,
    job_toml: String,
    #[serde(default)]
    overrides: Vec<Override>,
    #[serde(default)]
    trained_ms: u64,
    dataset_version: String,
    #[serde(default)]
    cut_prompts: Option<u64>,
    #[serde(default)]
    lost_tags: Vec<LostTag>,
    #[serde(default)]
    adapted: Option<Adapted>,
    #[serde(default)]
    source: Option<SourceJob>,
    #[serde(default)]
    models: Vec<SourceJob>,
    #[serde(default)]
    parent: Option<Parent>,
    #[serde(default)]
    evaluations: Option<Evaluations>,
    submitted_ms: Millis,
    paused: bool,
    #[serde(default)]
    paused_because: Option<Waiting>,
    workers: Option<u32>,
    generation: Generation,
    phase: JobPhase,
    #[serde(default, alias = "reserves")]
    standbys: Vec<Member>,
    ledger: Tip,
    checkpoints: Vec<CheckpointRef>,
    #[serde(default)]
    reached: Step,
    #[serde(alias = "fruitless")]
    restarts_without_progress: u32,
    #[serde(alias = "hopeless")]
    permanent_failure: bool,
    restarts: u32,
    incidents: Vec<Incident>,
    #[serde(default)]
    units: Option<UnitsRecord>,
    #[serde(default)]
    about: About,
    #[serde(default)]
    account: Account,
    #[serde(default)]
    faults: BTreeMap<String, u64>,
    #[serde(default)]
    committed_ms: Option<Millis>,
}

fn first_version() -> u32 {
    1
}

/// The fields of the parsed job that a sampling job's text did not contain. The rest is read from
/// the text.
#[derive(Debug, Deserialize)]
struct OldSpec {
    resources: Resources,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum OldWork {
    Train,
    Sample(Box<OldSample>),
}

#[derive(Debug, Deserialize)]
struct OldSample {
    source: JobId,
    checkpoint: Option<CheckpointRef>,
    count: u32,
    /// Requests stored before this field existed used DDIM.
    #[serde(default)]
    method: SampleMethod,
    steps: u32,
    guidance: f64,
    /// Requests stored before this field existed used 1.
    #[serde(default = "default_reference_guidance")]
    reference_guidance: f64,
    seeds: Vec<u64>,
    prompt: SamplePrompt,
    prompts: Vec<String>,
    references: Vec<NamedReference>,
    task: Option<Task>,
    pairing: Option<Pairing>,
    attention: Vec<Concept>,
}

fn default_reference_guidance() -> f64 {
    1.0
}

impl<'de> Deserialize<'de> for JobRecord {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        StoredJob::deserialize(deserializer)?
            .try_into()
            .map_err(de::Error::custom)
    }
}

impl TryFrom<StoredJob> for JobRecord {
    type Error = String;

    fn try_from(stored: StoredJob) -> Result<Self, String> {
        let sample = match (stored.version, stored.spec, stored.work) {
            (1, Some(spec), Some(OldWork::Sample(sample))) => Some((spec.resources, *sample)),
            (1, Some(_), Some(OldWork::Train)) | (2 | RECORD_VERSION, _, _) => None,
            (1, _, _) => {
                return Err(format!(
                    "job {}: version 1 without `spec` and `work`",
                    stored.id
                ));
            }
            (version, _, _) => {
                return Err(format!(
                    "job {}: version {version}; this release reads versions 1 to {RECORD_VERSION}",
                    stored.id
                ));
            }
        };
        let record = Self {
            version: RECORD_VERSION,
            id: stored.id,
            job_toml: stored.job_toml,
            overrides: stored.overrides,
            trained_ms: stored.trained_ms,
            dataset_version: stored.dataset_version,
            cut_prompts: stored.cut_prompts,
            lost_tags: stored.lost_tags,
            adapted: stored.adapted,
            source: stored.source,
            models: stored.models,
            parent: stored.parent,
            evaluations: stored.evaluations,
            submitted_ms: stored.submitted_ms,
            paused: stored.paused,
            paused_because: stored.paused_because,
            workers: stored.workers,
            generation: stored.generation,
            phase: stored.phase,
            standbys: stored.standbys,
            ledger: stored.ledger,
            checkpoints: stored.checkpoints,
            reached: stored.reached,
            restarts_without_progress: stored.restarts_without_progress,
            permanent_failure: stored.permanent_failure,
            restarts: stored.restarts,
            incidents: stored.incidents,
            units: stored.units,
            about: stored.about,
            account: stored.account,
            faults: stored.faults,
            committed_ms: stored.committed_ms,
        };
        Ok(match sample {
            Some((resources, sample)) => convert_sampling_job(record, resources, sample),
            None => record,
        })
    }
}

/// Converts a sampling job of version 1 to a job of units. The job that it read becomes its source.
/// If it was running, it starts again.
fn convert_sampling_job(record: JobRecord, resources: Resources, sample: OldSample) -> JobRecord {
    let work = SampleWork {
        job: sample.source,
        weights: sample
            .checkpoint
            .map_or(Weights::Base, |it| Weights::Step(it.step)),
        count: sample.count,
        method: sample.method,
        steps: sample.steps,
        guidance: sample.guidance,
        reference_guidance: sample.reference_guidance,
        seeds: sample.seeds,
        prompt: sample.prompt,
        prompts: sample.prompts,
        negative_prompt: String::new(),
        knobs: proto::knobs::Knobs::default(),
        swap_references: false,
        references: sample.references,
        task: sample.task,
        pairing: sample.pairing,
        attention: sample.attention,
        on_failed_unit: OnFailedUnit::Stop,
    };
    let all = UnitRange {
        first: 0,
        end: work.units().count,
    };
    let spec = JobSpec {
        name: "sample".to_owned(),
        resources,
        after: Vec::new(),
        work: Work::Sample(Box::new(work)),
    };
    let mut units = UnitsRecord::default();
    let phase = match record.phase {
        JobPhase::Running { .. } => JobPhase::Queued {
            reason: Waiting::Upgraded,
        },
        phase @ JobPhase::Done { .. } => {
            units.done.push(all);
            phase
        }
        phase
        @ (JobPhase::Queued { .. } | JobPhase::Failed { .. } | JobPhase::Cancelled { .. }) => phase,
    };
    JobRecord {
        job_toml: proto::job::to_toml(&spec),
        source: Some(SourceJob {
            job_toml: record.job_toml,
            checkpoint: sample.checkpoint,
        }),
        // It always had one worker, whatever the setting was.
        workers: None,
        standbys: Vec::new(),
        phase,
        units: Some(units),
        ..record
    }
}
