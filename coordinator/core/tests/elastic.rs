//! Generations that follow one another without a checkpoint, by inputs and effects: survivors
//! continue at once, newcomers prepare as standbys, and survivors keep their state while there are
//! too few workers.

#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with others, which together use all of it")]
mod harness;

use coordinator_core::event::{Effect, Input, JobPhase};
use harness::{
    DETECT_WITHIN_MS, Harness, assigned, failed, id, manifests, names, rank, rank_failed, resumes,
    sends, short_of, shortage, spec, with_shard, with_step,
};
use proto::id::{JobId, Rank, Step};
use proto::message::{Activity, GracefulStop, RankPhase, Stage, WorkerReport};
use proto::reason::{RankFailure, Shortage, Waiting};
use proto::spec::DeviceKind;

fn broken() -> RankPhase {
    RankPhase::Broken {
        error: "connection closed by peer".to_owned(),
    }
}

fn members(harness: &Harness, job: &JobId) -> Vec<String> {
    match &harness.job(job).phase {
        JobPhase::Running { members } => members.iter().map(|it| it.worker.name.clone()).collect(),
        phase => vec![format!("{phase:?}")],
    }
}

fn standbys(harness: &Harness, job: &JobId) -> Vec<String> {
    let standbys = &harness.job(job).standbys;
    standbys.iter().map(|it| it.worker.name.clone()).collect()
}

/// A job that may run on 1 to 3 workers trains on w1, w2 and w3.
fn three() -> (Harness, JobId) {
    let mut harness = Harness::new();
    for worker in ["w1", "w2", "w3"] {
        harness.receive(worker, vec![]);
    }
    let job = harness.submit(spec(1, 3));
    for (worker, number) in [("w1", 0), ("w2", 1), ("w3", 2)] {
        harness.receive(worker, vec![rank(&job, 1, number, RankPhase::Training)]);
    }
    (harness, job)
}

#[test]
fn survivors_go_on_at_once_and_the_lost_rank_s_worker_joins_when_it_is_ready() {
    let (mut harness, job) = three();
    let effects = harness.receive("w2", vec![rank(&job, 1, 1, failed("killed by signal 9"))]);
    assert_eq!(
        (members(&harness, &job), harness.generation(&job)),
        (vec!["w1".to_owned(), "w3".to_owned()], 2)
    );
    let (first, last) = (assigned(&effects, "w1"), assigned(&effects, "w3"));
    assert_eq!(
        (first.first_rank, last.first_rank, last.world()),
        (Rank(0), Rank(1), 2)
    );
    let standby = assigned(&effects, "w2");
    assert_eq!(
        (standby.first_rank, standby.world(), standby.is_standby()),
        (Rank(2), 2, true)
    );
    assert_eq!(harness.job(&job).restarts, 1);

    // However long the newcomer takes, no rank waits for it.
    harness.receive("w2", vec![rank(&job, 2, 2, RankPhase::Starting)]);
    harness.receive("w3", vec![rank(&job, 2, 1, RankPhase::Training)]);
    let step = |phase, step| with_step(rank(&JobId("toy-1".to_owned()), 2, 0, phase), step);
    let effects = harness.receive("w1", vec![step(RankPhase::Training, 1)]);
    assert_eq!(assigned(&effects, "w1").graceful_stop, None);
    let effects = harness.receive("w2", vec![rank(&job, 2, 2, RankPhase::Ready)]);
    assert_eq!(
        assigned(&effects, "w1").graceful_stop,
        Some(GracefulStop::WithoutCheckpoint)
    );
    assert_eq!(
        assigned(&effects, "w2").graceful_stop,
        None,
        "a standby runs no step"
    );
    harness.receive("w3", vec![rank(&job, 2, 1, RankPhase::Finished)]);
    let effects = harness.receive("w1", vec![step(RankPhase::Finished, 2)]);
    assert_eq!(
        (members(&harness, &job).len(), harness.generation(&job)),
        (3, 3)
    );
    assert_eq!(assigned(&effects, "w2").first_rank, Rank(1));
    let record = harness.job(&job);
    assert_eq!(
        (
            record.restarts,
            record.checkpoints.len(),
            record.standbys.len()
        ),
        (1, 0, 0)
    );
}

