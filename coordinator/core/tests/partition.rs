//! Live workers that cannot reach each other: which one is excluded, when, and when it returns.
#![allow(clippy::unwrap_used, reason = "a test panics to fail")]

#[allow(dead_code, reason = "shared with others, which together use all of it")]
mod harness;

use coordinator_core::event::{Effect, Input, JobPhase};
use harness::{
    DETECT_WITHIN_MS, Harness, assigned, names, rank, resumes, sends, short_of, shortage, spec,
    unreachable, with_step,
};
use proto::id::{JobId, Step};
use proto::message::{Activity, GracefulStop, RankPhase, RankReport, Stage};
use proto::reason::{Ending, Shortage};

fn members(harness: &Harness, job: &JobId) -> Vec<String> {
    match &harness.job(job).phase {
        JobPhase::Running { members } => members.iter().map(|it| it.worker.name.clone()).collect(),
        phase => vec![phase.word().to_owned()],
    }
}

/// A job that needs at least `workers_min` workers trains on w1, w2 and w3.
fn three(workers_min: u32) -> (Harness, JobId) {
    let mut harness = Harness::new();
    for worker in ["w1", "w2", "w3"] {
        harness.receive(worker, vec![]);
    }
    let job = harness.submit(spec(workers_min, 3));
    for (worker, number) in [("w1", 0), ("w2", 1), ("w3", 2)] {
        harness.receive(worker, vec![rank(&job, 1, number, RankPhase::Training)]);
    }
    (harness, job)
}

/// A rank that has been in this stage of step 1 for `for_ms`.
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

/// w1 cannot reach `unreached`, and all three ranks stay in the reduction for a while.
fn stuck(harness: &mut Harness, job: &JobId, unreached: &[&str]) -> Vec<Effect> {
    let mut effects = Vec::new();
    for for_ms in [DETECT_WITHIN_MS, 2 * DETECT_WITHIN_MS] {
        for (worker, number) in [("w1", 0), ("w2", 1), ("w3", 2)] {
            let unreached = if number == 0 { unreached } else { &[] };
            let report = at(job, number, Stage::Reduction, for_ms);
            effects = harness.receive_unreachable(worker, unreached, vec![report]);
            if harness.generation(job) != 1 {
                return effects;
            }
        }
        harness.now += DETECT_WITHIN_MS / 2;
    }
    effects
}

#[test]
fn each_worker_is_sent_the_addresses_of_its_peers() {
    let (mut harness, job) = three(1);
    let effects = harness.receive("w1", vec![rank(&job, 1, 0, RankPhase::Training)]);
    let peers = &sends(&effects)["w1#1"].peers;
    let addresses: Vec<(&str, &str)> = peers
        .iter()
        .map(|peer| (peer.worker.name.as_str(), peer.address.as_str()))
        .collect();
    assert_eq!(addresses, [("w2", "w2:7073"), ("w3", "w3:7073")]);
    harness.receive("w4", vec![]);
    assert_eq!(
        sends(&harness.receive("w4", vec![]))["w4#1"].peers,
        [],
        "it has no job"
    );
}

#[test]
fn of_partitioned_survivors_one_side_writes_the_checkpoint() {
    let (mut harness, job) = three(3);
    harness.receive(
        "w1",
        vec![with_step(rank(&job, 1, 0, RankPhase::Training), 1)],
    );
    stuck(&mut harness, &job, &["w2"]);
    assert_eq!(members(&harness, &job), ["queued"]);
    let paused = job.clone();
    harness.ask(|request| Input::Pause {
        request,
        job: paused,
        paused: true,
    });
    assert_eq!(members(&harness, &job), ["w1", "w3"]);
    assert_eq!(harness.job(&job).standbys.len(), 0);
}

