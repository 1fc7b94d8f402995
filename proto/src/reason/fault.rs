//! What went wrong in a job, what follows from it, and why a job failed in the end.

use super::{Ending, MissingSource, StopCause, Stopped, shorten};
use crate::id::{Rank, Step};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Maximum number of ranks named in one sentence.
const NAMED_MAX: usize = 8;

/// A rank and the name of the worker that runs it, if it is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankOn {
    pub rank: Rank,
    pub worker: Option<String>,
}

impl fmt::Display for RankOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.worker {
            Some(worker) => write!(f, "rank {} on {worker}", self.rank),
            None => write!(f, "rank {}", self.rank),
        }
    }
}

/// The ranks that had to wait until a fault was detected.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    /// The first of them.
    pub ranks: Vec<RankOn>,
    /// How many more there are.
    pub more: u64,
}

impl Blocked {
    #[must_use]
    pub fn new(mut ranks: Vec<RankOn>) -> Self {
        let more = ranks.len().saturating_sub(NAMED_MAX) as u64;
        ranks.truncate(NAMED_MAX);
        Self { ranks, more }
    }
}

/// What a fault leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Consequence {
    /// The job continues from what survivors hold, or from this step.
    Resumes { from: Step },
    /// Another attempt would fail in the same way.
    Permanent,
    /// It was the last of so many generations in a row without progress.
    NoProgress { generations: u32 },
    /// A process of a job of units; the job continues.
    Continues,
}

/// Something that went wrong in a job. The newest stay in its record as incidents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Fault {
    /// Stored by a release that stored sentences.
    Text { text: String },
    /// A generation of a gang ended early.
    Generation {
        ending: Ending,
        blocked: Blocked,
        consequence: Consequence,
    },
    /// A process of a job of units ended, in the middle of `unit` if there is one.
    Process {
        ending: Ending,
        unit: Option<u64>,
        consequence: Consequence,
    },
    /// A worker of a job of units is lost; its units are leased again.
    Worker { ending: Ending },
    /// A unit failed so often that it is not tried again.
    Unit {
        unit: u64,
        failures: u32,
        /// Names of the workers on which it failed.
        workers: Vec<String>,
        error: UnitError,
        set_aside: bool,
    },
    /// A graceful stop took too long.
    StopOverdue { stopped: Stopped },
    /// A worker did not finish its units before it had to be released.
    UnitsOverdue { cause: StopCause, worker: String },
}

impl Fault {
    /// Its kind in a word, for counters.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Text { .. } => "other",
            Self::Generation { ending, .. }
            | Self::Process { ending, .. }
            | Self::Worker { ending } => ending.word(),
            Self::Unit { .. } => "unit-failed",
            Self::StopOverdue { .. } => "stop-overdue",
            Self::UnitsOverdue { .. } => "units-overdue",
        }
    }
}

/// Why a unit failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum UnitError {
    /// The error that its process gave, or one stored by a release that stored sentences.
    Text(String),
    /// Its process ended.
    Ended(Ending),
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Cause {
    /// Stored by a release that stored sentences.
    Text { text: String },
    /// The last fault. `checkpoint` is the last good checkpoint, where another attempt would fail.
    Fault {
        fault: Fault,
        checkpoint: Option<LastGood>,
    },
    /// No fault is recorded, and there was no progress for so many generations.
    NoProgress { generations: u32 },
    /// Every unit that was not done failed too often.
    AllUnitsSetAside { units: u64 },
    /// What it should read does not exist and will not.
    NoSource { source: MissingSource },
    /// `train.time_limit` is used up.
    TimeLimit { limit_s: u64, step: Step },
    /// Its stored record cannot be read.
    Unreadable { error: String },
}

/// The newest committed checkpoint of a failed job. None: there is none. A field with a name: in
/// JSON, an absent step in a transparent type would read as an absent [`LastGood`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastGood {
    pub step: Option<Step>,
}

