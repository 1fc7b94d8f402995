//! Jobs of units: leases, failures, and workers that join and leave one by one.

#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with others, which together use all of it")]
mod harness;

use coordinator_core::event::{Effect, Event, Input, JobPhase, RESTARTS_WITHOUT_PROGRESS_MAX};
use harness::{
    DETECT_WITHIN_MS, Harness, failed, failed_for_good, id, ignored, names, rank, rank_failed,
    sample_of, sampling, sends,
};
use proto::id::{Generation, JobId, Rank, Step};
use proto::message::{
    Activity, GracefulStop, RankPhase, RankReport, Stage, UnitFailure, UnitRange,
};
use proto::phase::Phase;
use proto::reason::{
    Cause, Consequence, Dependency, DependencyState, Ending, Fault, MissingSource, RankFailure,
    StopCause, UnitError, Violation, Waiting,
};
use proto::spec::{JobSpec, OnFailedUnit};
use std::collections::BTreeMap;

fn range(first: u64, end: u64) -> UnitRange {
    UnitRange { first, end }
}

/// A trained job with a checkpoint, whose workers are down.
fn trained() -> (Harness, JobId) {
    let (mut harness, source) = Harness::training();
    harness.commit(&source, 2);
    harness.ask(|request| Input::Cancel {
        request,
        job: source.clone(),
    });
    for _ in 0..12 {
        harness.wait(DETECT_WITHIN_MS / 10);
    }
    (harness, source)
}

/// A job that samples `count` images, plus one unit for the grid.
fn images(source: &JobId, count: u32) -> JobSpec {
    let mut spec = sample_of(source);
    sampling(&mut spec).count = count;
    spec
}

/// The worker's assignment for the job: its generation, its leases by rank, and whether it should
/// stop.
struct AssignedUnits {
    generation: u64,
    leases: BTreeMap<Rank, Vec<UnitRange>>,
    graceful_stop: Option<GracefulStop>,
}

fn assigned_units(effects: &[Effect], worker: &str) -> AssignedUnits {
    let assignment = harness::assigned(effects, worker);
    let leases = assignment.units().unwrap().leases.clone();
    AssignedUnits {
        generation: assignment.generation.0,
        leases,
        graceful_stop: assignment.graceful_stop,
    }
}

fn works(job: &JobId, generation: u64) -> RankReport {
    rank(job, generation, 0, RankPhase::Training)
}

fn with_done(mut report: RankReport, ranges: &[UnitRange]) -> RankReport {
    report.units.done = ranges.to_vec();
    report
}

fn with_failed(mut report: RankReport, unit: u64) -> RankReport {
    let error = format!("no reference {unit}");
    report.units.failed.push(UnitFailure { unit, error });
    report
}

fn at(mut report: RankReport, unit: u64) -> RankReport {
    report.activity = Some(Activity {
        step: Step(0),
        stage: Stage::Unit(unit),
        for_ms: 100,
    });
    report
}

/// Why a job failed whose last fault was this one.
fn failed_by(fault: Fault) -> Cause {
    let checkpoint = None;
    Cause::Fault { fault, checkpoint }
}

/// One worker completes its leases until the job ends. Time advances by `ms` after each report.
fn work_off(harness: &mut Harness, job: &JobId, worker: &str, ms: u64) -> u64 {
    let mut reports = 0;
    let mut done: Vec<UnitRange> = Vec::new();
    while !harness.job(job).phase.is_over() {
        let generation = harness.generation(job);
        let effects = harness.receive(worker, vec![with_done(works(job, generation), &done)]);
        if let Some(assignment) = sends(&effects)[&id(worker).to_string()].assignments.first() {
            done = assignment
                .units()
                .unwrap()
                .leases
                .get(&Rank(0))
                .cloned()
                .unwrap_or_default();
        }
        reports += 1;
        assert!(reports < 10_000, "{:?}", harness.job(job));
        harness.now += ms;
    }
    reports
}

