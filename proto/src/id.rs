//! Names of things, as types, so that the compiler catches a swap. No behaviour beyond order and
//! text.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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
    /// One formed group of ranks of a job. Starts at 1; each new group is one higher; never reused.
    Generation(u64)
}
number! {
    /// A place in a generation, 0-based.
    Rank(u32)
}
number! {
    /// The number of optimizer updates done. A fresh job is at step 0; the first update ends step
    /// 1.
    Step(u64)
}

impl Generation {
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A job, as people type it: the job's name and a number, for instance `demo-3`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub String);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A worker: its configured name and the number of this start of its daemon. A restarted daemon is
/// a new worker (law 6), because everything that its ranks held in memory is gone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkerId {
    pub name: String,
    /// Milliseconds since 1970 when the daemon started: larger after every restart.
    pub boot: u64,
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.name, self.boot)
    }
}
