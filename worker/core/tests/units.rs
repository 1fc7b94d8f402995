//! Ranks that work on units: what is told of them, and how their processes go on.
#![allow(clippy::unwrap_used)]

mod desk;

use desk::{DETECT_WITHIN_MS, Desk, error, key, said, spawned, units};
use proto::id::Step;
use proto::message::{Activity, RankPhase, RankReport, Stage, UnitFailure, UnitRange};
use worker_core::event::{Effect, Input};

fn range(first: u64, end: u64) -> UnitRange {
    UnitRange { first, end }
}

fn at_unit(unit: u64) -> Option<Activity> {
    Some(Activity {
        step: Step(0),
        stage: Stage::Unit(unit),
        for_ms: 10,
    })
}

impl Desk {
    /// The process that was started as rank `rank` of generation 1 says this as a rank of
    /// `generation`.
    fn says(
        &mut self,
        rank: u32,
        generation: u64,
        change: impl FnOnce(&mut RankReport),
    ) -> Vec<Effect> {
        let mut report = said(&key(generation, rank), RankPhase::Training);
        change(&mut report);
        let process = key(1, rank);
        self.handle(Input::RankSaid { process, report })
    }

    fn told(&self, generation: u64, rank: u32) -> RankReport {
        let key = key(generation, rank);
        let view = self.machine.view();
        let found = view.ranks.iter().find(|rank| *rank.key == key).unwrap();
        found.report.clone()
    }
}

#[test]
fn what_was_done_is_told_until_the_lease_names_it_no_more() {
    let mut desk = Desk::new();
    desk.desire(vec![units(1, 1, &[(0, range(0, 4))])]);
    let failure = UnitFailure {
        unit: 2,
        error: "no such reference".to_owned(),
    };
    desk.says(0, 1, |report| {
        report.units.done = vec![range(0, 2)];
        report.units.failed = vec![failure.clone()];
    });
    let told = desk.told(1, 0).units;
    assert_eq!((told.done, told.failed), (vec![range(0, 2)], vec![failure]));
    desk.desire(vec![units(1, 1, &[(0, range(1, 2)), (0, range(3, 6))])]);
    let told = desk.told(1, 0).units;
    assert_eq!((told.done, told.failed), (vec![range(1, 2)], vec![]));
    // A line that was written before the process heard of that brings nothing back.
    desk.says(0, 1, |report| report.units.done = vec![range(0, 2)]);
    assert_eq!(desk.told(1, 0).units.done, [range(1, 2)]);
}

#[test]
fn of_a_process_that_dies_it_is_told_which_unit_it_was_at_and_what_it_had_done() {
    let mut desk = Desk::new();
    desk.desire(vec![units(1, 1, &[(0, range(0, 4))])]);
    desk.says(0, 1, |report| {
        report.units.done = vec![range(0, 1)];
        report.activity = at_unit(1);
    });
    desk.exit(&key(1, 0), false, "killed by signal 11");
    let told = desk.told(1, 0);
    assert_eq!(told.phase, error("killed by signal 11"));
    assert_eq!(told.activity.unwrap().stage, Stage::Unit(1));
    assert_eq!(told.units.done, [range(0, 1)]);
    // Nor does a later order take that away.
    desk.desire(vec![units(1, 1, &[(0, range(0, 4))])]);
    assert_eq!(desk.told(1, 0).activity.unwrap().stage, Stage::Unit(1));
}

#[test]
fn a_process_goes_on_as_the_same_rank_of_the_next_generation_beside_one_that_is_started_anew() {
    let mut desk = Desk::new();
    let leases = [(0, range(0, 4)), (1, range(4, 8))];
    desk.desire(vec![units(1, 2, &leases)]);
    for rank in [0, 1] {
        desk.says(rank, 1, |report| {
            report.units.done = vec![range(u64::from(rank) * 4, u64::from(rank) * 4 + 1)];
            report.activity = at_unit(u64::from(rank) * 4 + 1);
        });
    }
    desk.exit(&key(1, 0), false, "killed by signal 9");
    let effects = desk.desire(vec![units(2, 2, &[(1, range(4, 8))])]);
    assert_eq!(spawned(&effects).len(), 1, "rank 0");
    assert_eq!(spawned(&effects)[0].0, key(2, 0));
    let told = desk.told(2, 1);
    assert_eq!(told.units.done, [range(4, 5)]);
    assert_eq!(told.activity.unwrap().stage, Stage::Unit(5));
    // It may be at its unit for long before it speaks of the new generation.
    for _ in 0..20 {
        desk.says(1, 1, |report| report.activity = at_unit(5));
        let effects = desk.wait(DETECT_WITHIN_MS / 3);
        assert!(
            !effects
                .iter()
                .any(|effect| matches!(effect, Effect::Kill { .. }))
        );
    }
}
