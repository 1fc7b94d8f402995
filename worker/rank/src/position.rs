//! A rank and its world size.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) rank: u32,
    /// Number of ranks.
    pub(crate) world: u32,
}
