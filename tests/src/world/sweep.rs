//! Runs many independent worlds on all cores and sums up their outcomes.

use super::stable_hash::StableHasher;
use super::{Broken, Bug, Kinds, Outcome, TraceMode, run_of};
use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::available_parallelism;

/// Outcomes of many worlds.
#[derive(Debug)]
pub struct Sweep {
    pub sum: Outcome,
    /// Sorted by seed.
    pub broken: Vec<Broken>,
    /// The fewest events of a world that did not break.
    pub shortest: u64,
    pub threads: usize,
}

/// Runs the worlds of the first `count` seeds. Calls `on_failure` when a world breaks.
///
/// # Panics
/// If `on_failure` panics.
pub fn sweep(
    kinds: Kinds,
    count: u64,
    bug: Option<Bug>,
    on_failure: impl Fn(&Broken) + Sync,
) -> Sweep {
    let threads = available_parallelism().map_or(1, NonZero::get);
    let next = AtomicU64::new(0);
    let all = Mutex::new(Sweep {
        sum: Outcome::default(),
        broken: Vec::new(),
        shortest: u64::MAX,
        threads,
    });
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if count <= seed {
                break;
            }
            let result = run_of(kinds, seed, bug, TraceMode::Off);
            let mut all = all.lock().expect("the lock is not poisoned");
            match result {
                Ok(outcome) => {
                    all.sum.add(&outcome);
                    all.shortest = all.shortest.min(outcome.events);
                }
                Err(broken) => {
                    on_failure(&broken);
                    all.broken.push(broken);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    let mut all = all.into_inner().expect("the lock is not poisoned");
    all.broken.sort_by_key(|broken| broken.seed);
    all
}

/// The stable hashes of many worlds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hashes {
    /// By seed; the error if the world broke.
    pub each: BTreeMap<u64, Result<u64, Broken>>,
    /// The hash of all of them, in order.
    pub all: u64,
}

/// Computes the stable hashes of the worlds of the first `count` seeds, to compare two versions of
/// the code.
///
/// # Panics
/// If a worker thread panics.
#[must_use]
pub fn hashes(count: u64, kinds: Kinds) -> Hashes {
    let threads = available_parallelism().map_or(1, NonZero::get);
    let (next, each) = (AtomicU64::new(0), Mutex::new(BTreeMap::new()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if count <= seed {
                break;
            }
            let hash = run_of(kinds, seed, None, TraceMode::StablyHashed)
                .map(|outcome| outcome.stable_hash);
            let mut each = each.lock().expect("the lock is not poisoned");
            each.insert(seed, hash);
        }
    };
    std::thread::scope(|scope| {
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    let each = each.into_inner().expect("the lock is not poisoned");
    let mut all = StableHasher::default();
    for hash in each.values() {
        match hash {
            Ok(hash) => all.put(*hash),
            Err(broken) => all.put(broken.at_ms),
        }
    }
    let all = all.value();
    Hashes { each, all }
}
