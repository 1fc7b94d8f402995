//! What the worker's machine shows to metrics, logs and tests. Borrowed, read-only, made on demand
//! by [`crate::Worker::view`].

use crate::event::RankKey;
use proto::message::{Assignment, RankReport};

#[derive(Debug, Clone)]
pub struct View<'a> {
    pub connected: bool,
    /// True after [`crate::event::Input::Shutdown`].
    pub leaving: bool,
    /// In key order; includes ranks whose process is gone and whom the coordinator has not yet
    /// forgotten.
    pub ranks: Vec<RankView<'a>>,
}

#[derive(Debug, Clone)]
pub struct RankView<'a> {
    pub key: &'a RankKey,
    /// The device its process holds; None once the process is gone.
    pub device: Option<u32>,
    pub report: &'a RankReport,
    /// What the process was last told; None when no process was started for this rank.
    pub assignment: Option<&'a Assignment>,
}
