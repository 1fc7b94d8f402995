//! Generations that follow one another without a checkpoint, by events and effects: survivors go on
//! at once, newcomers get ready beside them, and whoever holds state keeps it while there are too
//! few.

#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with others, which together use all of it")]
mod desk;

use coordinator_core::event::{Effect, Input, JobPhase};
use desk::{
    DETECT_WITHIN_MS, Desk, failed, id, manifests, rank, sends, spec, told, with_shard, with_step,
};
use proto::id::{JobId, Rank, Step};
use proto::message::{Activity, GracefulStop, RankPhase, Stage, WorkerReport};
use proto::spec::DeviceKind;

fn broken() -> RankPhase {
    RankPhase::Broken {
        error: "connection closed by peer".to_owned(),
    }
}

fn members(desk: &Desk, job: &JobId) -> Vec<String> {
    match &desk.job(job).phase {
        JobPhase::Running { members } => members.iter().map(|it| it.worker.name.clone()).collect(),
        phase => vec![format!("{phase:?}")],
    }
}

fn standbys(desk: &Desk, job: &JobId) -> Vec<String> {
    let standbys = &desk.job(job).standbys;
    standbys.iter().map(|it| it.worker.name.clone()).collect()
}

/// A job that may run on 1 to 3 workers trains on w1, w2 and w3.
fn three() -> (Desk, JobId) {
    let mut desk = Desk::new();
    for worker in ["w1", "w2", "w3"] {
        desk.receive(worker, vec![]);
    }
    let job = desk.submit(spec(1, 3));
    for (worker, number) in [("w1", 0), ("w2", 1), ("w3", 2)] {
        desk.receive(worker, vec![rank(&job, 1, number, RankPhase::Training)]);
    }
    (desk, job)
}

#[test]
fn survivors_go_on_at_once_and_the_lost_rank_s_worker_joins_when_it_is_ready() {
    let (mut desk, job) = three();
    let effects = desk.receive("w2", vec![rank(&job, 1, 1, failed("killed by signal 9"))]);
    assert_eq!(
        (members(&desk, &job), desk.generation(&job)),
        (vec!["w1".to_owned(), "w3".to_owned()], 2)
    );
    let (first, last) = (told(&effects, "w1"), told(&effects, "w3"));
    assert_eq!(
        (first.first_rank, last.first_rank, last.world()),
        (Rank(0), Rank(1), 2)
    );
    let standby = told(&effects, "w2");
    assert_eq!(
        (standby.first_rank, standby.world(), standby.is_standby()),
        (Rank(2), 2, true)
    );
    assert_eq!(desk.job(&job).restarts, 1);

    // However long the newcomer takes, nobody waits for it.
    desk.receive("w2", vec![rank(&job, 2, 2, RankPhase::Starting)]);
    desk.receive("w3", vec![rank(&job, 2, 1, RankPhase::Training)]);
    let step = |phase, step| with_step(rank(&JobId("toy-1".to_owned()), 2, 0, phase), step);
    let effects = desk.receive("w1", vec![step(RankPhase::Training, 1)]);
    assert_eq!(told(&effects, "w1").graceful_stop, None);
    let effects = desk.receive("w2", vec![rank(&job, 2, 2, RankPhase::Ready)]);
    assert_eq!(
        told(&effects, "w1").graceful_stop,
        Some(GracefulStop::WithoutCheckpoint)
    );
    assert_eq!(told(&effects, "w2").graceful_stop, None, "it is in no step");
    desk.receive("w3", vec![rank(&job, 2, 1, RankPhase::Finished)]);
    let effects = desk.receive("w1", vec![step(RankPhase::Finished, 2)]);
    assert_eq!((members(&desk, &job).len(), desk.generation(&job)), (3, 3));
    assert_eq!(told(&effects, "w2").first_rank, Rank(1));
    let record = desk.job(&job);
    assert_eq!(
        (
            record.restarts,
            record.checkpoints.len(),
            record.standbys.len()
        ),
        (1, 0, 0)
    );
}

