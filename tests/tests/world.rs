//! Five thousand simulated clusters: both machines as they ship, everything else by chance. See
//! `tests/src/world/mod.rs`.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use tests::world::{
    Bug, EVENTS_MIN, Kinds, Story, crowd, hashes, many_units, restore_every_prefix, run, run_of,
    tell,
};

const WORLDS: u64 = 5_000;
/// Of a job, whatever the number of its units.
const RECORD_BYTES_MAX: usize = 32 << 10;
/// Of those with jobs of units.
const MIXED_WORLDS: u64 = 2_000;

/// Every job of every world comes to its end, with the number of an undisturbed run, and no law is
/// broken on the way.
#[test]
fn five_thousand_worlds_end_well() {
    let crowd = crowd(Kinds::All, WORLDS, None, |_| {});
    let broken: Vec<String> = crowd.broken.iter().map(ToString::to_string).collect();
    assert!(
        broken.is_empty(),
        "{} of {WORLDS} worlds broke:\n{}",
        broken.len(),
        broken.join("\n")
    );
    assert!(
        EVENTS_MIN <= crowd.shortest,
        "a world of {} events",
        crowd.shortest
    );
    let sum = crowd.sum;
    // The worlds are rough enough to mean something, and not so rough that giving up is the rule.
    assert!(
        5_000 < sum.restarts,
        "only {} restarts in {WORLDS} worlds",
        sum.restarts
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

/// The same of worlds in which jobs of units and gangs want the same devices, and some wait for
/// others.
#[test]
fn two_thousand_mixed_worlds_end_well() {
    let crowd = crowd(Kinds::Mixed, MIXED_WORLDS, None, |_| {});
    let broken: Vec<String> = crowd.broken.iter().map(ToString::to_string).collect();
    assert!(
        broken.is_empty(),
        "{} of {MIXED_WORLDS} worlds broke:\n{}",
        broken.len(),
        broken.join("\n")
    );
    let sum = crowd.sum;
    assert!(
        sum.failed * 10 < sum.done && sum.cancelled * 4 < sum.done,
        "{} jobs failed, {} were cancelled and only {} were done",
        sum.failed,
        sum.cancelled,
        sum.done
    );
}

/// What a job of many units costs does not grow with their number: the record stays small.
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

/// A failing seed that is fixed stays here for ever.
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
        if let Err(broken) = run(seed, None, Story::Dropped) {
            panic!("{broken}");
        }
    }
}

/// The same, of worlds with gangs and units. 14707: two jobs of units that asked for one worker
/// handed it to each other without end in one event. 5277: a job was said to wait although a worker
/// was free, and that worker was leaving. 20122: a worker that was to leave waited for a process
/// that had not begun. 21442: a job was said to wait, and what it reads had no checkpoint yet.
/// 43586: the same, and a gang that ended in order had what it was given.
#[test]
fn mixed_seeds_that_once_broke_end_well() {
    for seed in [14_707, 5_277, 20_122, 21_442, 43_586] {
        if let Err(broken) = run_of(Kinds::Mixed, seed, None, Story::Dropped) {
            panic!("{broken}");
        }
    }
}

/// A coordinator that dies after any of its writes goes on from what was written.
#[test]
fn every_prefix_of_the_writes_can_be_restored() {
    let mut prefixes = 0;
    for seed in 0..60 {
        prefixes += restore_every_prefix(seed).unwrap_or_else(|what| panic!("{what}"));
    }
    assert!(1_000 < prefixes, "only {prefixes} prefixes");
}

/// A simulator that is not repeatable is worse than none.
#[test]
fn the_same_seed_tells_the_same_story() {
    let mut hashes = BTreeSet::new();
    for seed in 0..20 {
        let first = run(seed, None, Story::Hashed).unwrap();
        let second = run(seed, None, Story::Hashed).unwrap();
        assert_eq!(first, second, "seed {seed}");
        hashes.insert(first.hash);
    }
    assert_eq!(hashes.len(), 20, "different seeds tell different stories");
}

