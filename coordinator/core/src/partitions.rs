//! Pairs of live workers that cannot reach each other, so their ranks cannot train together. Each
//! pair has the error that one of them reported.

use proto::id::WorkerId;
use proto::reason::UnreachablePair;
use std::collections::{BTreeMap, BTreeSet};

/// Maximum length of a worker's error, in characters.
const ERROR_CHARS_MAX: usize = 200;

/// Pairs of workers without a connection, with the report of one of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Partitions(BTreeMap<Pair, UnreachablePair>);

/// The smaller id comes first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Pair(WorkerId, WorkerId);

impl Partitions {
    pub(crate) fn add(&mut self, worker: &WorkerId, peer: &WorkerId, error: &str) {
        let error: String = error.chars().take(ERROR_CHARS_MAX).collect();
        let key = pair(worker, peer);
        let report = UnreachablePair {
            workers: (key.0.name.clone(), key.1.name.clone()),
            from: worker.name.clone(),
            to: peer.name.clone(),
            error,
        };
        self.0.entry(key).or_insert(report);
    }

    /// All pairs, in order.
    pub(crate) fn list(&self) -> Vec<UnreachablePair> {
        self.0.values().cloned().collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn between(&self, a: &WorkerId, b: &WorkerId) -> bool {
        self.0.contains_key(&pair(a, b))
    }

    /// The pairs with both workers in `workers`.
    pub(crate) fn among<'a>(&self, workers: impl Iterator<Item = &'a WorkerId> + Clone) -> Self {
        self.filter(workers, true)
    }

    /// The pairs with at most one worker in `workers`.
    pub(crate) fn not_among<'a>(
        &self,
        workers: impl Iterator<Item = &'a WorkerId> + Clone,
    ) -> Self {
        self.filter(workers, false)
    }

    fn filter<'a>(&self, workers: impl Iterator<Item = &'a WorkerId> + Clone, both: bool) -> Self {
        let listed = |worker: &WorkerId| workers.clone().any(|other| other == worker);
        let pairs = self.0.iter();
        let pairs = pairs.filter(|(Pair(a, b), _)| (listed(a) && listed(b)) == both);
        Self(
            pairs
                .map(|(pair, report)| (pair.clone(), report.clone()))
                .collect(),
        )
    }

    /// The pairs that are not in `known`.
    pub(crate) fn new_since<'a>(
        &'a self,
        known: &'a Self,
    ) -> impl Iterator<Item = &'a UnreachablePair> {
        let new = self
            .0
            .iter()
            .filter(|(pair, _)| !known.0.contains_key(pair));
        new.map(|(_, report)| report)
    }

    /// The workers that this worker cannot reach.
    pub(crate) fn unreachable_from(&self, worker: &WorkerId) -> impl Iterator<Item = &WorkerId> {
        self.0.keys().filter_map(move |Pair(a, b)| {
            if a == worker {
                Some(b)
            } else {
                (b == worker).then_some(a)
            }
        })
    }

    /// Selects workers that can all reach each other: all of `fixed`, and as many of the others as
    /// possible. It includes a `warm` worker, which holds the newest state, if possible. Among
    /// equals it prefers the earlier. The selection is greedy: the worker that is unreachable for
    /// the fewest remaining candidates comes first, so that an isolated worker does not displace
    /// the others.
    pub(crate) fn choose_connected<'a>(
        &self,
        fixed: &[&'a WorkerId],
        warm: &[&'a WorkerId],
        cold: &[&'a WorkerId],
    ) -> Vec<&'a WorkerId> {
        let mut chosen = fixed.to_vec();
        // Usually empty, or a few of many workers.
        let involved: BTreeSet<&WorkerId> = self.0.keys().flat_map(|Pair(a, b)| [a, b]).collect();
        let is_free = |worker: &&&WorkerId| !involved.contains(**worker);
        let free: Vec<&WorkerId> = warm.iter().chain(cold).filter(is_free).copied().collect();
        let reached = |worker: &&&WorkerId| {
            !is_free(worker) && !fixed.iter().any(|it| self.between(worker, it))
        };
        let mut left: Vec<&WorkerId> = warm.iter().filter(reached).copied().collect();
        let mut first = if warm.iter().any(|worker| is_free(&worker)) {
            0
        } else {
            left.len()
        };
        left.extend(cold.iter().filter(reached));
        chosen.extend(free);
        while !left.is_empty() {
            let misses =
                |worker: &WorkerId| left.iter().filter(|it| self.between(worker, it)).count();
            let choice = if first == 0 { left.len() } else { first };
            let next = (0..choice).min_by_key(|index| misses(left[*index]));
            let worker = left.remove(next.unwrap_or(0));
            left.retain(|other| !self.between(worker, other));
            chosen.push(worker);
            first = 0;
        }
        chosen
    }
}

fn pair(a: &WorkerId, b: &WorkerId) -> Pair {
    let (a, b) = if a < b { (a, b) } else { (b, a) };
    Pair(a.clone(), b.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u32) -> WorkerId {
        WorkerId {
            name: format!("w{number}"),
            boot: 1,
        }
    }

    /// Which of w1 to w`count` may train together.
    fn together(pairs: &[(u32, u32)], count: u32) -> Vec<String> {
        let mut partitions = Partitions::default();
        for (a, b) in pairs {
            partitions.add(&id(*a), &id(*b), "10.0.0.9:7073: connection refused");
        }
        let workers: Vec<WorkerId> = (1..=count).map(id).collect();
        let workers: Vec<&WorkerId> = workers.iter().collect();
        let chosen = partitions.choose_connected(&[], &[], &workers);
        chosen.iter().map(|worker| worker.name.clone()).collect()
    }

    #[test]
    fn as_few_as_can_be_are_left_out() {
        assert_eq!(together(&[], 3), ["w1", "w2", "w3"]);
        assert_eq!(
            together(&[(2, 3)], 3),
            ["w1", "w2"],
            "the later of the pair"
        );
        let alone = [(1, 2), (3, 1), (1, 4)];
        assert_eq!(
            together(&alone, 4),
            ["w2", "w3", "w4"],
            "a worker that none can reach"
        );
        let halves = [(1, 3), (1, 4), (1, 5), (2, 3), (2, 4), (2, 5)];
        assert_eq!(together(&halves, 5), ["w3", "w4", "w5"], "the smaller side");
        let chain = [(1, 2), (2, 3), (3, 4)];
        assert_eq!(together(&chain, 4), ["w1", "w3"]);
        let isolated = [(1, 2), (1, 3), (2, 3)];
        assert_eq!(together(&isolated, 3), ["w1"]);
    }

    #[test]
    fn a_pair_counts_once_whichever_worker_reports_it() {
        let mut partitions = Partitions::default();
        partitions.add(&id(2), &id(1), "10.0.0.1:7073: connection refused");
        partitions.add(&id(1), &id(2), "10.0.0.2:7073: no answer");
        let first = UnreachablePair {
            workers: ("w1".to_owned(), "w2".to_owned()),
            from: "w2".to_owned(),
            to: "w1".to_owned(),
            error: "10.0.0.1:7073: connection refused".to_owned(),
        };
        assert_eq!(partitions.list(), [first]);
        for other in 3..9 {
            partitions.add(&id(1), &id(other), "");
        }
        assert_eq!(partitions.list().len(), 7);
        assert_eq!(
            partitions.unreachable_from(&id(2)).collect::<Vec<_>>(),
            [&id(1)]
        );
        let some = [id(1), id(4), id(5)];
        assert_eq!(partitions.among(some.iter()).0.len(), 2);
    }
}
