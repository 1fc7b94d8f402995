//! Workers that do not reach each other although both are heard: who is left out, when, and when it
//! comes back.
#![allow(clippy::unwrap_used, reason = "a test panics to fail")]

#[allow(dead_code, reason = "shared with others, which together use all of it")]
mod desk;

use coordinator_core::event::{Effect, Input, JobPhase};
use desk::{DETECT_WITHIN_MS, Desk, rank, sends, spec, told, with_step};
use proto::id::{JobId, Step};
use proto::message::{Activity, GracefulStop, RankPhase, RankReport, Stage};

fn members(desk: &Desk, job: &JobId) -> Vec<String> {
    match &desk.job(job).phase {
        JobPhase::Running { members } => members.iter().map(|it| it.worker.name.clone()).collect(),
        phase => vec![phase.word().to_owned()],
    }
}

/// A job that may run on that many workers trains on w1, w2 and w3.
fn three(workers_min: u32) -> (Desk, JobId) {
    let mut desk = Desk::new();
    for worker in ["w1", "w2", "w3"] {
        desk.receive(worker, vec![]);
    }
    let job = desk.submit(spec(workers_min, 3));
    for (worker, number) in [("w1", 0), ("w2", 1), ("w3", 2)] {
        desk.receive(worker, vec![rank(&job, 1, number, RankPhase::Training)]);
    }
    (desk, job)
}

/// A rank in this piece of step 1 for so long.
fn at(job: &JobId, number: u32, stage: Stage, for_ms: u64) -> RankReport {
    let mut report = rank(job, 1, number, RankPhase::Training);
    let step = Step(1);
    report.activity = Some(Activity {
        step,
        stage,
        for_ms,
    });
    report
}

/// w1 does not reach `unreached`, and all three are in the reduction, for a while.
fn stuck(desk: &mut Desk, job: &JobId, unreached: &[&str]) -> Vec<Effect> {
    let mut effects = Vec::new();
    for for_ms in [DETECT_WITHIN_MS, 2 * DETECT_WITHIN_MS] {
        for (worker, number) in [("w1", 0), ("w2", 1), ("w3", 2)] {
            let unreached = if number == 0 { unreached } else { &[] };
            let report = at(job, number, Stage::Reduction, for_ms);
            effects = desk.receive_unreachable(worker, unreached, vec![report]);
            if desk.generation(job) != 1 {
                return effects;
            }
        }
        desk.now += DETECT_WITHIN_MS / 2;
    }
    effects
}

#[test]
fn each_worker_is_told_with_whom_it_shares_a_job_and_where_they_answer() {
    let (mut desk, job) = three(1);
    let effects = desk.receive("w1", vec![rank(&job, 1, 0, RankPhase::Training)]);
    let peers = &sends(&effects)["w1#1"].peers;
    let told: Vec<(&str, &str)> = peers
        .iter()
        .map(|peer| (peer.worker.name.as_str(), peer.address.as_str()))
        .collect();
    assert_eq!(told, [("w2", "w2:7073"), ("w3", "w3:7073")]);
    desk.receive("w4", vec![]);
    assert_eq!(
        sends(&desk.receive("w4", vec![]))["w4#1"].peers,
        [],
        "it has no job"
    );
}

#[test]
fn of_survivors_that_wait_apart_one_side_writes_down_what_all_hold() {
    let (mut desk, job) = three(3);
    desk.receive(
        "w1",
        vec![with_step(rank(&job, 1, 0, RankPhase::Training), 1)],
    );
    stuck(&mut desk, &job, &["w2"]);
    assert_eq!(members(&desk, &job), ["queued"]);
    let paused = job.clone();
    desk.ask(|request| Input::Pause {
        request,
        job: paused,
        paused: true,
    });
    assert_eq!(members(&desk, &job), ["w1", "w3"]);
    assert_eq!(desk.job(&job).standbys.len(), 0);
}

