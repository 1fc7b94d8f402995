//! Which worlds there are, and how one ends.

use super::Bug;
use std::fmt;

/// What there is to do in a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kinds {
    /// Whatever its seed says.
    All,
    /// The same without those who want pictures: training alone.
    Gangs,
    /// The same with jobs of many units beside them, of which some wait for others.
    Mixed,
}

impl Kinds {
    /// How a person names it; None: it need not be named.
    #[must_use]
    pub fn flag(self) -> Option<&'static str> {
        match self {
            Self::All => None,
            Self::Gangs => Some("gangs"),
            Self::Mixed => Some("mixed"),
        }
    }
}

/// How a world ended well.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    pub done: u32,
    pub failed: u32,
    pub cancelled: u32,
    /// Generations that did not do their work.
    pub restarts: u32,
    pub events: u64,
    /// Of the whole story, when it was hashed.
    pub hash: u64,
    /// Of the story's numbers, when they were: the same as long as the machines decide the same,
    /// whatever things are called.
    pub numbers: u64,
}

impl Outcome {
    /// Adds up worlds; a sum has no hash.
    pub fn add(&mut self, other: &Self) {
        self.done += other.done;
        self.failed += other.failed;
        self.cancelled += other.cancelled;
        self.restarts += other.restarts;
        self.events += other.events;
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            done,
            failed,
            cancelled,
            restarts,
            events,
            ..
        } = self;
        write!(
            f,
            "{events} events, {restarts} restarts; jobs: {done} done, {failed} failed, \
            {cancelled} cancelled"
        )?;
        // A sum has none.
        if self.hash != 0 {
            write!(f, "; trace hash {:016x}", self.hash)?;
        }
        Ok(())
    }
}

/// What went wrong, and how to see it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    pub kinds: Kinds,
    pub seed: u64,
    /// What was planted in it.
    pub bug: Option<Bug>,
    pub at_ms: u64,
    pub what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.at_ms as f64 / 1000.0;
        write!(
            f,
            "seed {} at {seconds} s: {} (replay: make sim SEED={}{}{} TRACE=1)",
            self.seed,
            self.what,
            self.seed,
            self.kinds
                .flag()
                .map_or_else(String::new, |kinds| format!(" KINDS={kinds}")),
            self.bug
                .map_or_else(String::new, |bug| format!(" BUG={bug:?}")),
        )
    }
}
