//! Thousands of simulated clusters: the production state machines in random worlds. See
//! `tests/src/world/mod.rs`.

#![allow(clippy::unwrap_used)]

use proto::account::Bucket;
use std::collections::BTreeSet;
use tests::world::{
    Bug, EVENTS_MIN, Kinds, TraceMode, hashes, many_units, restore_every_prefix, run,
    run_collecting, run_of, sweep,
};

const WORLDS: u64 = 5_000;
/// Upper bound for a job's record, for any number of units.
const RECORD_BYTES_MAX: usize = 32 << 10;
/// Number of worlds that also have jobs of units.
const MIXED_WORLDS: u64 = 2_000;
/// Number of worlds with evaluations of training jobs.
const EVALUATED_WORLDS: u64 = 1_000;

/// Every job of every world ends with the value of an undisturbed run, and no invariant is
/// violated.
#[test]
fn five_thousand_worlds_end_well() {
    let sweep = sweep(Kinds::All, WORLDS, None, |_| {});
    let broken: Vec<String> = sweep.broken.iter().map(ToString::to_string).collect();
    assert!(
        broken.is_empty(),
        "{} of {WORLDS} worlds broke:\n{}",
        broken.len(),
        broken.join("\n")
    );
    assert!(
        EVENTS_MIN <= sweep.shortest,
        "a world of {} events",
        sweep.shortest
    );
    let sum = sweep.sum;
    // Faults are frequent enough to be a test, and not so frequent that most jobs fail.
    assert!(
        5_000 < sum.restarts,
        "only {} restarts in {WORLDS} worlds",
        sum.restarts
    );
    // The accounts of time are exact (see `accounts.rs`), and each bucket of a gang is used.
    let gang = Bucket::ALL.into_iter().filter(|it| *it != Bucket::Units);
    let unused: Vec<Bucket> = gang.filter(|it| !sum.spent.contains_key(it)).collect();
    assert!(
        unused.is_empty(),
        "no time went into {unused:?}: {:?}",
        sum.spent
    );
    assert!(
        250 < sum.cancelled,
        "only {} jobs were cancelled",
        sum.cancelled
    );
    assert!(
        sum.failed * 20 < sum.done,
        "{} jobs failed and only {} were done",
        sum.failed,
        sum.done
    );
}

/// Worlds in which jobs of units and gangs compete for devices, and some wait for others.
#[test]
fn two_thousand_mixed_worlds_end_well() {
    let sweep = sweep(Kinds::Mixed, MIXED_WORLDS, None, |_| {});
    let broken: Vec<String> = sweep.broken.iter().map(ToString::to_string).collect();
    assert!(
        broken.is_empty(),
        "{} of {MIXED_WORLDS} worlds broke:\n{}",
        broken.len(),
        broken.join("\n")
    );
    let sum = sweep.sum;
    assert!(sum.spent.contains_key(&Bucket::Units), "{:?}", sum.spent);
    assert!(
        sum.failed * 10 < sum.done && sum.cancelled * 4 < sum.done,
        "{} jobs failed, {} were cancelled and only {} were done",
        sum.failed,
        sum.cancelled,
        sum.done
    );
}

/// Worlds in which training jobs are evaluated while they train: by jobs that die or are cancelled,
/// on free devices or on those that they give up, while they are paused, scaled, cancelled, done.
#[test]
fn a_thousand_worlds_with_evaluations_end_well() {
    let sweep = sweep(Kinds::Evaluated, EVALUATED_WORLDS, None, |_| {});
    let broken: Vec<String> = sweep.broken.iter().map(ToString::to_string).collect();
    assert!(
        broken.is_empty(),
        "{} of {EVALUATED_WORLDS} worlds broke:\n{}",
        broken.len(),
        broken.join("\n")
    );
    let sum = sweep.sum;
    // All three happen often.
    assert!(
        EVALUATED_WORLDS < sum.scored.into(),
        "only {} evaluations have scores",
        sum.scored
    );
    assert!(
        EVALUATED_WORLDS / 10 < sum.unscored.into() && EVALUATED_WORLDS < sum.skipped.into(),
        "only {} evaluations have no scores, and {} checkpoints were skipped",
        sum.unscored,
        sum.skipped
    );
}

