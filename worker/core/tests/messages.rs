//! How the daemon's machine handles messages of ranks and of the coordinator: what it forwards and
//! what it ignores.
#![allow(clippy::unwrap_used)]

mod desk;

use desk::*;
use proto::id::{Generation, JobId, Rank, Step};
use proto::message::{
    Assignment, DesiredState, GangOrder, RankPhase, Refusal, Run, Successor, UnitOrder,
};
use worker_core::event::{Effect, Event, Input};

#[test]
fn a_changed_assignment_is_handed_on() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 0, 1)]);
    let changed = Assignment {
        run: gang(GangOrder {
            store_address: Some("host:1".to_owned()),
            ..GangOrder::default()
        }),
        ..assignment(1, 0, 1)
    };
    let effects = desk.desire(vec![changed.clone()]);
    assert_eq!(
        effects,
        [Effect::Update {
            key: key(1, 0),
            rank: Rank(0),
            device: 0,
            assignment: Box::new(changed)
        }]
    );
}

#[test]
fn reports_sent_while_the_daemon_was_suspended_are_read_before_ranks_count_as_silent() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 0, 1)]);
    desk.report(&key(1, 0), RankPhase::Training);
    desk.now += 100 * DETECT_WITHIN_MS;
    assert!(
        !desk
            .handle(Input::Deadline)
            .contains(&Effect::Kill { key: key(1, 0) })
    );
    desk.report(&key(1, 0), RankPhase::Training);
    assert!(
        !desk
            .wait(DETECT_WITHIN_MS - 1)
            .contains(&Effect::Kill { key: key(1, 0) })
    );
    assert!(desk.wait(1).contains(&Effect::Kill { key: key(1, 0) }));
}

#[test]
fn the_end_of_a_rank_is_reported_with_its_own_error_if_it_sent_one() {
    let cases: [(Option<RankPhase>, bool, &str, RankPhase); 3] = [
        (
            None,
            false,
            "killed by signal 9",
            exited("killed by signal 9", false),
        ),
        (
            Some(error("loss is NaN in step 3")),
            false,
            "exit status 1",
            error("loss is NaN in step 3"),
        ),
        (
            Some(RankPhase::Training),
            true,
            "exit status 0",
            exited("exit status 0", true),
        ),
    ];
    for (last_report, success, outcome, expected) in cases {
        let mut desk = Desk::new();
        desk.desire(vec![assignment(1, 0, 1)]);
        if let Some(phase) = last_report {
            desk.report(&key(1, 0), phase);
        }
        desk.exit(&key(1, 0), success, outcome);
        assert_eq!(desk.phase(&key(1, 0)), expected);
        let again = desk.desire(vec![assignment(1, 0, 1)]);
        assert_eq!(spawned(&again), [], "a rank is started only once");
    }
    // A rank of a job of units that stopped gracefully has finished, and holds no state.
    for (success, outcome) in [(true, "exit status 0"), (false, "exit status 139")] {
        let mut desk = Desk::new();
        desk.desire(vec![Assignment {
            run: Run::Units(UnitOrder::default()),
            ..assignment(1, 0, 1)
        }]);
        desk.report(&key(1, 0), RankPhase::Finished);
        desk.exit(&key(1, 0), success, outcome);
        assert_eq!(desk.phase(&key(1, 0)), RankPhase::Finished);
    }
}

#[test]
fn steps_and_shards_are_kept_until_the_coordinator_has_them() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 0, 1)]);
    for number in 1..=3 {
        let mut report = rank_report(&key(1, 0), RankPhase::Training);
        report.steps.push(step(number));
        report.shards.push(shard(number));
        let effects = desk.handle(Input::RankReported {
            process: key(1, 0),
            report: Box::new(report),
        });
        assert_eq!(reports(&effects)[0].ranks[0].steps.len(), number as usize);
    }
    desk.desire(vec![Assignment {
        run: gang(GangOrder {
            acknowledged_step: Step(2),
            committed_step: Step(1),
            ..GangOrder::default()
        }),
        ..assignment(1, 0, 1)
    }]);
    let rank = reports(&desk.wait(DETECT_WITHIN_MS / 3))[0].ranks[0].clone();
    assert_eq!(
        rank.steps
            .iter()
            .map(|step| step.step.0)
            .collect::<Vec<_>>(),
        [3]
    );
    assert_eq!(
        rank.shards
            .iter()
            .map(|shard| shard.step.0)
            .collect::<Vec<_>>(),
        [2, 3]
    );
    let mut late = rank_report(&key(1, 0), RankPhase::Training);
    late.steps.push(step(2));
    late.shards.push(shard(1));
    desk.handle(Input::RankReported {
        process: key(1, 0),
        report: Box::new(late),
    });
    let rank = desk.machine.view().ranks[0].report.clone();
    assert_eq!(
        (rank.steps.len(), rank.shards.len()),
        (1, 2),
        "acknowledged steps and shards are not reported again"
    );
}

#[test]
fn reports_repeat_themselves_and_cease_without_a_stream() {
    let mut desk = Desk::new();
    assert_eq!(
        desk.machine.next_deadline(),
        Some(desk.now + DETECT_WITHIN_MS / 3)
    );
    assert_eq!(reports(&desk.wait(DETECT_WITHIN_MS / 3 - 1)), []);
    assert_eq!(reports(&desk.wait(1)).len(), 1);
    desk.desire(vec![assignment(1, 0, 1)]);
    desk.handle(Input::Disconnected);
    let effects = desk.report(&key(1, 0), RankPhase::Training);
    assert_eq!(
        effects,
        [],
        "ranks continue; there is no stream to report to"
    );
    assert_eq!(
        reports(&desk.handle(Input::Connected))[0].ranks[0].phase,
        RankPhase::Training
    );
}

