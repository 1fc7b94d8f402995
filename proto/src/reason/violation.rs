//! Protocol violations: reports that cannot be true. They are ignored; each kind is logged once per
//! worker.

use crate::id::{Generation, JobId, Rank, Step, WorkerId};
use std::fmt;

/// A report that cannot be true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    UnknownJob {
        job: JobId,
    },
    OldBoot {
        newer: WorkerId,
    },
    FutureGeneration {
        job: JobId,
        reported: Generation,
        newest: Generation,
    },
    OldGeneration {
        job: JobId,
        reported: Generation,
        newest: Generation,
    },
    NotMember {
        job: JobId,
        generation: Generation,
    },
    RankOutside {
        rank: Rank,
        first: Rank,
        ranks: u32,
    },
    StepOutside {
        step: Step,
        steps_max: Step,
    },
    ShardPath {
        path: String,
    },
    UnitOutside {
        unit: u64,
        units: u64,
    },
}

impl Violation {
    /// The kind of violation. Each kind is logged once per worker.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::UnknownJob { .. } => "unknown job",
            Self::OldBoot { .. } => "old boot",
            Self::FutureGeneration { .. } => "future generation",
            Self::OldGeneration { .. } => "old generation",
            Self::NotMember { .. } => "not a member",
            Self::RankOutside { .. } => "rank outside",
            Self::StepOutside { .. } => "step outside",
            Self::ShardPath { .. } => "shard path",
            Self::UnitOutside { .. } => "unit outside",
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownJob { job } => {
                write!(f, "reports a rank of {job}, which was never submitted here")
            }
            Self::OldBoot { newer } => write!(f, "reports although {newer} has replaced it"),
            Self::FutureGeneration {
                job,
                reported,
                newest,
            } => {
                write!(
                    f,
                    "reports generation {reported} of {job}, whose newest generation is {newest}"
                )
            }
            Self::OldGeneration {
                job,
                reported,
                newest,
            } => {
                write!(
                    f,
                    "still reports generation {reported} of {job}, which is at generation {newest}"
                )
            }
            Self::NotMember { job, generation } => {
                write!(
                    f,
                    "reports a rank of {job} generation {generation}, of which it is not a member"
                )
            }
            Self::RankOutside { rank, first, ranks } => {
                write!(
                    f,
                    "reports rank {rank}; it runs {ranks} ranks starting at rank {first}"
                )
            }
            Self::StepOutside { step, steps_max } => {
                write!(
                    f,
                    "reports step {step} of a job that has steps 1 to {steps_max}"
                )
            }
            Self::UnitOutside { unit, units } => {
                write!(f, "reports unit {unit} of a job of {units} units")
            }
            Self::ShardPath { path } => {
                write!(
                    f,
                    "reports shard `{path}`; a shard path must be a file name that no other rank \
                     of the step uses"
                )
            }
        }
    }
}