/// The size of a job's record does not grow with the number of units.
#[test]
fn the_record_of_a_job_of_many_units_is_small() {
    let many = many_units(50_000).unwrap_or_else(|broken| panic!("{broken}"));
    assert!(
        0 < many.record_bytes,
        "nothing was measured in {} saves",
        many.saves
    );
    assert!(many.record_bytes < RECORD_BYTES_MAX, "{many:?}");
}

/// Every seed that once failed stays in the list.
#[test]
fn seeds_that_once_broke_end_well() {
    for line in include_str!("../seeds.txt").lines() {
        let number = line.split('#').next().unwrap_or_default().trim();
        if number.is_empty() {
            continue;
        }
        let seed = number
            .parse()
            .unwrap_or_else(|_| panic!("tests/seeds.txt: `{number}` is not a seed"));
        if let Err(broken) = run(seed, None, TraceMode::Off) {
            panic!("{broken}");
        }
    }
}

/// The same for worlds with gangs and units. 14707: two jobs of units gave one worker to each other
/// in an endless loop within one event. 5277: the watchdog counted a worker that was shutting down
/// as free. 20122: a worker that was to shut down waited for a process that had not begun. 21442:
/// the watchdog reported a job whose source had no checkpoint yet. 43586: the watchdog reported a
/// job that waited for a gang that was stopping.
/// 424: a restarted coordinator dropped a job's last survivor and did not save that.
#[test]
fn mixed_seeds_that_once_broke_end_well() {
    for seed in [14_707, 5_277, 20_122, 21_442, 43_586, 424] {
        if let Err(broken) = run_of(Kinds::Mixed, seed, None, TraceMode::Off) {
            panic!("{broken}");
        }
    }
}

/// A coordinator that dies after any of its writes can be restored from what was written.
#[test]
fn every_prefix_of_the_writes_can_be_restored() {
    let mut prefixes = 0;
    for seed in 0..60 {
        prefixes += restore_every_prefix(seed).unwrap_or_else(|what| panic!("{what}"));
    }
    assert!(1_000 < prefixes, "only {prefixes} prefixes");
}

/// The simulation is deterministic.
#[test]
fn the_same_seed_tells_the_same_story() {
    let mut hashes = BTreeSet::new();
    for seed in 0..20 {
        let first = run(seed, None, TraceMode::Hashed).unwrap();
        let second = run(seed, None, TraceMode::Hashed).unwrap();
        assert_eq!(first, second, "seed {seed}");
        hashes.insert(first.hash);
    }
    assert_eq!(hashes.len(), 20, "different seeds have different traces");
}

/// The stable hash compares two versions of the code: every world has one, and it differs where a
/// machine decides differently.
#[test]
fn the_hash_of_numbers_is_repeatable_and_tells_worlds_apart() {
    let all = hashes(20, Kinds::All);
    assert_eq!(all, hashes(20, Kinds::All));
    let each: BTreeSet<u64> = all
        .each
        .values()
        .map(|hash| *hash.as_ref().unwrap())
        .collect();
    assert_eq!(each.len(), 20, "different seeds have different traces");
    assert!(
        !each.contains(&all.all),
        "the total hash differs from every single one"
    );
    // The text of the trace does not change the stable hash.
    for (seed, hash) in &all.each {
        let hashed = run(*seed, None, TraceMode::Hashed).unwrap();
        assert_eq!(hash.as_ref(), Ok(&hashed.stable_hash), "seed {seed}");
        assert_ne!(hashed.hash, hashed.stable_hash, "seed {seed}");
    }
    let gangs = hashes(20, Kinds::Gangs);
    let same = |seed: &u64| gangs.each[seed] == all.each[seed];
    let count = all.each.keys().filter(|seed| same(seed)).count();
    assert!(
        (1..20).contains(&count),
        "{count} of 20 worlds have no sampling jobs"
    );
    // A bug that changes decisions changes the hash, unless it breaks the world.
    let with_bug = (0..20).filter_map(|seed| {
        let bug = Some(Bug::SendOnce);
        let outcome = run_of(Kinds::Gangs, seed, bug, TraceMode::StablyHashed).ok()?;
        Some(gangs.each[&seed] != Ok(outcome.stable_hash))
    });
    assert!(with_bug.into_iter().all(|differs| differs));
}

