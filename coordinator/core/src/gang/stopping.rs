//! The planned end of a generation, once it was asked for.

use crate::record::Millis;
use proto::message::GracefulStop;
use std::fmt;

/// Why a generation should end although nothing is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Planned {
    Paused,
    /// It goes on with these workers instead of those it has.
    Moves {
        to: Vec<String>,
    },
    /// Others need its workers more, or they are drained; what it waits for then.
    MakesWay {
        lack: String,
    },
}

#[derive(Debug)]
pub(crate) struct Stopping {
    pub(crate) why: Planned,
    pub(crate) how: GracefulStop,
    pub(crate) asked: Millis,
    /// Then it ends, whatever its ranks have done.
    pub(crate) until: Millis,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paused => f.write_str("somebody paused it"),
            Self::Moves { to } => write!(f, "it is to run on {}", to.join(", ")),
            Self::MakesWay { lack } => write!(f, "it makes way: {lack}"),
        }
    }
}
