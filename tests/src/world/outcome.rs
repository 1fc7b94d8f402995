//! Kinds of worlds, and how a world ends.

use super::Bug;
use proto::account::Bucket;
use std::collections::BTreeMap;
use std::fmt;

/// Which jobs a world has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kinds {
    /// Training and sampling, as the seed says.
    All,
    /// Training jobs only.
    Gangs,
    /// Training jobs and jobs of many units; some wait for others.
    Mixed,
    /// The same, and the coordinator archives every job as soon as it has ended.
    Archived,
    /// Training jobs whose checkpoints are evaluated while they train.
    Evaluated,
}

impl Kinds {
    /// Its command line flag; None: the default.
    #[must_use]
    pub fn flag(self) -> Option<&'static str> {
        match self {
            Self::All => None,
            Self::Gangs => Some("gangs"),
            Self::Mixed => Some("mixed"),
            Self::Archived => Some("archived"),
            Self::Evaluated => Some("evaluated"),
        }
    }
}

/// Statistics of a world that ended without a violation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    pub done: u32,
    pub failed: u32,
    pub cancelled: u32,
    /// Restarts of all jobs.
    pub restarts: u32,
    /// Evaluations of training jobs with scores, without, and checkpoints that got none.
    pub scored: u32,
    pub unscored: u32,
    pub skipped: u32,
    /// Where the device-time of all jobs went, in milliseconds.
    pub spent: BTreeMap<Bucket, u64>,
    pub events: u64,
    /// Hash of the trace, if it was computed.
    pub hash: u64,
    /// Stable hash, if it was computed: it changes only when the machines decide differently, not
    /// when something is renamed.
    pub stable_hash: u64,
}

impl Outcome {
    /// Adds the counts of another world; a sum has no hash.
    pub fn add(&mut self, other: &Self) {
        self.done += other.done;
        self.failed += other.failed;
        self.cancelled += other.cancelled;
        self.restarts += other.restarts;
        self.scored += other.scored;
        self.unscored += other.unscored;
        self.skipped += other.skipped;
        self.events += other.events;
        for (bucket, ms) in &other.spent {
            *self.spent.entry(*bucket).or_insert(0) += ms;
        }
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
        // A sum of outcomes has no hash.
        if self.hash != 0 {
            write!(f, "; trace hash {:016x}", self.hash)?;
        }
        Ok(())
    }
}

/// A violation, and how to reproduce it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    pub kinds: Kinds,
    pub seed: u64,
    /// The planted bug.
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
