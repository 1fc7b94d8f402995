//! Why things are as they are, as values that become one sentence: one value answers the record,
//! the log and the test. It decides nothing.

use crate::record::Member;
use proto::id::{Rank, Step, WorkerId};
use proto::message::{HANGS, RankPhase, RankReport, SILENT};
use std::fmt;

/// Why a generation ended before its work was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    RankFailed {
        rank: Rank,
        worker: WorkerId,
        error: String,
        /// Another generation would end in the same way.
        permanent: bool,
    },
    /// This rank lost its peers and is whole itself.
    GroupBroken {
        rank: Rank,
        worker: WorkerId,
        error: String,
    },
    WorkerLost {
        worker: WorkerId,
        silent_for_ms: u64,
    },
    WorkerRestarted {
        old: WorkerId,
        new: WorkerId,
    },
    /// The worker is up and does not report this rank.
    RankMissing {
        rank: Rank,
        worker: WorkerId,
    },
    /// Workers of it do not reach each other; says which.
    Partitioned {
        what: String,
    },
    /// Ranks that should hold the same weights do not; says who differs.
    WeightsDisagree {
        what: String,
    },
    /// Shards of one checkpoint that cannot belong together.
    ShardsDisagree {
        step: Step,
        what: String,
    },
    ManifestRefused {
        step: Step,
        attempts: u32,
        error: String,
    },
    /// All ranks are finished and the last checkpoint is not complete.
    LastCheckpointMissing {
        step: Step,
        without: Vec<Rank>,
    },
}

/// Ranks that are named in one sentence.
const NAMED_MAX: usize = 8;

/// Longest piece of a rank's own words that is kept in a record, in characters.
const WORDS_MAX: usize = 600;

impl Ending {
    /// The worker that does not have all its processes any more.
    pub(crate) fn lost_worker(&self) -> Option<&WorkerId> {
        match self {
            Self::RankFailed { worker, .. }
            | Self::WorkerLost { worker, .. }
            | Self::RankMissing { worker, .. } => Some(worker),
            Self::WorkerRestarted { old, .. } => Some(old),
            Self::GroupBroken { .. }
            | Self::ShardsDisagree { .. }
            | Self::ManifestRefused { .. }
            | Self::LastCheckpointMissing { .. }
            | Self::Partitioned { .. }
            | Self::WeightsDisagree { .. } => None,
        }
    }

    /// True when the job has no part in it, however often it comes: it waits then until there are
    /// workers that are fit.
    pub(crate) fn is_outside(&self) -> bool {
        matches!(self, Self::Partitioned { .. })
    }

    /// Of whom the others had to wait until it was found: the worker, and the rank where it is one.
    pub(crate) fn awaited(&self) -> Option<(&WorkerId, Option<Rank>)> {
        match self {
            Self::RankFailed {
                rank,
                worker,
                error,
                ..
            } if error.starts_with(SILENT) || error.starts_with(HANGS) => {
                Some((worker, Some(*rank)))
            }
            Self::RankMissing { rank, worker } => Some((worker, Some(*rank))),
            Self::WorkerLost { worker, .. } => Some((worker, None)),
            Self::RankFailed { .. }
            | Self::GroupBroken { .. }
            | Self::WorkerRestarted { .. }
            | Self::ShardsDisagree { .. }
            | Self::ManifestRefused { .. }
            | Self::LastCheckpointMissing { .. }
            | Self::Partitioned { .. }
            | Self::WeightsDisagree { .. } => None,
        }
    }

    /// True when no other generation would do better.
    pub(crate) fn is_permanent(&self) -> bool {
        matches!(
            self,
            Self::RankFailed {
                permanent: true,
                ..
            } | Self::WeightsDisagree { .. }
        )
    }

