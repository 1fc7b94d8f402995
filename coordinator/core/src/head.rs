//! The fields common to all jobs, of either kind and in any phase: identity, submission, desired
//! settings and incidents.

use crate::account::Book;
use crate::outbox::Outbox;
use crate::record::{
    About, Adapted, INCIDENTS_MAX, Incident, JobPhase, JobRecord, LostTag, Millis,
    RESTARTS_WITHOUT_PROGRESS_MAX,
};
use proto::checkpoint::CheckpointRef;
use proto::during::Parent;
use proto::id::{Generation, JobId};
use proto::job::overrides::{Override, effective_text};
use proto::message::SourceJob;
use proto::reason::{Cause, Fault, Waiting};
use proto::spec::JobSpec;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) id: JobId,
    /// The number at the end of the id; gives the submit order.
    pub(crate) number: u64,
    pub(crate) spec: JobSpec,
    pub(crate) job_toml: String,
    pub(crate) overrides: Vec<Override>,
    pub(crate) dataset_version: String,
    pub(crate) cut_prompts: Option<u64>,
    pub(crate) lost_tags: Vec<LostTag>,
    pub(crate) adapted: Option<Adapted>,
    /// The training job whose checkpoint it evaluates, if that is why it exists.
    pub(crate) parent: Option<Parent>,
    /// The trained jobs that it reads, in the order of [`proto::spec::Work::reads`]. Empty until
    /// all checkpoints are known.
    pub(crate) sources: Vec<SourceJob>,
    pub(crate) submitted_ms: Millis,
    pub(crate) paused: bool,
    /// Why it was paused, if not by a user.
    pub(crate) paused_because: Option<Waiting>,
    /// The number of workers set by a user.
    pub(crate) workers: Option<u32>,
    pub(crate) generation: Generation,
    pub(crate) restarts_without_progress: u32,
    pub(crate) permanent_failure: bool,
    pub(crate) restarts: u32,
    pub(crate) incidents: Vec<Incident>,
    /// All incidents by kind.
    pub(crate) faults: BTreeMap<String, u64>,
    pub(crate) about: About,
    /// What its devices spend their time with.
    pub(crate) book: Book,
    /// When its newest checkpoint was committed, by the wall clock.
    pub(crate) committed_ms: Option<Millis>,
    /// The dependency that it waits for before it asks for workers, as of the last input.
    pub(crate) blocked_by: Option<Waiting>,
}

/// How a job ended. This is final.
#[derive(Debug)]
pub(crate) enum Ended {
    Done { ended_ms: Millis },
    Failed { cause: Cause, ended_ms: Millis },
    Cancelled { ended_ms: Millis },
}

/// A checkpoint of another job that this job reads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pin<'a> {
    pub(crate) job: &'a JobId,
    pub(crate) checkpoint: CheckpointRef,
}