/// The report of a broken process group arrives before the report of the rank that broke it.
#[test]
fn a_rank_that_starts_again_is_not_waited_for() {
    let (mut harness, job) = three();
    harness.receive("w1", vec![rank(&job, 1, 0, broken())]);
    assert_eq!(
        (members(&harness, &job).len(), harness.generation(&job)),
        (3, 2),
        "all processes may be intact"
    );
    harness.receive("w1", vec![rank(&job, 2, 0, RankPhase::Joining)]);
    harness.receive("w2", vec![rank(&job, 2, 1, RankPhase::Starting)]);
    assert_eq!(harness.generation(&job), 2, "one rank is not reported yet");
    let effects = harness.receive("w3", vec![rank(&job, 2, 2, RankPhase::Joining)]);
    assert_eq!(
        (members(&harness, &job), harness.generation(&job)),
        (vec!["w1".to_owned(), "w3".to_owned()], 3)
    );
    assert!(assigned(&effects, "w2").is_standby());
    assert_eq!(harness.job(&job).restarts, 1, "this is not another fault");
}

/// The daemon had not detected yet that the process was dead when it became a member of the next
/// generation.
#[test]
fn one_dead_process_is_one_fault_whichever_report_comes_first() {
    let (mut harness, job) = three();
    harness.receive("w1", vec![rank(&job, 1, 0, broken())]);
    harness.receive("w1", vec![rank(&job, 2, 0, RankPhase::Joining)]);
    harness.receive("w2", vec![rank(&job, 2, 1, failed("killed by signal 9"))]);
    assert_eq!(
        (members(&harness, &job), harness.generation(&job)),
        (vec!["w1".to_owned(), "w3".to_owned()], 3)
    );
    let record = harness.job(&job);
    assert_eq!(
        (
            record.restarts,
            record.restarts_without_progress,
            record.incidents.len()
        ),
        (1, 1, 1)
    );
    let killed = RankFailure::error("killed by signal 9", false);
    let ending = rank_failed(1, "w2", killed);
    assert_eq!(harness.faults(&job), [&resumes(ending, &[], 0)]);
    // The next one is another fault.
    harness.receive("w3", vec![rank(&job, 3, 1, failed("killed by signal 9"))]);
    assert_eq!(
        (
            harness.job(&job).restarts,
            harness.job(&job).incidents.len()
        ),
        (2, 2)
    );
}

/// A stopped rank is detected by its daemon. The incident has the rank, its phase, the duration,
/// and the ranks that waited for it.
#[test]
fn the_ranks_that_waited_for_a_silent_rank_are_named() {
    let (mut harness, job) = three();
    let silent = RankFailure::Silent {
        for_ms: 1000,
        phase: "training".to_owned(),
        activity: Some(Activity {
            step: Step(3),
            stage: Stage::MicroBatch(1),
            for_ms: 900,
        }),
    };
    let failed = RankPhase::Failed {
        failure: silent.clone(),
    };
    harness.receive("w2", vec![rank(&job, 1, 1, failed)]);
    let ending = rank_failed(1, "w2", silent);
    let fault = resumes(ending, &[(0, "w1"), (2, "w3")], 0);
    assert_eq!(harness.faults(&job), [&fault]);
}

/// The same for a rank that exits because its thread hangs. Until then `why` shows where the ranks
/// are.
#[test]
fn the_ranks_that_wait_for_a_hanging_rank_are_named() {
    let (mut harness, job) = three();
    let at = |number: u32, stage| {
        let mut report = rank(&job, 1, number, RankPhase::Training);
        let (step, for_ms) = (Step(2), 700);
        report.activity = Some(Activity {
            step,
            stage,
            for_ms,
        });
        report
    };
    harness.receive("w1", vec![at(0, Stage::Reduction)]);
    harness.receive("w2", vec![at(1, Stage::MicroBatch(2))]);
    harness.receive("w3", vec![at(2, Stage::Reduction)]);
    harness.wait(100);
    let why = harness.machine.why(harness.now, &job).unwrap();
    assert_eq!(why.constraint, "step");
    let waits_for = why.waits_for.unwrap();
    assert_eq!(
        (waits_for.rank, waits_for.worker, waits_for.for_ms),
        (Rank(1), id("w2"), 800)
    );
    let hangs = RankFailure::Hangs {
        activity: Activity {
            step: Step(2),
            stage: Stage::MicroBatch(2),
            for_ms: 12_000,
        },
        longest_ms: None,
    };
    let failed = RankPhase::Failed {
        failure: hangs.clone(),
    };
    harness.receive("w2", vec![rank(&job, 1, 1, failed)]);
    let ending = rank_failed(1, "w2", hangs);
    let fault = resumes(ending, &[(0, "w1"), (2, "w3")], 0);
    assert_eq!(harness.faults(&job), [&fault]);
}

