//! The words for what a job and its ranks are at: in tables, in JSON for programs, on the wire
//! between coordinator and command line. Pure.

use crate::message::RankPhase;
use std::fmt;

/// What a job is at, as people see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// It waits for workers.
    Queued,
    /// It waits until somebody resumes it.
    Paused,
    /// It has workers, and what they are at is not told apart.
    Running,
    /// Running, and on its way to be paused.
    Pausing,
    /// Its ranks start, load and join.
    Forming,
    /// All its ranks are at work.
    Training,
    /// Its ranks work on units.
    Working,
    /// Some of its ranks are done.
    Finishing,
    /// Its generation ends in order, for another one or for none.
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

    /// The phase of a word; None for a word of a later version.
    #[must_use]
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.word() == word)
    }

    /// The same, of a job that somebody may have paused.
    #[must_use]
    pub const fn or_paused(self, paused: bool) -> Self {
        match self {
            Self::Queued if paused => Self::Paused,
            Self::Running if paused => Self::Pausing,
            phase => phase,
        }
    }

    /// Whether a job in this phase will never change again.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// Whether a job whose phase has this word will never change again.
#[must_use]
pub fn is_over(word: &str) -> bool {
    Phase::of(word).is_some_and(Phase::is_over)
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// A phase's word on the wire says what the phase does.
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
    /// What a rank is at, in a word or two.
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
