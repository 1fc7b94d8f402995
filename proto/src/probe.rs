//! What a user may ask the ranks of a job, and their answers, as JSON between a rank, its daemon,
//! the coordinator and the command line. Not part of any state: a lost answer is asked for again.

use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// Longest answer of one rank.
pub const ANSWER_BYTES: usize = 8 << 20;
/// An answer travels in parts of at most this many bytes.
pub const PART_BYTES: usize = 256 << 10;
/// Spans that a rank keeps; older ones are overwritten.
pub const SPANS: usize = 32 << 10;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Question {
    /// Where is every thread?
    Stacks,
    /// What was done in these steps (or units), and when?
    Trace { first: u64, last: u64 },
}

impl Question {
    #[must_use]
    pub fn trace(steps: &RangeInclusive<u64>) -> Self {
        Self::Trace {
            first: *steps.start(),
            last: *steps.end(),
        }
    }
}

/// The threads of a rank's process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stacks {
    /// What its model thread does, as a sentence; empty: neither a step nor a unit.
    pub activity: String,
    pub threads: Vec<Thread>,
    /// Why something is missing; empty: nothing is.
    pub note: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    /// The kernel's number of it; that of the main thread is the process'.
    pub id: i32,
    pub name: String,
    /// As the kernel says: `R (running)`, `S (sleeping)`, `D (disk sleep)`, …
    pub state: String,
    /// The function of the kernel in which it waits; empty: it runs, or the kernel does not say.
    pub waits_in: String,
    /// The innermost first: function, then file and line if they are known.
    pub frames: Vec<String>,
    /// Why there are no frames; empty: there are.
    pub note: String,
}

/// What a rank did, and when.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    pub spans: Vec<Span>,
    /// The first and the last step that this process remembers; None: it has finished none.
    pub remembers: Option<(u64, u64)>,
}

/// What one thread or task of a rank did for a while.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Span {
    pub lane: Lane,
    pub name: String,
    /// The step, or the unit.
    pub step: u64,
    pub generation: u64,
    /// Microseconds since 1970, by the clock of the rank's node.
    pub start_us: u64,
    pub micros: u64,
}

/// Spans of one lane do not overlap, unless they are nested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lane {
    /// The model thread.
    Model,
    /// Reading the samples of the next step.
    Prefetch,
}

impl Lane {
    pub const ALL: [Self; 2] = [Self::Model, Self::Prefetch];

    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Model => "model thread",
            Self::Prefetch => "prefetch",
        }
    }
}
