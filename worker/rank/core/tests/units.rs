//! What a rank of a job of units decides, event by event.
#![allow(clippy::unwrap_used)]

use proto::id::{Generation, Rank};
use proto::message::{RankPhase, UnitFailure, UnitRange};
use rank_core::units::{Effect, Input, Order, UnitRank};

fn range(first: u64, end: u64) -> UnitRange {
    UnitRange { first, end }
}

fn order(generation: u64, lease: &[UnitRange]) -> Order {
    Order {
        generation: Generation(generation),
        rank: Rank(1),
        lease: lease.to_vec(),
        graceful_stop: false,
    }
}

fn leased(lease: &[UnitRange]) -> Input {
    Input::Ordered(order(1, lease))
}

fn stopped(lease: &[UnitRange]) -> Input {
    Input::Ordered(Order {
        graceful_stop: true,
        ..order(1, lease)
    })
}

fn done(unit: u64) -> Input {
    Input::Done { unit }
}

fn begins(unit: u64) -> Vec<Effect> {
    vec![Effect::Report, Effect::Begin(unit)]
}

/// A process that has loaded and is at the first unit of this lease.
fn at_work(lease: &[UnitRange]) -> UnitRank {
    let mut rank = UnitRank::new(order(1, lease));
    assert_eq!(rank.says().phase, RankPhase::Starting);
    assert_eq!(rank.handle(Input::Loaded), begins(lease[0].first));
    assert_eq!(rank.says().phase, RankPhase::Training);
    rank
}

#[test]
fn it_takes_its_units_one_by_one_and_repeats_what_is_done_until_the_lease_names_it_no_more() {
    let mut rank = at_work(&[range(3, 5), range(8, 9)]);
    assert_eq!(rank.handle(done(3)), begins(4));
    assert_eq!(rank.handle(done(4)), begins(8));
    assert_eq!(rank.says().units.done, [range(3, 5)]);
    // Unit 3 is acknowledged, and there is more to do.
    assert_eq!(
        rank.handle(leased(&[range(4, 5), range(8, 10)])),
        [Effect::Report]
    );
    assert_eq!(rank.says().units.done, [range(4, 5)]);
    assert_eq!(rank.handle(done(8)), begins(9));
    assert_eq!(rank.handle(done(9)), [Effect::Report]);
    assert_eq!(rank.says().units.done, [range(4, 5), range(8, 10)]);
    // It waits for more, and does not leave.
    assert_eq!(rank.says().phase, RankPhase::Training);
    assert_eq!(rank.handle(leased(&[])), [Effect::Report]);
    assert_eq!(
        rank.handle(leased(&[range(20, 21)])),
        [Effect::Begin(20)],
        "there is nothing to say but that"
    );
}

#[test]
fn a_unit_that_fails_is_named_and_the_next_is_taken() {
    let mut rank = at_work(&[range(0, 2)]);
    let error = "no such reference".to_owned();
    let unit = 0;
    let failed = Input::Failed {
        unit,
        error: error.clone(),
    };
    assert_eq!(rank.handle(failed.clone()), begins(1));
    assert_eq!(rank.says().units.failed, [UnitFailure { unit, error }]);
    rank.handle(done(1));
    // It is not tried again under the same lease, and is under a new one.
    assert_eq!(rank.handle(leased(&[range(0, 2)])), []);
    rank.handle(leased(&[range(1, 2)]));
    assert_eq!(rank.says().units.failed, []);
    assert_eq!(rank.handle(leased(&[range(0, 2)])), [Effect::Begin(0)]);
}

#[test]
fn a_unit_that_was_taken_away_meanwhile_is_not_reported() {
    let mut rank = at_work(&[range(0, 2)]);
    rank.handle(leased(&[range(1, 2)]));
    assert_eq!(rank.working_on(), Some(0), "it is not left half-way");
    assert_eq!(rank.handle(done(0)), begins(1));
    assert_eq!(rank.says().units.done, []);
}

#[test]
fn who_is_told_to_halt_ends_the_unit_that_it_is_at_and_takes_no_other() {
    let mut rank = at_work(&[range(0, 3)]);
    assert_eq!(rank.handle(stopped(&[range(0, 3)])), []);
    assert_eq!(rank.says().phase, RankPhase::Training);
    assert_eq!(rank.handle(done(0)), [Effect::Report]);
    let says = rank.says();
    assert_eq!(
        (says.phase, says.units.done),
        (RankPhase::Finished, vec![range(0, 1)])
    );
    assert_eq!(rank.handle(stopped(&[range(0, 3)])), []);
    // Whoever still loads takes none.
    let mut rank = UnitRank::new(order(1, &[range(0, 3)]));
    rank.handle(stopped(&[range(0, 3)]));
    assert_eq!(rank.handle(Input::Loaded), [Effect::Report]);
    assert_eq!(rank.says().phase, RankPhase::Finished);
}

#[test]
fn a_newer_generation_is_taken_up_at_once_and_the_unit_under_way_goes_on() {
    let mut rank = at_work(&[range(0, 2)]);
    let newer = |lease: &[UnitRange]| Input::Ordered(order(2, lease));
    assert_eq!(
        rank.handle(newer(&[range(0, 1), range(7, 8)])),
        [Effect::Report]
    );
    assert_eq!(rank.says().generation, Generation(2));
    assert_eq!(rank.handle(leased(&[range(0, 2)])), [], "older");
    assert_eq!(rank.handle(done(0)), begins(7));
    assert_eq!(rank.says().units.done, [range(0, 1)]);
    // One that had finished goes on.
    let mut rank = at_work(&[range(0, 2)]);
    rank.handle(stopped(&[range(0, 2)]));
    rank.handle(done(0));
    assert_eq!(rank.handle(newer(&[range(1, 2)])), begins(1));
}