#[test]
fn units_are_leased_done_and_acknowledged_and_the_closing_one_comes_last() {
    let (mut harness, source) = trained();
    let job = harness.submit(images(&source, 2));
    let effects = harness.receive("w3", vec![]);
    let first = assigned_units(&effects, "w3");
    assert_eq!(
        (first.generation, first.leases.len(), first.graceful_stop),
        (1, 0, None),
        "it is loading"
    );
    let assignment = harness::assigned(&effects, "w3");
    let order = assignment.units().unwrap();
    let reads = order.source.as_ref().unwrap();
    assert_eq!(reads.checkpoint.unwrap().step, Step(2));
    assert_eq!(reads.job_toml, harness.job(&source).job_toml);
    assert_eq!(assignment.dataset_version, "version");
    let effects = harness.receive("w3", vec![works(&job, 1)]);
    assert_eq!(
        assigned_units(&effects, "w3").leases[&Rank(0)],
        [range(0, 1)]
    );
    harness.now += 10 * DETECT_WITHIN_MS / 3;
    let effects = harness.receive("w3", vec![with_done(works(&job, 1), &[range(0, 1)])]);
    assert_eq!(
        harness.job(&job).units.as_ref().unwrap().done,
        [range(0, 1)],
        "saved before it is acknowledged"
    );
    assert_eq!(
        assigned_units(&effects, "w3").leases[&Rank(0)],
        [range(1, 2)]
    );
    let effects = harness.receive("w3", vec![with_done(works(&job, 1), &[range(1, 2)])]);
    assert_eq!(
        assigned_units(&effects, "w3").leases[&Rank(0)],
        [range(2, 3)],
        "all others are done and saved"
    );
    let view = harness.machine.view();
    let units = view.jobs[1].units.as_ref().unwrap();
    assert_eq!((units.total, units.done, units.leased), (3, 2, 1));
    harness.receive("w3", vec![with_done(works(&job, 1), &[range(2, 3)])]);
    assert!(matches!(harness.job(&job).phase, JobPhase::Done { .. }));
    assert_eq!(
        harness.job(&job).units.as_ref().unwrap().done,
        [range(0, 3)]
    );
    let effects = harness.receive("w3", vec![works(&job, 1)]);
    assert_eq!(sends(&effects)["w3#1"].assignments, []);
}

#[test]
fn quick_units_share_messages_and_saves_and_only_saved_units_are_shown() {
    let (mut harness, source) = trained();
    let job = harness.submit(images(&source, 100_000));
    harness.receive("w3", vec![]);
    let reports = work_off(&mut harness, &job, "w3", 50);
    assert!(reports < 300, "{reports} reports for 100001 units");
    assert_eq!(
        harness.job(&job).units.as_ref().unwrap().done,
        [range(0, 100_001)]
    );
    // The view does not show completed units before they are saved.
    let (mut harness, source) = trained();
    let job = harness.submit(images(&source, 4));
    harness.receive("w3", vec![]);
    harness.receive("w3", vec![works(&job, 1)]);
    harness.now += DETECT_WITHIN_MS;
    harness.receive("w3", vec![with_done(works(&job, 1), &[range(0, 1)])]);
    harness.now += 1;
    let effects = harness.receive("w3", vec![with_done(works(&job, 1), &[range(0, 2)])]);
    assert_eq!(
        harness.machine.view().jobs[1].units.as_ref().unwrap().done,
        1
    );
    assert!(
        assigned_units(&effects, "w3").leases[&Rank(0)].contains(&range(1, 3)),
        "not acknowledged"
    );
    let due = harness.machine.next_deadline().unwrap();
    assert!(due <= harness.now + DETECT_WITHIN_MS / 6);
    harness.now = due;
    harness.handle(Input::Deadline);
    assert_eq!(
        harness.machine.view().jobs[1].units.as_ref().unwrap().done,
        2
    );
}

