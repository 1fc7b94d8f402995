//! Faults, by inputs and effects: the blamed rank, the cost, and when the job itself is at fault.

#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with others, which together use all of it")]
mod harness;

use coordinator_core::event::{Effect, Event, JobPhase, RESTARTS_WITHOUT_PROGRESS_MAX};
use harness::{
    DETECT_WITHIN_MS, Harness, assigned, failed, failed_for_good, id, ignored, manifests, names,
    rank, rank_failed, resumes, short_of, shortage, with_step,
};
use proto::id::{Generation, JobId, Rank, Step, WorkerId};
use proto::message::{DesiredState, RankPhase, Successor};
use proto::reason::{
    Blocked, Cause, Consequence, Ending, Fault, LastGood, RankFailure, Shortage, Violation,
};

#[test]
fn a_rank_that_fails_after_the_last_commit_does_not_cost_another_generation() {
    let (mut harness, job) = Harness::training();
    harness.commit(&job, 4);
    harness.receive("w1", vec![rank(&job, 1, 0, failed("exit status 1"))]);
    assert!(matches!(harness.job(&job).phase, JobPhase::Done { .. }));
}

#[test]
fn a_failed_rank_ends_its_generation_and_the_job_goes_on_from_the_last_commit() {
    let (mut harness, job) = Harness::training();
    harness.commit(&job, 2);
    let effects = harness.receive("w2", vec![rank(&job, 1, 1, failed("out of memory"))]);
    assert_eq!(harness.generation(&job), 2);
    let assignment = assigned(&effects, "w1");
    assert_eq!(
        (
            assignment.generation.0,
            assignment.gang().unwrap().resume.unwrap().step
        ),
        (2, Step(2))
    );
    assert_eq!(assignment.gang().unwrap().acknowledged_step, Step(2));
    let ending = rank_failed(1, "w2", RankFailure::error("out of memory", false));
    assert_eq!(harness.faults(&job), [&resumes(ending, &[], 2)]);
    // The same report again is late: its generation has ended.
    harness.receive("w2", vec![rank(&job, 1, 1, failed("out of memory"))]);
    assert_eq!(harness.generation(&job), 2);
}

#[test]
fn when_a_job_did_steps_again_is_kept_with_its_incident() {
    let (mut harness, job) = Harness::training();
    harness.commit(&job, 2);
    harness.receive("w2", vec![rank(&job, 1, 1, failed("out of memory"))]);
    let incident = harness.job(&job).incidents[0].clone();
    assert_eq!(incident.recovered_ms, None);
    harness.now += 7;
    let step = with_step(rank(&job, 2, 0, RankPhase::Training), 3);
    harness.receive("w1", vec![step]);
    harness.now += 7;
    harness.commit(&job, 4);
    harness.restart();
    let recovered = Some(incident.at_ms + 7);
    assert_eq!(harness.job(&job).incidents[0].recovered_ms, recovered);
}

#[test]
fn the_root_cause_is_named_although_a_secondary_error_was_reported_first() {
    let (mut harness, job) = Harness::training();
    harness.receive(
        "w1",
        vec![rank(&job, 1, 0, failed("Connection closed by peer [w2]"))],
    );
    let secondary = RankFailure::error("Connection closed by peer [w2]", false);
    let secondary = rank_failed(0, "w1", secondary);
    assert_eq!(harness.faults(&job), [&resumes(secondary, &[], 0)]);
    harness.receive("w2", vec![rank(&job, 1, 1, failed("killed by signal 9"))]);
    let root = RankFailure::error("killed by signal 9", false);
    let root = rank_failed(1, "w2", root);
    assert_eq!(harness.faults(&job), [&resumes(root, &[], 0)]);
    assert_eq!(
        harness.generation(&job),
        2,
        "it does not end the next generation as well"
    );
}