/// Two versions of the code are compared by it: it is of every world and differs where a machine
/// decides otherwise.
#[test]
fn the_hash_of_numbers_is_repeatable_and_tells_worlds_apart() {
    let all = hashes(20, Kinds::All);
    assert_eq!(all, hashes(20, Kinds::All));
    let each: BTreeSet<u64> = all
        .each
        .values()
        .map(|hash| *hash.as_ref().unwrap())
        .collect();
    assert_eq!(each.len(), 20, "different seeds tell different stories");
    assert!(
        !each.contains(&all.all),
        "the hash of all of them is of none of them"
    );
    // The words go into the other hash and change nothing in this one.
    for (seed, hash) in &all.each {
        let words = run(*seed, None, Story::Hashed).unwrap();
        assert_eq!(hash.as_ref(), Ok(&words.numbers), "seed {seed}");
        assert_ne!(words.hash, words.numbers, "seed {seed}");
    }
    let gangs = hashes(20, Kinds::Gangs);
    let same = |seed: &u64| gangs.each[seed] == all.each[seed];
    let count = all.each.keys().filter(|seed| same(seed)).count();
    assert!(
        (1..20).contains(&count),
        "{count} of 20 worlds are without pictures"
    );
    // A bug that changes what is decided changes the hash, where it does not break the world.
    let bugged = (0..20).filter_map(|seed| {
        let bug = Some(Bug::SendOnce);
        let outcome = run_of(Kinds::Gangs, seed, bug, Story::Numbered).ok()?;
        Some(gangs.each[&seed] != Ok(outcome.numbers))
    });
    assert!(bugged.into_iter().all(|differs| differs));
}

/// What a person reads after a failing seed: one line that says how to see it again, and a story
/// without a machine's notation, which ends with what was wrong.
#[test]
fn a_broken_world_is_one_line_and_its_story_is_plain() {
    let (story, result) = tell(Kinds::All, 0, Some(Bug::SaveLast));
    let broken = result.unwrap_err();
    let line = broken.to_string();
    assert!(!line.contains('\n'), "{line}");
    assert!(
        line.ends_with("(replay: make sim SEED=0 BUG=SaveLast TRACE=1)"),
        "{line}"
    );
    assert!(
        story
            .last()
            .unwrap()
            .ends_with(&format!("BROKEN: {}", broken.what))
    );
    let (story, result) = tell(Kinds::All, 3, None);
    result.unwrap();
    let machine: Vec<&String> = story
        .iter()
        .filter(|line| line.contains(" {") || line.contains("Some(") || line.contains("::"))
        .collect();
    assert!(machine.is_empty(), "{machine:?}");
    let tells = |what: &str| story.iter().any(|line| line.contains(what));
    for what in [
        "somebody submits a job",
        "is formed, of",
        "step 10 is done by",
        "is committed",
        "is done at step",
    ] {
        assert!(tells(what), "nobody tells that {what}");
    }
}

/// The oracle bites: every planted bug breaks some world, and with the words that fit it.
#[test]
fn planted_bugs_are_found() {
    for bug in Bug::ALL {
        let found =
            (0..WORLDS).find_map(|seed| run_of(bug.kinds(), seed, Some(bug), Story::Dropped).err());
        let found = found.unwrap_or_else(|| panic!("{bug:?} breaks no world in {WORLDS}"));
        println!("{bug:?}: {found}");
        let signs: &[&str] = match bug {
            Bug::CutUnseen => &["needs its last resort: ", "to join"],
            Bug::SendOnce | Bug::KillIgnored => &["needs its last resort", "hangs", "still runs"],
            Bug::ClockStopped => &["hangs"],
            Bug::SameBoot => &["started a second time"],
            Bug::ShardBeforeWritten => &["named and not there"],
            Bug::SaveLast => &["not saved"],
            Bug::SaveLost => &[
                "not saved",
                "forgotten",
                "publishes while",
                "while the record names it",
                "may forget step",
                "the ledger of",
            ],
            Bug::LedgerLost => &["the ledger of"],
            Bug::SavesUnfenced => &[
                "goes back",
                "counters",
                " was ",
                "the ledger of",
                "forgotten",
                "not saved",
            ],
            Bug::ManifestsUnfenced => &["publishes while"],
            Bug::DrainForgotten => &["is told to be drained"],
            Bug::StateNotLoaded | Bug::WrongShard => &["ends at step", "different states"],
            Bug::PartialStepKept | Bug::StateNotHandedOver => {
                &["ends at step", "different states", "not one value"]
            }
            Bug::LowestStepTaken
            | Bug::HandOverForgotten
            | Bug::StandbyForgets
            | Bug::OlderLineWins => &["begins at step"],
            Bug::UnitLeasedTwice => &[" outputs of "],
            Bug::UnitOutputLost => &["its output is not in the store"],
            Bug::UnitNeverLeasedAgain => &["hangs"],
            Bug::DrainKeepsUnits => &["is drained and keeps units"],
            Bug::StopReceivedByOne => &["some of its ranks stop and others go on"],
            Bug::StopShardForgotten => &["its checkpoint was not committed within"],
            Bug::GenerationsMixed => &[
                "named and not there",
                "is not whole",
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