#[test]
fn a_unit_whose_worker_dies_is_leased_again_and_completed_units_are_kept() {
    let (mut harness, source) = trained();
    let job = harness.submit(images(&source, 3));
    harness.receive("w3", vec![]);
    harness.receive("w4", vec![]);
    assert_eq!(
        harness.generation(&job),
        2,
        "each has a generation of its own"
    );
    harness.receive("w3", vec![works(&job, 1)]);
    harness.receive("w4", vec![works(&job, 2)]);
    harness.now += DETECT_WITHIN_MS - 1;
    harness.receive("w4", vec![works(&job, 2)]);
    harness.now += 1;
    let effects = harness.handle(Input::Deadline);
    let AssignedUnits { leases, .. } = assigned_units(
        &harness.receive("w4", vec![with_done(works(&job, 2), &[range(1, 2)])]),
        "w4",
    );
    assert_eq!(
        leases[&Rank(0)],
        [range(0, 1)],
        "unit 1 is saved, and unit 0 is leased to it now"
    );
    assert!(
        effects
            .iter()
            .any(|it| matches!(it, Effect::Emit(Event::GenerationEnded { .. })))
    );
    let ending = Ending::WorkerLost {
        worker: id("w3"),
        silent_for_ms: DETECT_WITHIN_MS,
    };
    assert_eq!(harness.faults(&job), [&Fault::Worker { ending }]);
    // It comes back as another worker and joins again.
    harness.receive("w3#2", vec![]);
    assert_eq!(harness.generation(&job), 3);
}

#[test]
fn a_unit_that_fails_three_times_on_different_workers_ends_the_job_and_is_its_cause() {
    let (mut harness, source) = trained();
    let job = harness.submit(images(&source, 50));
    let mut leases = BTreeMap::new();
    for (worker, generation) in [("w3", 1), ("w4", 2), ("w5", 3)] {
        harness.receive(worker, vec![]);
        let effects = harness.receive(worker, vec![works(&job, generation)]);
        leases.insert(
            worker,
            assigned_units(&effects, worker).leases[&Rank(0)].clone(),
        );
    }
    assert_eq!(leases["w3"], [range(0, 1)]);
    let again = with_failed(works(&job, 1), 0);
    let effects = harness.receive("w3", vec![again.clone()]);
    assert_eq!(
        assigned_units(&effects, "w3").leases[&Rank(0)],
        [range(3, 5)],
        "other units"
    );
    let effects = harness.receive("w3", vec![again]);
    assert_eq!(
        assigned_units(&effects, "w3").leases[&Rank(0)],
        [range(3, 5)],
        "reported twice, counted once"
    );
    harness.now += DETECT_WITHIN_MS / 2;
    let effects = harness.receive("w4", vec![with_done(works(&job, 2), &[range(1, 2)])]);
    assert!(assigned_units(&effects, "w4").leases[&Rank(0)][0].contains(0));
    harness.receive("w4", vec![with_failed(works(&job, 2), 0)]);
    harness.receive("w5", vec![with_done(works(&job, 3), &[range(2, 3)])]);
    harness.receive("w5", vec![with_failed(works(&job, 3), 0)]);
    let fault = Fault::Unit {
        unit: 0,
        failures: 3,
        workers: names(&["w3", "w4", "w5"]),
        error: UnitError::text("no reference 0"),
        set_aside: false,
    };
    assert_eq!(*harness.cause(&job), failed_by(fault));
}

#[test]
fn a_unit_that_kills_its_process_is_set_aside_and_does_not_take_the_fleet_with_it() {
    let (mut harness, source) = trained();
    let mut spec = images(&source, 3);
    sampling(&mut spec).on_failed_unit = OnFailedUnit::SetAside;
    let job = harness.submit(spec);
    harness.receive("w3", vec![]);
    for generation in 1..=3 {
        let effects = harness.receive("w3", vec![works(&job, generation)]);
        assert_eq!(
            assigned_units(&effects, "w3").leases[&Rank(0)],
            [range(0, 1)]
        );
        harness.receive(
            "w3",
            vec![at(rank(&job, generation, 0, failed("exit status 11")), 0)],
        );
        assert_eq!(harness.generation(&job), generation + 1);
    }
    let units = harness.job(&job).units.clone().unwrap();
    assert_eq!(units.set_aside, [range(0, 1)]);
    assert_eq!(units.failed[0].workers, ["w3", "w3", "w3"]);
    let exited = RankFailure::error("exit status 11", false);
    assert_eq!(
        units.failed[0].error,
        UnitError::Ended(rank_failed(0, "w3", exited))
    );
    assert_eq!(
        harness.job(&job).restarts_without_progress,
        0,
        "the unit is to blame"
    );
    work_off(&mut harness, &job, "w3", 300);
    assert!(matches!(harness.job(&job).phase, JobPhase::Done { .. }));
    let view = harness.machine.view();
    let units = view.jobs[1].units.as_ref().unwrap();
    assert_eq!(
        (units.done, units.set_aside, units.named[0].unit),
        (3, 1, 0)
    );
}

