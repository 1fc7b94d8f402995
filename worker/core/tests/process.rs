//! Which rank processes the daemon's machine starts, moves to another rank, stops and kills.
#![allow(clippy::unwrap_used)]

mod desk;

use desk::*;
use proto::id::{Rank, Step};
use proto::message::{Activity, RankPhase, Stage};
use proto::reason::RankFailure;
use worker_core::GRACE;
use worker_core::event::{Effect, Event, Input, RankKey};

#[test]
fn each_assigned_rank_gets_a_process_on_a_device_of_its_own() {
    let mut desk = Desk::new();
    let effects = desk.desire(vec![assignment(1, 2, 2)]);
    assert_eq!(spawned(&effects), [(key(1, 2), 0), (key(1, 3), 1)]);
    assert_eq!(reports(&effects)[0].ranks.len(), 2, "reported at once");
    assert_eq!(
        desk.desire(vec![assignment(1, 2, 2)]),
        [],
        "repeating it changes nothing"
    );
}

#[test]
fn a_running_process_becomes_a_rank_of_the_next_generation() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 2, 2)]);
    desk.report(&key(1, 2), RankPhase::Training);
    desk.report(&key(1, 3), RankPhase::Training);
    let effects = desk.desire(vec![assignment(2, 0, 1)]);
    // One rank is left for two processes: the first continues under a new rank number, and the
    // other is stopped.
    assert!(effects.contains(&Effect::Update {
        key: key(1, 2),
        rank: Rank(0),
        device: 0,
        assignment: Box::new(assignment(2, 0, 1))
    }));
    assert!(effects.contains(&Effect::Stop { key: key(1, 3) }));
    assert_eq!(spawned(&effects), []);
    assert_eq!(desk.phase(&key(2, 0)), RankPhase::Joining);

    // A report for the older generation only counts as a heartbeat.
    desk.report(&key(1, 2), RankPhase::Finished);
    assert_eq!(desk.phase(&key(2, 0)), RankPhase::Joining);
    let broken = RankPhase::Broken {
        error: "a peer closed".to_owned(),
    };
    let report = rank_report(&key(2, 0), broken.clone());
    let process = key(1, 2);
    desk.handle(Input::RankReported {
        process,
        report: Box::new(report),
    });
    assert_eq!(desk.phase(&key(2, 0)), broken);
    desk.exit(&key(1, 2), false, "killed by signal 9");
    assert_eq!(desk.phase(&key(2, 0)), exited("killed by signal 9", false));
}

#[test]
fn a_process_that_does_not_leave_an_older_generation_is_killed() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 0, 1)]);
    desk.report(&key(1, 0), RankPhase::Training);
    desk.desire(vec![assignment(2, 0, 1)]);
    for _ in 0..19 {
        assert!(
            !desk
                .wait(DETECT_WITHIN_MS / 2)
                .contains(&Effect::Kill { key: key(1, 0) })
        );
        desk.report(&key(1, 0), RankPhase::Training);
    }
    assert!(
        desk.wait(DETECT_WITHIN_MS / 2)
            .contains(&Effect::Kill { key: key(1, 0) })
    );
    assert_eq!(desk.phase(&key(2, 0)), failed(RankFailure::NotLeft));
}

fn activity(stage: Stage) -> Option<Activity> {
    Some(Activity {
        step: Step(7),
        stage,
        for_ms: 50,
    })
}

/// Reports this stage every half `detect_within` as a rank of an older generation, at most 100
/// times. Returns the number of reports until the process was killed.
fn killed_after(desk: &mut Desk, rank: &RankKey, stage: Option<Stage>) -> Option<u32> {
    (1..=100).find(|_| {
        let mut report = rank_report(rank, RankPhase::Training);
        report.activity = stage.and_then(activity);
        let process = key(1, 0);
        desk.handle(Input::RankReported {
            process,
            report: Box::new(report),
        });
        desk.wait(DETECT_WITHIN_MS / 2)
            .contains(&Effect::Kill { key: key(1, 0) })
    })
}

