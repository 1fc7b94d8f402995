//! Pauses, scales, drains and priorities by events and effects: generations that end in order and
//! go on elsewhere.

#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with others, which together use all of it")]
mod desk;

use coordinator_core::event::{Effect, Event, Input, JobPhase, Reply};
use desk::{DETECT_WITHIN_MS, Desk, failed, rank, spec, told, with_step};
use proto::id::{JobId, Rank, Step};
use proto::message::{GracefulStop, RankPhase};
use proto::spec::{JobSpec, Resources};

fn pause(desk: &mut Desk, job: &JobId, paused: bool) -> Reply {
    let job = job.clone();
    desk.ask(|request| Input::Pause {
        request,
        job,
        paused,
    })
}

fn drain(desk: &mut Desk, worker: &str, drained: bool) -> Reply {
    let worker = worker.to_owned();
    desk.ask(|request| Input::Drain {
        request,
        worker,
        drained,
    })
}

fn scale(desk: &mut Desk, job: &JobId, workers: u32) -> Reply {
    let job = job.clone();
    desk.ask(|request| Input::Scale {
        request,
        job,
        workers,
    })
}

fn phase(word: &str) -> Reply {
    Reply::Phase {
        phase: word.to_owned(),
    }
}

fn refusal(reply: Reply) -> String {
    let Reply::Refused { reason } = reply else {
        panic!("{reply:?}")
    };
    reason
}

fn of_priority(priority: i32, spec: JobSpec) -> JobSpec {
    let resources = Resources {
        priority,
        ..spec.resources
    };
    JobSpec { resources, ..spec }
}

/// The ranks of the job on w1 and w2 halted at `step`: its checkpoint is committed and they left.
fn stops(desk: &mut Desk, job: &JobId, step: u64) {
    let generation = desk.generation(job);
    let effects = desk.shards(job, step);
    assert_eq!(desk::manifests(&effects).len(), 1);
    desk.receive("w1", vec![rank(job, generation, 0, RankPhase::Finished)]);
    desk.receive("w2", vec![rank(job, generation, 1, RankPhase::Finished)]);
    assert!(
        matches!(desk.job(job).phase, JobPhase::Running { .. }),
        "the commit is still to come"
    );
    desk.written(job, step, Ok(()));
}

/// The ranks of the job on w1 and w2 did `step` and stopped, with nothing written.
fn stop(desk: &mut Desk, job: &JobId, step: u64) {
    let generation = desk.generation(job);
    let first = with_step(rank(job, generation, 0, RankPhase::Finished), step);
    desk.receive("w1", vec![first]);
    desk.receive("w2", vec![rank(job, generation, 1, RankPhase::Finished)]);
}

#[test]
fn a_paused_job_leaves_with_a_checkpoint_and_goes_on_from_it() {
    let (mut desk, job) = Desk::training();
    assert_eq!(pause(&mut desk, &job, true), phase("pausing"));
    assert!(desk.durable.jobs[&job].paused, "saved before the answer");
    let effects = desk.receive("w1", vec![rank(&job, 1, 0, RankPhase::Training)]);
    assert_eq!(
        told(&effects, "w1").graceful_stop,
        Some(GracefulStop::WithCheckpoint),
        "said again on every report"
    );
    stops(&mut desk, &job, 1);
    assert_eq!(desk.job(&job).word(), "paused");
    assert_eq!(
        desk.reason(&job),
        "somebody paused it; `coordinator resume` lets it go on"
    );
    assert_eq!(
        (
            desk.job(&job).restarts,
            desk.job(&job).restarts_without_progress
        ),
        (0, 0),
        "a pause is no fault"
    );
    assert_eq!(desk.job(&job).incidents, []);
    desk.wait(100 * DETECT_WITHIN_MS);
    assert_eq!(desk.generation(&job), 1, "it stays where it is");
    desk.receive("w1", vec![]);
    desk.receive("w2", vec![]);
    assert_eq!(pause(&mut desk, &job, false), phase("running"));
    assert_eq!(desk.generation(&job), 2);
    let assignment = told(&desk.receive("w1", vec![]), "w1");
    assert_eq!(
        assignment.gang().unwrap().resume.map(|resume| resume.step),
        Some(Step(1))
    );
    assert_eq!(assignment.graceful_stop, None);
}