#[test]
fn orders_for_another_boot_are_ignored() {
    let mut desk = Desk::new();
    let state = DesiredState {
        worker: id(6),
        assignments: vec![assignment(1, 0, 1)],
        detect_within_ms: DETECT_WITHIN_MS,
        peers: vec![],
        refused: vec![],
        successor: None,
    };
    let effects = desk.handle(Input::Desired(state));
    assert_eq!(spawned(&effects), []);
    assert!(matches!(
        &effects[0],
        Effect::Emit(Event::Ignored { what, .. }) if what == "orders for w1#6; this is w1#7"
    ));
}

#[test]
fn a_displaced_daemon_stops_its_ranks_says_why_and_exits() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 0, 1)]);
    desk.report(&key(1, 0), RankPhase::Training);
    let by = Successor {
        worker: id(8),
        address: Some("10.0.0.2:7073".to_owned()),
    };
    let state = DesiredState {
        worker: id(7),
        assignments: vec![],
        detect_within_ms: DETECT_WITHIN_MS,
        peers: vec![],
        refused: vec![],
        successor: Some(by.clone()),
    };
    let effects = desk.handle(Input::Desired(state.clone()));
    let displaced = Event::Displaced { worker: id(7), by };
    assert_eq!(effects[0], Effect::Emit(displaced.clone()));
    assert!(
        effects.contains(&Effect::Stop { key: key(1, 0) }) && !effects.contains(&Effect::Exit),
        "{effects:?}"
    );
    let effects = desk.handle(Input::Desired(state));
    assert!(
        !effects.contains(&Effect::Emit(displaced)),
        "it is said once: {effects:?}"
    );
    let effects = desk.exit(&key(1, 0), true, "exit status 0");
    assert!(effects.contains(&Effect::Exit), "{effects:?}");
}

#[test]
fn an_outdated_state_neither_restores_an_old_generation_nor_ends_the_new_one() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 0, 1)]);
    desk.report(&key(1, 0), RankPhase::Training);
    desk.desire(vec![assignment(2, 0, 1)]);
    let effects = desk.desire(vec![assignment(1, 0, 1)]);
    assert!(
        !effects
            .iter()
            .any(|effect| matches!(effect, Effect::Stop { .. } | Effect::Spawn { .. })),
        "{effects:?}"
    );
    assert_eq!(desk.phase(&key(2, 0)), RankPhase::Joining);
}

#[test]
fn reports_of_an_unknown_rank_are_ignored() {
    let mut desk = Desk::new();
    let effects = desk.report(&key(1, 0), RankPhase::Training);
    assert!(
        matches!(&effects[..], [Effect::Emit(Event::Ignored { .. })]),
        "{effects:?}"
    );
    assert_eq!(desk.exit(&key(1, 0), true, "exit status 0"), []);
    assert_eq!(
        spawned(&desk.desire(vec![assignment(1, u32::MAX, u32::MAX)])).len(),
        1,
        "invalid orders are tolerated"
    );
}

#[test]
fn a_refused_assignment_is_reported_as_failed_ranks_and_other_jobs_continue() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 0, 1)]);
    desk.report(&key(1, 0), RankPhase::Training);
    let bad = |generation| Refusal {
        job: JobId("bad-2".to_owned()),
        generation: Generation(generation),
        first_rank: Rank(4),
        ranks: 1,
        error: "field `job_toml` is too long".to_owned(),
    };
    let state = |refused: Vec<Refusal>| {
        Input::Desired(DesiredState {
            worker: id(7),
            assignments: vec![assignment(1, 0, 1)],
            detect_within_ms: DETECT_WITHIN_MS,
            peers: vec![],
            refused,
            successor: None,
        })
    };
    let ignored = |effects: &[Effect]| {
        let is_ignored = |it: &&Effect| matches!(it, Effect::Emit(Event::Ignored { .. }));
        effects.iter().filter(is_ignored).count()
    };
    let effects = desk.handle(state(vec![bad(1), Refusal::default()]));
    assert_eq!(ignored(&effects), 2, "{effects:?}");
    let report = &reports(&effects)[0];
    let failed = report
        .ranks
        .iter()
        .find(|rank| rank.job.0 == "bad-2")
        .unwrap();
    assert_eq!((failed.generation, failed.rank), (Generation(1), Rank(4)));
    let RankPhase::Failed { failure } = &failed.phase else {
        panic!("{failed:?}")
    };
    assert!(failure.is_permanent());
    assert_eq!(
        failure.to_string(),
        "the worker refuses the assignment: field `job_toml` is too long"
    );
    assert_eq!(desk.phase(&key(1, 0)), RankPhase::Training);
    // It is said once, and the report repeats the failure for as long as the state repeats it.
    let effects = desk.handle(state(vec![bad(1)]));
    assert_eq!(ignored(&effects), 0, "{effects:?}");
    let report = &reports(&desk.wait(DETECT_WITHIN_MS))[0];
    assert_eq!(report.ranks.len(), 2);
    let effects = desk.handle(state(vec![]));
    assert_eq!(reports(&effects)[0].ranks.len(), 1);
}