#[test]
fn one_of_a_pair_is_left_out_with_its_state_and_comes_back_when_it_is_reachable() {
    let (mut harness, job) = three(1);
    let effects = stuck(&mut harness, &job, &["w3"]);
    assert!(
        assigned(&effects, "w3").is_standby(),
        "at once: its process continues"
    );
    assert_eq!(
        (members(&harness, &job), harness.generation(&job)),
        (vec!["w1".to_owned(), "w2".to_owned()], 2)
    );
    let record = harness.job(&job);
    let pairs = vec![unreachable("w1", "w3")];
    let ending = Ending::Partitioned { pairs };
    assert_eq!(harness.faults(&job), [&resumes(ending, &[], 0)]);
    assert_eq!((record.restarts, record.restarts_without_progress), (1, 0));

    // It keeps its process, and does not join as long as the connection is missing.
    let effects = harness.receive("w3", vec![rank(&job, 2, 2, RankPhase::Ready)]);
    assert!(assigned(&effects, "w3").is_standby());
    harness.receive("w2", vec![rank(&job, 2, 1, RankPhase::Training)]);
    let step = |number| with_step(rank(&job, 2, 0, RankPhase::Training), number);
    let effects = harness.receive_unreachable("w1", &["w3"], vec![step(1)]);
    assert_eq!(assigned(&effects, "w1").graceful_stop, None);
    let view = harness.machine.view();
    let partitions: Vec<&[String]> = view
        .workers
        .iter()
        .map(|worker| worker.unreachable.as_slice())
        .collect();
    assert_eq!(
        partitions,
        [&["w3".to_owned()][..], &[], &["w1".to_owned()]]
    );

    let effects = harness.receive("w1", vec![step(2)]);
    assert_eq!(
        assigned(&effects, "w1").graceful_stop,
        Some(GracefulStop::WithoutCheckpoint),
        "they can reach each other again"
    );
}

#[test]
fn a_worker_that_reaches_nobody_is_the_one_that_is_left_out() {
    let (mut harness, job) = three(1);
    stuck(&mut harness, &job, &["w2", "w3"]);
    assert_eq!(members(&harness, &job), ["w2", "w3"]);
}

#[test]
fn reports_of_daemons_alone_end_no_generation() {
    let (mut harness, job) = three(1);
    for round in 0..9 {
        harness.receive_unreachable(
            "w1",
            &["w3"],
            vec![at(&job, 0, Stage::Reduction, 5 * DETECT_WITHIN_MS)],
        );
        harness.receive(
            "w2",
            vec![at(&job, 1, Stage::MicroBatch(1), 5 * DETECT_WITHIN_MS)],
        );
        harness.receive(
            "w3",
            vec![at(&job, 2, Stage::Reduction, 5 * DETECT_WITHIN_MS)],
        );
        harness.now += DETECT_WITHIN_MS / 2;
        assert_eq!(harness.generation(&job), 1, "w2 is working, round {round}");
    }
    // Ranks that have just entered the reduction do not count as stuck.
    harness.receive("w2", vec![at(&job, 1, Stage::Reduction, 0)]);
    assert_eq!(harness.generation(&job), 1);
}

/// A disconnected worker is lost or has not reconnected yet; other workers' reports say no more.
#[test]
fn reports_about_a_disconnected_worker_do_not_count() {
    let (mut harness, job) = three(1);
    let worker = harness::id("w3");
    harness.handle(Input::Disconnected { worker });
    for _ in 0..2 {
        for (worker, number) in [("w1", 0), ("w2", 1)] {
            let report = at(&job, number, Stage::Reduction, DETECT_WITHIN_MS);
            harness.receive_unreachable(worker, &["w3"], vec![report]);
        }
        harness.now += DETECT_WITHIN_MS / 2 - 1;
    }
    assert_eq!(harness.generation(&job), 1);
}

/// An excluded worker is not kept as a standby if the job does not need it or it is drained.
#[test]
fn an_excluded_worker_leaves_when_it_is_drained_or_the_job_is_scaled() {
    let gone = |ask: &dyn Fn(&mut Harness, JobId)| {
        let (mut harness, job) = three(1);
        stuck(&mut harness, &job, &["w3"]);
        let standbys = |harness: &Harness| harness.job(&job).standbys.len();
        assert_eq!(standbys(&harness), 1);
        ask(&mut harness, job.clone());
        assert_eq!(standbys(&harness), 0);
    };
    gone(&|harness, _| {
        let worker = "w3".to_owned();
        harness.ask(|request| Input::Drain {
            request,
            worker,
            drained: true,
        });
    });
    gone(&|harness, job| {
        harness.ask(|request| Input::Scale {
            request,
            job,
            workers: 2,
        });
    });
}

