//! Reasons as values that become one sentence. Records, logs and tests use the same value. Nothing
//! is decided here.

use crate::record::Member;
use proto::id::{Rank, Step, WorkerId};
use proto::message::{HANGS, RankPhase, RankReport, SILENT};
use std::fmt;

/// Why a generation ended early.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    RankFailed {
        rank: Rank,
        worker: WorkerId,
        error: String,
        /// Another generation would fail in the same way.
        permanent: bool,
    },
    /// This rank lost the connection to its peers; the rank itself is intact.
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
    /// The worker is up but does not report this rank.
    RankMissing {
        rank: Rank,
        worker: WorkerId,
    },
    /// Some of its workers cannot reach each other. `what` names them.
    Partitioned {
        what: String,
    },
    /// Ranks that should hold the same weights do not. `what` names those that differ.
    WeightsDisagree {
        what: String,
    },
    /// Shards of one checkpoint are inconsistent.
    ShardsDisagree {
        step: Step,
        what: String,
    },
    ManifestRefused {
        step: Step,
        attempts: u32,
        error: String,
    },
    /// All ranks finished, but the last checkpoint is incomplete.
    LastCheckpointMissing {
        step: Step,
        without: Vec<Rank>,
    },
}

/// Maximum number of ranks named in one sentence.
const NAMED_MAX: usize = 8;

/// Maximum length of a rank's error in a record, in characters.
const ERROR_CHARS_MAX: usize = 600;

impl Ending {
    /// The worker that lost a process.
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

    /// True if the job did not cause this ending, however often it recurs. The job then waits until
    /// suitable workers exist.
    pub(crate) fn is_external(&self) -> bool {
        matches!(self, Self::Partitioned { .. })
    }

    /// The worker (and rank, if known) that blocked the others until the fault was detected.
    pub(crate) fn blocker(&self) -> Option<(&WorkerId, Option<Rank>)> {
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

    /// True if another generation would fail in the same way.
    pub(crate) fn is_permanent(&self) -> bool {
        matches!(
            self,
            Self::RankFailed {
                permanent: true,
                ..
            } | Self::WeightsDisagree { .. }
        )
    }

    /// True for a secondary error: it only shows that a peer failed.
    pub(crate) fn is_secondary(&self) -> bool {
        const PEER_ERRORS: [&str; 6] = [
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
        PEER_ERRORS.iter().any(|text| error.contains(text))
    }
}

/// The failure that a rank reports, if any.
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

/// Names the ranks of `members` that this ending blocked, as the end of a sentence. Empty if it
/// blocked none.
pub(crate) fn blocked_ranks(ending: &Ending, members: &[Member]) -> String {
    let Some((worker, rank)) = ending.blocker() else {
        return String::new();
    };
    let mut names = Vec::new();
    for member in members {
        let first = member.first_rank.0;
        for number in first..first.saturating_add(member.ranks) {
            let blocker = member.worker == *worker && rank.is_none_or(|rank| rank == Rank(number));
            if !blocker {
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
                let error: String = error.chars().take(ERROR_CHARS_MAX).collect();
                write!(f, "rank {rank} on {worker} failed: {error}")
            }
            Self::GroupBroken {
                rank,
                worker,
                error,
            } => {
                let error: String = error.chars().take(ERROR_CHARS_MAX).collect();
                write!(f, "rank {rank} on {worker} lost its process group: {error}")
            }
            Self::WorkerLost {
                worker,
                silent_for_ms,
            } => {
                write!(f, "worker {worker} sent no report for {silent_for_ms} ms")
            }
            Self::WorkerRestarted { old, new } => write!(f, "worker {old} restarted as {new}"),
            Self::RankMissing { rank, worker } => {
                write!(f, "worker {worker} is up but does not run rank {rank}")
            }
            Self::Partitioned { what } => write!(f, "{what}; every rank waits for another rank"),
            Self::WeightsDisagree { what } => f.write_str(what),
            Self::ShardsDisagree { step, what } => {
                write!(f, "the shards of step {step} are inconsistent: {what}")
            }
            Self::ManifestRefused {
                step,
                attempts,
                error,
            } => {
                let error: String = error.chars().take(ERROR_CHARS_MAX).collect();
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
                    "all ranks are finished, but rank {ranks} reported no shard of step {step}"
                )
            }
        }
    }
}
