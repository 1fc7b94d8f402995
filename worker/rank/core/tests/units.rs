//! The decisions of a rank of a job of units, input by input.
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

/// A process that has loaded and processes the first unit of this lease.
fn working(lease: &[UnitRange]) -> UnitRank {
    let mut rank = UnitRank::new(order(1, lease));
    assert_eq!(rank.says().phase, RankPhase::Starting);
    assert_eq!(rank.handle(Input::Loaded), begins(lease[0].first));
    assert_eq!(rank.says().phase, RankPhase::Training);
    rank
}

#[test]
fn units_are_processed_one_by_one_and_reported_until_the_lease_no_longer_contains_them() {
    let mut rank = working(&[range(3, 5), range(8, 9)]);
    assert_eq!(rank.handle(done(3)), begins(4));
    assert_eq!(rank.handle(done(4)), begins(8));
    assert_eq!(rank.says().units.done, [range(3, 5)]);
    // Unit 3 is acknowledged, and the lease grows.
    assert_eq!(
        rank.handle(leased(&[range(4, 5), range(8, 10)])),
        [Effect::Report]
    );
    assert_eq!(rank.says().units.done, [range(4, 5)]);
    assert_eq!(rank.handle(done(8)), begins(9));
    assert_eq!(rank.handle(done(9)), [Effect::Report]);
    assert_eq!(rank.says().units.done, [range(4, 5), range(8, 10)]);
    // It waits for more units and does not exit.
    assert_eq!(rank.says().phase, RankPhase::Training);
    assert_eq!(rank.handle(leased(&[])), [Effect::Report]);
    assert_eq!(
        rank.handle(leased(&[range(20, 21)])),
        [Effect::Begin(20)],
        "nothing else has changed"
    );
}

#[test]
fn a_unit_that_fails_is_named_and_the_next_is_taken() {
    let mut rank = working(&[range(0, 2)]);
    let error = "no such reference".to_owned();
    let unit = 0;
    let failed = Input::Failed {
        unit,
        error: error.clone(),
    };
    assert_eq!(rank.handle(failed.clone()), begins(1));
    assert_eq!(rank.says().units.failed, [UnitFailure { unit, error }]);
    rank.handle(done(1));
    // It is not retried under the same lease, but under a new one.
    assert_eq!(rank.handle(leased(&[range(0, 2)])), []);
    rank.handle(leased(&[range(1, 2)]));
    assert_eq!(rank.says().units.failed, []);
    assert_eq!(rank.handle(leased(&[range(0, 2)])), [Effect::Begin(0)]);
}

#[test]
fn a_unit_that_was_taken_away_meanwhile_is_not_reported() {
    let mut rank = working(&[range(0, 2)]);
    rank.handle(leased(&[range(1, 2)]));
    assert_eq!(rank.working_on(), Some(0), "it is not interrupted");
    assert_eq!(rank.handle(done(0)), begins(1));
    assert_eq!(rank.says().units.done, []);
}

#[test]
fn a_graceful_stop_finishes_the_current_unit_and_begins_no_other() {
    let mut rank = working(&[range(0, 3)]);
    assert_eq!(rank.handle(stopped(&[range(0, 3)])), []);
    assert_eq!(rank.says().phase, RankPhase::Training);
    assert_eq!(rank.handle(done(0)), [Effect::Report]);
    let says = rank.says();
    assert_eq!(
        (says.phase, says.units.done),
        (RankPhase::Finished, vec![range(0, 1)])
    );
    assert_eq!(rank.handle(stopped(&[range(0, 3)])), []);
    // A process that still loads begins none.
    let mut rank = UnitRank::new(order(1, &[range(0, 3)]));
    rank.handle(stopped(&[range(0, 3)]));
    assert_eq!(rank.handle(Input::Loaded), [Effect::Report]);
    assert_eq!(rank.says().phase, RankPhase::Finished);
}

#[test]
fn a_newer_generation_is_adopted_at_once_and_the_current_unit_continues() {
    let mut rank = working(&[range(0, 2)]);
    let newer = |lease: &[UnitRange]| Input::Ordered(order(2, lease));
    assert_eq!(
        rank.handle(newer(&[range(0, 1), range(7, 8)])),
        [Effect::Report]
    );
    assert_eq!(rank.says().generation, Generation(2));
    assert_eq!(rank.handle(leased(&[range(0, 2)])), [], "older");
    assert_eq!(rank.handle(done(0)), begins(7));
    assert_eq!(rank.says().units.done, [range(0, 1)]);
    // A finished rank continues.
    let mut rank = working(&[range(0, 2)]);
    rank.handle(stopped(&[range(0, 2)]));
    rank.handle(done(0));
    assert_eq!(rank.handle(newer(&[range(1, 2)])), begins(1));
}