#[test]
fn a_worker_without_reports_ends_its_generation() {
    let (mut harness, job) = Harness::training();
    harness.now += DETECT_WITHIN_MS - 1;
    harness.receive("w1", vec![]);
    assert_eq!(harness.machine.next_deadline(), Some(harness.now + 1));
    harness.wait(1);
    let lost = Ending::WorkerLost {
        worker: id("w2"),
        silent_for_ms: DETECT_WITHIN_MS,
    };
    assert_eq!(harness.faults(&job), [&resumes(lost, &[(0, "w1")], 0)]);
    let needs = Shortage {
        ready: names(&["w1"]),
        ..shortage(2)
    };
    assert_eq!(*harness.waiting(&job), short_of(needs, &["w1"]));
    harness.receive("w2", vec![]);
    assert_eq!(
        harness.generation(&job),
        3,
        "it may come back; the other waited in generation 2"
    );
}

#[test]
fn a_restarted_worker_is_another_worker() {
    let (mut harness, job) = Harness::training();
    let effects = harness.receive("w2#2", vec![]);
    assert_eq!(harness.generation(&job), 2);
    assert_eq!(assigned(&effects, "w2#2").generation.0, 2);
    let (old, new) = (id("w2#1"), id("w2#2"));
    let restarted = Ending::WorkerRestarted { old, new };
    assert_eq!(harness.faults(&job), [&resumes(restarted, &[], 0)]);
    let newer = id("w2#2");
    assert_eq!(
        ignored(&harness.receive("w2#1", vec![])),
        [Violation::OldBoot { newer }]
    );
    assert_eq!(harness.generation(&job), 2);
}

/// The older daemon that the worker of this name is shown to have displaced, and its address.
fn displaced_by(harness: &Harness, name: &str) -> Option<(WorkerId, Option<String>)> {
    let view = harness.machine.view();
    let worker = view.workers.iter().find(|it| it.id.name == name)?;
    let displaced = worker.displaced?;
    Some((
        displaced.worker.clone(),
        displaced.address.map(str::to_owned),
    ))
}

/// The state that is sent to this worker.
fn told_to_leave<'a>(effects: &'a [Effect], worker: &str) -> Option<&'a DesiredState> {
    effects.iter().find_map(|effect| match effect {
        Effect::Send { worker: to, state } if *to == id(worker) => Some(state),
        _ => None,
    })
}

#[test]
fn of_two_daemons_of_one_name_the_older_is_told_to_leave_and_shown() {
    let (mut harness, _) = Harness::training();
    let third = DETECT_WITHIN_MS / 3 + 1;
    harness.receive("w2#2", vec![]);
    // A late report of a daemon that died looks like this; nobody is told yet.
    assert_eq!(
        told_to_leave(&harness.receive("w2#1", vec![]), "w2#1"),
        None
    );
    for _ in 0..3 {
        assert_eq!(
            told_to_leave(&harness.receive("w2#1", vec![]), "w2#1"),
            None
        );
        harness.now += third;
        harness.receive("w1", vec![]);
        harness.receive("w2#2", vec![]);
    }
    assert_eq!(displaced_by(&harness, "w2"), None);
    for repeated in [false, true] {
        let effects = harness.receive("w2#1", vec![]);
        let state = told_to_leave(&effects, "w2#1").expect("it runs beside the newer one");
        let successor = Successor {
            worker: id("w2#2"),
            address: Some("w2#2:7073".to_owned()),
        };
        assert_eq!(state.successor.as_ref(), Some(&successor));
        assert_eq!(state.assignments, []);
        let is_said = effects
            .iter()
            .any(|it| matches!(it, Effect::Emit(Event::WorkerDisplaced { .. })));
        assert_eq!(is_said, !repeated, "said once, told until it leaves");
    }
    let shown = (id("w2#1"), Some("w2#1:7073".to_owned()));
    assert_eq!(displaced_by(&harness, "w2"), Some(shown));
    // If the older one is started again it is the newer one, and nothing is held against it.
    harness.receive("w2#3", vec![]);
    assert_eq!(displaced_by(&harness, "w2"), None);
}

