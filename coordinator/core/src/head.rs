//! What every job has, whatever its kind of work and whatever its phase: who it is, what was
//! submitted, what people wish of it, and what went wrong so far.

use crate::outbox::Outbox;
use crate::record::{
    INCIDENTS_MAX, Incident, JobPhase, JobRecord, Millis, RESTARTS_WITHOUT_PROGRESS_MAX,
};
use proto::checkpoint::CheckpointRef;
use proto::id::{Generation, JobId};
use proto::message::SourceJob;
use proto::spec::JobSpec;

#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) id: JobId,
    /// The number at the end of the id: submit order.
    pub(crate) number: u64,
    pub(crate) spec: JobSpec,
    pub(crate) job_toml: String,
    pub(crate) dataset_version: String,
    /// The trained job that it reads, once it is clear which checkpoint.
    pub(crate) source: Option<SourceJob>,
    pub(crate) submitted_ms: Millis,
    pub(crate) paused: bool,
    /// The scale that somebody wishes.
    pub(crate) workers: Option<u32>,
    pub(crate) generation: Generation,
    pub(crate) restarts_without_progress: u32,
    pub(crate) permanent_failure: bool,
    pub(crate) restarts: u32,
    pub(crate) incidents: Vec<Incident>,
    /// What it waits for before it asks for workers at all; as of the last event.
    pub(crate) held_up: Option<String>,
}

/// How a job ended. It never changes again.
#[derive(Debug)]
pub(crate) enum Ended {
    Done { ended_ms: Millis },
    Failed { reason: String, ended_ms: Millis },
    Cancelled { ended_ms: Millis },
}

/// A checkpoint of another job that is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pin<'a> {
    pub(crate) job: &'a JobId,
    pub(crate) checkpoint: CheckpointRef,
}

impl Head {
    /// The checkpoint of another job that it reads as long as it is not over.
    pub(crate) fn pin(&self) -> Option<Pin<'_>> {
        Some(Pin {
            job: &self.spec.work.sampling()?.job,
            checkpoint: self.source.as_ref()?.checkpoint?,
        })
    }

    /// `spec` is what the record's text means.
    pub(crate) fn new(record: &JobRecord, spec: JobSpec) -> Self {
        let digits = record.id.0.rsplit('-').next();
        Self {
            id: record.id.clone(),
            number: digits.and_then(|digits| digits.parse().ok()).unwrap_or(0),
            spec,
            job_toml: record.job_toml.clone(),
            dataset_version: record.dataset_version.clone(),
            source: record.source.clone(),
            held_up: None,
            submitted_ms: record.submitted_ms,
            paused: record.paused,
            workers: record.workers,
            generation: record.generation,
            restarts_without_progress: record.restarts_without_progress,
            permanent_failure: record.permanent_failure,
            restarts: record.restarts,
            incidents: record.incidents.clone(),
        }
    }

    /// Another attempt would get no further.
    pub(crate) fn is_lost(&self) -> bool {
        self.permanent_failure || RESTARTS_WITHOUT_PROGRESS_MAX <= self.restarts_without_progress
    }

    /// The fewest workers that it runs on.
    pub(crate) fn least(&self) -> usize {
        self.spec.resources.workers_min.min(self.most()).max(1) as usize
    }

    /// The most workers that it can use, as somebody wishes or job.toml says.
    pub(crate) fn most(&self) -> u32 {
        self.workers.unwrap_or(self.spec.resources.workers_max)
    }

    /// Ranks on each worker.
    pub(crate) fn devices_per_worker(&self) -> u32 {
        self.spec.resources.devices_per_worker
    }

    /// Writes down what went wrong in the newest generation.
    pub(crate) fn record_incident(&mut self, what: String, outbox: &Outbox) {
        let surplus = (self.incidents.len() + 1).saturating_sub(INCIDENTS_MAX);
        self.incidents.drain(..surplus);
        self.incidents.push(Incident {
            at_ms: outbox.wall,
            generation: self.generation,
            what,
        });
    }
}

impl Ended {
    pub(crate) fn phase(&self) -> JobPhase {
        match self {
            Self::Done { ended_ms } => JobPhase::Done {
                ended_ms: *ended_ms,
            },
            Self::Failed { reason, ended_ms } => JobPhase::Failed {
                reason: reason.clone(),
                ended_ms: *ended_ms,
            },
            Self::Cancelled { ended_ms } => JobPhase::Cancelled {
                ended_ms: *ended_ms,
            },
        }
    }
}