#[test]
fn a_first_generation_waits_for_all_of_its_workers() {
    let mut harness = Harness::new();
    harness.receive("w1", vec![]);
    harness.receive("w2", vec![]);
    let job = harness.submit(spec(1, 2));
    harness.receive("w1", vec![rank(&job, 1, 0, RankPhase::Starting)]);
    harness.receive("w2", vec![rank(&job, 1, 1, RankPhase::Starting)]);
    harness.receive("w1", vec![rank(&job, 1, 0, RankPhase::Joining)]);
    assert_eq!(harness.generation(&job), 1, "no rank holds state yet");
}

#[test]
fn too_few_survivors_keep_their_state_until_there_are_enough() {
    let (mut harness, job) = Harness::training();
    let effects = {
        harness.now += DETECT_WITHIN_MS - 1;
        harness.receive("w1", vec![rank(&job, 1, 0, broken())]);
        harness.wait(1)
    };
    let survivor = assigned(&effects, "w1");
    assert_eq!(
        (
            survivor.generation.0,
            survivor.world(),
            survivor.is_standby()
        ),
        (3, 0, true),
        "it leaves the broken process group"
    );
    let needs = Shortage {
        ready: names(&["w1"]),
        ..shortage(2)
    };
    assert_eq!(*harness.waiting(&job), short_of(needs, &["w1"]));
    // The coordinator may restart meanwhile.
    harness.restart();
    let effects = harness.receive("w1", vec![rank(&job, 3, 0, RankPhase::Ready)]);
    assert!(assigned(&effects, "w1").is_standby());
    harness.receive("w2#2", vec![]);
    assert_eq!(members(&harness, &job), ["w1", "w2"]);
    assert_eq!(standbys(&harness, &job).len(), 0);
}

#[test]
fn survivors_of_a_job_that_is_paused_or_preempted_free_their_devices() {
    let alone = || {
        let (mut harness, job) = Harness::training();
        harness.now += DETECT_WITHIN_MS - 1;
        harness.receive("w1", vec![rank(&job, 1, 0, RankPhase::Training)]);
        harness.wait(1);
        assert_eq!(standbys(&harness, &job), ["w1"]);
        (harness, job)
    };
    let (mut harness, job) = alone();
    let paused = job.clone();
    harness.ask(|request| Input::Pause {
        request,
        job: paused,
        paused: true,
    });
    assert_eq!(standbys(&harness, &job).len(), 0);
    assert_eq!(
        sends(&harness.receive("w1", vec![]))["w1#1"].assignments,
        []
    );
    let (mut harness, job) = alone();
    let mut other = spec(1, 1);
    other.resources.priority = 1;
    let other = harness.submit(other);
    assert_eq!(members(&harness, &other), ["w1"]);
    assert_eq!(standbys(&harness, &job).len(), 0);
}