/// The news that a group is broken comes before the news of who broke it.
#[test]
fn whoever_starts_anew_is_not_waited_for() {
    let (mut desk, job) = three();
    desk.receive("w1", vec![rank(&job, 1, 0, broken())]);
    assert_eq!(
        (members(&desk, &job).len(), desk.generation(&job)),
        (3, 2),
        "everybody may be whole"
    );
    desk.receive("w1", vec![rank(&job, 2, 0, RankPhase::Joining)]);
    desk.receive("w2", vec![rank(&job, 2, 1, RankPhase::Starting)]);
    assert_eq!(desk.generation(&job), 2, "of one it is not known yet");
    let effects = desk.receive("w3", vec![rank(&job, 2, 2, RankPhase::Joining)]);
    assert_eq!(
        (members(&desk, &job), desk.generation(&job)),
        (vec!["w1".to_owned(), "w3".to_owned()], 3)
    );
    assert!(told(&effects, "w2").is_standby());
    assert_eq!(desk.job(&job).restarts, 1, "that is no fault of its own");
}

/// Its daemon had not seen yet that the process was dead when it was given a place in the next
/// generation.
#[test]
fn one_death_is_one_fault_whoever_tells_it_first() {
    let (mut desk, job) = three();
    desk.receive("w1", vec![rank(&job, 1, 0, broken())]);
    desk.receive("w1", vec![rank(&job, 2, 0, RankPhase::Joining)]);
    desk.receive("w2", vec![rank(&job, 2, 1, failed("killed by signal 9"))]);
    assert_eq!(
        (members(&desk, &job), desk.generation(&job)),
        (vec!["w1".to_owned(), "w3".to_owned()], 3)
    );
    let record = desk.job(&job);
    assert_eq!(
        (
            record.restarts,
            record.restarts_without_progress,
            record.incidents.len()
        ),
        (1, 1, 1)
    );
    assert_eq!(
        record.incidents[0].what,
        "rank 1 on w2#1 failed: killed by signal 9; the job goes on from what survivors hold, or \
        step 0"
    );
    // The next one is another fault.
    desk.receive("w3", vec![rank(&job, 3, 1, failed("killed by signal 9"))]);
    assert_eq!(
        (desk.job(&job).restarts, desk.job(&job).incidents.len()),
        (2, 2)
    );
}

/// A rank that is stopped is found by its daemon; the incident says who, where, in which phase, for
/// how long, and who waited for it.
#[test]
fn who_waited_for_a_silent_rank_is_told() {
    let (mut desk, job) = three();
    let silent =
        "silent for 1000 ms while training, in micro-batch 1 of step 3; killed by its daemon";
    desk.receive("w2", vec![rank(&job, 1, 1, failed(silent))]);
    assert_eq!(
        desk.job(&job).incidents[0].what,
        format!(
            "rank 1 on w2#1 failed: {silent}; rank 0 on w1, rank 2 on w3 waited for it; the job \
            goes on from what \
             survivors hold, or step 0"
        )
    );
}

/// So is a rank that ended itself because its thread hung; and until it does, `why` says who is
/// where.
#[test]
fn who_waits_for_a_rank_that_hangs_is_told() {
    let (mut desk, job) = three();
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
    desk.receive("w1", vec![at(0, Stage::Reduction)]);
    desk.receive("w2", vec![at(1, Stage::MicroBatch(2))]);
    desk.receive("w3", vec![at(2, Stage::Reduction)]);
    desk.wait(100);
    let why = desk.machine.why(desk.now, &job).unwrap();
    let told = "it trains: step 2 has been going on for ";
    assert!(
        why.sentence.starts_with(told),
        "whatever rank 0 told last: {why:?}"
    );
    assert!(
        why.sentence.ends_with(
            "; rank 1 on w2 has been in micro-batch 2 for 0.8 s, and 2 others wait for it in the \
            reduction"
        ),
        "{why:?}"
    );
    let waits_for = why.waits_for.unwrap();
    assert_eq!(
        (waits_for.rank, waits_for.phase.as_str(), waits_for.for_ms),
        (Rank(1), "training: micro-batch 2", 800)
    );
    let hangs = "hangs in micro-batch 2 of step 2: for 12.0 s, and it is the first micro-batch; \
    it ends itself";
    desk.receive("w2", vec![rank(&job, 1, 1, failed(hangs))]);
    let what = &desk.job(&job).incidents[0].what;
    assert!(
        what.starts_with(&format!(
            "rank 1 on w2#1 failed: {hangs}; rank 0 on w1, rank 2 on w3 waited for it; "
        )),
        "{what}"
    );
}

