//! Why a generation ended before its work was done.

use super::{Pairs, RankFailure, RankOn, UnreachablePair, shorten};
use crate::id::{Rank, Step, WorkerId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Characters of a digest that a sentence shows.
const DIGEST_CHARS: usize = 12;

/// Why a generation ended early.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Ending {
    RankFailed {
        rank: Rank,
        worker: WorkerId,
        failure: RankFailure,
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
    /// Some of its workers cannot reach each other, and every rank waits for another.
    Partitioned {
        pairs: Vec<UnreachablePair>,
    },
    /// Ranks that should hold the same weights do not.
    WeightsDisagree {
        step: Step,
        weights: WeightDisagreement,
    },
    /// Shards of one checkpoint are inconsistent.
    ShardsDisagree {
        step: Step,
        shards: Disagreement,
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

/// In what shards of one checkpoint differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Disagreement {
    /// Ranks started from different base weights; their digests.
    BaseWeights { digests: Vec<Option<String>> },
}

/// Digests of the ranks' weights after a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum WeightDisagreement {
    /// One rank differs from all others, which agree.
    One {
        rank: RankOn,
        sha256: String,
        others: u32,
        others_sha256: String,
    },
    /// It is not known whose weights are right.
    Many { ranks: Vec<(RankOn, String)> },
}

impl Ending {
    /// Its kind in a word, for counters.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::RankFailed { .. } => "rank-failed",
            Self::GroupBroken { .. } => "group-broken",
            Self::WorkerLost { .. } => "worker-lost",
            Self::WorkerRestarted { .. } => "worker-restarted",
            Self::RankMissing { .. } => "rank-missing",
            Self::Partitioned { .. } => "partitioned",
            Self::WeightsDisagree { .. } => "weights-disagree",
            Self::ShardsDisagree { .. } => "shards-disagree",
            Self::ManifestRefused { .. } => "manifest-refused",
            Self::LastCheckpointMissing { .. } => "last-checkpoint-missing",
        }
    }

    /// The worker that lost a process.
    #[must_use]
    pub fn lost_worker(&self) -> Option<&WorkerId> {
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
    #[must_use]
    pub fn is_external(&self) -> bool {
        matches!(self, Self::Partitioned { .. })
    }

    /// The worker (and rank, if known) that blocked the others until the fault was detected.
    #[must_use]
    pub fn blocker(&self) -> Option<(&WorkerId, Option<Rank>)> {
        match self {
            Self::RankFailed {
                rank,
                worker,
                failure,
            } => failure.blocked_others().then_some((worker, Some(*rank))),
            Self::RankMissing { rank, worker } => Some((worker, Some(*rank))),
            Self::WorkerLost { worker, .. } => Some((worker, None)),
            Self::GroupBroken { .. }
            | Self::WorkerRestarted { .. }
            | Self::ShardsDisagree { .. }
            | Self::ManifestRefused { .. }
            | Self::LastCheckpointMissing { .. }
            | Self::Partitioned { .. }
            | Self::WeightsDisagree { .. } => None,
        }
    }

    /// True if another generation would fail in the same way.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::RankFailed { failure, .. } => failure.is_permanent(),
            other => matches!(other, Self::WeightsDisagree { .. }),
        }
    }

    /// True for a secondary error: it only shows that a peer failed.
    #[must_use]
    pub fn is_secondary(&self) -> bool {
        match self {
            Self::RankFailed { failure, .. } => failure.is_secondary(),
            other => matches!(other, Self::GroupBroken { .. }),
        }
    }
}

fn abbreviate(sha256: &str) -> &str {
    sha256.get(..DIGEST_CHARS).unwrap_or(sha256)
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RankFailed {
                rank,
                worker,
                failure,
            } => write!(f, "rank {rank} on {worker} failed: {failure}"),
            Self::GroupBroken {
                rank,
                worker,
                error,
            } => {
                let error = shorten(error);
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
            Self::Partitioned { pairs } => {
                let pairs = Pairs(pairs);
                write!(f, "{pairs}; every rank waits for another rank")
            }
            Self::WeightsDisagree { step, weights } => weights.write(f, *step),
            Self::ShardsDisagree { step, shards } => {
                write!(f, "the shards of step {step} are inconsistent: {shards}")
            }
            Self::ManifestRefused {
                step,
                attempts,
                error,
            } => {
                let error = shorten(error);
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

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::BaseWeights { digests } = self;
        let digests: Vec<&str> = digests
            .iter()
            .map(|digest| digest.as_deref().map_or("none", abbreviate))
            .collect();
        let digests = digests.join(", ");
        write!(f, "ranks started from different base weights: {digests}")
    }
}

impl WeightDisagreement {
    fn write(&self, f: &mut fmt::Formatter<'_>, step: Step) -> fmt::Result {
        match self {
            Self::One {
                rank,
                sha256,
                others,
                others_sha256,
            } => write!(
                f,
                "{rank} diverged: its weights after step {step} are {}, those of the other \
                 {others} ranks are {}",
                abbreviate(sha256),
                abbreviate(others_sha256)
            ),
            Self::Many { ranks } => {
                let each: Vec<String> = ranks
                    .iter()
                    .map(|(rank, sha256)| format!("{rank} {}", abbreviate(sha256)))
                    .collect();
                write!(
                    f,
                    "the ranks' weights differ after step {step}, and it is unknown which are \
                     correct: {}",
                    each.join(", ")
                )
            }
        }
    }
}
