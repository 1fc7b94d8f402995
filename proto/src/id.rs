//! Identifiers as types, so that the compiler catches swapped arguments. They only have an order
//! and a text form.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[derive(Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// Numbers the groups of ranks that were formed for a job. Starts at 1, grows by 1 with each
    /// new group, and is never reused.
    Generation(u64)
}
number! {
    /// The index of a process in a generation, 0-based.
    Rank(u32)
}
number! {
    /// The number of completed optimizer updates. A new job is at step 0; the first update
    /// completes step 1.
    Step(u64)
}

impl Generation {
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A job's id as users type it: the job's name and a number, for instance `demo-3`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub String);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A worker: its configured name and the boot number of its daemon. A restarted daemon is a new
/// worker (law 6), because everything that its ranks held in memory is lost.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkerId {
    pub name: String,
    /// Start time of the daemon in milliseconds since 1970; larger after every restart.
    pub boot: u64,
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.name, self.boot)
    }
}
