//! Jobs of units: leases, failures, and workers that come and go one by one.

#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with others, which together use all of it")]
mod desk;

use coordinator_core::event::{Effect, Event, Input, JobPhase, RESTARTS_WITHOUT_PROGRESS_MAX};
use desk::{
    DETECT_WITHIN_MS, Desk, failed, failed_for_good, id, ignored, rank, sample_of, sampling, sends,
};
use proto::id::{JobId, Rank, Step};
use proto::message::{
    Activity, GracefulStop, RankPhase, RankReport, Stage, UnitFailure, UnitRange,
};
use proto::spec::{JobSpec, OnFailedUnit};
use std::collections::BTreeMap;

fn range(first: u64, end: u64) -> UnitRange {
    UnitRange { first, end }
}

/// A trained job with a checkpoint, whose workers are gone.
fn trained() -> (Desk, JobId) {
    let (mut desk, source) = Desk::training();
    desk.commit(&source, 2);
    desk.ask(|request| Input::Cancel {
        request,
        job: source.clone(),
    });
    for _ in 0..12 {
        desk.wait(DETECT_WITHIN_MS / 10);
    }
    (desk, source)
}

/// Images, and one unit for the grid.
fn images(source: &JobId, count: u32) -> JobSpec {
    let mut spec = sample_of(source);
    sampling(&mut spec).count = count;
    spec
}

/// What the worker should do of the job: its generation, its leases by rank, whether it is to
/// leave.
struct Told {
    generation: u64,
    leases: BTreeMap<Rank, Vec<UnitRange>>,
    graceful_stop: Option<GracefulStop>,
}

