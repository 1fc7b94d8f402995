//! Formats names and durations for messages.

use proto::id::WorkerId;
use std::collections::BTreeSet;

/// The workers' names, sorted.
pub(crate) fn names<'a>(workers: impl IntoIterator<Item = &'a WorkerId>) -> Vec<String> {
    let workers: BTreeSet<&WorkerId> = workers.into_iter().collect();
    workers.iter().map(|worker| worker.name.clone()).collect()
}

/// A duration in seconds.
pub(crate) fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}