    /// True when this only tells that somebody else is gone: the news of a victim, not of the
    /// culprit.
    pub(crate) fn is_secondary(&self) -> bool {
        const OF_PEERS: [&str; 6] = [
            "connection closed by peer",
            "connection reset by peer",
            "broken pipe",
            "connection refused",
            "socket closed",
            "timed out waiting",
        ];
        let error = match self {
            Self::GroupBroken { .. } => return true,
            Self::RankFailed { error, .. } => error,
            Self::WorkerLost { .. }
            | Self::WorkerRestarted { .. }
            | Self::RankMissing { .. }
            | Self::ShardsDisagree { .. }
            | Self::ManifestRefused { .. }
            | Self::LastCheckpointMissing { .. }
            | Self::Partitioned { .. }
            | Self::WeightsDisagree { .. } => return false,
        };
        let error = error.to_lowercase();
        OF_PEERS.iter().any(|words| error.contains(words))
    }
}

/// What a rank's report says of a failure, if it does.
pub(crate) fn failure(worker: &WorkerId, report: &RankReport) -> Option<Ending> {
    let (rank, worker) = (report.rank, worker.clone());
    match &report.phase {
        RankPhase::Failed { error, permanent } => Some(Ending::RankFailed {
            rank,
            worker,
            error: error.clone(),
            permanent: *permanent,
        }),
        RankPhase::Broken { error } => Some(Ending::GroupBroken {
            rank,
            worker,
            error: error.clone(),
        }),
        RankPhase::Starting
        | RankPhase::Ready
        | RankPhase::Joining
        | RankPhase::Training
        | RankPhase::Finished => None,
    }
}

/// Who of these members waited for what ended so, as the end of a sentence; empty where nobody had
/// to.
pub(crate) fn waiting(ending: &Ending, members: &[Member]) -> String {
    let Some((worker, rank)) = ending.awaited() else {
        return String::new();
    };
    let mut names = Vec::new();
    for member in members {
        let first = member.first_rank.0;
        for number in first..first.saturating_add(member.ranks) {
            let awaited = member.worker == *worker && rank.is_none_or(|rank| rank == Rank(number));
            if !awaited {
                names.push(format!("rank {number} on {}", member.worker.name));
            }
        }
    }
    if names.is_empty() {
        return String::new();
    }
    let more = match names.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    names.truncate(NAMED_MAX);
    format!("; {}{more} waited for it", names.join(", "))
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RankFailed {
                rank,
                worker,
                error,
                ..
            } => {
                let error: String = error.chars().take(WORDS_MAX).collect();
                write!(f, "rank {rank} on {worker} failed: {error}")
            }
            Self::GroupBroken {
                rank,
                worker,
                error,
            } => {
                let error: String = error.chars().take(WORDS_MAX).collect();
                write!(f, "rank {rank} on {worker} lost its group: {error}")
            }
            Self::WorkerLost {
                worker,
                silent_for_ms,
            } => {
                write!(f, "worker {worker} was not heard for {silent_for_ms} ms")
            }
            Self::WorkerRestarted { old, new } => write!(f, "worker {old} restarted as {new}"),
            Self::RankMissing { rank, worker } => {
                write!(f, "worker {worker} is up but does not run rank {rank}")
            }
            Self::Partitioned { what } => write!(f, "{what}, and every rank waits for another"),
            Self::WeightsDisagree { what } => f.write_str(what),
            Self::ShardsDisagree { step, what } => {
                write!(f, "the shards of step {step} disagree: {what}")
            }
            Self::ManifestRefused {
                step,
                attempts,
                error,
            } => {
                let error: String = error.chars().take(WORDS_MAX).collect();
                write!(
                    f,
                    "the manifest of step {step} could not be written in {attempts} attempts: \
                    {error}"
                )
            }
            Self::LastCheckpointMissing { step, without } => {
                let ranks: Vec<String> = without.iter().map(Rank::to_string).collect();
                let ranks = ranks.join(", ");
                write!(
                    f,
                    "all ranks are finished, but no shard of step {step} came from rank {ranks}"
                )
            }
        }
    }
}