#[test]
fn a_first_generation_waits_for_all_of_its_workers() {
    let mut desk = Desk::new();
    desk.receive("w1", vec![]);
    desk.receive("w2", vec![]);
    let job = desk.submit(spec(1, 2));
    desk.receive("w1", vec![rank(&job, 1, 0, RankPhase::Starting)]);
    desk.receive("w2", vec![rank(&job, 1, 1, RankPhase::Starting)]);
    desk.receive("w1", vec![rank(&job, 1, 0, RankPhase::Joining)]);
    assert_eq!(desk.generation(&job), 1, "nobody holds anything yet");
}

#[test]
fn too_few_survivors_keep_what_they_hold_until_there_are_enough() {
    let (mut desk, job) = Desk::training();
    let effects = {
        desk.now += DETECT_WITHIN_MS - 1;
        desk.receive("w1", vec![rank(&job, 1, 0, broken())]);
        desk.wait(1)
    };
    let kept = told(&effects, "w1");
    assert_eq!(
        (kept.generation.0, kept.world(), kept.is_standby()),
        (3, 0, true),
        "out of the broken group"
    );
    assert_eq!(
        desk.reason(&job),
        "needs 2 cpu workers with 1 free device; 1 is free (w1); its state is kept by w1"
    );
    // The coordinator may die meanwhile.
    desk.restart();
    let effects = desk.receive("w1", vec![rank(&job, 3, 0, RankPhase::Ready)]);
    assert!(told(&effects, "w1").is_standby());
    desk.receive("w2#2", vec![]);
    assert_eq!(members(&desk, &job), ["w1", "w2"]);
    assert_eq!(standbys(&desk, &job).len(), 0);
}

#[test]
fn survivors_of_a_job_that_is_paused_or_makes_way_free_their_devices() {
    let alone = || {
        let (mut desk, job) = Desk::training();
        desk.now += DETECT_WITHIN_MS - 1;
        desk.receive("w1", vec![rank(&job, 1, 0, RankPhase::Training)]);
        desk.wait(1);
        assert_eq!(standbys(&desk, &job), ["w1"]);
        (desk, job)
    };
    let (mut desk, job) = alone();
    let paused = job.clone();
    desk.ask(|request| Input::Pause {
        request,
        job: paused,
        paused: true,
    });
    assert_eq!(standbys(&desk, &job).len(), 0);
    assert_eq!(sends(&desk.receive("w1", vec![]))["w1#1"].assignments, []);
    let (mut desk, job) = alone();
    let mut other = spec(1, 1);
    other.resources.priority = 1;
    let other = desk.submit(other);
    assert_eq!(members(&desk, &other), ["w1"]);
    assert_eq!(standbys(&desk, &job).len(), 0);
}

