//! Why generations stop gracefully, and how that went.

use super::{Ending, RankFailure, RankOn, Shortage};
use crate::id::Step;
use crate::message::GracefulStop;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a generation should end without a fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum StopCause {
    Paused,
    /// It continues on these workers.
    Moves {
        to: Vec<String>,
    },
    /// Other jobs take its workers, or its workers are drained. `shortage` is why it then waits.
    Preempted {
        shortage: Box<Shortage>,
    },
    /// This worker is drained or shuts down.
    Drained {
        worker: String,
    },
    /// This worker is needed elsewhere, or there is no work left for it.
    NotNeeded {
        worker: String,
    },
    /// Its processes end without a current unit; another worker takes over for a while.
    BacksOff {
        worker: String,
        ending: Box<Ending>,
    },
    /// `train.time_limit` is used up.
    TimeLimit {
        limit_s: u64,
    },
}

/// How a graceful stop of a generation ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Stopped {
    /// All its workers are released.
    Released {
        cause: StopCause,
        /// What it still waited for at its deadline.
        overdue: Option<Overdue>,
        resumes_from: Step,
    },
    /// The next generation forms on these workers at once.
    Continues { on: Vec<String> },
    /// The next generation forms on these workers, whose processes live, and not on those that
    /// would have to start theirs.
    ContinuesWarm { on: Vec<String> },
    /// A worker of a job of units is released. `late`: it had not finished its units.
    Worker {
        cause: StopCause,
        worker: String,
        late: bool,
    },
}

/// What a graceful stop still waited for at its deadline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overdue {
    /// A rank that had not finished. None: the checkpoint was not committed.
    pub rank: Option<RankOn>,
    pub with_checkpoint: bool,
    pub after_ms: u64,
}

/// Why a standby is no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StandbyLoss {
    Failed(RankFailure),
    /// Its worker is up but does not report it.
    NotReported,
}

impl Overdue {
    #[must_use]
    pub fn new(rank: Option<RankOn>, how: GracefulStop, after_ms: u64) -> Self {
        Self {
            rank,
            with_checkpoint: how == GracefulStop::WithCheckpoint,
            after_ms,
        }
    }
}

impl fmt::Display for StopCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paused => f.write_str("paused by a user"),
            Self::Moves { to } => write!(f, "moves to {}", to.join(", ")),
            Self::Preempted { shortage } => write!(f, "preempted: {shortage}"),
            Self::Drained { worker } => write!(f, "{worker} is being drained"),
            Self::NotNeeded { worker } => {
                write!(f, "{worker} is needed elsewhere or no longer needed")
            }
            Self::BacksOff { worker, ending } => write!(
                f,
                "{ending}; it had no current unit, and {worker} gets no other process for a while"
            ),
            Self::TimeLimit { limit_s } => {
                write!(f, "train.time_limit of {limit_s} s is used up")
            }
        }
    }
}

impl fmt::Display for Overdue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let within = self.after_ms as f64 / 1000.0;
        match &self.rank {
            Some(rank) => {
                let work = if self.with_checkpoint {
                    "finished its step and written its checkpoint shard"
                } else {
                    "finished its step"
                };
                write!(f, "{rank} had not {work} within {within} s")
            }
            None => write!(f, "its checkpoint was not committed within {within} s"),
        }
    }
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Released {
                cause,
                overdue,
                resumes_from,
            } => {
                cause.fmt(f)?;
                if let Some(overdue) = overdue {
                    write!(f, "; {overdue}")?;
                }
                write!(f, "; resumes from step {resumes_from}")
            }
            Self::Continues { on } => write!(f, "continues on {}", on.join(", ")),
            Self::ContinuesWarm { on } => write!(
                f,
                "continues on {} without waiting for others to start",
                on.join(", ")
            ),
            Self::Worker {
                cause,
                worker,
                late,
            } => {
                cause.fmt(f)?;
                if *late {
                    write!(f, "; {worker} had not finished its units in time")?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for StandbyLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(failure) => failure.fmt(f),
            Self::NotReported => f.write_str("its worker does not report it"),
        }
    }
}
