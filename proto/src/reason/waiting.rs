//! Why a job is queued.

use super::{Fault, Shortage, Stopped, UnitError};
use crate::id::{JobId, Step};
use crate::phase::Phase;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a job is queued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Waiting {
    /// Stored by a release that stored sentences.
    Text {
        text: String,
    },
    Submitted,
    /// It failed or was cancelled, and `coordinator retry` continues it.
    Retried,
    /// A release that ran it in another way was replaced; it starts again.
    Upgraded,
    Paused,
    /// So many of its units failed for good that it was paused.
    UnitsFailed {
        failed: u64,
        /// How many may fail.
        allowed: u64,
        units: u64,
        /// The last one that failed, and why.
        unit: u64,
        error: UnitError,
    },
    /// Placement has no workers for it.
    Shortage {
        shortage: Box<Shortage>,
        /// Names of the workers that hold its state meanwhile.
        state_holders: Vec<String>,
    },
    /// It has workers as soon as these jobs release them.
    Release {
        jobs: Vec<JobId>,
        workers: Vec<String>,
    },
    /// These are not done yet.
    Dependencies {
        dependencies: Vec<Dependency>,
    },
    /// These will not be done unless they are retried.
    DependencyFailed {
        job: JobId,
        dependencies: Vec<Dependency>,
    },
    /// What it reads does not exist yet.
    Source {
        source: MissingSource,
    },
    /// Its last generation stopped gracefully.
    Stopped {
        stopped: Stopped,
    },
    /// Its last generation ended early.
    Fault {
        fault: Fault,
    },
}

/// A job that another waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    pub job: JobId,
    pub state: DependencyState,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DependencyState {
    Pending(Phase),
    Failed,
    Cancelled,
    Unreadable,
    /// It was deleted.
    Missing,
}

/// Weights that a job reads and that do not exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum MissingSource {
    /// The job that it names does not exist, or its record cannot be read.
    Job { job: JobId, unreadable: bool },
    /// The job has no committed checkpoint.
    NoCheckpoint { job: JobId },
    /// The job has no checkpoint of this step; the steps that it has.
    NoStep {
        job: JobId,
        step: Step,
        steps: Vec<Step>,
    },
}

impl Waiting {
    /// Its kind in a word, for counters.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Text { .. } => "other",
            Self::Submitted => "submitted",
            Self::Retried => "retried",
            Self::Upgraded => "upgraded",
            Self::Paused => "paused",
            Self::UnitsFailed { .. } => "units-failed",
            Self::Shortage { .. } => "shortage",
            Self::Release { .. } => "release",
            Self::Dependencies { .. } => "dependencies",
            Self::DependencyFailed { .. } => "dependency-failed",
            Self::Source { .. } => "source",
            Self::Stopped { .. } => "stopped",
            Self::Fault { .. } => "fault",
        }
    }

    /// True if it waits for a dependency that will not be done by itself.
    #[must_use]
    pub fn is_dependency_failed(&self) -> bool {
        matches!(self, Self::DependencyFailed { .. })
    }
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text { text } => f.write_str(text),
            Self::Submitted => f.write_str("was just submitted"),
            Self::Retried => f.write_str("continues on request"),
            Self::Upgraded => f.write_str("starts again, in units"),
            Self::Paused => f.write_str("paused by a user; `coordinator resume` continues it"),
            Self::UnitsFailed {
                failed,
                allowed,
                units,
                unit,
                error,
            } => write!(
                f,
                "paused because {failed} of {units} units failed for good, and {allowed} may; unit \
                 {unit}: {error}; `coordinator resume` tries them again"
            ),
            Self::Shortage {
                shortage,
                state_holders,
            } => {
                shortage.fmt(f)?;
                if state_holders.is_empty() {
                    return Ok(());
                }
                write!(f, "; its state is held by {}", state_holders.join(", "))
            }
            Self::Release { jobs, workers } => {
                let jobs: Vec<&str> = jobs.iter().map(|job| job.0.as_str()).collect();
                write!(
                    f,
                    "waits for {} to release {}",
                    jobs.join(", "),
                    workers.join(", ")
                )
            }
            Self::Dependencies { dependencies } => {
                let each: Vec<String> = dependencies.iter().map(Dependency::to_string).collect();
                write!(f, "waits for {}", each.join(", and for "))
            }
            Self::DependencyFailed { job, dependencies } => {
                let each: Vec<String> = dependencies.iter().map(Dependency::to_string).collect();
                write!(
                    f,
                    "dependency-failed: {}; `coordinator retry` continues a failed job, or cancel \
                     {job}",
                    each.join(", ")
                )
            }
            Self::Source { source } => write!(f, "waits for {}", source.awaited()),
            Self::Stopped { stopped } => stopped.fmt(f),
            Self::Fault { fault } => fault.fmt(f),
        }
    }
}

impl fmt::Display for Dependency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let job = &self.job;
        match &self.state {
            DependencyState::Pending(phase) => write!(f, "{job}, which is {phase}"),
            DependencyState::Failed => write!(f, "{job} failed"),
            DependencyState::Cancelled => write!(f, "{job} was cancelled"),
            DependencyState::Unreadable => write!(f, "the record of {job} cannot be read"),
            DependencyState::Missing => write!(f, "there is no job {job} any more"),
        }
    }
}

impl MissingSource {
    /// What may still come, as the object of "waits for".
    fn awaited(&self) -> String {
        match self {
            Self::Job { job, .. } => format!("job {job}"),
            Self::NoCheckpoint { job } => format!("the first checkpoint of {job}"),
            Self::NoStep { job, step, .. } => format!("the checkpoint of step {step} of {job}"),
        }
    }
}

impl fmt::Display for MissingSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job {
                job,
                unreadable: true,
            } => write!(f, "the record of job {job} cannot be read"),
            Self::Job { job, .. } => write!(f, "there is no job {job}"),
            Self::NoCheckpoint { job } => write!(f, "job {job} has no committed checkpoint yet"),
            Self::NoStep { job, step, steps } => {
                let steps: Vec<String> = steps.iter().map(Step::to_string).collect();
                let steps = if steps.is_empty() {
                    "none".to_owned()
                } else {
                    steps.join(", ")
                };
                write!(
                    f,
                    "job {job} has no checkpoint of step {step}; it has: {steps}"
                )
            }
        }
    }
}