#[test]
fn a_daemon_whose_clock_was_set_back_is_not_told_to_leave_for_a_dead_one() {
    let (mut harness, _) = Harness::training();
    for _ in 0..4 {
        harness.receive("w1", vec![]);
        let effects = harness.receive("w2#0", vec![]);
        assert_eq!(
            told_to_leave(&effects, "w2#0").and_then(|it| it.successor.as_ref()),
            None,
            "w2#1 has not reported since"
        );
        harness.now += DETECT_WITHIN_MS / 3 + 1;
    }
    let view = harness.machine.view();
    let w2 = view.workers.iter().find(|it| it.id.name == "w2");
    assert!(
        w2.is_some_and(|it| it.up),
        "it is accepted once the lease of the dead one has expired"
    );
}

#[test]
fn a_member_that_does_not_come_back_to_a_restarted_coordinator_is_lost() {
    let (mut harness, job) = Harness::training();
    harness.restart();
    harness.now += 2 * DETECT_WITHIN_MS;
    harness.receive("w1", vec![rank(&job, 1, 0, RankPhase::Training)]);
    assert!(
        matches!(
            harness.faults(&job)[..],
            [Fault::Generation {
                ending: Ending::WorkerLost { .. },
                ..
            }]
        ),
        "{:?}",
        harness.job(&job).incidents
    );
    assert_eq!(harness.job(&job).restarts, 1);
}

#[test]
fn a_fault_that_comes_back_every_time_is_the_jobs_own() {
    let (mut harness, job) = Harness::training();
    for generation in 1..=u64::from(RESTARTS_WITHOUT_PROGRESS_MAX) {
        assert!(!harness.job(&job).phase.is_over());
        harness.receive(
            "w1",
            vec![rank(&job, generation, 0, failed("no such file"))],
        );
    }
    let fault = Fault::Generation {
        ending: rank_failed(0, "w1", RankFailure::error("no such file", false)),
        blocked: Blocked::default(),
        consequence: Consequence::NoProgress {
            generations: RESTARTS_WITHOUT_PROGRESS_MAX,
        },
    };
    let checkpoint = None;
    assert_eq!(*harness.cause(&job), Cause::Fault { fault, checkpoint });
}

#[test]
fn a_failure_that_would_repeat_ends_the_job_at_once_and_names_the_last_good_checkpoint() {
    let (mut harness, job) = Harness::training();
    harness.commit(&job, 2);
    harness.receive(
        "w2",
        vec![rank(&job, 1, 1, failed_for_good("step 3: the loss is NaN"))],
    );
    assert_eq!(harness.generation(&job), 1, "no generation follows");
    let cause = Cause::Fault {
        fault: Fault::Generation {
            ending: rank_failed(1, "w2", RankFailure::error("step 3: the loss is NaN", true)),
            blocked: Blocked::default(),
            consequence: Consequence::Permanent,
        },
        checkpoint: Some(LastGood {
            step: Some(Step(2)),
        }),
    };
    assert_eq!(*harness.cause(&job), cause);
    // Without a commit there is none to name.
    let (mut harness, job) = Harness::training();
    harness.receive(
        "w1",
        vec![rank(&job, 1, 0, failed_for_good("step 1: the loss is NaN"))],
    );
    assert!(matches!(
        harness.cause(&job),
        Cause::Fault {
            checkpoint: Some(LastGood { step: None }),
            ..
        }
    ));
}