#[test]
fn a_pause_outlives_a_restart_and_needs_no_checkpoint_where_nothing_was_begun() {
    let (mut desk, job) = Desk::training();
    pause(&mut desk, &job, true);
    desk.restart();
    let effects = desk.receive("w1", vec![rank(&job, 1, 0, RankPhase::Training)]);
    assert_eq!(
        told(&effects, "w1").graceful_stop,
        Some(GracefulStop::WithCheckpoint)
    );
    let other = desk.submit(spec(1, 1));
    assert_eq!(pause(&mut desk, &other, true), phase("paused"));
    let mut desk = Desk::new();
    desk.receive("w1", vec![]);
    let job = desk.submit(spec(1, 1));
    desk.receive("w1", vec![rank(&job, 1, 0, RankPhase::Starting)]);
    pause(&mut desk, &job, true);
    assert_eq!(desk.job(&job).word(), "paused");
}

#[test]
fn a_halt_that_takes_too_long_or_fails_ends_all_the_same() {
    let (mut desk, job) = Desk::training();
    pause(&mut desk, &job, true);
    for _ in 0..40 {
        desk.now += DETECT_WITHIN_MS / 2;
        desk.receive("w1", vec![rank(&job, 1, 0, RankPhase::Training)]);
        desk.receive("w2", vec![rank(&job, 1, 1, RankPhase::Training)]);
        desk.now += DETECT_WITHIN_MS / 2;
        desk.receive("w1", vec![rank(&job, 1, 0, RankPhase::Training)]);
        desk.receive("w2", vec![rank(&job, 1, 1, RankPhase::Training)]);
    }
    assert_eq!(desk.job(&job).word(), "paused");
    assert_eq!(desk.job(&job).restarts, 0);
    let told: Vec<&str> = desk
        .job(&job)
        .incidents
        .iter()
        .map(|it| it.what.as_str())
        .collect();
    let seconds = 40.0 * DETECT_WITHIN_MS as f64 / 1000.0;
    assert_eq!(
        told,
        [format!(
            "somebody paused it; rank 0 on w1 had not ended its step and written its share of a \
            checkpoint within {seconds} s; \
             goes on from step 0"
        )]
    );
    let (mut desk, job) = Desk::training();
    pause(&mut desk, &job, true);
    desk.receive("w1", vec![rank(&job, 1, 0, failed("boom"))]);
    assert_eq!(desk.job(&job).word(), "paused");
    assert_eq!(
        desk.job(&job).restarts_without_progress,
        1,
        "a fault is a fault"
    );
}

#[test]
fn a_job_that_is_over_or_unknown_is_not_paused() {
    let (mut desk, job) = Desk::training();
    let cancelled = job.clone();
    desk.ask(|request| Input::Cancel {
        request,
        job: cancelled,
    });
    let reason = refusal(pause(&mut desk, &job, true));
    assert_eq!(reason, "job toy-1 is cancelled and will not run again");
    let reason = refusal(pause(&mut desk, &JobId("no-9".to_owned()), true));
    assert_eq!(reason, "there is no job no-9; the newest is toy-1");
}

#[test]
fn a_job_is_scaled_down_and_up_again() {
    let mut desk = Desk::new();
    desk.receive("w1", vec![]);
    desk.receive("w2", vec![]);
    let job = desk.submit(spec(1, 2));
    let train = |desk: &mut Desk, number: u32, generation, step| {
        let report = with_step(
            rank(
                &JobId("toy-1".to_owned()),
                generation,
                number,
                RankPhase::Training,
            ),
            step,
        );
        desk.receive(&format!("w{}", number + 1), vec![report])
    };
    train(&mut desk, 0, 1, 1);
    train(&mut desk, 1, 1, 1);
    assert_eq!(scale(&mut desk, &job, 1), phase("running"));
    assert_eq!(
        told(&train(&mut desk, 0, 1, 1), "w1").graceful_stop,
        Some(GracefulStop::WithoutCheckpoint)
    );
    stop(&mut desk, &job, 2);
    let members = |desk: &Desk| match &desk.job(&JobId("toy-1".to_owned())).phase {
        JobPhase::Running { members } => members.iter().map(|m| m.worker.name.clone()).collect(),
        phase => vec![format!("{phase:?}")],
    };
    assert_eq!(
        (members(&desk), desk.generation(&job)),
        (vec!["w1".to_owned()], 2)
    );
    assert_eq!(desk.job(&job).checkpoints, [], "none was needed");
    scale(&mut desk, &job, 2);
    train(&mut desk, 0, 2, 3);
    let effects = desk.receive("w2", vec![rank(&job, 2, 1, RankPhase::Starting)]);
    let standby = told(&effects, "w2");
    assert_eq!(
        (standby.first_rank, standby.world()),
        (Rank(1), 1),
        "it gets ready first"
    );
    assert_eq!(told(&train(&mut desk, 0, 2, 3), "w1").graceful_stop, None);
    desk.receive("w2", vec![rank(&job, 2, 1, RankPhase::Ready)]);
    assert_eq!(
        told(&train(&mut desk, 0, 2, 3), "w1").graceful_stop,
        Some(GracefulStop::WithoutCheckpoint)
    );
    desk.receive("w1", vec![rank(&job, 2, 0, RankPhase::Finished)]);
    assert_eq!(members(&desk), ["w1", "w2"]);
    assert_eq!(desk.generation(&job), 3);
    assert_eq!(desk.job(&job).restarts, 0);
    let reason = refusal(scale(&mut desk, &job, 3));
    assert_eq!(
        reason,
        "workers: 3 is no scale for job toy-1; it has 2 micro-batches in a step and 1 ranks on \
        each worker, so 1 \
         to 2 workers can have work"
    );
}