/// A worker that reports all others as unreachable is excluded itself. Its reports about itself or
/// about unknown workers are ignored.
#[test]
fn a_worker_that_reports_all_others_harms_only_itself() {
    let (mut harness, job) = three(1);
    stuck(&mut harness, &job, &["w1", "w9", "w2#7"]);
    assert_eq!(harness.generation(&job), 1);
    stuck(&mut harness, &job, &["w1", "w9", "w2", "w3"]);
    assert_eq!(members(&harness, &job), ["w2", "w3"]);
}

/// A generation that waits for all ranks to join is stuck as well.
#[test]
fn ranks_that_never_joined_are_separated_too() {
    let mut harness = Harness::new();
    harness.receive("w1", vec![]);
    harness.receive("w2", vec![]);
    let job = harness.submit(spec(1, 2));
    for _ in 0..3 {
        harness.receive("w1", vec![rank(&job, 1, 0, RankPhase::Joining)]);
        harness.receive_unreachable("w2", &["w1"], vec![rank(&job, 1, 1, RankPhase::Joining)]);
        harness.now += DETECT_WITHIN_MS / 2;
    }
    assert_eq!(
        (members(&harness, &job), harness.generation(&job)),
        (vec!["w1".to_owned()], 2)
    );
}

/// If no worker can be excluded, the job waits as long as necessary and its ranks keep their state.
#[test]
fn a_job_that_needs_them_all_waits_for_a_connection_that_its_reason_has() {
    let (mut harness, job) = three(3);
    stuck(&mut harness, &job, &["w3"]);
    let needs = Shortage {
        ready: names(&["w1", "w2", "w3"]),
        unreachable: vec![unreachable("w1", "w3")],
        ..shortage(3)
    };
    let holders = ["w1", "w2", "w3"];
    assert_eq!(*harness.waiting(&job), short_of(needs, &holders));
    let why = harness.machine.why(harness.now, &job).unwrap();
    assert_eq!(why.constraint, "connection");
    assert!(why.remedy.is_some(), "{why:?}");
    let generation = harness.generation(&job);
    for _ in 0..20 {
        harness.now += DETECT_WITHIN_MS / 2;
        for (worker, number) in [("w2", 1), ("w3", 2)] {
            harness.receive(
                worker,
                vec![rank(&job, generation, number, RankPhase::Ready)],
            );
        }
        harness.receive_unreachable(
            "w1",
            &["w3"],
            vec![rank(&job, generation, 0, RankPhase::Ready)],
        );
    }
    assert_eq!(
        (
            harness.generation(&job),
            harness.job(&job).restarts_without_progress
        ),
        (generation, 0)
    );
    harness.receive("w1", vec![rank(&job, generation, 0, RankPhase::Ready)]);
    assert_eq!(members(&harness, &job).len(), 3);
}

/// A free worker replaces one of the two.
#[test]
fn a_free_worker_takes_the_place_of_one_of_a_pair() {
    let mut harness = Harness::new();
    for worker in ["w1", "w2", "w3"] {
        harness.receive(worker, vec![]);
    }
    let job = harness.submit(spec(2, 2));
    assert_eq!(members(&harness, &job), ["w1", "w2"]);
    for _ in 0..3 {
        harness.receive("w1", vec![rank(&job, 1, 0, RankPhase::Joining)]);
        harness.receive_unreachable("w2", &["w1"], vec![rank(&job, 1, 1, RankPhase::Joining)]);
        harness.receive("w3", vec![]);
        harness.now += DETECT_WITHIN_MS / 2;
    }
    assert_eq!(members(&harness, &job), ["w1", "w3"]);
}