#[test]
fn processes_that_end_without_a_current_unit_finally_end_the_job() {
    let (mut harness, source) = trained();
    let job = harness.submit(images(&source, 3));
    harness.receive("w3", vec![]);
    for generation in 1..u64::from(RESTARTS_WITHOUT_PROGRESS_MAX) {
        harness.receive(
            "w3",
            vec![rank(&job, generation, 0, failed("no space left"))],
        );
        assert_eq!(harness.generation(&job), generation + 1);
        assert!(!harness.job(&job).phase.is_over());
    }
    harness.restart();
    harness.receive(
        "w3",
        vec![rank(
            &job,
            RESTARTS_WITHOUT_PROGRESS_MAX.into(),
            0,
            failed("no space left"),
        )],
    );
    let fault = Fault::Process {
        ending: rank_failed(0, "w3", RankFailure::error("no space left", false)),
        unit: None,
        consequence: Consequence::NoProgress {
            generations: RESTARTS_WITHOUT_PROGRESS_MAX,
        },
    };
    assert_eq!(*harness.cause(&job), failed_by(fault));
    let other = harness.submit(images(&source, 3));
    harness.receive(
        "w3",
        vec![rank(&other, 1, 0, failed_for_good("no such weights"))],
    );
    let fault = Fault::Process {
        ending: rank_failed(0, "w3", RankFailure::error("no such weights", true)),
        unit: None,
        consequence: Consequence::Permanent,
    };
    assert_eq!(*harness.cause(&other), failed_by(fault));
}

#[test]
fn a_drained_worker_finishes_its_current_unit_and_releases_the_others() {
    let (mut harness, source) = trained();
    let job = harness.submit(images(&source, 9));
    harness.receive("w3", vec![]);
    harness.receive("w3", vec![works(&job, 1)]);
    harness.receive("w4", vec![]);
    harness.receive("w4", vec![works(&job, 2)]);
    harness.ask(|request| Input::Drain {
        request,
        worker: "w3".to_owned(),
        drained: true,
    });
    let effects = harness.receive("w3", vec![at(works(&job, 1), 0)]);
    let leaving = assigned_units(&effects, "w3");
    assert_eq!(
        (leaving.graceful_stop, &leaving.leases[&Rank(0)][..]),
        (Some(GracefulStop::WithCheckpoint), &[range(0, 1)][..])
    );
    let why = harness.machine.why(harness.now, &job).unwrap();
    assert_eq!(why.constraint, "units", "the other worker stays");
    let effects = harness.receive(
        "w3",
        vec![with_done(
            rank(&job, 1, 0, RankPhase::Finished),
            &[range(0, 1)],
        )],
    );
    assert_eq!(sends(&effects)["w3#1"].assignments, []);
    assert!(harness.job(&job).incidents.is_empty());
    work_off(&mut harness, &job, "w4", 300);
    assert_eq!(
        harness.job(&job).units.as_ref().unwrap().done,
        [range(0, 10)]
    );
}

#[test]
fn a_process_that_ends_on_a_worker_that_leaves_blames_no_unit() {
    let (mut harness, source) = trained();
    let job = harness.submit(images(&source, 9));
    for boot in 0..4 {
        harness.receive("w3", vec![]);
        let generation = harness.job(&job).generation.0;
        harness.receive("w3", vec![works(&job, generation)]);
        harness.ask(|request| Input::Drain {
            request,
            worker: "w3".to_owned(),
            drained: true,
        });
        let killed = at(rank(&job, generation, 0, failed("killed by signal 9")), 0);
        harness.receive("w3", vec![killed]);
        assert!(harness.job(&job).incidents.is_empty(), "drain {boot}");
        assert!(harness.job(&job).units.as_ref().unwrap().failed.is_empty());
        harness.ask(|request| Input::Drain {
            request,
            worker: "w3".to_owned(),
            drained: false,
        });
    }
    assert_ne!(harness.job(&job).word(), "failed");
}

