//! Many worlds, on all cores. Each is a value of its own; only their numbers come together.

use super::numbers::Numbers;
use super::{Broken, Bug, Kinds, Outcome, Story, run_of};
use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::available_parallelism;

/// What became of many worlds.
#[derive(Debug)]
pub struct Crowd {
    pub sum: Outcome,
    /// In the order of their seeds.
    pub broken: Vec<Broken>,
    /// Events of the shortest one that ended well.
    pub shortest: u64,
    pub threads: usize,
}

/// Lives through the worlds of the first `count` seeds. `tell` hears of each that breaks, when it
/// does.
///
/// # Panics
/// If `tell` does.
pub fn crowd(kinds: Kinds, count: u64, bug: Option<Bug>, tell: impl Fn(&Broken) + Sync) -> Crowd {
    let threads = available_parallelism().map_or(1, NonZero::get);
    let next = AtomicU64::new(0);
    let all = Mutex::new(Crowd {
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
            let result = run_of(kinds, seed, bug, Story::Dropped);
            let mut all = all.lock().expect("whoever panicked has ended this already");
            match result {
                Ok(outcome) => {
                    all.sum.add(&outcome);
                    all.shortest = all.shortest.min(outcome.events);
                }
                Err(broken) => {
                    tell(&broken);
                    all.broken.push(broken);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    let mut all = all
        .into_inner()
        .expect("whoever panicked has ended this already");
    all.broken.sort_by_key(|broken| broken.seed);
    all
}

/// The hashes of numbers of many worlds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hashes {
    /// By seed, or why there is none.
    pub each: BTreeMap<u64, Result<u64, Broken>>,
    /// Of all of them, in order.
    pub all: u64,
}

/// Lives through the worlds of the first `count` seeds and hashes their numbers, to compare two
/// versions.
///
/// # Panics
/// If a thread of it did.
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
            let hash = run_of(kinds, seed, None, Story::Numbered).map(|outcome| outcome.numbers);
            let mut each = each
                .lock()
                .expect("whoever panicked has ended this already");
            each.insert(seed, hash);
        }
    };
    std::thread::scope(|scope| {
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    let each = each
        .into_inner()
        .expect("whoever panicked has ended this already");
    let mut all = Numbers::default();
    for hash in each.values() {
        match hash {
            Ok(hash) => all.put(*hash),
            Err(broken) => all.put(broken.at_ms),
        }
    }
    let all = all.value();
    Hashes { each, all }
}
