//! The end of the last generation, kept while the root cause may still be reported: secondary
//! errors of a broken connection often arrive before the error that caused them.

use crate::record::Member;
use proto::id::{Generation, Rank};
use proto::reason::Consequence;

#[derive(Debug)]
pub(crate) struct Blame {
    pub(crate) generation: Generation,
    pub(crate) members: Vec<Member>,
    pub(crate) consequence: Consequence,
}

/// A rank of one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RankOf {
    pub(crate) generation: Generation,
    pub(crate) rank: Rank,
}