#[test]
fn a_worker_that_misses_its_deadline_is_dropped_and_its_unit_is_leased_again() {
    let (mut harness, source) = trained();
    let job = harness.submit(images(&source, 9));
    harness.receive("w3", vec![]);
    harness.receive("w3", vec![works(&job, 1)]);
    harness.ask(|request| Input::Pause {
        request,
        job: job.clone(),
        paused: true,
    });
    assert_eq!(harness.job(&job).word(), "pausing");
    for _ in 0..81 {
        harness.now += DETECT_WITHIN_MS / 2;
        harness.receive("w3", vec![at(works(&job, 1), 0)]);
    }
    assert_eq!(harness.job(&job).word(), "paused");
    let fault = Fault::UnitsOverdue {
        cause: StopCause::Paused,
        worker: "w3".to_owned(),
    };
    assert_eq!(harness.faults(&job), [&fault]);
    harness.ask(|request| Input::Pause {
        request,
        job: job.clone(),
        paused: false,
    });
    let effects = harness.receive("w3", vec![works(&job, 2)]);
    assert_eq!(
        assigned_units(&effects, "w3").leases[&Rank(0)],
        [range(0, 1)]
    );
}

#[test]
fn a_restarted_coordinator_restores_the_leases_of_workers() {
    let (mut harness, source) = trained();
    let job = harness.submit(images(&source, 9));
    for (worker, generation) in [("w3", 1), ("w4", 2)] {
        harness.receive(worker, vec![]);
        harness.receive(worker, vec![works(&job, generation)]);
    }
    harness.restart();
    // The first worker that reports does not get the units that the other holds.
    let effects = harness.receive("w3", vec![at(with_done(works(&job, 1), &[range(0, 1)]), 2)]);
    assert_eq!(
        assigned_units(&effects, "w3").leases[&Rank(0)],
        [range(2, 3)],
        "unit 0 is saved"
    );
    let effects = harness.receive("w4", vec![at(works(&job, 2), 1)]);
    assert_eq!(
        assigned_units(&effects, "w4").leases[&Rank(0)],
        [range(1, 2)]
    );
    assert_eq!(
        (harness.generation(&job), harness.job(&job).restarts),
        (2, 0)
    );
}

#[test]
fn a_gang_of_higher_priority_takes_workers_one_by_one_and_units_take_them_back() {
    let (mut harness, source) = trained();
    let job = harness.submit(images(&source, 90));
    for (worker, generation) in [("w3", 1), ("w4", 2), ("w5", 3)] {
        harness.receive(worker, vec![]);
        harness.receive(worker, vec![works(&job, generation)]);
    }
    let mut gang = harness::spec(2, 2);
    gang.resources.priority = 1;
    let gang = harness.submit(gang);
    for _ in 0..2 {
        harness.now += DETECT_WITHIN_MS / 2;
        for (worker, generation) in [("w3", 1), ("w4", 2), ("w5", 3)] {
            harness.receive(worker, vec![works(&job, generation)]);
        }
    }
    assert!(
        matches!(
            harness.waiting(&gang),
            Waiting::Release { jobs, workers } if jobs[..] == [job.clone()] && !workers.is_empty()
        ),
        "{:?}",
        harness.waiting(&gang)
    );
    let mut released = 0;
    for (worker, generation) in [("w3", 1), ("w4", 2), ("w5", 3)] {
        let effects = harness.receive(worker, vec![works(&job, generation)]);
        if assigned_units(&effects, worker).graceful_stop.is_some() {
            released += 1;
            harness.receive(worker, vec![rank(&job, generation, 0, RankPhase::Finished)]);
        }
    }
    assert_eq!(
        (
            released,
            harness.job(&gang).word(),
            harness.job(&job).word()
        ),
        (2, "running", "running")
    );
    harness.ask(|request| Input::Cancel { request, job: gang });
    assert_eq!(harness.generation(&job), 5, "both come back");
}

