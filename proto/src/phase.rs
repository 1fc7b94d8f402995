//! Names of the phases of jobs and ranks: in tables, in JSON output, and on the wire between
//! coordinator and command line. Pure.

use crate::message::RankPhase;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The phase of a job, as users see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Waits for workers.
    Queued,
    /// Waits until a user resumes it.
    Paused,
    /// Has workers; used where the phases of running jobs are not distinguished.
    Running,
    /// Running, and about to be paused.
    Pausing,
    /// Its ranks start, load and join the process group.
    Forming,
    /// All its ranks train.
    Training,
    /// Its ranks process units.
    Working,
    /// Some of its ranks have finished.
    Finishing,
    /// Its generation is stopping gracefully; another one may follow.
    Stopping,
    Done,
    Failed,
    Cancelled,
}

impl Phase {
    pub const ALL: [Self; 12] = [
        Self::Queued,
        Self::Paused,
        Self::Running,
        Self::Pausing,
        Self::Forming,
        Self::Training,
        Self::Working,
        Self::Finishing,
        Self::Stopping,
        Self::Done,
        Self::Failed,
        Self::Cancelled,
    ];

    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Paused => "paused",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Forming => "forming",
            Self::Training => "training",
            Self::Working => "working",
            Self::Finishing => "finishing",
            Self::Stopping => "stopping",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Parses a phase; None for a word of a later version.
    #[must_use]
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.word() == word)
    }

    /// This phase, adjusted for whether a user has paused the job.
    #[must_use]
    pub const fn or_paused(self, paused: bool) -> Self {
        match self {
            Self::Queued if paused => Self::Paused,
            Self::Running if paused => Self::Pausing,
            phase => phase,
        }
    }

    /// Whether the phase is terminal.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// Whether this word names a terminal phase.
#[must_use]
pub fn is_over(word: &str) -> bool {
    Phase::of(word).is_some_and(Phase::is_over)
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// Compares a word from the wire with a phase.
impl PartialEq<Phase> for str {
    fn eq(&self, phase: &Phase) -> bool {
        self == phase.word()
    }
}

impl PartialEq<Phase> for String {
    fn eq(&self, phase: &Phase) -> bool {
        self == phase.word()
    }
}

impl RankPhase {
    /// The name of the phase, one or two words.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Joining => "joining",
            Self::Training => "training",
            Self::Broken { .. } => "between generations",
            Self::Finished => "finished",
            Self::Failed { .. } => "failed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_of_one_phase() {
        for phase in Phase::ALL {
            assert_eq!(Phase::of(phase.word()), Some(phase));
            assert_eq!(format!("{phase:>9}").trim_start(), phase.word());
            assert!(*phase.word() == phase);
        }
        assert_eq!(
            (Phase::of("evaluating"), is_over("evaluating")),
            (None, false)
        );
        let over: Vec<Phase> = Phase::ALL.into_iter().filter(|it| it.is_over()).collect();
        assert_eq!(over, [Phase::Done, Phase::Failed, Phase::Cancelled]);
    }
}