#[test]
fn the_time_to_leave_an_older_generation_starts_after_a_stage_of_own_work() {
    let own = [
        Stage::MicroBatch(3),
        Stage::Update,
        Stage::Digest,
        Stage::Validation(1),
    ];
    let others = [Stage::Samples, Stage::Reduction, Stage::Checkpoint].map(Some);
    for waits in others.into_iter().chain([None]) {
        let mut desk = Desk::new();
        desk.desire(vec![assignment(1, 0, 1)]);
        desk.report(&key(1, 0), RankPhase::Training);
        desk.desire(vec![assignment(2, 0, 1)]);
        for stage in own {
            assert_eq!(
                killed_after(&mut desk, &key(1, 0), Some(stage)),
                None,
                "{stage}"
            );
        }
        // Counted from the last report of its own work, half a `detect_within` ago.
        assert_eq!(
            killed_after(&mut desk, &key(1, 0), waits),
            Some(19),
            "{waits:?}"
        );
    }
}

#[test]
fn a_process_at_work_of_its_own_that_falls_silent_is_killed_as_soon_as_any_other() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 0, 1)]);
    desk.report(&key(1, 0), RankPhase::Training);
    desk.desire(vec![assignment(2, 0, 1)]);
    assert_eq!(
        killed_after(&mut desk, &key(1, 0), Some(Stage::MicroBatch(3))),
        None
    );
    let kill = Effect::Kill { key: key(1, 0) };
    assert!(!desk.wait(DETECT_WITHIN_MS / 2 - 1).contains(&kill));
    assert!(desk.wait(1).contains(&kill));
    assert_eq!(desk.phase(&key(2, 0)), silent("joining", None));
}

/// A second newer generation may arrive while the process still works in the oldest one; the
/// process may be a standby in it.
#[test]
fn a_process_at_work_of_its_own_is_waited_for_through_several_generations() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 0, 1)]);
    desk.report(&key(1, 0), RankPhase::Training);
    for generation in [2, 3] {
        desk.desire(vec![assignment(generation, 4, 1)]);
        assert_eq!(
            killed_after(&mut desk, &key(1, 0), Some(Stage::MicroBatch(3))),
            None
        );
        assert_eq!(desk.phase(&key(generation, 4)), RankPhase::Joining);
    }
    // It has adopted the newest generation, so there is no deadline for leaving an older one.
    desk.report_as(&key(1, 0), &key(3, 4), RankPhase::Ready);
    for _ in 0..100 {
        assert!(
            !desk
                .wait(DETECT_WITHIN_MS / 2)
                .contains(&Effect::Kill { key: key(1, 0) })
        );
        desk.report_as(&key(1, 0), &key(3, 4), RankPhase::Ready);
    }
    // The time that it took before does not count in the next generation.
    desk.desire(vec![assignment(4, 0, 1)]);
    assert_eq!(
        killed_after(&mut desk, &key(3, 4), Some(Stage::Reduction)),
        Some(20)
    );
}

#[test]
fn a_process_that_cannot_continue_is_replaced_when_it_has_exited() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 0, 2)]);
    desk.report(&key(1, 0), error("out of memory"));
    let effects = desk.desire(vec![assignment(2, 0, 2)]);
    // Rank 1's process becomes rank 0 of the next generation. Rank 0's process is stopping and
    // holds its device.
    assert!(effects.contains(&Effect::Stop { key: key(1, 0) }));
    assert_eq!(spawned(&effects), []);
    assert!(
        !desk
            .wait(DETECT_WITHIN_MS - 1)
            .contains(&Effect::Kill { key: key(1, 0) })
    );
    assert!(
        desk.wait(1).contains(&Effect::Kill { key: key(1, 0) }),
        "its time to stop is over"
    );
    assert_eq!(
        spawned(&desk.exit(&key(1, 0), false, "killed by signal 9")),
        [(key(2, 1), 0)]
    );
}