impl Head {
    /// The checkpoints of other jobs that it reads until it ends.
    pub(crate) fn pins(&self) -> Vec<Pin<'_>> {
        let reads = self.spec.work.reads().into_iter().zip(&self.sources);
        let pin = |((job, _), source): ((_, _), &SourceJob)| {
            let checkpoint = source.checkpoint?;
            Some(Pin { job, checkpoint })
        };
        reads.filter_map(pin).collect()
    }

    /// The jobs whose checkpoints it reads, each once.
    pub(crate) fn read_jobs(&self) -> BTreeSet<JobId> {
        self.spec.work.read_jobs().cloned().collect()
    }

    /// Whether it reads jobs whose checkpoints are not known yet.
    pub(crate) fn lacks_sources(&self) -> bool {
        self.sources.is_empty() && !self.spec.work.reads().is_empty()
    }

    /// The job that a job of images reads.
    pub(crate) fn source(&self) -> Option<SourceJob> {
        let of_images = self.spec.work.sampling().is_some();
        self.sources.first().filter(|_| of_images).cloned()
    }

    /// The jobs that the models of an evaluation are from.
    pub(crate) fn models(&self) -> Vec<SourceJob> {
        let evaluates = self.spec.work.evaluation().is_some();
        let sources = self.sources.iter().filter(|_| evaluates);
        sources.cloned().collect()
    }

    /// `spec` is parsed from the record's text.
    pub(crate) fn new(record: &JobRecord, spec: JobSpec) -> Self {
        let digits = record.id.0.rsplit('-').next();
        Self {
            id: record.id.clone(),
            number: digits.and_then(|digits| digits.parse().ok()).unwrap_or(0),
            spec,
            job_toml: record.job_toml.clone(),
            overrides: record.overrides.clone(),
            dataset_version: record.dataset_version.clone(),
            cut_prompts: record.cut_prompts,
            lost_tags: record.lost_tags.clone(),
            adapted: record.adapted,
            sources: record
                .source
                .iter()
                .chain(&record.models)
                .cloned()
                .collect(),
            parent: record.parent.clone(),
            blocked_by: None,
            submitted_ms: record.submitted_ms,
            paused: record.paused,
            paused_because: record.paused_because.clone(),
            workers: record.workers,
            generation: record.generation,
            restarts_without_progress: record.restarts_without_progress,
            permanent_failure: record.permanent_failure,
            restarts: record.restarts,
            incidents: record.incidents.clone(),
            faults: record.faults.clone(),
            about: record.about.clone(),
            book: Book::restore(record),
            committed_ms: record.committed_ms,
        }
    }

    /// The text that its ranks get and that manifests contain.
    pub(crate) fn effective_toml(&self) -> String {
        effective_text(&self.job_toml, &self.spec, &self.overrides)
    }

    /// True if the job must fail: another attempt would make no progress.
    pub(crate) fn must_fail(&self) -> bool {
        self.permanent_failure || RESTARTS_WITHOUT_PROGRESS_MAX <= self.restarts_without_progress
    }

    /// The minimum number of workers.
    pub(crate) fn min_workers(&self) -> usize {
        self.spec
            .resources
            .workers_min
            .min(self.max_workers())
            .max(1) as usize
    }

    /// The maximum number of workers, set by a user or by job.toml.
    pub(crate) fn max_workers(&self) -> u32 {
        self.workers.unwrap_or(self.spec.resources.workers_max)
    }

    /// Ranks on each worker.
    pub(crate) fn devices_per_worker(&self) -> u32 {
        self.spec.resources.devices_per_worker
    }

    /// Records an incident of the newest generation.
    pub(crate) fn record_incident(&mut self, what: Fault, outbox: &Outbox) {
        let surplus = (self.incidents.len() + 1).saturating_sub(INCIDENTS_MAX);
        self.incidents.drain(..surplus);
        *self.faults.entry(what.word().to_owned()).or_insert(0) += 1;
        self.incidents.push(Incident {
            at_ms: outbox.wall,
            generation: self.generation,
            what,
            recovered_ms: None,
        });
    }

    /// The running generation did a step: the job has recovered from what ended those before.
    pub(crate) fn recovered(&mut self, wall: Millis) {
        // Newest first: those before the first that has recovered have, too.
        for incident in self.incidents.iter_mut().rev() {
            if incident.recovered_ms.is_some() {
                break;
            }
            if incident.generation < self.generation {
                incident.recovered_ms = Some(wall);
            }
        }
    }
}

impl Ended {
    /// By the wall clock.
    pub(crate) fn at_ms(&self) -> Millis {
        match self {
            Self::Done { ended_ms }
            | Self::Failed { ended_ms, .. }
            | Self::Cancelled { ended_ms } => *ended_ms,
        }
    }

    pub(crate) fn phase(&self) -> JobPhase {
        match self {
            Self::Done { ended_ms } => JobPhase::Done {
                ended_ms: *ended_ms,
            },
            Self::Failed { cause, ended_ms } => JobPhase::Failed {
                cause: cause.clone(),
                ended_ms: *ended_ms,
            },
            Self::Cancelled { ended_ms } => JobPhase::Cancelled {
                ended_ms: *ended_ms,
            },
        }
    }
}
