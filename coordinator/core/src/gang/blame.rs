//! How the last generation ended, as long as somebody may still tell it better: the victims of a
//! broken connection are often heard before the culprit.

use crate::record::Member;
use proto::id::{Generation, Rank};

#[derive(Debug)]
pub(crate) struct Blame {
    pub(crate) generation: Generation,
    pub(crate) members: Vec<Member>,
    /// What the incident says after the cause.
    pub(crate) follows: String,
}

/// A rank of one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RankOf {
    pub(crate) generation: Generation,
    pub(crate) rank: Rank,
}