#[test]
fn a_silent_rank_is_killed_and_reported() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 0, 1)]);
    assert!(
        !desk
            .wait(9 * DETECT_WITHIN_MS)
            .contains(&Effect::Kill { key: key(1, 0) }),
        "before its first report it loads libraries"
    );
    let mut last = rank_report(&key(1, 0), RankPhase::Training);
    last.activity = activity(Stage::MicroBatch(2));
    desk.handle(Input::RankReported {
        process: key(1, 0),
        report: Box::new(last),
    });
    let report = reports(&desk.wait(DETECT_WITHIN_MS / 3))
        .remove(0)
        .ranks
        .remove(0);
    assert_eq!(
        report.activity.map(|activity| activity.for_ms),
        Some(50 + DETECT_WITHIN_MS / 3),
        "the last activity is assumed to continue"
    );
    assert!(
        !desk
            .wait(DETECT_WITHIN_MS - DETECT_WITHIN_MS / 3 - 1)
            .contains(&Effect::Kill { key: key(1, 0) })
    );
    let effects = desk.wait(1);
    assert!(effects.contains(&Effect::Kill { key: key(1, 0) }));
    assert!(effects.contains(&Effect::Emit(Event::RankSilent {
        key: key(1, 0),
        silent_ms: 900
    })));
    assert_eq!(
        reports(&effects).last().unwrap().ranks[0].phase,
        silent("training", Some((7, 2)))
    );
    desk.exit(&key(1, 0), false, "killed by signal 9");
    assert_eq!(
        desk.phase(&key(1, 0)),
        silent("training", Some((7, 2))),
        "the cause, not the effect"
    );
}

#[test]
fn a_rank_that_falls_silent_while_it_loads_is_killed_as_soon_as_any_other() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 0, 1)]);
    desk.wait(5 * DETECT_WITHIN_MS);
    desk.report(&key(1, 0), RankPhase::Starting);
    let kill = Effect::Kill { key: key(1, 0) };
    assert!(!desk.wait(DETECT_WITHIN_MS - 1).contains(&kill));
    assert!(desk.wait(1).contains(&kill));
    assert_eq!(desk.phase(&key(1, 0)), silent("starting", None));
}

#[test]
fn a_rank_that_holds_what_it_trained_and_ends_unasked_has_failed() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 0, 2)]);
    for rank in [0, 1] {
        desk.report(&key(1, rank), RankPhase::Finished);
    }
    desk.exit(&key(1, 0), false, "killed by signal 9");
    assert_eq!(desk.phase(&key(1, 0)), exited("killed by signal 9", false));
    // After it was asked to stop it stays finished, however it exits.
    desk.desire(vec![]);
    desk.exit(&key(1, 1), false, "killed by signal 9");
    assert!(desk.machine.view().ranks.is_empty());
}

#[test]
fn a_rank_that_never_reports_is_killed() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 0, 1)]);
    assert!(
        desk.wait(10 * DETECT_WITHIN_MS)
            .contains(&Effect::Kill { key: key(1, 0) })
    );
}

#[test]
fn a_rank_that_was_taken_away_is_not_started_again() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 0, 1)]);
    assert!(
        desk.desire(vec![])
            .contains(&Effect::Stop { key: key(1, 0) })
    );
    let effects = desk.exit(&key(1, 0), true, "exit status 0");
    assert_eq!(reports(&effects)[0].ranks, [], "it is no longer assigned");
    let effects = desk.desire(vec![assignment(1, 0, 1)]);
    assert_eq!(spawned(&effects), []);
    let phase = desk.phase(&key(1, 0));
    assert_eq!(phase, failed(RankFailure::Removed));
    assert_eq!(
        spawned(&desk.desire(vec![assignment(2, 0, 1)])),
        [(key(2, 0), 0)]
    );
}

#[test]
fn a_shutdown_waits_for_the_ranks_and_offers_nothing_meanwhile() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 0, 1)]);
    desk.report(&key(1, 0), RankPhase::Training);
    let effects = desk.handle(Input::Shutdown);
    assert!(!effects.contains(&Effect::Stop { key: key(1, 0) }));
    let report = &reports(&effects)[0];
    assert_eq!(
        (report.devices, &report.ranks[0].phase),
        (0, &RankPhase::Training),
        "its rank continues, and it offers no devices"
    );
    // A newer generation that was already formed gets the running process; no process is started.
    assert_eq!(spawned(&desk.desire(vec![assignment(2, 0, 2)])), []);
    assert_eq!(desk.phase(&key(2, 0)), RankPhase::Joining);
    assert_eq!(desk.phase(&key(2, 1)), failed(RankFailure::WorkerLeaves));
    // The coordinator has removed the assignment: the state was handed over.
    let effects = desk.desire(vec![]);
    assert!(effects.contains(&Effect::Stop { key: key(1, 0) }));
    let effects = desk.exit(&key(1, 0), true, "exit status 0");
    assert_eq!(effects.last(), Some(&Effect::Exit));
    assert!(!desk.wait(1).contains(&Effect::Exit), "once");
}