/// A failing seed gives one line that says how to reproduce it, and a trace without debug output
/// that ends with the violation.
#[test]
fn a_broken_world_is_one_line_and_its_story_is_plain() {
    let (lines, result) = run_collecting(Kinds::All, 0, Some(Bug::SaveLast));
    let broken = result.unwrap_err();
    let line = broken.to_string();
    assert!(!line.contains('\n'), "{line}");
    assert!(
        line.ends_with("(replay: make sim SEED=0 BUG=SaveLast TRACE=1)"),
        "{line}"
    );
    assert!(
        lines
            .last()
            .unwrap()
            .ends_with(&format!("BROKEN: {}", broken.what))
    );
    let (lines, result) = run_collecting(Kinds::All, 3, None);
    result.unwrap();
    let debug_text: Vec<&String> = lines
        .iter()
        .filter(|line| line.contains(" {") || line.contains("Some(") || line.contains("::"))
        .collect();
    assert!(debug_text.is_empty(), "{debug_text:?}");
    let contains = |what: &str| lines.iter().any(|line| line.contains(what));
    for what in [
        "a client submits a job",
        "is formed, of",
        "step 10 is done by",
        "is committed",
        "is done at step",
    ] {
        assert!(contains(what), "the trace has no line with {what:?}");
    }
}

/// Every planted bug breaks some world, with a violation that fits it.
#[test]
fn planted_bugs_are_found() {
    for bug in Bug::ALL {
        let found =
            (0..WORLDS).find_map(|seed| run_of(bug.kinds(), seed, Some(bug), TraceMode::Off).err());
        let found = found.unwrap_or_else(|| panic!("{bug:?} breaks none of {WORLDS} worlds"));
        println!("{bug:?}: {found}");
        let signs: &[&str] = match bug {
            Bug::PartitionUnreported => &["needs a fallback deadline: ", "to join"],
            Bug::SendOnce | Bug::KillIgnored => {
                &["needs a fallback deadline", "hangs", "still runs"]
            }
            Bug::ClockStopped => &["hangs"],
            Bug::SameBoot => &["started a second time"],
            Bug::ShardBeforeWritten => &["named and does not exist"],
            Bug::SaveLast => &["not saved"],
            Bug::SaveLost => &[
                "not saved",
                "forgotten",
                "publishes while",
                "while the record names it",
                "may forget step",
                "the ledger of",
                "its account ends",
                "its buckets add up",
                "it waited",
            ],
            Bug::LedgerLost => &["the ledger of"],
            Bug::SavesUnfenced => &[
                "goes back",
                "counters",
                " was ",
                "the ledger of",
                "forgotten",
                "not saved",
                "its account ends",
                "its buckets add up",
                "it waited",
            ],
            Bug::ManifestsUnfenced => &["publishes while"],
            Bug::DrainForgotten => &["is reported as drained"],
            Bug::StateNotLoaded | Bug::WrongShard => &["ends at step", "different states"],
            Bug::PartialStepKept | Bug::StateNotHandedOver => {
                &["ends at step", "different states", "not one value"]
            }
            Bug::LowestStepSelected
            | Bug::SurvivorStateDropped
            | Bug::StandbyStateDropped
            | Bug::StaleGenerationWins => &["begins at step"],
            Bug::UnitLeasedTwice => &[" outputs of "],
            Bug::UnitOutputLost => &["its output is not in the store"],
            Bug::UnitNeverLeasedAgain => &["hangs"],
            Bug::DrainKeepsUnits => &["is drained and keeps units"],
            Bug::StopReceivedByOne => &["some of its ranks stop and others continue"],
            Bug::StopShardMissing => &["stops late, with its checkpoint"],
            Bug::GenerationsMixed => &[
                "named and does not exist",
                "is incomplete",
                "not one value",
                "hangs",
                "whose digest is not",
            ],
        };
        assert!(
            signs.iter().any(|sign| found.what.contains(sign)),
            "{bug:?} shows as: {found}"
        );
    }
}