#[test]
fn a_drained_worker_is_emptied_in_order_and_gets_nothing_new() {
    let (mut desk, job) = Desk::training();
    desk.receive("w3", vec![]);
    let worker = "w2".to_owned();
    assert_eq!(
        drain(&mut desk, "w2", true),
        Reply::Worker {
            worker,
            drained: true
        }
    );
    assert!(
        desk.durable.drained.contains("w2"),
        "saved before the answer"
    );
    // It may not run on one; the third gets ready while they go on.
    let effects = desk.receive("w1", vec![rank(&job, 1, 0, RankPhase::Training)]);
    assert_eq!(told(&effects, "w1").graceful_stop, None);
    desk.receive("w3", vec![rank(&job, 1, 2, RankPhase::Ready)]);
    let effects = desk.receive("w1", vec![rank(&job, 1, 0, RankPhase::Training)]);
    assert_eq!(
        told(&effects, "w1").graceful_stop,
        Some(GracefulStop::WithoutCheckpoint)
    );
    stop(&mut desk, &job, 1);
    let JobPhase::Running { members } = &desk.job(&job).phase else {
        panic!("{:?}", desk.job(&job).phase)
    };
    assert_eq!(
        members
            .iter()
            .map(|m| m.worker.name.as_str())
            .collect::<Vec<_>>(),
        ["w1", "w3"]
    );
    let next = desk.submit(spec(1, 1));
    assert_eq!(
        desk.reason(&next),
        "needs 1 cpu worker with 1 free device; none is free; busy: w1, w3; drained: w2"
    );
    desk.restart();
    desk.receive("w2#5", vec![]);
    assert_eq!(
        desk.job(&next).word(),
        "queued",
        "a drain is of the name, and outlives every restart"
    );
    drain(&mut desk, "w2", false);
    assert_eq!(desk.job(&next).word(), "running");
    assert_eq!(
        refusal(drain(&mut desk, "w9", true)),
        "there is no worker w9; there is w1, w2, w3"
    );
}

#[test]
fn a_higher_priority_takes_the_place_of_a_lower_one_which_comes_back() {
    let (mut desk, low) = Desk::training();
    let high = desk.submit(of_priority(3, spec(2, 2)));
    for _ in 0..2 {
        desk.now += DETECT_WITHIN_MS / 2;
        desk.receive("w1", vec![rank(&low, 1, 0, RankPhase::Training)]);
        desk.receive("w2", vec![rank(&low, 1, 1, RankPhase::Training)]);
    }
    assert_eq!(desk.reason(&high), "waits until toy-1 let go of w1, w2");
    let effects = desk.receive("w1", vec![rank(&low, 1, 0, RankPhase::Training)]);
    let stopping = |effect: &&Effect| matches!(effect, Effect::Emit(Event::Stopping { .. }));
    assert_eq!(
        effects.iter().filter(stopping).count(),
        0,
        "it was asked when the other was submitted"
    );
    assert_eq!(
        told(&effects, "w1").graceful_stop,
        Some(GracefulStop::WithCheckpoint)
    );
    stops(&mut desk, &low, 1);
    assert_eq!(desk.job(&high).word(), "running");
    assert_eq!(
        desk.reason(&low),
        "needs 2 cpu workers with 1 free device; none is free; busy: w1, w2"
    );
    let cancelled = high.clone();
    desk.ask(|request| Input::Cancel {
        request,
        job: cancelled,
    });
    assert_eq!(desk.job(&low).word(), "running");
    assert_eq!(desk.generation(&low), 2);
    let assignment = told(&desk.receive("w1", vec![]), "w1");
    assert_eq!(
        assignment.gang().unwrap().resume.map(|resume| resume.step),
        Some(Step(1)),
        "from where it was"
    );
}