#[test]
fn a_job_asks_for_no_more_workers_than_its_units_can_use() {
    let (mut harness, source) = trained();
    let job = harness.submit(images(&source, 1));
    for worker in ["w3", "w4", "w5"] {
        harness.receive(worker, vec![]);
    }
    assert_eq!(harness.generation(&job), 2, "an image and the grid");
    let mut spec = images(&source, 90);
    spec.resources.workers_max = 1;
    let other = harness.submit(spec);
    assert_eq!(harness.generation(&other), 1);
    let reply = harness.ask(|request| Input::Scale {
        request,
        job: other.clone(),
        workers: 0,
    });
    assert!(
        format!("{reply:?}").contains("at least 1 worker"),
        "{reply:?}"
    );
}

#[test]
fn why_names_the_rank_that_has_been_in_its_unit_the_longest() {
    let (mut harness, source) = trained();
    let job = harness.submit(images(&source, 3));
    harness.receive("w3", vec![]);
    harness.receive("w3", vec![works(&job, 1)]);
    harness.receive("w3", vec![at(works(&job, 1), 0)]);
    harness.now += 300;
    let why = harness.machine.why(harness.now, &job).unwrap();
    assert_eq!(why.constraint, "units");
    let waits_for = why.waits_for.unwrap();
    assert_eq!(
        (waits_for.rank, waits_for.worker, waits_for.for_ms),
        (Rank(0), id("w3"), 400)
    );
}

#[test]
fn impossible_reports_are_ignored_and_logged_once() {
    let (mut harness, source) = trained();
    let job = harness.submit(images(&source, 3));
    harness.receive("w3", vec![]);
    harness.receive("w3", vec![works(&job, 1)]);
    let strange = at(
        with_done(
            works(&job, 1),
            &[range(2, 2), range(7, 3), range(1, u64::MAX)],
        ),
        99,
    );
    assert_eq!(
        ignored(&harness.receive("w3", vec![strange])),
        [Violation::UnitOutside { unit: 99, units: 4 }]
    );
    assert_eq!(
        ignored(&harness.receive("w4", vec![works(&job, 1)])),
        [Violation::NotMember {
            job: job.clone(),
            generation: Generation(1),
        }]
    );
    harness.wait(DETECT_WITHIN_MS / 2);
    assert_eq!(
        harness.job(&job).units.as_ref().unwrap().done,
        [],
        "it holds only unit 0"
    );
}

#[test]
fn a_job_waits_for_those_that_it_comes_after() {
    let (mut harness, source) = Harness::training();
    let mut spec = images(&source, 3);
    spec.after = vec![source.clone()];
    let job = harness.submit(spec.clone());
    let dependency = Dependency {
        job: source.clone(),
        state: DependencyState::Pending(Phase::Running),
    };
    let dependencies = vec![dependency];
    assert_eq!(
        *harness.waiting(&job),
        Waiting::Dependencies { dependencies }
    );
    harness.receive("w9", vec![]);
    assert_eq!(harness.generation(&job), 0);
    harness.restart();
    harness.commit(&source, 2);
    harness.commit(&source, 4);
    for (worker, number) in [("w1", 0), ("w2", 1)] {
        harness.receive(worker, vec![rank(&source, 1, number, RankPhase::Finished)]);
    }
    assert!(matches!(harness.job(&source).phase, JobPhase::Done { .. }));
    harness.receive("w9", vec![]);
    let newest = harness
        .job(&job)
        .source
        .as_ref()
        .unwrap()
        .checkpoint
        .unwrap();
    assert_eq!(
        (harness.job(&job).word(), newest.step),
        ("running", Step(4))
    );
    spec.after = vec![JobId("toy-7".to_owned())];
    assert_eq!(
        harness.refused(spec.clone()),
        "after: there is no job toy-7; the newest is images-2"
    );
    spec.after = vec![JobId("images-3".to_owned())];
    assert_eq!(harness.refused(spec), "after: images-3 is this job itself");
}