#[test]
fn a_permanently_failed_job_waits_for_the_manifest_that_is_being_written() {
    let (mut harness, job) = Harness::training();
    assert_eq!(manifests(&harness.shards(&job, 2)).len(), 1);
    harness.receive(
        "w1",
        vec![rank(&job, 1, 0, failed_for_good("step 3: the loss is NaN"))],
    );
    assert!(!harness.job(&job).phase.is_over());
    // Neither the manifest's result nor a restart starts another generation.
    harness.restart();
    harness.receive("w1", vec![]);
    harness.receive("w2", vec![]);
    harness.written(&job, 2, Ok(()));
    assert_eq!(harness.generation(&job), 1);
    assert!(harness.job(&job).phase.is_over());
}

#[test]
fn a_permanent_failure_reported_after_its_secondary_error_ends_the_job_too() {
    let (mut harness, job) = Harness::training();
    assert_eq!(manifests(&harness.shards(&job, 2)).len(), 1);
    harness.receive(
        "w1",
        vec![rank(&job, 1, 0, failed("Connection closed by peer [w2]"))],
    );
    harness.receive(
        "w2",
        vec![rank(&job, 1, 1, failed_for_good("step 3: the loss is NaN"))],
    );
    harness.written(&job, 2, Ok(()));
    assert_eq!(harness.generation(&job), 1);
    let permanent = RankFailure::error("step 3: the loss is NaN", true);
    let permanent = rank_failed(1, "w2", permanent);
    assert!(matches!(
        harness.cause(&job),
        Cause::Fault { fault: Fault::Generation { ending, .. }, .. } if *ending == permanent
    ));
}

#[test]
fn a_commit_resets_the_count_of_generations_without_progress() {
    let (mut harness, job) = Harness::training();
    for generation in 1..u64::from(RESTARTS_WITHOUT_PROGRESS_MAX) {
        harness.receive("w1", vec![rank(&job, generation, 0, failed("boom"))]);
    }
    harness.commit(&job, 2);
    harness.receive("w1", vec![rank(&job, 5, 0, failed("boom"))]);
    assert_eq!(harness.generation(&job), 6);
}

#[test]
fn an_impossible_report_is_ignored_and_logged_once() {
    let (mut harness, job) = Harness::training();
    harness.receive("w3", vec![]);
    let other = JobId("other-7".to_owned());
    let cases = [
        (
            "w1",
            rank(&other, 1, 0, failed("x")),
            Violation::UnknownJob { job: other.clone() },
        ),
        (
            "w1",
            rank(&job, 9, 0, failed("x")),
            Violation::FutureGeneration {
                job: job.clone(),
                reported: Generation(9),
                newest: Generation(1),
            },
        ),
        (
            "w3",
            rank(&job, 1, 0, failed("x")),
            Violation::NotMember {
                job: job.clone(),
                generation: Generation(1),
            },
        ),
        (
            "w1",
            rank(&job, 1, 1, failed("x")),
            Violation::RankOutside {
                rank: Rank(1),
                first: Rank(0),
                ranks: 1,
            },
        ),
        (
            "w1",
            with_step(rank(&job, 1, 0, RankPhase::Training), 5),
            Violation::StepOutside {
                step: Step(5),
                steps_max: Step(4),
            },
        ),
    ];
    for (worker, report, violation) in cases {
        let effects = harness.receive(worker, vec![report.clone()]);
        assert_eq!(ignored(&effects), [violation]);
        let effects = harness.receive(worker, vec![report]);
        assert_eq!(ignored(&effects), [], "once");
    }
    assert_eq!(harness.generation(&job), 1);
    assert_eq!(harness.machine.view().jobs[0].step, Step(0));
}

#[test]
fn a_rank_that_never_appears_ends_its_generation() {
    let (mut harness, job) = Harness::training();
    for _ in 0..24 {
        harness.now += DETECT_WITHIN_MS / 2;
        harness.receive("w1", vec![rank(&job, 1, 0, RankPhase::Joining)]);
        harness.receive("w2", vec![]);
    }
    let missing = Ending::RankMissing {
        rank: Rank(1),
        worker: id("w2"),
    };
    assert_eq!(harness.faults(&job), [&resumes(missing, &[(0, "w1")], 0)]);
}