fn told(effects: &[Effect], worker: &str) -> Told {
    let assignment = desk::told(effects, worker);
    let leases = assignment.units().unwrap().leases.clone();
    Told {
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

/// One worker that does what it is leased until the job is over; each report is that much later.
fn work_off(desk: &mut Desk, job: &JobId, worker: &str, ms: u64) -> u64 {
    let mut reports = 0;
    let mut done: Vec<UnitRange> = Vec::new();
    while !desk.job(job).phase.is_over() {
        let generation = desk.generation(job);
        let effects = desk.receive(worker, vec![with_done(works(job, generation), &done)]);
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
        assert!(reports < 10_000, "{:?}", desk.job(job));
        desk.now += ms;
    }
    reports
}

#[test]
fn units_are_leased_done_and_acknowledged_and_the_closing_one_comes_last() {
    let (mut desk, source) = trained();
    let job = desk.submit(images(&source, 2));
    let effects = desk.receive("w3", vec![]);
    let first = told(&effects, "w3");
    assert_eq!(
        (first.generation, first.leases.len(), first.graceful_stop),
        (1, 0, None),
        "it loads"
    );
    let assignment = desk::told(&effects, "w3");
    let order = assignment.units().unwrap();
    let reads = order.source.as_ref().unwrap();
    assert_eq!(reads.checkpoint.unwrap().step, Step(2));
    assert_eq!(reads.job_toml, desk.job(&source).job_toml);
    assert_eq!(assignment.dataset_version, "version");
    let effects = desk.receive("w3", vec![works(&job, 1)]);
    assert_eq!(told(&effects, "w3").leases[&Rank(0)], [range(0, 1)]);
    desk.now += 10 * DETECT_WITHIN_MS / 3;
    let effects = desk.receive("w3", vec![with_done(works(&job, 1), &[range(0, 1)])]);
    assert_eq!(
        desk.job(&job).units.as_ref().unwrap().done,
        [range(0, 1)],
        "saved before it is acknowledged"
    );
    assert_eq!(told(&effects, "w3").leases[&Rank(0)], [range(1, 2)]);
    let effects = desk.receive("w3", vec![with_done(works(&job, 1), &[range(1, 2)])]);
    assert_eq!(
        told(&effects, "w3").leases[&Rank(0)],
        [range(2, 3)],
        "all others are there and saved"
    );
    let view = desk.machine.view();
    let units = view.jobs[1].units.as_ref().unwrap();
    assert_eq!((units.total, units.done, units.leased), (3, 2, 1));
    desk.receive("w3", vec![with_done(works(&job, 1), &[range(2, 3)])]);
    assert!(matches!(desk.job(&job).phase, JobPhase::Done { .. }));
    assert_eq!(desk.job(&job).units.as_ref().unwrap().done, [range(0, 3)]);
    let effects = desk.receive("w3", vec![works(&job, 1)]);
    assert_eq!(sends(&effects)["w3#1"].assignments, []);
}

#[test]
fn quick_units_share_messages_and_saves_and_nothing_is_told_that_is_not_saved() {
    let (mut desk, source) = trained();
    let job = desk.submit(images(&source, 100_000));
    desk.receive("w3", vec![]);
    let reports = work_off(&mut desk, &job, "w3", 50);
    assert!(reports < 300, "{reports} reports for 100001 units");
    assert_eq!(
        desk.job(&job).units.as_ref().unwrap().done,
        [range(0, 100_001)]
    );
    // Of units that were done a moment ago the view says nothing before they are saved.
    let (mut desk, source) = trained();
    let job = desk.submit(images(&source, 4));
    desk.receive("w3", vec![]);
    desk.receive("w3", vec![works(&job, 1)]);
    desk.now += DETECT_WITHIN_MS;
    desk.receive("w3", vec![with_done(works(&job, 1), &[range(0, 1)])]);
    desk.now += 1;
    let effects = desk.receive("w3", vec![with_done(works(&job, 1), &[range(0, 2)])]);
    assert_eq!(desk.machine.view().jobs[1].units.as_ref().unwrap().done, 1);
    assert!(
        told(&effects, "w3").leases[&Rank(0)].contains(&range(1, 3)),
        "not acknowledged"
    );
    let due = desk.machine.next_deadline().unwrap();
    assert!(due <= desk.now + DETECT_WITHIN_MS / 6);
    desk.now = due;
    desk.handle(Input::Deadline);
    assert_eq!(desk.machine.view().jobs[1].units.as_ref().unwrap().done, 2);
}

#[test]
fn a_unit_whose_worker_dies_is_leased_again_and_what_it_did_is_kept() {
    let (mut desk, source) = trained();
    let job = desk.submit(images(&source, 3));
    desk.receive("w3", vec![]);
    desk.receive("w4", vec![]);
    assert_eq!(desk.generation(&job), 2, "each has a generation of its own");
    desk.receive("w3", vec![works(&job, 1)]);
    desk.receive("w4", vec![works(&job, 2)]);
    desk.now += DETECT_WITHIN_MS - 1;
    desk.receive("w4", vec![works(&job, 2)]);
    desk.now += 1;
    let effects = desk.handle(Input::Deadline);
    let Told { leases, .. } = told(
        &desk.receive("w4", vec![with_done(works(&job, 2), &[range(1, 2)])]),
        "w4",
    );
    assert_eq!(
        leases[&Rank(0)],
        [range(0, 1)],
        "1 is saved, and unit 0 is its now"
    );
    assert!(
        effects
            .iter()
            .any(|it| matches!(it, Effect::Emit(Event::GenerationEnded { .. })))
    );
    assert!(
        desk.job(&job).incidents[0]
            .what
            .ends_with("its units are leased again")
    );
    // It comes back as another worker, and is taken in again.
    desk.receive("w3#2", vec![]);
    assert_eq!(desk.generation(&job), 3);
}

#[test]
fn a_unit_that_fails_three_times_on_different_workers_ends_the_job_and_is_named() {
    let (mut desk, source) = trained();
    let job = desk.submit(images(&source, 50));
    let mut leases = BTreeMap::new();
    for (worker, generation) in [("w3", 1), ("w4", 2), ("w5", 3)] {
        desk.receive(worker, vec![]);
        let effects = desk.receive(worker, vec![works(&job, generation)]);
        leases.insert(worker, told(&effects, worker).leases[&Rank(0)].clone());
    }
    assert_eq!(leases["w3"], [range(0, 1)]);
    let again = with_failed(works(&job, 1), 0);
    let effects = desk.receive("w3", vec![again.clone()]);
    assert_eq!(
        told(&effects, "w3").leases[&Rank(0)],
        [range(3, 5)],
        "another one"
    );
    let effects = desk.receive("w3", vec![again]);
    assert_eq!(
        told(&effects, "w3").leases[&Rank(0)],
        [range(3, 5)],
        "said twice, failed once"
    );
    desk.now += DETECT_WITHIN_MS / 2;
    let effects = desk.receive("w4", vec![with_done(works(&job, 2), &[range(1, 2)])]);
    assert!(told(&effects, "w4").leases[&Rank(0)][0].contains(0));
    desk.receive("w4", vec![with_failed(works(&job, 2), 0)]);
    desk.receive("w5", vec![with_done(works(&job, 3), &[range(2, 3)])]);
    desk.receive("w5", vec![with_failed(works(&job, 3), 0)]);
    assert_eq!(
        desk.reason(&job),
        "unit 0 failed 3 times, on w3, w4, w5: no reference 0"
    );
}

#[test]
fn a_unit_that_kills_its_process_is_set_aside_and_does_not_take_the_fleet_with_it() {
    let (mut desk, source) = trained();
    let mut spec = images(&source, 3);
    sampling(&mut spec).on_failed_unit = OnFailedUnit::SetAside;
    let job = desk.submit(spec);
    desk.receive("w3", vec![]);
    for generation in 1..=3 {
        let effects = desk.receive("w3", vec![works(&job, generation)]);
        assert_eq!(told(&effects, "w3").leases[&Rank(0)], [range(0, 1)]);
        desk.receive(
            "w3",
            vec![at(rank(&job, generation, 0, failed("exit status 11")), 0)],
        );
        assert_eq!(desk.generation(&job), generation + 1);
    }
    let units = desk.job(&job).units.clone().unwrap();
    assert_eq!(units.set_aside, [range(0, 1)]);
    assert_eq!(units.failed[0].workers, ["w3", "w3", "w3"]);
    assert!(
        units.failed[0].error.contains("exit status 11"),
        "{:?}",
        units.failed
    );
    assert_eq!(
        desk.job(&job).restarts_without_progress,
        0,
        "the unit is to blame"
    );
    work_off(&mut desk, &job, "w3", 300);
    assert!(matches!(desk.job(&job).phase, JobPhase::Done { .. }));
    let view = desk.machine.view();
    let units = view.jobs[1].units.as_ref().unwrap();
    assert_eq!(
        (units.done, units.set_aside, units.named[0].unit),
        (3, 1, 0)
    );
}

#[test]
fn processes_that_end_with_no_unit_in_hand_end_the_job_in_the_end() {
    let (mut desk, source) = trained();
    let job = desk.submit(images(&source, 3));
    desk.receive("w3", vec![]);
    for generation in 1..u64::from(RESTARTS_WITHOUT_PROGRESS_MAX) {
        desk.receive(
            "w3",
            vec![rank(&job, generation, 0, failed("no space left"))],
        );
        assert_eq!(desk.generation(&job), generation + 1);
        assert!(!desk.job(&job).phase.is_over());
    }
    desk.restart();
    desk.receive(
        "w3",
        vec![rank(
            &job,
            RESTARTS_WITHOUT_PROGRESS_MAX.into(),
            0,
            failed("no space left"),
        )],
    );
    assert!(
        desk.reason(&job).contains("process 5 in a row"),
        "{}",
        desk.reason(&job)
    );
    let other = desk.submit(images(&source, 3));
    desk.receive(
        "w3",
        vec![rank(&other, 1, 0, failed_for_good("no such weights"))],
    );
    assert!(desk.reason(&other).contains("no such weights"));
}

#[test]
fn a_drained_worker_ends_the_unit_that_it_is_at_and_gives_the_others_back() {
    let (mut desk, source) = trained();
    let job = desk.submit(images(&source, 9));
    desk.receive("w3", vec![]);
    desk.receive("w3", vec![works(&job, 1)]);
    desk.receive("w4", vec![]);
    desk.receive("w4", vec![works(&job, 2)]);
    desk.ask(|request| Input::Drain {
        request,
        worker: "w3".to_owned(),
        drained: true,
    });
    let effects = desk.receive("w3", vec![at(works(&job, 1), 0)]);
    let leaving = told(&effects, "w3");
    assert_eq!(
        (leaving.graceful_stop, &leaving.leases[&Rank(0)][..]),
        (Some(GracefulStop::WithCheckpoint), &[range(0, 1)][..])
    );
    let why = desk.machine.why(desk.now, &job).unwrap();
    assert!(
        why.sentence.contains("it gives back w3"),
        "{}",
        why.sentence
    );
    let effects = desk.receive(
        "w3",
        vec![with_done(
            rank(&job, 1, 0, RankPhase::Finished),
            &[range(0, 1)],
        )],
    );
    assert_eq!(sends(&effects)["w3#1"].assignments, []);
    assert!(desk.job(&job).incidents.is_empty());
    work_off(&mut desk, &job, "w4", 300);
    assert_eq!(desk.job(&job).units.as_ref().unwrap().done, [range(0, 10)]);
}

#[test]
fn a_process_that_ends_on_a_worker_that_leaves_blames_no_unit() {
    let (mut desk, source) = trained();
    let job = desk.submit(images(&source, 9));
    for boot in 0..4 {
        desk.receive("w3", vec![]);
        let generation = desk.job(&job).generation.0;
        desk.receive("w3", vec![works(&job, generation)]);
        desk.ask(|request| Input::Drain {
            request,
            worker: "w3".to_owned(),
            drained: true,
        });
        let killed = at(rank(&job, generation, 0, failed("killed by signal 9")), 0);
        desk.receive("w3", vec![killed]);
        assert!(desk.job(&job).incidents.is_empty(), "drain {boot}");
        assert!(desk.job(&job).units.as_ref().unwrap().failed.is_empty());
        desk.ask(|request| Input::Drain {
            request,
            worker: "w3".to_owned(),
            drained: false,
        });
    }
    assert_ne!(desk.job(&job).word(), "failed");
}

#[test]
fn who_does_not_end_its_unit_in_time_is_dropped_and_the_unit_is_leased_again() {
    let (mut desk, source) = trained();
    let job = desk.submit(images(&source, 9));
    desk.receive("w3", vec![]);
    desk.receive("w3", vec![works(&job, 1)]);
    desk.ask(|request| Input::Pause {
        request,
        job: job.clone(),
        paused: true,
    });
    assert_eq!(desk.job(&job).word(), "pausing");
    for _ in 0..81 {
        desk.now += DETECT_WITHIN_MS / 2;
        desk.receive("w3", vec![at(works(&job, 1), 0)]);
    }
    assert_eq!(desk.job(&job).word(), "paused");
    assert!(
        desk.job(&job).incidents[0]
            .what
            .contains("w3 had not finished its units in time")
    );
    desk.ask(|request| Input::Pause {
        request,
        job: job.clone(),
        paused: false,
    });
    let effects = desk.receive("w3", vec![works(&job, 2)]);
    assert_eq!(told(&effects, "w3").leases[&Rank(0)], [range(0, 1)]);
}

#[test]
fn a_restarted_coordinator_takes_up_what_workers_hold() {
    let (mut desk, source) = trained();
    let job = desk.submit(images(&source, 9));
    for (worker, generation) in [("w3", 1), ("w4", 2)] {
        desk.receive(worker, vec![]);
        desk.receive(worker, vec![works(&job, generation)]);
    }
    desk.restart();
    // The first that is heard is not given what the other holds by chance.
    let effects = desk.receive("w3", vec![at(with_done(works(&job, 1), &[range(0, 1)]), 2)]);
    assert_eq!(
        told(&effects, "w3").leases[&Rank(0)],
        [range(2, 3)],
        "0 is saved"
    );
    let effects = desk.receive("w4", vec![at(works(&job, 2), 1)]);
    assert_eq!(told(&effects, "w4").leases[&Rank(0)], [range(1, 2)]);
    assert_eq!((desk.generation(&job), desk.job(&job).restarts), (2, 0));
}

#[test]
fn a_gang_of_higher_priority_takes_workers_one_by_one_and_units_take_them_back() {
    let (mut desk, source) = trained();
    let job = desk.submit(images(&source, 90));
    for (worker, generation) in [("w3", 1), ("w4", 2), ("w5", 3)] {
        desk.receive(worker, vec![]);
        desk.receive(worker, vec![works(&job, generation)]);
    }
    let mut gang = desk::spec(2, 2);
    gang.resources.priority = 1;
    let gang = desk.submit(gang);
    for _ in 0..2 {
        desk.now += DETECT_WITHIN_MS / 2;
        for (worker, generation) in [("w3", 1), ("w4", 2), ("w5", 3)] {
            desk.receive(worker, vec![works(&job, generation)]);
        }
    }
    assert!(
        desk.reason(&gang).contains("let go of w"),
        "{}",
        desk.reason(&gang)
    );
    let mut gone = 0;
    for (worker, generation) in [("w3", 1), ("w4", 2), ("w5", 3)] {
        let effects = desk.receive(worker, vec![works(&job, generation)]);
        if told(&effects, worker).graceful_stop.is_some() {
            gone += 1;
            desk.receive(worker, vec![rank(&job, generation, 0, RankPhase::Finished)]);
        }
    }
    assert_eq!(
        (gone, desk.job(&gang).word(), desk.job(&job).word()),
        (2, "running", "running")
    );
    desk.ask(|request| Input::Cancel { request, job: gang });
    assert_eq!(desk.generation(&job), 5, "both come back");
}

#[test]
fn a_job_asks_for_no_more_workers_than_its_units_can_use() {
    let (mut desk, source) = trained();
    let job = desk.submit(images(&source, 1));
    for worker in ["w3", "w4", "w5"] {
        desk.receive(worker, vec![]);
    }
    assert_eq!(desk.generation(&job), 2, "an image and the grid");
    let mut spec = images(&source, 90);
    spec.resources.workers_max = 1;
    let other = desk.submit(spec);
    assert_eq!(desk.generation(&other), 1);
    let reply = desk.ask(|request| Input::Scale {
        request,
        job: other.clone(),
        workers: 0,
    });
    assert!(
        format!("{reply:?}").contains("1 worker or more"),
        "{reply:?}"
    );
}

#[test]
fn why_says_who_is_in_which_unit_for_how_long() {
    let (mut desk, source) = trained();
    let job = desk.submit(images(&source, 3));
    desk.receive("w3", vec![]);
    desk.receive("w3", vec![works(&job, 1)]);
    desk.receive("w3", vec![at(works(&job, 1), 0)]);
    desk.now += 300;
    let why = desk.machine.why(desk.now, &job).unwrap();
    assert_eq!(
        why.sentence,
        "it works on units: 0 of 4 are done, 0.0 a second; rank 0 on w3 has been in unit 0 for \
        0.4 s"
    );
    assert_eq!(why.constraint, "units");
}

#[test]
fn what_cannot_be_is_ignored_and_noted_once() {
    let (mut desk, source) = trained();
    let job = desk.submit(images(&source, 3));
    desk.receive("w3", vec![]);
    desk.receive("w3", vec![works(&job, 1)]);
    let strange = at(
        with_done(
            works(&job, 1),
            &[range(2, 2), range(7, 3), range(1, u64::MAX)],
        ),
        99,
    );
    assert_eq!(
        ignored(&desk.receive("w3", vec![strange])),
        ["reports unit 99 of a job of 4 units"]
    );
    assert_eq!(
        ignored(&desk.receive("w4", vec![works(&job, 1)])),
        ["reports a rank of images-2 generation 1, of which it is not a member"]
    );
    desk.wait(DETECT_WITHIN_MS / 2);
    assert_eq!(
        desk.job(&job).units.as_ref().unwrap().done,
        [],
        "it holds unit 0 alone"
    );
}

#[test]
fn a_job_waits_for_those_that_it_comes_after() {
    let (mut desk, source) = Desk::training();
    let mut spec = images(&source, 3);
    spec.after = vec![source.clone()];
    let job = desk.submit(spec.clone());
    assert_eq!(desk.reason(&job), "waits for toy-1, which is running");
    desk.receive("w9", vec![]);
    assert_eq!(desk.generation(&job), 0);
    desk.restart();
    desk.commit(&source, 2);
    desk.commit(&source, 4);
    for (worker, number) in [("w1", 0), ("w2", 1)] {
        desk.receive(worker, vec![rank(&source, 1, number, RankPhase::Finished)]);
    }
    assert!(matches!(desk.job(&source).phase, JobPhase::Done { .. }));
    desk.receive("w9", vec![]);
    let newest = desk.job(&job).source.as_ref().unwrap().checkpoint.unwrap();
    assert_eq!((desk.job(&job).word(), newest.step), ("running", Step(4)));
    spec.after = vec![JobId("toy-7".to_owned())];
    assert_eq!(
        desk.refused(spec.clone()),
        "after: there is no job toy-7; the newest is images-2"
    );
    spec.after = vec![JobId("images-3".to_owned())];
    assert_eq!(desk.refused(spec), "after: images-3 is this job itself");
}

#[test]
fn a_job_whose_dependency_failed_says_so_until_it_is_cancelled() {
    let (mut desk, source) = Desk::training();
    let mut spec = desk::spec(1, 1);
    spec.after = vec![source.clone()];
    let job = desk.submit(spec);
    desk.ask(|request| Input::Cancel {
        request,
        job: source.clone(),
    });
    assert!(
        desk.reason(&job)
            .starts_with("dependency-failed: toy-1 was cancelled"),
        "{}",
        desk.reason(&job)
    );
    desk.restart();
    desk.receive("w9", vec![]);
    let why = desk.machine.why(desk.now, &job).unwrap();
    assert_eq!(
        (why.constraint, desk.generation(&job)),
        ("dependency-failed", 0)
    );
    desk.ask(|request| Input::Cancel {
        request,
        job: job.clone(),
    });
    assert_eq!(desk.job(&job).word(), "cancelled");
}

#[test]
fn a_record_that_means_nothing_is_shown_and_takes_no_other_with_it() {
    let (mut desk, source) = trained();
    let job = desk.submit(desk::spec(1, 1));
    desk.durable.jobs.get_mut(&job).unwrap().job_toml = "name = 3".to_owned();
    let kept = desk.job(&job).clone();
    let lost = JobId("lost-9".to_owned());
    desk.durable
        .unreadable
        .insert(lost.clone(), "not JSON".to_owned());
    desk.machine = desk::machine(&desk.durable, desk.now);
    desk.receive("w9", vec![]);
    let view = desk.machine.view();
    let ids: Vec<&str> = view.jobs.iter().map(|it| it.record.id.0.as_str()).collect();
    assert_eq!(ids, ["lost-9", job.0.as_str(), source.0.as_str()]);
    assert!(
        view.jobs[..2]
            .iter()
            .all(|it| it.spec.is_none() && it.record.word() == "failed")
    );
    assert_eq!(*desk.job(&job), kept, "its record stays as it is");
    let reply = desk.ask(|request| Input::Cancel { request, job: lost });
    assert!(format!("{reply:?}").contains("cannot be read"), "{reply:?}");
    let next = desk.submit(images(&source, 1));
    assert_eq!(desk.job(&next).word(), "running");
}

#[test]
fn a_worker_on_which_processes_end_at_once_is_left_alone_where_there_are_others() {
    let (mut desk, source) = trained();
    let job = desk.submit(images(&source, 50));
    for (worker, generation) in [("w3", 1), ("w4", 2)] {
        desk.receive(worker, vec![]);
        desk.receive(worker, vec![works(&job, generation)]);
    }
    desk.receive("w3", vec![rank(&job, 1, 0, failed("no space left"))]);
    assert_eq!(sends(&desk.receive("w3", vec![]))["w3#1"].assignments, []);
    assert_eq!(
        (
            desk.generation(&job),
            desk.job(&job).restarts_without_progress
        ),
        (2, 1)
    );
    for _ in 0..13 {
        desk.now += DETECT_WITHIN_MS / 3;
        desk.receive("w3", vec![]);
        desk.receive("w4", vec![works(&job, 2)]);
    }
    assert_eq!(desk.generation(&job), 2);
    for _ in 0..24 {
        desk.now += DETECT_WITHIN_MS / 3;
        desk.receive("w3", vec![]);
        desk.receive("w4", vec![works(&job, 2)]);
    }
    assert_eq!(desk.generation(&job), 3, "it is tried again");
}

#[test]
fn an_explicit_step_is_pinned_from_the_moment_that_it_is_there() {
    let (mut desk, source) = Desk::training();
    desk.commit(&source, 2);
    let mut spec = images(&source, 3);
    spec.after = vec![source.clone()];
    sampling(&mut spec).weights = proto::sample::Weights::Step(Step(2));
    let job = desk.submit(spec.clone());
    assert!(desk.job(&job).source.is_some());
    assert!(
        desk::deleted(&desk.commit(&source, 3)).is_empty(),
        "step 2 is to be read"
    );
    sampling(&mut spec).weights = proto::sample::Weights::Step(Step(4));
    let later = desk.submit(spec.clone());
    assert!(desk.job(&later).source.is_none(), "it may come");
    sampling(&mut spec).weights = proto::sample::Weights::Step(Step(1));
    assert_eq!(
        desk.refused(spec),
        "job toy-1 has no checkpoint of step 1; it has: 2, 3"
    );
}

#[test]
fn a_failure_that_is_heard_twice_is_one_and_its_only_worker_tries_again_under_the_next_number() {
    let (mut desk, source) = trained();
    let mut spec = images(&source, 2);
    sampling(&mut spec).on_failed_unit = OnFailedUnit::SetAside;
    let job = desk.submit(spec);
    desk.receive("w3", vec![]);
    desk.receive("w3", vec![works(&job, 1)]);
    desk.receive("w3", vec![with_failed(works(&job, 1), 0)]);
    // An older report is late, and the newer one is doubled.
    desk.receive("w3", vec![works(&job, 1)]);
    desk.receive("w3", vec![with_failed(works(&job, 1), 0)]);
    let failures = |desk: &Desk| {
        desk.job(&job).units.as_ref().unwrap().failed[0]
            .workers
            .len()
    };
    assert_eq!((failures(&desk), desk.generation(&job)), (1, 1));
    desk.restart();
    desk.receive("w3", vec![with_failed(at(works(&job, 1), 1), 0)]);
    assert_eq!(failures(&desk), 1, "counted before the restart");
    let effects = desk.receive("w3", vec![with_done(works(&job, 1), &[range(1, 2)])]);
    let next = told(&effects, "w3");
    assert_eq!((next.generation, next.leases.get(&Rank(0))), (2, None));
    let effects = desk.receive("w3", vec![works(&job, 2)]);
    assert_eq!(told(&effects, "w3").leases[&Rank(0)], [range(0, 1)]);
    desk.receive("w3", vec![with_failed(works(&job, 1), 0)]);
    assert_eq!(failures(&desk), 1, "of the number before");
    desk.receive("w3", vec![with_failed(works(&job, 2), 0)]);
    assert_eq!((failures(&desk), desk.generation(&job)), (2, 3));
}

#[test]
fn a_failure_that_was_not_saved_before_a_restart_is_counted_when_it_is_heard_again() {
    let (mut desk, source) = trained();
    let job = desk.submit(images(&source, 9));
    desk.receive("w3", vec![]);
    desk.receive("w3", vec![works(&job, 1)]);
    let before = desk.durable.clone();
    desk.receive("w3", vec![with_failed(works(&job, 1), 0)]);
    desk.durable = before;
    desk.restart();
    let effects = desk.receive("w3", vec![with_failed(at(works(&job, 1), 1), 0)]);
    assert_eq!(told(&effects, "w3").leases[&Rank(0)], [range(1, 2)]);
    let units = desk.job(&job).units.as_ref().unwrap();
    assert_eq!(
        (units.failed[0].unit, units.failed[0].workers.len()),
        (0, 1)
    );
}

#[test]
fn a_rank_that_left_for_a_coordinator_that_is_gone_is_taken_in_again() {
    let (mut desk, source) = trained();
    let job = desk.submit(images(&source, 9));
    desk.receive("w3", vec![]);
    desk.receive("w3", vec![works(&job, 1)]);
    desk.restart();
    let effects = desk.receive("w3", vec![rank(&job, 1, 0, RankPhase::Finished)]);
    assert_eq!(told(&effects, "w3").generation, 2);
    let effects = desk.receive("w3", vec![works(&job, 2)]);
    assert_eq!(told(&effects, "w3").leases[&Rank(0)], [range(0, 1)]);
}