#[test]
fn a_job_whose_dependency_failed_waits_until_it_is_cancelled() {
    let (mut harness, source) = Harness::training();
    let mut spec = harness::spec(1, 1);
    spec.after = vec![source.clone()];
    let job = harness.submit(spec);
    harness.ask(|request| Input::Cancel {
        request,
        job: source.clone(),
    });
    let dependency = Dependency {
        job: source,
        state: DependencyState::Cancelled,
    };
    let failed = Waiting::DependencyFailed {
        job: job.clone(),
        dependencies: vec![dependency],
    };
    assert_eq!(*harness.waiting(&job), failed);
    harness.restart();
    harness.receive("w9", vec![]);
    let why = harness.machine.why(harness.now, &job).unwrap();
    assert_eq!(
        (why.constraint, harness.generation(&job)),
        ("dependency-failed", 0)
    );
    harness.ask(|request| Input::Cancel {
        request,
        job: job.clone(),
    });
    assert_eq!(harness.job(&job).word(), "cancelled");
}

#[test]
fn an_unreadable_record_is_shown_and_affects_no_other() {
    let (mut harness, source) = trained();
    let job = harness.submit(harness::spec(1, 1));
    harness.durable.jobs.get_mut(&job).unwrap().job_toml = "name = 3".to_owned();
    let stored = harness.job(&job).clone();
    let lost = JobId("lost-9".to_owned());
    harness
        .durable
        .unreadable
        .insert(lost.clone(), "not JSON".to_owned());
    harness.machine = harness::machine(&harness.durable, harness.now);
    harness.receive("w9", vec![]);
    let view = harness.machine.view();
    let ids: Vec<&str> = view.jobs.iter().map(|it| it.record.id.0.as_str()).collect();
    assert_eq!(ids, ["lost-9", job.0.as_str(), source.0.as_str()]);
    assert!(
        view.jobs[..2]
            .iter()
            .all(|it| it.spec.is_none() && it.record.word() == "failed")
    );
    assert_eq!(*harness.job(&job), stored, "its record is unchanged");
    let reply = harness.ask(|request| Input::Cancel { request, job: lost });
    assert!(format!("{reply:?}").contains("cannot be read"), "{reply:?}");
    let next = harness.submit(images(&source, 1));
    assert_eq!(harness.job(&next).word(), "running");
}

#[test]
fn a_worker_on_which_processes_end_at_once_gets_a_back_off_if_there_are_others() {
    let (mut harness, source) = trained();
    let job = harness.submit(images(&source, 50));
    for (worker, generation) in [("w3", 1), ("w4", 2)] {
        harness.receive(worker, vec![]);
        harness.receive(worker, vec![works(&job, generation)]);
    }
    harness.receive("w3", vec![rank(&job, 1, 0, failed("no space left"))]);
    assert_eq!(
        sends(&harness.receive("w3", vec![]))["w3#1"].assignments,
        []
    );
    assert_eq!(
        (
            harness.generation(&job),
            harness.job(&job).restarts_without_progress
        ),
        (2, 1)
    );
    for _ in 0..13 {
        harness.now += DETECT_WITHIN_MS / 3;
        harness.receive("w3", vec![]);
        harness.receive("w4", vec![works(&job, 2)]);
    }
    assert_eq!(harness.generation(&job), 2);
    for _ in 0..24 {
        harness.now += DETECT_WITHIN_MS / 3;
        harness.receive("w3", vec![]);
        harness.receive("w4", vec![works(&job, 2)]);
    }
    assert_eq!(harness.generation(&job), 3, "it is retried");
}