/// A leaving worker is not kept for state that others hold or that a checkpoint contains.
#[test]
fn the_last_survivors_with_uncommitted_steps_write_a_checkpoint_before_they_leave() {
    let alone = |stepped: bool| {
        let (mut harness, job) = Harness::training();
        let report = rank(&job, 1, 0, RankPhase::Training);
        let report = if stepped {
            with_step(report, 3)
        } else {
            report
        };
        harness.now += DETECT_WITHIN_MS - 1;
        harness.receive("w1", vec![report]);
        harness.wait(1);
        assert_eq!(standbys(&harness, &job), ["w1"]);
        (harness, job)
    };
    let drain = |harness: &mut Harness| {
        let worker = "w1".to_owned();
        harness.ask(|request| Input::Drain {
            request,
            worker,
            drained: true,
        });
    };
    let (mut harness, job) = alone(false);
    drain(&mut harness);
    assert_eq!(
        standbys(&harness, &job).len(),
        0,
        "the checkpoint contains its state"
    );

    let (mut harness, job) = alone(true);
    drain(&mut harness);
    let generation = harness.generation(&job);
    let effects = harness.receive("w1", vec![rank(&job, generation, 0, RankPhase::Joining)]);
    let order = assigned(&effects, "w1");
    assert_eq!(
        (order.world(), order.graceful_stop),
        (1, Some(GracefulStop::WithCheckpoint))
    );
    let finished = rank(&job, generation, 0, RankPhase::Finished);
    harness.receive("w1", vec![with_shard(with_step(finished, 3), 3)]);
    harness.written(&job, 3, Ok(()));
    assert_eq!(
        harness.job(&job).checkpoints.last().map(|it| it.step.0),
        Some(3)
    );
    assert_eq!(
        (harness.job(&job).word(), harness.job(&job).restarts),
        ("queued", 1)
    );
    assert_eq!(standbys(&harness, &job).len(), 0);
    harness.receive("w3", vec![]);
    let effects = harness.receive("w4", vec![]);
    assert_eq!(members(&harness, &job), ["w3", "w4"]);
    assert_eq!(
        sends(&effects)["w4#1"].assignments[0]
            .gang()
            .unwrap()
            .resume
            .map(|it| it.step.0),
        Some(3)
    );

    // The job that gets its worker waits until that is done.
    let (mut harness, job) = Harness::training();
    harness.receive("w3", vec![]);
    let other = harness.submit(spec(1, 1));
    harness.now += DETECT_WITHIN_MS - 1;
    harness.receive(
        "w1",
        vec![with_step(rank(&job, 1, 0, RankPhase::Training), 3)],
    );
    harness.receive("w3", vec![rank(&other, 1, 0, RankPhase::Training)]);
    harness.wait(1);
    let next = harness.submit(spec(1, 1));
    let paused = job.clone();
    harness.ask(|request| Input::Pause {
        request,
        job: paused,
        paused: true,
    });
    assert_eq!(harness.job(&job).word(), "pausing");
    let release = Waiting::Release {
        jobs: vec![job],
        workers: names(&["w1"]),
    };
    assert_eq!(*harness.waiting(&next), release);
    assert_eq!(
        assigned(&harness.receive("w1", vec![]), "w1").graceful_stop,
        Some(GracefulStop::WithCheckpoint)
    );
}

/// While it is unknown whether a checkpoint is committed, no next generation forms and no survivor
/// is released.
#[test]
fn survivors_stay_while_a_manifest_is_being_written() {
    let (mut harness, job) = Harness::training();
    assert_eq!(manifests(&harness.shards(&job, 2)).len(), 1);
    harness.receive("w2", vec![rank(&job, 1, 1, failed("boom"))]);
    let effects = harness.receive(
        "w1",
        vec![with_shard(rank(&job, 1, 0, RankPhase::Training), 2)],
    );
    let survivor = assigned(&effects, "w1");
    assert_eq!(
        (survivor.generation.0, survivor.first_rank, survivor.world()),
        (1, Rank(0), 2),
        "unchanged"
    );
    let effects = harness.written(&job, 2, Ok(()));
    assert_eq!(assigned(&effects, "w1").generation.0, 2);
}

#[test]
fn a_standby_that_fails_harms_no_other_rank_and_is_not_retried_at_once() {
    let (mut harness, job) = three();
    harness.receive("w2", vec![rank(&job, 1, 1, failed("killed by signal 9"))]);
    let effects = harness.receive("w2", vec![rank(&job, 2, 2, failed("out of memory"))]);
    assert_eq!(sends(&effects)["w2#1"].assignments, []);
    assert_eq!(
        (harness.generation(&job), harness.job(&job).restarts),
        (2, 1)
    );
    let alive = |harness: &mut Harness| {
        harness.now += DETECT_WITHIN_MS / 2;
        harness.receive(
            "w1",
            vec![with_step(rank(&job, 2, 0, RankPhase::Training), 1)],
        );
        harness.receive("w3", vec![rank(&job, 2, 1, RankPhase::Training)]);
        harness.receive("w2", vec![])
    };
    for _ in 0..23 {
        assert_eq!(sends(&alive(&mut harness))["w2#1"].assignments, []);
    }
    assert_eq!(
        assigned(&alive(&mut harness), "w2").first_rank,
        Rank(3),
        "with another rank number"
    );
    assert_eq!(harness.generation(&job), 2);
}

