//! An attempt to read the scores of an evaluation. It is not durable: after a restart the machine
//! reads them again.

use crate::record::Millis;

/// An attempt to read the scores of an evaluation.
#[derive(Debug)]
pub(crate) struct Reading {
    /// When it counts as failed.
    pub(crate) retry_at: Millis,
    pub(crate) attempts: u32,
    /// The error of the last attempt.
    pub(crate) error: String,
}