#[test]
fn one_of_a_pair_is_left_out_with_what_it_holds_and_comes_back_when_it_is_reached() {
    let (mut desk, job) = three(1);
    let effects = stuck(&mut desk, &job, &["w3"]);
    assert!(
        told(&effects, "w3").is_standby(),
        "at once: its process goes on"
    );
    assert_eq!(
        (members(&desk, &job), desk.generation(&job)),
        (vec!["w1".to_owned(), "w2".to_owned()], 2)
    );
    let record = desk.job(&job);
    assert_eq!(
        record.incidents[0].what,
        "w1 and w3 do not reach each other (w1 asks w3 at w3:7073: no answer), and every rank \
        waits for another; the job \
         goes on from what survivors hold, or step 0"
    );
    assert_eq!((record.restarts, record.restarts_without_progress), (1, 0));

    // It keeps its process, and is not taken in as long as the connection is missing.
    let effects = desk.receive("w3", vec![rank(&job, 2, 2, RankPhase::Ready)]);
    assert!(told(&effects, "w3").is_standby());
    desk.receive("w2", vec![rank(&job, 2, 1, RankPhase::Training)]);
    let step = |number| with_step(rank(&job, 2, 0, RankPhase::Training), number);
    let effects = desk.receive_unreachable("w1", &["w3"], vec![step(1)]);
    assert_eq!(told(&effects, "w1").graceful_stop, None);
    let why = desk.machine.why(desk.now, &job).unwrap().sentence;
    let left_out =
        "; w3 is left out: w1 and w3 do not reach each other (w1 asks w3 at w3:7073: no answer)";
    assert!(why.ends_with(left_out), "{why}");
    let view = desk.machine.view();
    let partitions: Vec<&[String]> = view
        .workers
        .iter()
        .map(|worker| worker.unreachable.as_slice())
        .collect();
    assert_eq!(
        partitions,
        [&["w3".to_owned()][..], &[], &["w1".to_owned()]]
    );

    let effects = desk.receive("w1", vec![step(2)]);
    assert_eq!(
        told(&effects, "w1").graceful_stop,
        Some(GracefulStop::WithoutCheckpoint),
        "they reach each other again"
    );
}

#[test]
fn a_worker_that_reaches_nobody_is_the_one_that_is_left_out() {
    let (mut desk, job) = three(1);
    stuck(&mut desk, &job, &["w2", "w3"]);
    assert_eq!(members(&desk, &job), ["w2", "w3"]);
}

#[test]
fn the_word_of_daemons_alone_ends_nothing() {
    let (mut desk, job) = three(1);
    for round in 0..9 {
        desk.receive_unreachable(
            "w1",
            &["w3"],
            vec![at(&job, 0, Stage::Reduction, 5 * DETECT_WITHIN_MS)],
        );
        desk.receive(
            "w2",
            vec![at(&job, 1, Stage::MicroBatch(1), 5 * DETECT_WITHIN_MS)],
        );
        desk.receive(
            "w3",
            vec![at(&job, 2, Stage::Reduction, 5 * DETECT_WITHIN_MS)],
        );
        desk.now += DETECT_WITHIN_MS / 2;
        assert_eq!(desk.generation(&job), 1, "w2 is at work, round {round}");
    }
    // Nor does it when the ranks have just come to the reduction, which may take a moment.
    desk.receive("w2", vec![at(&job, 1, Stage::Reduction, 0)]);
    assert_eq!(desk.generation(&job), 1);
}

/// What is known of a worker that is not heard itself: that it is gone, or not back yet.
#[test]
fn of_a_worker_that_is_not_heard_nobody_s_word_counts() {
    let (mut desk, job) = three(1);
    let worker = desk::id("w3");
    desk.handle(Input::Disconnected { worker });
    for _ in 0..2 {
        for (worker, number) in [("w1", 0), ("w2", 1)] {
            let report = at(&job, number, Stage::Reduction, DETECT_WITHIN_MS);
            desk.receive_unreachable(worker, &["w3"], vec![report]);
        }
        desk.now += DETECT_WITHIN_MS / 2 - 1;
    }
    assert_eq!(desk.generation(&job), 1);
}

