//! Formats names and durations for messages.

use proto::id::WorkerId;
use std::collections::BTreeSet;

/// The workers' names, sorted and separated by commas.
pub(crate) fn join_names<'a>(workers: impl IntoIterator<Item = &'a WorkerId>) -> String {
    let workers: BTreeSet<&WorkerId> = workers.into_iter().collect();
    let names: Vec<&str> = workers.iter().map(|worker| worker.name.as_str()).collect();
    names.join(", ")
}

/// A duration in seconds.
pub(crate) fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}
