//! A requested graceful stop of a generation.

use crate::record::Millis;
use proto::message::GracefulStop;
use std::fmt;

/// Why a generation should end without a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Planned {
    Paused,
    /// It continues on these workers.
    Moves {
        to: Vec<String>,
    },
    /// Other jobs take its workers, or its workers are drained. `shortage` is why it then waits.
    Preempted {
        shortage: String,
    },
}

#[derive(Debug)]
pub(crate) struct Stopping {
    pub(crate) why: Planned,
    pub(crate) how: GracefulStop,
    pub(crate) asked: Millis,
    /// When it ends, whatever its ranks have done.
    pub(crate) until: Millis,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paused => f.write_str("paused by a user"),
            Self::Moves { to } => write!(f, "moves to {}", to.join(", ")),
            Self::Preempted { shortage } => write!(f, "preempted: {shortage}"),
        }
    }
}