/// A place that nobody needs, or that somebody drains, is not kept.
#[test]
fn who_is_left_out_leaves_when_it_is_drained_or_the_job_is_scaled() {
    let gone = |ask: &dyn Fn(&mut Desk, JobId)| {
        let (mut desk, job) = three(1);
        stuck(&mut desk, &job, &["w3"]);
        let standbys = |desk: &Desk| desk.job(&job).standbys.len();
        assert_eq!(standbys(&desk), 1);
        ask(&mut desk, job.clone());
        assert_eq!(standbys(&desk), 0);
    };
    gone(&|desk, _| {
        let worker = "w3".to_owned();
        desk.ask(|request| Input::Drain {
            request,
            worker,
            drained: true,
        });
    });
    gone(&|desk, job| {
        desk.ask(|request| Input::Scale {
            request,
            job,
            workers: 2,
        });
    });
}

/// Whoever says so of all others is the one that is left out, and what it says of itself or of
/// strangers means nothing.
#[test]
fn a_worker_that_slanders_harms_only_itself() {
    let (mut desk, job) = three(1);
    stuck(&mut desk, &job, &["w1", "w9", "w2#7"]);
    assert_eq!(desk.generation(&job), 1);
    stuck(&mut desk, &job, &["w1", "w9", "w2", "w3"]);
    assert_eq!(members(&desk, &job), ["w2", "w3"]);
}

/// A generation that waits for all to join stands still as well.
#[test]
fn those_that_never_met_are_taken_apart_too() {
    let mut desk = Desk::new();
    desk.receive("w1", vec![]);
    desk.receive("w2", vec![]);
    let job = desk.submit(spec(1, 2));
    for _ in 0..3 {
        desk.receive("w1", vec![rank(&job, 1, 0, RankPhase::Joining)]);
        desk.receive_unreachable("w2", &["w1"], vec![rank(&job, 1, 1, RankPhase::Joining)]);
        desk.now += DETECT_WITHIN_MS / 2;
    }
    assert_eq!(
        (members(&desk, &job), desk.generation(&job)),
        (vec!["w1".to_owned()], 2)
    );
}

/// Where nobody can be spared the job waits, for as long as it takes, and its ranks keep what they
/// hold.
#[test]
fn a_job_that_needs_them_all_waits_and_says_for_which_connection() {
    let (mut desk, job) = three(3);
    stuck(&mut desk, &job, &["w3"]);
    assert_eq!(
        desk.reason(&job),
        "needs 3 cpu workers with 1 free device; 3 are free (w1, w2, w3); w1 and w3 do not reach \
        each other (w1 asks w3 \
         at w3:7073: no answer); its state is kept by w1, w2, w3"
    );
    let why = desk.machine.why(desk.now, &job).unwrap();
    assert_eq!(why.constraint, "connection");
    let remedy = why.remedy.unwrap();
    assert!(
        remedy.starts_with("a connection between the workers that do not reach each other"),
        "{remedy}"
    );
    let generation = desk.generation(&job);
    for _ in 0..20 {
        desk.now += DETECT_WITHIN_MS / 2;
        for (worker, number) in [("w2", 1), ("w3", 2)] {
            desk.receive(
                worker,
                vec![rank(&job, generation, number, RankPhase::Ready)],
            );
        }
        desk.receive_unreachable(
            "w1",
            &["w3"],
            vec![rank(&job, generation, 0, RankPhase::Ready)],
        );
    }
    assert_eq!(
        (
            desk.generation(&job),
            desk.job(&job).restarts_without_progress
        ),
        (generation, 0)
    );
    desk.receive("w1", vec![rank(&job, generation, 0, RankPhase::Ready)]);
    assert_eq!(members(&desk, &job).len(), 3);
}

/// Another worker that is free takes the place of one of the two.
#[test]
fn a_free_worker_takes_the_place_of_one_of_a_pair() {
    let mut desk = Desk::new();
    for worker in ["w1", "w2", "w3"] {
        desk.receive(worker, vec![]);
    }
    let job = desk.submit(spec(2, 2));
    assert_eq!(members(&desk, &job), ["w1", "w2"]);
    for _ in 0..3 {
        desk.receive("w1", vec![rank(&job, 1, 0, RankPhase::Joining)]);
        desk.receive_unreachable("w2", &["w1"], vec![rank(&job, 1, 1, RankPhase::Joining)]);
        desk.receive("w3", vec![]);
        desk.now += DETECT_WITHIN_MS / 2;
    }
    assert_eq!(members(&desk, &job), ["w1", "w3"]);
}
