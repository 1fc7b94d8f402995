//! Is what a worker says of a rank possible? Checked before anything is believed: late and impossible words are ignored and
//! noted once. It changes nothing and never panics.

use crate::event::{JobPhase, Member};
use crate::job::Job;
use proto::id::{Generation, JobId, Rank, Step, WorkerId};
use proto::message::RankReport;
use std::fmt;

/// What to make of a rank's report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sense {
    /// Of the running generation, by the worker that runs the rank.
    Live,
    /// Of a rank in reserve, by its worker.
    Reserve,
    /// Of a generation that is over, or of a reserve that is no more.
    Late,
    Odd(Oddity),
}

/// Something that cannot be true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Oddity {
    UnknownJob {
        job: JobId,
    },
    OldBoot {
        newer: WorkerId,
    },
    FutureGeneration {
        job: JobId,
        said: Generation,
        newest: Generation,
    },
    OldGeneration {
        job: JobId,
        said: Generation,
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
}

pub(crate) fn judge(job: Option<&Job>, worker: &WorkerId, report: &RankReport) -> Sense {
    let Some(job) = job else {
        return Sense::Odd(Oddity::UnknownJob {
            job: report.job.clone(),
        });
    };
    let newest = job.record.generation;
    if newest < report.generation {
        let job = report.job.clone();
        return Sense::Odd(Oddity::FutureGeneration {
            job,
            said: report.generation,
            newest,
        });
    }
    if report.generation < newest {
        return Sense::Late;
    }
    let of_worker = |member: &&Member| member.worker == *worker;
    let reserve = job.record.reserves.iter().find(of_worker);
    if reserve.is_some_and(|reserve| runs(reserve, report.rank)) {
        return Sense::Reserve;
    }
    let JobPhase::Running { members } = &job.record.phase else {
        return Sense::Late;
    };
    let world = members.iter().map(|member| member.ranks).sum();
    if (world..job.live.next_rank).contains(&report.rank.0) {
        return Sense::Late;
    }
    let Some(member) = members.iter().find(of_worker) else {
        return Sense::Odd(Oddity::NotMember {
            job: report.job.clone(),
            generation: newest,
        });
    };
    if !runs(member, report.rank) {
        let (first, ranks) = (member.first_rank, member.ranks);
        return Sense::Odd(Oddity::RankOutside {
            rank: report.rank,
            first,
            ranks,
        });
    }
    Sense::Live
}

pub(crate) fn runs(member: &Member, rank: Rank) -> bool {
    member.first_rank <= rank && rank.0 - member.first_rank.0 < member.ranks
}

impl Oddity {
    /// Names the sort of oddity: each is noted once per worker.
    pub(crate) fn sort(&self) -> &'static str {
        match self {
            Self::UnknownJob { .. } => "unknown job",
            Self::OldBoot { .. } => "old boot",
            Self::FutureGeneration { .. } => "future generation",
            Self::OldGeneration { .. } => "old generation",
            Self::NotMember { .. } => "not a member",
            Self::RankOutside { .. } => "rank outside",
            Self::StepOutside { .. } => "step outside",
            Self::ShardPath { .. } => "shard path",
        }
    }
}

impl fmt::Display for Oddity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownJob { job } => write!(f, "reports a rank of {job}, which was never submitted here"),
            Self::OldBoot { newer } => write!(f, "reports although {newer} has taken its place"),
            Self::FutureGeneration { job, said, newest } => {
                write!(
                    f,
                    "reports generation {said} of {job}, whose newest generation is {newest}"
                )
            }
            Self::OldGeneration { job, said, newest } => {
                write!(
                    f,
                    "still reports generation {said} of {job}, which is at generation {newest}"
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
                    "reports rank {rank}; it runs {ranks} ranks from rank {first} on"
                )
            }
            Self::StepOutside { step, steps_max } => {
                write!(f, "reports step {step} of a job that has steps 1 to {steps_max}")
            }
            Self::ShardPath { path } => {
                write!(
                    f,
                    "reports shard `{path}`; a shard is a file name that no other rank of the step uses"
                )
            }
        }
    }
}
