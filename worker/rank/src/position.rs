//! A rank's place among the ranks that share something out.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) rank: u32,
    /// How many ranks there are.
    pub(crate) world: u32,
}
