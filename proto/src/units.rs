//! How a job is divided into units. Plain data.

use serde::{Deserialize, Serialize};

/// Numbered, idempotent units of work, 0 to `count - 1`. Each writes its output once, under a name
/// that depends only on the unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnitPlan {
    pub count: u64,
    /// Whether unit `count - 1` is leased only when all others are done or set aside, because its
    /// output depends on all of them.
    pub closing: bool,
    pub on_failed: OnFailedUnit,
    /// The job pauses when more units than this have failed for good. None: it does not.
    pub pause_above: Option<u64>,
}

/// What happens when a unit has failed [`UNIT_FAILURES_MAX`] times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailedUnit {
    /// The job fails and names the unit.
    #[default]
    Stop,
    /// The unit is set aside and reported; the job continues without it.
    SetAside,
}

/// A unit that failed this often is not retried. Its attempts run on different workers if possible.
pub const UNIT_FAILURES_MAX: u32 = 3;
