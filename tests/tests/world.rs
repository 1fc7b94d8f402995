//! Five thousand simulated clusters: both machines as they ship, everything else by chance. See
//! `tests/src/world/mod.rs`.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use tests::world::{Bug, EVENTS_MIN, Story, crowd, restore_every_prefix, run, tell};

const WORLDS: u64 = 5_000;

/// Every job of every world comes to its end, with the number of an undisturbed run, and no law is broken on
/// the way.
#[test]
fn five_thousand_worlds_end_well() {
    let crowd = crowd(WORLDS, None, |_| {});
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
    assert!(250 < sum.cancelled, "only {} jobs were cancelled", sum.cancelled);
    assert!(
        sum.failed * 20 < sum.done,
        "{} jobs failed and only {} were done",
        sum.failed,
        sum.done
    );
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

/// What a person reads after a failing seed: one line that says how to see it again, and a story without a machine's
/// notation, which ends with what was wrong.
#[test]
fn a_broken_world_is_one_line_and_its_story_is_plain() {
    let (story, result) = tell(0, Some(Bug::SaveLast));
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
    let (story, result) = tell(3, None);
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
        let found = (0..WORLDS).find_map(|seed| run(seed, Some(bug), Story::Dropped).err());
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
            Bug::StateNotLoaded | Bug::WrongShare => &["ends at step", "different states"],
            Bug::PartialStepKept | Bug::StateNotHandedOver => {
                &["ends at step", "different states", "not one value"]
            }
            Bug::LowestStepTaken | Bug::HandOverForgotten | Bug::ReserveForgets | Bug::OlderLineWins => {
                &["begins at step"]
            }
            Bug::HaltHeardAlone => &["some of its ranks stop and others go on"],
            Bug::HaltShardForgotten => &["its checkpoint was not committed within"],
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