/// Why a generation ended, as an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GenerationEnd {
    Ending(Ending),
    Fault(Fault),
    /// Units that failed are tried again in a new generation of the worker.
    UnitsRetried,
    /// A coordinator that is no more asked the worker to leave; the next generation revokes that.
    CoordinatorReplaced,
}

impl UnitError {
    /// The error that a process gave, shortened.
    #[must_use]
    pub fn text(error: &str) -> Self {
        Self::Text(shorten(error))
    }
}

impl fmt::Display for Blocked {
    /// As the end of a sentence; empty if nobody had to wait.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ranks.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = self.ranks.iter().map(RankOn::to_string).collect();
        write!(f, "; {}", names.join(", "))?;
        if 0 < self.more {
            write!(f, " and {} more", self.more)?;
        }
        f.write_str(" waited for it")
    }
}

impl Consequence {
    /// As the end of a sentence about a process of a job of units.
    fn of_process(&self) -> String {
        match self {
            Self::Permanent => "; another attempt would fail in the same way".to_owned(),
            Self::NoProgress { generations } => {
                format!("; process {generations} in a row that ended without a current unit")
            }
            Self::Resumes { .. } | Self::Continues => String::new(),
        }
    }
}

impl fmt::Display for Consequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resumes { from } => write!(
                f,
                "the job resumes from the survivors' state or from step {from}"
            ),
            Self::Permanent => f.write_str("another generation would fail in the same way"),
            Self::NoProgress { generations } => {
                write!(f, "generation {generations} in a row without progress")
            }
            Self::Continues => f.write_str("the job continues"),
        }
    }
}

impl fmt::Display for UnitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Ended(ending) => ending.fmt(f),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text { text } => f.write_str(text),
            Self::Generation {
                ending,
                blocked,
                consequence,
            } => write!(f, "{ending}{blocked}; {consequence}"),
            Self::Process {
                ending,
                unit,
                consequence,
            } => {
                match unit {
                    Some(unit) => write!(f, "{ending}; its current unit was {unit}")?,
                    None => write!(f, "{ending}; it had no current unit")?,
                }
                f.write_str(&consequence.of_process())
            }
            Self::Worker { ending } => write!(f, "{ending}; its units are leased again"),
            Self::Unit {
                unit,
                failures,
                workers,
                error,
                set_aside,
            } => {
                let workers = workers.join(", ");
                write!(
                    f,
                    "unit {unit} failed {failures} times, on {workers}: {error}"
                )?;
                f.write_str(if *set_aside { "; it is set aside" } else { "" })
            }
            Self::StopOverdue { stopped } => stopped.fmt(f),
            Self::UnitsOverdue { cause, worker } => {
                write!(f, "{cause}; {worker} had not finished its units in time")
            }
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text { text } => f.write_str(text),
            Self::Fault { fault, checkpoint } => {
                fault.fmt(f)?;
                match checkpoint {
                    None => Ok(()),
                    Some(LastGood { step: Some(step) }) => {
                        write!(f, "; the last good checkpoint is at step {step}")
                    }
                    Some(LastGood { step: None }) => f.write_str("; there is no checkpoint yet"),
                }
            }
            Self::NoProgress { generations } => {
                write!(f, "{generations} generations in a row made no progress")
            }
            Self::AllUnitsSetAside { units } => write!(f, "all {units} units were set aside"),
            Self::NoSource { source } => source.fmt(f),
            Self::TimeLimit { limit_s, step } => write!(
                f,
                "train.time_limit of {limit_s} s is used up at step {step}; `coordinator retry \
                 --set train.time_limit=…` continues the job"
            ),
            Self::Unreadable { error } => write!(f, "its record cannot be read: {error}"),
        }
    }
}

impl fmt::Display for GenerationEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ending(ending) => ending.fmt(f),
            Self::Fault(fault) => fault.fmt(f),
            Self::UnitsRetried => f.write_str("units that failed are retried"),
            Self::CoordinatorReplaced => {
                f.write_str("the coordinator that asked it to leave has been replaced")
            }
        }
    }
}
