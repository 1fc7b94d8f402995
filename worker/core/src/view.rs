//! A read-only view of the worker's machine for metrics, logs and tests. Borrowed, created on
//! demand by [`crate::Worker::view`].

use crate::event::RankKey;
use proto::message::{Assignment, RankReport};

#[derive(Debug, Clone)]
pub struct View<'a> {
    pub connected: bool,
    /// True after [`crate::event::Input::Shutdown`].
    pub leaving: bool,
    /// In key order. Includes ranks whose process has exited, while the assignments still name
    /// them.
    pub ranks: Vec<RankView<'a>>,
}

#[derive(Debug, Clone)]
pub struct RankView<'a> {
    pub key: &'a RankKey,
    /// The device that its process holds; None once the process has exited.
    pub device: Option<u32>,
    pub report: &'a RankReport,
    /// The last assignment sent to the process; None if no process was started for this rank.
    pub assignment: Option<&'a Assignment>,
}