/// A worker that is to be empty is not kept for what others hold, nor for what a checkpoint has.
#[test]
fn the_last_that_hold_unsaved_steps_write_them_down_before_they_go() {
    let alone = |stepped: bool| {
        let (mut desk, job) = Desk::training();
        let report = rank(&job, 1, 0, RankPhase::Training);
        let report = if stepped {
            with_step(report, 3)
        } else {
            report
        };
        desk.now += DETECT_WITHIN_MS - 1;
        desk.receive("w1", vec![report]);
        desk.wait(1);
        assert_eq!(standbys(&desk, &job), ["w1"]);
        (desk, job)
    };
    let drain = |desk: &mut Desk| {
        let worker = "w1".to_owned();
        desk.ask(|request| Input::Drain {
            request,
            worker,
            drained: true,
        });
    };
    let (mut desk, job) = alone(false);
    drain(&mut desk);
    assert_eq!(
        standbys(&desk, &job).len(),
        0,
        "the checkpoint has what it holds"
    );

    let (mut desk, job) = alone(true);
    drain(&mut desk);
    let generation = desk.generation(&job);
    let effects = desk.receive("w1", vec![rank(&job, generation, 0, RankPhase::Joining)]);
    let order = told(&effects, "w1");
    assert_eq!(
        (order.world(), order.graceful_stop),
        (1, Some(GracefulStop::WithCheckpoint))
    );
    let finished = rank(&job, generation, 0, RankPhase::Finished);
    desk.receive("w1", vec![with_shard(with_step(finished, 3), 3)]);
    desk.written(&job, 3, Ok(()));
    assert_eq!(
        desk.job(&job).checkpoints.last().map(|it| it.step.0),
        Some(3)
    );
    assert_eq!(
        (desk.job(&job).word(), desk.job(&job).restarts),
        ("queued", 1)
    );
    assert_eq!(standbys(&desk, &job).len(), 0);
    desk.receive("w3", vec![]);
    let effects = desk.receive("w4", vec![]);
    assert_eq!(members(&desk, &job), ["w3", "w4"]);
    assert_eq!(
        sends(&effects)["w4#1"].assignments[0]
            .gang()
            .unwrap()
            .resume
            .map(|it| it.step.0),
        Some(3)
    );

    // Whoever is given its worker waits until that is done.
    let (mut desk, job) = Desk::training();
    desk.receive("w3", vec![]);
    let other = desk.submit(spec(1, 1));
    desk.now += DETECT_WITHIN_MS - 1;
    desk.receive(
        "w1",
        vec![with_step(rank(&job, 1, 0, RankPhase::Training), 3)],
    );
    desk.receive("w3", vec![rank(&other, 1, 0, RankPhase::Training)]);
    desk.wait(1);
    let next = desk.submit(spec(1, 1));
    let paused = job.clone();
    desk.ask(|request| Input::Pause {
        request,
        job: paused,
        paused: true,
    });
    assert_eq!(desk.job(&job).word(), "pausing");
    assert_eq!(
        desk.reason(&next),
        format!("waits until {job} let go of w1")
    );
    assert_eq!(
        told(&desk.receive("w1", vec![]), "w1").graceful_stop,
        Some(GracefulStop::WithCheckpoint)
    );
}

/// While nobody knows whether a checkpoint is committed there is no next generation, and nobody is
/// sent away.
#[test]
fn survivors_stay_while_a_manifest_is_on_its_way() {
    let (mut desk, job) = Desk::training();
    assert_eq!(manifests(&desk.shards(&job, 2)).len(), 1);
    desk.receive("w2", vec![rank(&job, 1, 1, failed("boom"))]);
    let effects = desk.receive(
        "w1",
        vec![with_shard(rank(&job, 1, 0, RankPhase::Training), 2)],
    );
    let kept = told(&effects, "w1");
    assert_eq!(
        (kept.generation.0, kept.first_rank, kept.world()),
        (1, Rank(0), 2),
        "as it was"
    );
    let effects = desk.written(&job, 2, Ok(()));
    assert_eq!(told(&effects, "w1").generation.0, 2);
}

