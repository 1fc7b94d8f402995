//! Pauses, scales, drains and priorities by inputs and effects: generations that stop gracefully
//! and continue elsewhere.

#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with others, which together use all of it")]
mod harness;

use coordinator_core::event::{Effect, Event, Input, JobPhase, Reply};
use harness::{
    DETECT_WITHIN_MS, Harness, assigned, failed, names, rank, rank_on, short_of, shortage, spec,
    with_step,
};
use proto::id::{JobId, Rank, Step};
use proto::message::{GracefulStop, RankPhase};
use proto::reason::{Fault, Overdue, Shortage, StopCause, Stopped, Waiting};
use proto::spec::{JobSpec, Resources};

fn pause(harness: &mut Harness, job: &JobId, paused: bool) -> Reply {
    let job = job.clone();
    harness.ask(|request| Input::Pause {
        request,
        job,
        paused,
    })
}

fn drain(harness: &mut Harness, worker: &str, drained: bool) -> Reply {
    let worker = worker.to_owned();
    harness.ask(|request| Input::Drain {
        request,
        worker,
        drained,
    })
}

fn scale(harness: &mut Harness, job: &JobId, workers: u32) -> Reply {
    let job = job.clone();
    harness.ask(|request| Input::Scale {
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

/// The ranks of the job on w1 and w2 stop after `step` with a committed checkpoint.
fn stop_with_checkpoint(harness: &mut Harness, job: &JobId, step: u64) {
    let generation = harness.generation(job);
    let effects = harness.shards(job, step);
    assert_eq!(harness::manifests(&effects).len(), 1);
    harness.receive("w1", vec![rank(job, generation, 0, RankPhase::Finished)]);
    harness.receive("w2", vec![rank(job, generation, 1, RankPhase::Finished)]);
    assert!(
        matches!(harness.job(job).phase, JobPhase::Running { .. }),
        "the commit is still to come"
    );
    harness.written(job, step, Ok(()));
}

/// The ranks of the job on w1 and w2 stop after `step` without a checkpoint.
fn stop(harness: &mut Harness, job: &JobId, step: u64) {
    let generation = harness.generation(job);
    let first = with_step(rank(job, generation, 0, RankPhase::Finished), step);
    harness.receive("w1", vec![first]);
    harness.receive("w2", vec![rank(job, generation, 1, RankPhase::Finished)]);
}

#[test]
fn a_paused_job_leaves_with_a_checkpoint_and_goes_on_from_it() {
    let (mut harness, job) = Harness::training();
    assert_eq!(pause(&mut harness, &job, true), phase("pausing"));
    assert!(harness.durable.jobs[&job].paused, "saved before the answer");
    let effects = harness.receive("w1", vec![rank(&job, 1, 0, RankPhase::Training)]);
    assert_eq!(
        assigned(&effects, "w1").graceful_stop,
        Some(GracefulStop::WithCheckpoint),
        "sent again on every report"
    );
    stop_with_checkpoint(&mut harness, &job, 1);
    assert_eq!(harness.job(&job).word(), "paused");
    assert_eq!(*harness.waiting(&job), Waiting::Paused);
    assert_eq!(
        (
            harness.job(&job).restarts,
            harness.job(&job).restarts_without_progress
        ),
        (0, 0),
        "a pause is not a fault"
    );
    assert_eq!(harness.job(&job).incidents, []);
    harness.wait(100 * DETECT_WITHIN_MS);
    assert_eq!(harness.generation(&job), 1, "it stays where it is");
    harness.receive("w1", vec![]);
    harness.receive("w2", vec![]);
    assert_eq!(pause(&mut harness, &job, false), phase("running"));
    assert_eq!(harness.generation(&job), 2);
    let assignment = assigned(&harness.receive("w1", vec![]), "w1");
    assert_eq!(
        assignment.gang().unwrap().resume.map(|resume| resume.step),
        Some(Step(1))
    );
    assert_eq!(assignment.graceful_stop, None);
}

#[test]
fn a_pause_outlives_a_restart_and_needs_no_checkpoint_before_training_began() {
    let (mut harness, job) = Harness::training();
    pause(&mut harness, &job, true);
    harness.restart();
    let effects = harness.receive("w1", vec![rank(&job, 1, 0, RankPhase::Training)]);
    assert_eq!(
        assigned(&effects, "w1").graceful_stop,
        Some(GracefulStop::WithCheckpoint)
    );
    let other = harness.submit(spec(1, 1));
    assert_eq!(pause(&mut harness, &other, true), phase("paused"));
    let mut harness = Harness::new();
    harness.receive("w1", vec![]);
    let job = harness.submit(spec(1, 1));
    harness.receive("w1", vec![rank(&job, 1, 0, RankPhase::Starting)]);
    pause(&mut harness, &job, true);
    assert_eq!(harness.job(&job).word(), "paused");
}

#[test]
fn a_graceful_stop_that_takes_too_long_or_fails_ends_all_the_same() {
    let (mut harness, job) = Harness::training();
    pause(&mut harness, &job, true);
    for _ in 0..40 {
        harness.now += DETECT_WITHIN_MS / 2;
        harness.receive("w1", vec![rank(&job, 1, 0, RankPhase::Training)]);
        harness.receive("w2", vec![rank(&job, 1, 1, RankPhase::Training)]);
        harness.now += DETECT_WITHIN_MS / 2;
        harness.receive("w1", vec![rank(&job, 1, 0, RankPhase::Training)]);
        harness.receive("w2", vec![rank(&job, 1, 1, RankPhase::Training)]);
    }
    assert_eq!(harness.job(&job).word(), "paused");
    assert_eq!(harness.job(&job).restarts, 0);
    let stopped = Stopped::Released {
        cause: StopCause::Paused,
        overdue: Some(Overdue {
            rank: Some(rank_on(0, "w1")),
            with_checkpoint: true,
            after_ms: 40 * DETECT_WITHIN_MS,
        }),
        resumes_from: Step(0),
    };
    assert_eq!(harness.faults(&job), [&Fault::StopOverdue { stopped }]);
    let (mut harness, job) = Harness::training();
    pause(&mut harness, &job, true);
    harness.receive("w1", vec![rank(&job, 1, 0, failed("boom"))]);
    assert_eq!(harness.job(&job).word(), "paused");
    assert_eq!(
        harness.job(&job).restarts_without_progress,
        1,
        "a fault counts during a graceful stop too"
    );
}

#[test]
fn a_job_that_is_over_or_unknown_is_not_paused() {
    let (mut harness, job) = Harness::training();
    let cancelled = job.clone();
    harness.ask(|request| Input::Cancel {
        request,
        job: cancelled,
    });
    let reason = refusal(pause(&mut harness, &job, true));
    assert_eq!(reason, "job toy-1 is cancelled and will not run again");
    let reason = refusal(pause(&mut harness, &JobId("no-9".to_owned()), true));
    assert_eq!(reason, "there is no job no-9; the newest is toy-1");
}

#[test]
fn a_job_is_scaled_down_and_up_again() {
    let mut harness = Harness::new();
    harness.receive("w1", vec![]);
    harness.receive("w2", vec![]);
    let job = harness.submit(spec(1, 2));
    let train = |harness: &mut Harness, number: u32, generation, step| {
        let report = with_step(
            rank(
                &JobId("toy-1".to_owned()),
                generation,
                number,
                RankPhase::Training,
            ),
            step,
        );
        harness.receive(&format!("w{}", number + 1), vec![report])
    };
    train(&mut harness, 0, 1, 1);
    train(&mut harness, 1, 1, 1);
    assert_eq!(scale(&mut harness, &job, 1), phase("running"));
    assert_eq!(
        assigned(&train(&mut harness, 0, 1, 1), "w1").graceful_stop,
        Some(GracefulStop::WithoutCheckpoint)
    );
    stop(&mut harness, &job, 2);
    let members = |harness: &Harness| match &harness.job(&JobId("toy-1".to_owned())).phase {
        JobPhase::Running { members } => members.iter().map(|m| m.worker.name.clone()).collect(),
        phase => vec![format!("{phase:?}")],
    };
    assert_eq!(
        (members(&harness), harness.generation(&job)),
        (vec!["w1".to_owned()], 2)
    );
    assert_eq!(harness.job(&job).checkpoints, [], "none was needed");
    scale(&mut harness, &job, 2);
    train(&mut harness, 0, 2, 3);
    let effects = harness.receive("w2", vec![rank(&job, 2, 1, RankPhase::Starting)]);
    let standby = assigned(&effects, "w2");
    assert_eq!(
        (standby.first_rank, standby.world()),
        (Rank(1), 1),
        "it prepares first"
    );
    assert_eq!(
        assigned(&train(&mut harness, 0, 2, 3), "w1").graceful_stop,
        None
    );
    harness.receive("w2", vec![rank(&job, 2, 1, RankPhase::Ready)]);
    assert_eq!(
        assigned(&train(&mut harness, 0, 2, 3), "w1").graceful_stop,
        Some(GracefulStop::WithoutCheckpoint)
    );
    harness.receive("w1", vec![rank(&job, 2, 0, RankPhase::Finished)]);
    assert_eq!(members(&harness), ["w1", "w2"]);
    assert_eq!(harness.generation(&job), 3);
    assert_eq!(harness.job(&job).restarts, 0);
    let reason = refusal(scale(&mut harness, &job, 3));
    assert_eq!(
        reason,
        "workers: 3 is not a valid scale for job toy-1; it has 2 micro-batches per step and 1 \
         ranks per worker, so it can use 1 to 2 workers"
    );
}

#[test]
fn a_drained_worker_is_emptied_gracefully_and_gets_no_new_work() {
    let (mut harness, job) = Harness::training();
    harness.receive("w3", vec![]);
    let worker = "w2".to_owned();
    assert_eq!(
        drain(&mut harness, "w2", true),
        Reply::Worker {
            worker,
            drained: true
        }
    );
    assert!(
        harness.durable.drained.contains("w2"),
        "saved before the answer"
    );
    // It cannot run on one worker; the third prepares while they continue.
    let effects = harness.receive("w1", vec![rank(&job, 1, 0, RankPhase::Training)]);
    assert_eq!(assigned(&effects, "w1").graceful_stop, None);
    harness.receive("w3", vec![rank(&job, 1, 2, RankPhase::Ready)]);
    let effects = harness.receive("w1", vec![rank(&job, 1, 0, RankPhase::Training)]);
    assert_eq!(
        assigned(&effects, "w1").graceful_stop,
        Some(GracefulStop::WithoutCheckpoint)
    );
    stop(&mut harness, &job, 1);
    let JobPhase::Running { members } = &harness.job(&job).phase else {
        panic!("{:?}", harness.job(&job).phase)
    };
    assert_eq!(
        members
            .iter()
            .map(|m| m.worker.name.as_str())
            .collect::<Vec<_>>(),
        ["w1", "w3"]
    );
    let next = harness.submit(spec(1, 1));
    let needs = Shortage {
        busy: names(&["w1", "w3"]),
        drained: names(&["w2"]),
        ..shortage(1)
    };
    assert_eq!(*harness.waiting(&next), short_of(needs, &[]));
    harness.restart();
    harness.receive("w2#5", vec![]);
    assert_eq!(
        harness.job(&next).word(),
        "queued",
        "a drain applies to the name and outlives every restart"
    );
    drain(&mut harness, "w2", false);
    assert_eq!(harness.job(&next).word(), "running");
    assert_eq!(
        refusal(drain(&mut harness, "w9", true)),
        "there is no worker w9; known workers: w1, w2, w3"
    );
}

#[test]
fn a_higher_priority_preempts_a_lower_one_which_comes_back() {
    let (mut harness, low) = Harness::training();
    let high = harness.submit(of_priority(3, spec(2, 2)));
    for _ in 0..2 {
        harness.now += DETECT_WITHIN_MS / 2;
        harness.receive("w1", vec![rank(&low, 1, 0, RankPhase::Training)]);
        harness.receive("w2", vec![rank(&low, 1, 1, RankPhase::Training)]);
    }
    let release = Waiting::Release {
        jobs: vec![low.clone()],
        workers: names(&["w1", "w2"]),
    };
    assert_eq!(*harness.waiting(&high), release);
    let effects = harness.receive("w1", vec![rank(&low, 1, 0, RankPhase::Training)]);
    let stopping = |effect: &&Effect| matches!(effect, Effect::Emit(Event::Stopping { .. }));
    assert_eq!(
        effects.iter().filter(stopping).count(),
        0,
        "the stop was requested when the other job was submitted"
    );
    assert_eq!(
        assigned(&effects, "w1").graceful_stop,
        Some(GracefulStop::WithCheckpoint)
    );
    stop_with_checkpoint(&mut harness, &low, 1);
    assert_eq!(harness.job(&high).word(), "running");
    let needs = Shortage {
        busy: names(&["w1", "w2"]),
        ..shortage(2)
    };
    assert_eq!(*harness.waiting(&low), short_of(needs, &[]));
    let cancelled = high.clone();
    harness.ask(|request| Input::Cancel {
        request,
        job: cancelled,
    });
    assert_eq!(harness.job(&low).word(), "running");
    assert_eq!(harness.generation(&low), 2);
    let assignment = assigned(&harness.receive("w1", vec![]), "w1");
    assert_eq!(
        assignment.gang().unwrap().resume.map(|resume| resume.step),
        Some(Step(1)),
        "it resumes from its checkpoint"
    );
}

#[test]
fn the_queue_is_in_the_order_in_which_jobs_would_start() {
    let (mut harness, running) = Harness::training();
    let paused = harness.submit(spec(9, 9));
    pause(&mut harness, &paused, true);
    let first = harness.submit(spec(2, 2));
    let second = harness.submit(spec(2, 2));
    let mut other = spec(2, 2);
    other.resources.team = "others".to_owned();
    // Its team has no devices, and the team of the two before it has those of the running job.
    let other = harness.submit(other);
    let urgent = harness.submit(of_priority(3, spec(9, 9)));
    let queue: Vec<JobId> = harness.machine.queue().into_iter().cloned().collect();
    assert_eq!(queue, [urgent, other, first, second, paused]);
    assert!(!queue.contains(&running));
}