#[test]
fn an_explicit_step_is_pinned_as_soon_as_it_exists() {
    let (mut harness, source) = Harness::training();
    harness.commit(&source, 2);
    let mut spec = images(&source, 3);
    spec.after = vec![source.clone()];
    sampling(&mut spec).weights = proto::sample::Weights::Step(Step(2));
    let job = harness.submit(spec.clone());
    assert!(harness.job(&job).source.is_some());
    assert!(
        harness::deleted(&harness.commit(&source, 3)).is_empty(),
        "step 2 is to be read"
    );
    sampling(&mut spec).weights = proto::sample::Weights::Step(Step(4));
    let later = harness.submit(spec.clone());
    assert!(harness.job(&later).source.is_none(), "it may come");
    sampling(&mut spec).weights = proto::sample::Weights::Step(Step(1));
    let missing = MissingSource::NoStep {
        job: source,
        step: Step(1),
        steps: vec![Step(2), Step(3)],
    };
    assert_eq!(harness.refused(spec), missing.to_string());
}

#[test]
fn a_failure_reported_twice_counts_once_and_is_retried_in_the_next_generation() {
    let (mut harness, source) = trained();
    let mut spec = images(&source, 2);
    sampling(&mut spec).on_failed_unit = OnFailedUnit::SetAside;
    let job = harness.submit(spec);
    harness.receive("w3", vec![]);
    harness.receive("w3", vec![works(&job, 1)]);
    harness.receive("w3", vec![with_failed(works(&job, 1), 0)]);
    // An older report arrives late, and the newer one is duplicated.
    harness.receive("w3", vec![works(&job, 1)]);
    harness.receive("w3", vec![with_failed(works(&job, 1), 0)]);
    let failures = |harness: &Harness| {
        harness.job(&job).units.as_ref().unwrap().failed[0]
            .workers
            .len()
    };
    assert_eq!((failures(&harness), harness.generation(&job)), (1, 1));
    harness.restart();
    harness.receive("w3", vec![with_failed(at(works(&job, 1), 1), 0)]);
    assert_eq!(failures(&harness), 1, "counted before the restart");
    let effects = harness.receive("w3", vec![with_done(works(&job, 1), &[range(1, 2)])]);
    let next = assigned_units(&effects, "w3");
    assert_eq!((next.generation, next.leases.get(&Rank(0))), (2, None));
    let effects = harness.receive("w3", vec![works(&job, 2)]);
    assert_eq!(
        assigned_units(&effects, "w3").leases[&Rank(0)],
        [range(0, 1)]
    );
    harness.receive("w3", vec![with_failed(works(&job, 1), 0)]);
    assert_eq!(failures(&harness), 1, "of the previous generation");
    harness.receive("w3", vec![with_failed(works(&job, 2), 0)]);
    assert_eq!((failures(&harness), harness.generation(&job)), (2, 3));
}

#[test]
fn a_failure_that_was_not_saved_before_a_restart_is_counted_when_it_is_reported_again() {
    let (mut harness, source) = trained();
    let job = harness.submit(images(&source, 9));
    harness.receive("w3", vec![]);
    harness.receive("w3", vec![works(&job, 1)]);
    let before = harness.durable.clone();
    harness.receive("w3", vec![with_failed(works(&job, 1), 0)]);
    harness.durable = before;
    harness.restart();
    let effects = harness.receive("w3", vec![with_failed(at(works(&job, 1), 1), 0)]);
    assert_eq!(
        assigned_units(&effects, "w3").leases[&Rank(0)],
        [range(1, 2)]
    );
    let units = harness.job(&job).units.as_ref().unwrap();
    assert_eq!(
        (units.failed[0].unit, units.failed[0].workers.len()),
        (0, 1)
    );
}

#[test]
fn a_rank_that_a_previous_coordinator_stopped_joins_again() {
    let (mut harness, source) = trained();
    let job = harness.submit(images(&source, 9));
    harness.receive("w3", vec![]);
    harness.receive("w3", vec![works(&job, 1)]);
    harness.restart();
    let effects = harness.receive("w3", vec![rank(&job, 1, 0, RankPhase::Finished)]);
    assert_eq!(assigned_units(&effects, "w3").generation, 2);
    let effects = harness.receive("w3", vec![works(&job, 2)]);
    assert_eq!(
        assigned_units(&effects, "w3").leases[&Rank(0)],
        [range(0, 1)]
    );
}