fn report(worker: &str, devices: u32, ranks: Vec<proto::message::RankReport>) -> WorkerReport {
    WorkerReport {
        peer_address: None,
        unreached: vec![],
        worker: id(worker),
        device: DeviceKind::Cpu,
        devices,
        ranks,
    }
}

#[test]
fn a_worker_that_leaves_hands_over_like_one_that_is_drained() {
    let (mut harness, job) = three();
    let leaving = report("w2", 0, vec![rank(&job, 1, 1, RankPhase::Training)]);
    let effects = harness.handle(Input::Received { report: leaving });
    for worker in ["w1", "w2", "w3"] {
        assert_eq!(
            assigned(&effects, worker).graceful_stop,
            Some(GracefulStop::WithoutCheckpoint)
        );
    }
    let finished = report("w2", 0, vec![rank(&job, 1, 1, RankPhase::Finished)]);
    harness.handle(Input::Received { report: finished });
    harness.receive("w3", vec![rank(&job, 1, 2, RankPhase::Finished)]);
    let last = with_step(rank(&job, 1, 0, RankPhase::Finished), 3);
    let effects = harness.receive("w1", vec![last]);
    assert_eq!(members(&harness, &job), ["w1", "w3"]);
    assert_eq!(sends(&effects)["w2#1"].assignments, [], "it is released");
    assert_eq!(
        (
            harness.job(&job).restarts,
            harness.job(&job).incidents.len()
        ),
        (0, 0)
    );

    // If no worker is left to hand over to, it writes a checkpoint.
    let mut harness = Harness::new();
    harness.receive("w1", vec![]);
    let job = harness.submit(spec(1, 1));
    let leaving = report("w1", 0, vec![rank(&job, 1, 0, RankPhase::Training)]);
    let effects = harness.handle(Input::Received { report: leaving });
    assert_eq!(
        assigned(&effects, "w1").graceful_stop,
        Some(GracefulStop::WithCheckpoint)
    );
}

#[test]
fn ranks_that_stopped_to_hand_over_write_a_checkpoint_when_no_worker_can_take_over() {
    let (mut harness, job) = three();
    let scaled = job.clone();
    harness.ask(|request| Input::Scale {
        request,
        job: scaled,
        workers: 2,
    });
    let stopped = |harness: &mut Harness, job: &JobId, number: u32| {
        let report = with_step(rank(job, 1, number, RankPhase::Finished), 3);
        harness.receive(&format!("w{}", number + 1), vec![report])
    };
    stopped(&mut harness, &job, 0);
    stopped(&mut harness, &job, 1);
    let paused = job.clone();
    harness.ask(|request| Input::Pause {
        request,
        job: paused,
        paused: true,
    });
    let effects = stopped(&mut harness, &job, 2);
    assert_eq!(
        assigned(&effects, "w3").graceful_stop,
        Some(GracefulStop::WithCheckpoint)
    );
    assert_eq!(
        harness.job(&job).word(),
        "pausing",
        "the checkpoint is not written yet"
    );
    for number in 0..3 {
        let report = with_shard(rank(&job, 1, number, RankPhase::Finished), 3);
        harness.receive(&format!("w{}", number + 1), vec![report]);
    }
    harness.written(&job, 3, Ok(()));
    assert_eq!(harness.job(&job).word(), "paused");
}

#[test]
fn a_restarted_coordinator_finds_ranks_between_two_generations_and_continues() {
    let (mut harness, job) = three();
    let scaled = job.clone();
    harness.ask(|request| Input::Scale {
        request,
        job: scaled,
        workers: 2,
    });
    harness.restart();
    for number in [2, 1] {
        harness.receive(
            &format!("w{}", number + 1),
            vec![rank(&job, 1, number, RankPhase::Finished)],
        );
    }
    assert_eq!(harness.generation(&job), 1);
    let last = with_step(rank(&job, 1, 0, RankPhase::Finished), 3);
    let effects = harness.receive("w1", vec![last]);
    assert_eq!(
        (members(&harness, &job), harness.generation(&job)),
        (vec!["w1".to_owned(), "w2".to_owned()], 2)
    );
    let saved = matches!(effects.first(), Some(Effect::Save(_)));
    assert!(saved, "the next generation is saved before it is sent");
}
