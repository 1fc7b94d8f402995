//! Why a rank process failed.

use super::shorten;
use crate::message::{Activity, Stage};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a rank process failed, as the rank or its daemon found it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum RankFailure {
    /// The rank reported an error: its text, with its context.
    Error {
        text: String,
        /// Another generation would fail in the same way.
        permanent: bool,
        /// A secondary error: it only shows that another process is gone.
        secondary: bool,
    },
    /// The process ended without reporting an error. `outcome` is what the operating system says of
    /// it ("killed by signal 9"); `success`: it was exit status 0, before the work was done.
    Exited { outcome: String, success: bool },
    /// It sent no heartbeat, and its daemon killed it.
    Silent {
        for_ms: u64,
        /// What it did last, in a word, and where.
        phase: String,
        activity: Option<Activity>,
    },
    /// Its compute thread made no progress, and the process ended itself.
    Hangs {
        activity: Activity,
        /// The longest stage of this kind so far. None: this was the first.
        longest_ms: Option<u64>,
    },
    /// It did not leave an older generation in time, and its daemon killed it.
    NotLeft,
    /// Its daemon stopped it or did not start it, because the daemon is shutting down.
    WorkerLeaves,
    /// Its daemon did not start it: the worker was removed from this generation before.
    Removed,
}

/// Texts of c10d and of the operating system that mean that a peer is gone.
const PEER_ERRORS: [&str; 6] = [
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "connection refused",
    "socket closed",
    "timed out waiting",
];

impl RankFailure {
    /// A rank's own error. This is the only place that reads the text of an error: c10d reports a
    /// lost peer in no other way.
    #[must_use]
    pub fn error(text: &str, permanent: bool) -> Self {
        let lower = text.to_lowercase();
        Self::Error {
            text: shorten(text),
            permanent,
            secondary: PEER_ERRORS.iter().any(|it| lower.contains(it)),
        }
    }

    #[must_use]
    pub fn is_permanent(&self) -> bool {
        matches!(
            self,
            Self::Error {
                permanent: true,
                ..
            }
        )
    }

    #[must_use]
    pub fn is_secondary(&self) -> bool {
        matches!(
            self,
            Self::Error {
                secondary: true,
                ..
            }
        )
    }

    /// True if the other ranks had to wait until it was detected.
    #[must_use]
    pub fn blocked_others(&self) -> bool {
        matches!(self, Self::Silent { .. } | Self::Hangs { .. })
    }
}

/// Stages of one kind have similar durations.
#[must_use]
pub fn stage_kind(stage: Stage) -> &'static str {
    match stage {
        Stage::Samples => "wait for samples",
        Stage::MicroBatch(_) => "micro-batch",
        Stage::Reduction => "reduction",
        Stage::Update => "update",
        Stage::Digest => "digest",
        Stage::Checkpoint => "checkpoint",
        Stage::Validation(_) => "validation batch",
        Stage::Unit(_) => "unit",
    }
}

impl fmt::Display for RankFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error { text, .. } => f.write_str(text),
            Self::Exited {
                outcome,
                success: false,
            } => f.write_str(outcome),
            Self::Exited { outcome, .. } => {
                write!(f, "exited before its work was done ({outcome})")
            }
            Self::Silent {
                for_ms,
                phase,
                activity,
            } => {
                write!(f, "silent for {for_ms} ms while {phase}")?;
                if let Some(activity) = activity {
                    write!(f, ", in {activity}")?;
                }
                f.write_str("; killed by its daemon")
            }
            Self::Hangs {
                activity,
                longest_ms,
            } => {
                let kind = stage_kind(activity.stage);
                let s = |ms: u64| ms as f64 / 1000.0;
                write!(f, "hangs in {activity}: for {:.1} s (", s(activity.for_ms))?;
                match longest_ms {
                    Some(longest) => write!(f, "longest {kind} so far: {:.1} s", s(*longest))?,
                    None => write!(f, "first {kind}")?,
                }
                f.write_str("); the process exits")
            }
            Self::NotLeft => {
                f.write_str("did not leave the older generation in time; killed by its daemon")
            }
            Self::WorkerLeaves => f.write_str("the worker is shutting down"),
            Self::Removed => {
                f.write_str("this worker was removed from this generation and cannot rejoin it")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_lost_peers_are_secondary() {
        for text in [
            "all-reduce: [gloo] Connection closed by peer [10.0.0.1]:4",
            "Broken pipe",
            "Timed out waiting 1000ms for recv",
        ] {
            assert!(RankFailure::error(text, false).is_secondary(), "{text}");
        }
        assert!(!RankFailure::error("step 3: the loss is NaN", true).is_secondary());
        assert!(RankFailure::error("step 3: the loss is NaN", true).is_permanent());
    }
}
