//! Lists of names, as sentences have them.

use proto::id::WorkerId;
use std::collections::BTreeSet;

/// Names in order.
pub(crate) fn listed<'a>(workers: impl IntoIterator<Item = &'a WorkerId>) -> String {
    let workers: BTreeSet<&WorkerId> = workers.into_iter().collect();
    let names: Vec<&str> = workers.iter().map(|worker| worker.name.as_str()).collect();
    names.join(", ")
}

/// A time as people read it.
pub(crate) fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}
