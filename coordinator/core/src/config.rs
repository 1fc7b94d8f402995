//! The state machine's configuration.

use std::collections::BTreeMap;

/// Settings that do not change while the process runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// URL that contains `jobs/<job>/…`; passed on to ranks.
    pub store_url: String,
    /// The setting from which every timeout derives, in milliseconds (law 9).
    pub detect_within_ms: u64,
    /// Number of ended jobs that stay in memory, so that whoever watches one sees its end. Older
    /// ones are archived, unless a job that is not over names them.
    pub ended_jobs_max: usize,
    /// Maximum number of devices per team. A team without an entry has no limit.
    pub quotas: BTreeMap<String, u32>,
    pub waiting: WaitingQuotas,
}

/// How many jobs may wait, so that one sender cannot fill the coordinator's memory and its plans.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingQuotas {
    /// By team.
    pub teams: BTreeMap<String, u32>,
    /// For a team without an entry.
    pub other: u32,
    /// For all teams together, because a job names its team itself.
    pub all: u32,
}

impl Default for WaitingQuotas {
    /// No limit.
    fn default() -> Self {
        Self {
            teams: BTreeMap::new(),
            other: u32::MAX,
            all: u32::MAX,
        }
    }
}