#[test]
fn a_shutdown_ends_with_its_grace_or_when_it_is_asked_for_again() {
    let stops = |effects: &[Effect]| effects.contains(&Effect::Stop { key: key(1, 0) });
    let leaving = || {
        let mut desk = Desk::new();
        desk.desire(vec![assignment(1, 0, 1)]);
        desk.report(&key(1, 0), RankPhase::Training);
        desk.handle(Input::Shutdown);
        desk
    };
    let mut desk = leaving();
    for _ in 0..2 * GRACE - 1 {
        assert!(!stops(&desk.wait(DETECT_WITHIN_MS / 2)));
        desk.report(&key(1, 0), RankPhase::Training);
    }
    assert!(
        stops(&desk.wait(DETECT_WITHIN_MS / 2)),
        "the grace period is over"
    );
    assert_eq!(desk.phase(&key(1, 0)), failed(RankFailure::WorkerLeaves));
    let mut desk = leaving();
    assert!(stops(&desk.handle(Input::Shutdown)));
    let effects = desk.exit(&key(1, 0), true, "exit status 0");
    assert_eq!(effects.last(), Some(&Effect::Exit));
}

#[test]
fn a_standby_gets_ready_and_becomes_a_member_of_the_next_generation() {
    let mut desk = Desk::new();
    // The world size is four; this is a fifth rank.
    let effects = desk.desire(vec![assignment(1, 4, 1)]);
    assert_eq!(spawned(&effects), [(key(1, 4), 0)]);
    desk.report(&key(1, 4), RankPhase::Ready);
    assert_eq!(desk.phase(&key(1, 4)), RankPhase::Ready);
    let effects = desk.desire(vec![assignment(2, 1, 1)]);
    assert_eq!(spawned(&effects), []);
    assert!(effects.contains(&Effect::Update {
        key: key(1, 4),
        rank: Rank(1),
        device: 0,
        assignment: Box::new(assignment(2, 1, 1))
    }));
    // After its removal it may become a standby of the same generation under another rank number,
    // because a standby repeats no steps.
    assert!(
        desk.desire(vec![])
            .contains(&Effect::Stop { key: key(1, 4) })
    );
    desk.exit(&key(1, 4), true, "exit status 0");
    assert_eq!(
        spawned(&desk.desire(vec![assignment(2, 5, 1)])),
        [(key(2, 5), 0)]
    );
}

#[test]
fn no_process_gets_the_key_of_one_that_has_not_exited() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 4, 1)]);
    desk.desire(vec![assignment(2, 1, 1)]);
    assert!(
        desk.desire(vec![])
            .contains(&Effect::Stop { key: key(1, 4) })
    );
    // An outdated order assigns its key again while it is stopping as a rank of the newer
    // generation. A device is free.
    assert_eq!(spawned(&desk.desire(vec![assignment(1, 4, 1)])), []);
    assert_eq!(
        spawned(&desk.exit(&key(1, 4), true, "exit status 0")),
        [(key(1, 4), 0)]
    );
}

#[test]
fn a_process_that_still_loads_has_no_deadline_for_leaving_an_older_generation() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 0, 1)]);
    desk.desire(vec![assignment(2, 0, 1)]);
    assert_eq!(desk.phase(&key(2, 0)), RankPhase::Starting);
    for _ in 0..40 {
        let effects = desk.wait(DETECT_WITHIN_MS / 2);
        assert!(!effects.contains(&Effect::Kill { key: key(1, 0) }));
        desk.report(&key(1, 0), RankPhase::Starting);
    }
}