#[test]
fn a_reserve_that_fails_harms_nobody_and_is_not_tried_again_at_once() {
    let (mut desk, job) = three();
    desk.receive("w2", vec![rank(&job, 1, 1, failed("killed by signal 9"))]);
    let effects = desk.receive("w2", vec![rank(&job, 2, 2, failed("out of memory"))]);
    assert_eq!(sends(&effects)["w2#1"].assignments, []);
    assert_eq!((desk.generation(&job), desk.job(&job).restarts), (2, 1));
    let alive = |desk: &mut Desk| {
        desk.now += DETECT_WITHIN_MS / 2;
        desk.receive(
            "w1",
            vec![with_step(rank(&job, 2, 0, RankPhase::Training), 1)],
        );
        desk.receive("w3", vec![rank(&job, 2, 1, RankPhase::Training)]);
        desk.receive("w2", vec![])
    };
    for _ in 0..23 {
        assert_eq!(sends(&alive(&mut desk))["w2#1"].assignments, []);
    }
    assert_eq!(
        told(&alive(&mut desk), "w2").first_rank,
        Rank(3),
        "under another number"
    );
    assert_eq!(desk.generation(&job), 2);
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
    let (mut desk, job) = three();
    let leaving = report("w2", 0, vec![rank(&job, 1, 1, RankPhase::Training)]);
    let effects = desk.handle(Input::Received { report: leaving });
    for worker in ["w1", "w2", "w3"] {
        assert_eq!(
            told(&effects, worker).graceful_stop,
            Some(GracefulStop::WithoutCheckpoint)
        );
    }
    let finished = report("w2", 0, vec![rank(&job, 1, 1, RankPhase::Finished)]);
    desk.handle(Input::Received { report: finished });
    desk.receive("w3", vec![rank(&job, 1, 2, RankPhase::Finished)]);
    let last = with_step(rank(&job, 1, 0, RankPhase::Finished), 3);
    let effects = desk.receive("w1", vec![last]);
    assert_eq!(members(&desk, &job), ["w1", "w3"]);
    assert_eq!(sends(&effects)["w2#1"].assignments, [], "it may go");
    assert_eq!(
        (desk.job(&job).restarts, desk.job(&job).incidents.len()),
        (0, 0)
    );

    // Where nobody would be left to hand over to, it is a checkpoint.
    let mut desk = Desk::new();
    desk.receive("w1", vec![]);
    let job = desk.submit(spec(1, 1));
    let leaving = report("w1", 0, vec![rank(&job, 1, 0, RankPhase::Training)]);
    let effects = desk.handle(Input::Received { report: leaving });
    assert_eq!(
        told(&effects, "w1").graceful_stop,
        Some(GracefulStop::WithCheckpoint)
    );
}

#[test]
fn ranks_that_stopped_to_hand_over_write_a_checkpoint_when_there_is_nobody_to_take_over() {
    let (mut desk, job) = three();
    let scaled = job.clone();
    desk.ask(|request| Input::Scale {
        request,
        job: scaled,
        workers: 2,
    });
    let stopped = |desk: &mut Desk, job: &JobId, number: u32| {
        let report = with_step(rank(job, 1, number, RankPhase::Finished), 3);
        desk.receive(&format!("w{}", number + 1), vec![report])
    };
    stopped(&mut desk, &job, 0);
    stopped(&mut desk, &job, 1);
    let paused = job.clone();
    desk.ask(|request| Input::Pause {
        request,
        job: paused,
        paused: true,
    });
    let effects = stopped(&mut desk, &job, 2);
    assert_eq!(
        told(&effects, "w3").graceful_stop,
        Some(GracefulStop::WithCheckpoint)
    );
    assert_eq!(
        desk.job(&job).word(),
        "pausing",
        "what they hold is not written yet"
    );
    for number in 0..3 {
        let report = with_shard(rank(&job, 1, number, RankPhase::Finished), 3);
        desk.receive(&format!("w{}", number + 1), vec![report]);
    }
    desk.written(&job, 3, Ok(()));
    assert_eq!(desk.job(&job).word(), "paused");
}

#[test]
fn a_restarted_coordinator_finds_ranks_between_two_generations_and_lets_them_go_on() {
    let (mut desk, job) = three();
    let scaled = job.clone();
    desk.ask(|request| Input::Scale {
        request,
        job: scaled,
        workers: 2,
    });
    desk.restart();
    for number in [2, 1] {
        desk.receive(
            &format!("w{}", number + 1),
            vec![rank(&job, 1, number, RankPhase::Finished)],
        );
    }
    assert_eq!(desk.generation(&job), 1);
    let last = with_step(rank(&job, 1, 0, RankPhase::Finished), 3);
    let effects = desk.receive("w1", vec![last]);
    assert_eq!(
        (members(&desk, &job), desk.generation(&job)),
        (vec!["w1".to_owned(), "w2".to_owned()], 2)
    );
    let saved = matches!(effects.first(), Some(Effect::Save(_)));
    assert!(
        saved,
        "the next generation is saved before anybody hears of it"
    );
}
