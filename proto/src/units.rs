//! What a job that works on units is cut into. Plain data.

use serde::{Deserialize, Serialize};

/// Numbered, idempotent pieces of work: unit 0 to `count - 1`. Each puts its output once, under a
/// name that depends on the unit alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnitPlan {
    pub count: u64,
    /// Unit `count - 1` is leased only when all others are done or set aside: it writes what needs
    /// all of them.
    pub closing: bool,
    pub on_failed: OnFailedUnit,
}

/// What happens when a unit has failed [`UNIT_FAILURES_MAX`] times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailedUnit {
    /// The job fails and names the unit.
    #[default]
    Stop,
    /// The unit is set aside and named; the job goes on without it.
    SetAside,
}

/// A unit that failed this often, on different workers where there are several, is not tried again.
pub const UNIT_FAILURES_MAX: u32 = 3;
