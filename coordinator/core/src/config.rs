//! What the machine is told once.

use std::collections::BTreeMap;

/// What the machine is told once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// URL under which `jobs/<job>/…` lies; handed to ranks.
    pub store_url: String,
    /// The one knob from which every time-out derives, in milliseconds (law 9).
    pub detect_within_ms: u64,
    /// Devices that a team may hold at one time; a team that is not named may hold any number.
    pub quotas: BTreeMap<String, u32>,
}
