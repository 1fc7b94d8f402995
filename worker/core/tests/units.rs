//! Ranks that process units: what is reported of them, and how their processes continue.
#![allow(clippy::unwrap_used)]

mod desk;

use desk::{DETECT_WITHIN_MS, Desk, key, rank_report, spawned, units};
use proto::id::Step;
use proto::message::{Activity, RankPhase, RankReport, Stage, UnitFailure, UnitRange};
use proto::reason::RankFailure;
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
    /// Sends a changed report from the process that was started as rank `rank` of generation 1, as
    /// a rank of `generation`.
    fn report_with(
        &mut self,
        rank: u32,
        generation: u64,
        change: impl FnOnce(&mut RankReport),
    ) -> Vec<Effect> {
        let mut report = rank_report(&key(generation, rank), RankPhase::Training);
        change(&mut report);
        let process = key(1, rank);
        self.handle(Input::RankReported {
            process,
            report: Box::new(report),
        })
    }

    fn reported(&self, generation: u64, rank: u32) -> RankReport {
        let key = key(generation, rank);
        let view = self.machine.view();
        let found = view.ranks.iter().find(|rank| *rank.key == key).unwrap();
        found.report.clone()
    }
}

#[test]
fn outcomes_of_units_are_reported_until_the_lease_no_longer_contains_them() {
    let mut desk = Desk::new();
    desk.desire(vec![units(1, 1, &[(0, range(0, 4))])]);
    let failure = UnitFailure {
        unit: 2,
        error: "no such reference".to_owned(),
    };
    desk.report_with(0, 1, |report| {
        report.units.done = vec![range(0, 2)];
        report.units.failed = vec![failure.clone()];
    });
    let report = desk.reported(1, 0).units;
    assert_eq!(
        (report.done, report.failed),
        (vec![range(0, 2)], vec![failure])
    );
    desk.desire(vec![units(1, 1, &[(0, range(1, 2)), (0, range(3, 6))])]);
    let report = desk.reported(1, 0).units;
    assert_eq!((report.done, report.failed), (vec![range(1, 2)], vec![]));
    // A report that was sent before the process received the new lease has no effect.
    desk.report_with(0, 1, |report| report.units.done = vec![range(0, 2)]);
    assert_eq!(desk.reported(1, 0).units.done, [range(1, 2)]);
}

#[test]
fn after_a_crash_the_current_unit_and_the_completed_units_are_reported() {
    let mut desk = Desk::new();
    desk.desire(vec![units(1, 1, &[(0, range(0, 4))])]);
    desk.report_with(0, 1, |report| {
        report.units.done = vec![range(0, 1)];
        report.activity = at_unit(1);
    });
    desk.exit(&key(1, 0), false, "killed by signal 11");
    let report = desk.reported(1, 0);
    assert_eq!(
        report.phase,
        RankPhase::Failed {
            failure: RankFailure::Exited {
                outcome: "killed by signal 11".to_owned(),
                success: false,
            },
        }
    );
    assert_eq!(report.activity.unwrap().stage, Stage::Unit(1));
    assert_eq!(report.units.done, [range(0, 1)]);
    // A later order does not change that.
    desk.desire(vec![units(1, 1, &[(0, range(0, 4))])]);
    assert_eq!(desk.reported(1, 0).activity.unwrap().stage, Stage::Unit(1));
}

#[test]
fn a_process_continues_as_the_same_rank_of_the_next_generation_beside_a_newly_started_one() {
    let mut desk = Desk::new();
    let leases = [(0, range(0, 4)), (1, range(4, 8))];
    desk.desire(vec![units(1, 2, &leases)]);
    for rank in [0, 1] {
        desk.report_with(rank, 1, |report| {
            report.units.done = vec![range(u64::from(rank) * 4, u64::from(rank) * 4 + 1)];
            report.activity = at_unit(u64::from(rank) * 4 + 1);
        });
    }
    desk.exit(&key(1, 0), false, "killed by signal 9");
    let effects = desk.desire(vec![units(2, 2, &[(1, range(4, 8))])]);
    assert_eq!(spawned(&effects).len(), 1, "rank 0");
    assert_eq!(spawned(&effects)[0].0, key(2, 0));
    let report = desk.reported(2, 1);
    assert_eq!(report.units.done, [range(4, 5)]);
    assert_eq!(report.activity.unwrap().stage, Stage::Unit(5));
    // It may process its unit for long before it reports for the new generation.
    for _ in 0..20 {
        desk.report_with(1, 1, |report| report.activity = at_unit(5));
        let effects = desk.wait(DETECT_WITHIN_MS / 3);
        assert!(
            !effects
                .iter()
                .any(|effect| matches!(effect, Effect::Kill { .. }))
        );
    }
}
