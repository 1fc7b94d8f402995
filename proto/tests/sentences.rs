//! The sentences of all reasons, and that each reason is read from JSON as it was written. Tests of
//! behaviour compare values, so a message is reworded here and in `proto/src/reason` only.

#![allow(clippy::unwrap_used, reason = "a test panics to fail")]

use proto::id::{Generation, JobId, Rank, Step, WorkerId};
use proto::message::{Activity, GracefulStop, Stage};
use proto::phase::Phase;
use proto::reason::{
    Blocked, Cause, Consequence, Constraint, Dependency, DependencyState, Disagreement, Ending,
    Excess, Fault, GenerationEnd, LastGood, MissingSource, Overdue, Pairs, Pressure, RankFailure,
    RankOn, Reservation, Shortage, StandbyLoss, StopCause, Stopped, UnitError, UnreachablePair,
    Violation, Waiting, WeightDisagreement, data_or_sentence, stage_kind,
};
use proto::spec::DeviceKind;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fmt::{Debug, Display};

/// Each value has this sentence.
fn check_sentences<T: Display>(table: &[(T, &str)]) {
    for (value, sentence) in table {
        assert_eq!(value.to_string(), *sentence);
    }
}

/// The same, and each value is read from JSON as it was written.
fn check<T>(table: &[(T, &str)])
where
    T: Debug + Display + PartialEq + Serialize + DeserializeOwned,
{
    check_sentences(table);
    for (value, _) in table {
        let json = serde_json::to_string(value).unwrap();
        let read: T = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{json}: {error}"));
        assert_eq!(read, *value, "{json}");
    }
}

fn job(number: u32) -> JobId {
    JobId(format!("demo-{number}"))
}

fn worker(name: &str) -> WorkerId {
    WorkerId {
        name: name.to_owned(),
        boot: 7,
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn on(rank: u32, worker: &str) -> RankOn {
    RankOn {
        rank: Rank(rank),
        worker: Some(worker.to_owned()),
    }
}

fn activity(stage: Stage, for_ms: u64) -> Activity {
    Activity {
        step: Step(3),
        stage,
        for_ms,
    }
}

fn no_space() -> RankFailure {
    RankFailure::error("no space left", false)
}

/// Its sentence is "rank 1 on w2#7 failed: no space left".
fn failed() -> Ending {
    Ending::RankFailed {
        rank: Rank(1),
        worker: worker("w2"),
        failure: no_space(),
    }
}

/// Its sentence is "worker w1#7 sent no report for 1000 ms".
fn lost() -> Ending {
    Ending::WorkerLost {
        worker: worker("w1"),
        silent_for_ms: 1000,
    }
}

fn pair(a: &str, b: &str) -> UnreachablePair {
    UnreachablePair {
        workers: (a.to_owned(), b.to_owned()),
        from: b.to_owned(),
        to: a.to_owned(),
        error: format!("{a}:7073: no answer"),
    }
}

/// Two workers with one device each; none is up.
fn shortage() -> Shortage {
    Shortage {
        constraint: Constraint::Workers,
        workers_min: 2,
        devices_per_worker: 1,
        device: DeviceKind::Cpu,
        team: "vision".to_owned(),
        ready: vec![],
        busy: vec![],
        reserved: vec![],
        drained: vec![],
        too_small: vec![],
        unreachable: vec![],
    }
}

/// The same with a worker in every state.
fn crowded() -> Shortage {
    Shortage {
        ready: names(&["w1"]),
        busy: names(&["w2", "w7"]),
        reserved: vec![Reservation {
            worker: "w3".to_owned(),
            job: job(3),
        }],
        drained: names(&["w4", "w8"]),
        too_small: names(&["w5"]),
        unreachable: vec![pair("w1", "w6")],
        ..shortage()
    }
}

/// The weights of a job without a checkpoint.
fn no_checkpoint() -> MissingSource {
    MissingSource::NoCheckpoint { job: job(1) }
}

#[test]
fn failures_of_ranks() {
    let exited = |outcome: &str, success| RankFailure::Exited {
        outcome: outcome.to_owned(),
        success,
    };
    let silent = |activity| RankFailure::Silent {
        for_ms: 1000,
        phase: "training".to_owned(),
        activity,
    };
    let hangs = |stage, longest_ms| RankFailure::Hangs {
        activity: activity(stage, 12_000),
        longest_ms,
    };
    check(&[
        (no_space(), "no space left"),
        (RankFailure::error("Broken pipe", true), "Broken pipe"),
        (exited("killed by signal 9", false), "killed by signal 9"),
        (
            exited("exit status 0", true),
            "exited before its work was done (exit status 0)",
        ),
        (
            silent(None),
            "silent for 1000 ms while training; killed by its daemon",
        ),
        (
            silent(Some(activity(Stage::MicroBatch(1), 900))),
            "silent for 1000 ms while training, in micro-batch 1 of step 3; killed by its daemon",
        ),
        (
            hangs(Stage::MicroBatch(2), Some(1500)),
            "hangs in micro-batch 2 of step 3: for 12.0 s (longest micro-batch so far: 1.5 s); \
             the process exits",
        ),
        (
            hangs(Stage::Unit(5), None),
            "hangs in unit 5: for 12.0 s (first unit); the process exits",
        ),
        (
            RankFailure::NotLeft,
            "did not leave the older generation in time; killed by its daemon",
        ),
        (RankFailure::WorkerLeaves, "the worker is shutting down"),
        (
            RankFailure::Removed,
            "this worker was removed from this generation and cannot rejoin it",
        ),
    ]);
}

#[test]
fn kinds_of_stages() {
    let kinds = [
        (Stage::Samples, "wait for samples"),
        (Stage::MicroBatch(1), "micro-batch"),
        (Stage::Reduction, "reduction"),
        (Stage::Update, "update"),
        (Stage::Digest, "digest"),
        (Stage::Checkpoint, "checkpoint"),
        (Stage::Unit(1), "unit"),
    ];
    for (stage, kind) in kinds {
        assert_eq!(stage_kind(stage), kind);
    }
}

#[test]
fn endings_of_generations_that_lost_something() {
    check(&[
        (failed(), "rank 1 on w2#7 failed: no space left"),
        (
            Ending::GroupBroken {
                rank: Rank(0),
                worker: worker("w1"),
                error: "connection reset by peer".to_owned(),
            },
            "rank 0 on w1#7 lost its process group: connection reset by peer",
        ),
        (lost(), "worker w1#7 sent no report for 1000 ms"),
        (
            Ending::WorkerRestarted {
                old: worker("w1"),
                new: WorkerId {
                    name: "w1".to_owned(),
                    boot: 8,
                },
            },
            "worker w1#7 restarted as w1#8",
        ),
        (
            Ending::RankMissing {
                rank: Rank(1),
                worker: worker("w2"),
            },
            "worker w2#7 is up but does not run rank 1",
        ),
        (
            Ending::Partitioned {
                pairs: vec![pair("w1", "w3"), pair("w2", "w3")],
            },
            "w1 and w3 cannot reach each other (from w3 to w1 at w1:7073: no answer), w2 and w3 \
             cannot reach each other (from w3 to w2 at w2:7073: no answer); every rank waits for \
             another rank",
        ),
        (
            Ending::ManifestRefused {
                step: Step(2),
                attempts: 30,
                error: "503".to_owned(),
            },
            "the manifest of step 2 could not be written in 30 attempts: 503",
        ),
        (
            Ending::LastCheckpointMissing {
                step: Step(4),
                without: vec![Rank(0), Rank(2)],
            },
            "all ranks are finished, but rank 0, 2 reported no shard of step 4",
        ),
    ]);
}

#[test]
fn endings_of_generations_whose_ranks_disagree() {
    let sha256 = |digit: &str| digit.repeat(64);
    let disagree = |weights| Ending::WeightsDisagree {
        step: Step(4),
        weights,
    };
    let one = WeightDisagreement::One {
        rank: on(1, "w2"),
        sha256: sha256("b"),
        others: 2,
        others_sha256: sha256("a"),
    };
    let somewhere = RankOn {
        rank: Rank(1),
        worker: None,
    };
    let many = WeightDisagreement::Many {
        ranks: vec![(on(0, "w1"), sha256("a")), (somewhere, sha256("b"))],
    };
    let base = || Disagreement::BaseWeights {
        digests: vec![None, Some(sha256("a")), Some("ff".to_owned())],
    };
    check(&[
        (
            disagree(one),
            "rank 1 on w2 diverged: its weights after step 4 are bbbbbbbbbbbb, those of the other \
             2 ranks are aaaaaaaaaaaa",
        ),
        (
            disagree(many),
            "the ranks' weights differ after step 4, and it is unknown which are correct: rank 0 \
             on w1 aaaaaaaaaaaa, rank 1 bbbbbbbbbbbb",
        ),
        (
            Ending::ShardsDisagree {
                step: Step(2),
                shards: base(),
            },
            "the shards of step 2 are inconsistent: ranks started from different base weights: \
             none, aaaaaaaaaaaa, ff",
        ),
    ]);
    check(&[(
        base(),
        "ranks started from different base weights: none, aaaaaaaaaaaa, ff",
    )]);
}

#[test]
fn ranks_that_waited() {
    let unknown = |rank| RankOn {
        rank: Rank(rank),
        worker: None,
    };
    check(&[(on(0, "w1"), "rank 0 on w1"), (unknown(3), "rank 3")]);
    let blocked = [
        (Blocked::default(), ""),
        (
            Blocked::new(vec![on(0, "w1"), on(2, "w3")]),
            "; rank 0 on w1, rank 2 on w3 waited for it",
        ),
        (
            Blocked::new((0..10).map(unknown).collect()),
            "; rank 0, rank 1, rank 2, rank 3, rank 4, rank 5, rank 6, rank 7 and 2 more waited \
             for it",
        ),
    ];
    check(&blocked);
}

#[test]
fn consequences() {
    check(&[
        (
            Consequence::Resumes { from: Step(2) },
            "the job resumes from the survivors' state or from step 2",
        ),
        (
            Consequence::Permanent,
            "another generation would fail in the same way",
        ),
        (
            Consequence::NoProgress { generations: 5 },
            "generation 5 in a row without progress",
        ),
        (Consequence::Continues, "the job continues"),
    ]);
}

#[test]
fn faults_of_gangs() {
    let text = "a stored sentence".to_owned();
    check(&[
        (Fault::Text { text }, "a stored sentence"),
        (
            Fault::Generation {
                ending: failed(),
                blocked: Blocked::new(vec![on(0, "w1")]),
                consequence: Consequence::Resumes { from: Step(2) },
            },
            "rank 1 on w2#7 failed: no space left; rank 0 on w1 waited for it; the job resumes \
             from the survivors' state or from step 2",
        ),
        (
            Fault::Generation {
                ending: lost(),
                blocked: Blocked::default(),
                consequence: Consequence::NoProgress { generations: 5 },
            },
            "worker w1#7 sent no report for 1000 ms; generation 5 in a row without progress",
        ),
        (
            Fault::StopOverdue {
                stopped: Stopped::Released {
                    cause: StopCause::Paused,
                    overdue: Some(Overdue::new(None, GracefulStop::WithCheckpoint, 40_000)),
                    resumes_from: Step(2),
                },
            },
            "paused by a user; its checkpoint was not committed within 40 s; resumes from step 2",
        ),
    ]);
}

#[test]
fn faults_of_jobs_of_units() {
    let process = |unit, consequence| Fault::Process {
        ending: failed(),
        unit,
        consequence,
    };
    let unit = |error, set_aside| Fault::Unit {
        unit: 5,
        failures: 3,
        workers: names(&["w3", "w4", "w4"]),
        error,
        set_aside,
    };
    check(&[
        (
            process(Some(5), Consequence::Continues),
            "rank 1 on w2#7 failed: no space left; its current unit was 5",
        ),
        (
            process(None, Consequence::NoProgress { generations: 5 }),
            "rank 1 on w2#7 failed: no space left; it had no current unit; process 5 in a row \
             that ended without a current unit",
        ),
        (
            process(None, Consequence::Permanent),
            "rank 1 on w2#7 failed: no space left; it had no current unit; another attempt would \
             fail in the same way",
        ),
        (
            Fault::Worker { ending: lost() },
            "worker w1#7 sent no report for 1000 ms; its units are leased again",
        ),
        (
            unit(UnitError::text("no reference"), false),
            "unit 5 failed 3 times, on w3, w4, w4: no reference",
        ),
        (
            unit(UnitError::Ended(failed()), true),
            "unit 5 failed 3 times, on w3, w4, w4: rank 1 on w2#7 failed: no space left; it is \
             set aside",
        ),
        (
            Fault::UnitsOverdue {
                cause: StopCause::Paused,
                worker: "w3".to_owned(),
            },
            "paused by a user; w3 had not finished its units in time",
        ),
    ]);
    check(&[
        (UnitError::text("no reference"), "no reference"),
        (
            UnitError::Ended(lost()),
            "worker w1#7 sent no report for 1000 ms",
        ),
    ]);
}

#[test]
fn causes() {
    let of_fault = |checkpoint| Cause::Fault {
        fault: Fault::Worker { ending: lost() },
        checkpoint,
    };
    let text = "a stored sentence".to_owned();
    let source = no_checkpoint();
    let step = Step(12);
    let error = "not JSON".to_owned();
    check(&[
        (Cause::Text { text }, "a stored sentence"),
        (
            of_fault(None),
            "worker w1#7 sent no report for 1000 ms; its units are leased again",
        ),
        (
            of_fault(Some(LastGood {
                step: Some(Step(2)),
            })),
            "worker w1#7 sent no report for 1000 ms; its units are leased again; the last good \
             checkpoint is at step 2",
        ),
        (
            of_fault(Some(LastGood { step: None })),
            "worker w1#7 sent no report for 1000 ms; its units are leased again; there is no \
             checkpoint yet",
        ),
        (
            Cause::NoProgress { generations: 5 },
            "5 generations in a row made no progress",
        ),
        (
            Cause::AllUnitsSetAside { units: 4 },
            "all 4 units were set aside",
        ),
        (
            Cause::NoSource { source },
            "job demo-1 has no committed checkpoint yet",
        ),
        (
            Cause::TimeLimit {
                limit_s: 3600,
                step,
            },
            "train.time_limit of 3600 s is used up at step 12; `coordinator retry --set \
             train.time_limit=…` continues the job",
        ),
        (
            Cause::Unreadable { error },
            "its record cannot be read: not JSON",
        ),
    ]);
}

#[test]
fn causes_of_stops() {
    let (shortage, ending) = (Box::new(shortage()), Box::new(failed()));
    let worker = || "w2".to_owned();
    check(&[
        (StopCause::Paused, "paused by a user"),
        (
            StopCause::Moves {
                to: names(&["w1", "w3"]),
            },
            "moves to w1, w3",
        ),
        (
            StopCause::Preempted { shortage },
            "preempted: needs 2 cpu workers with 1 free device; none is up",
        ),
        (
            StopCause::Drained { worker: worker() },
            "w2 is being drained",
        ),
        (
            StopCause::NotNeeded { worker: worker() },
            "w2 is needed elsewhere or no longer needed",
        ),
        (
            StopCause::BacksOff {
                worker: worker(),
                ending,
            },
            "rank 1 on w2#7 failed: no space left; it had no current unit, and w2 gets no other \
             process for a while",
        ),
        (
            StopCause::TimeLimit { limit_s: 3600 },
            "train.time_limit of 3600 s is used up",
        ),
    ]);
}

#[test]
fn ends_of_stops() {
    let rank = || Some(on(0, "w1"));
    let slow = Overdue::new(rank(), GracefulStop::WithoutCheckpoint, 2_500);
    let overdue = [
        (
            slow.clone(),
            "rank 0 on w1 had not finished its step within 2.5 s",
        ),
        (
            Overdue::new(rank(), GracefulStop::WithCheckpoint, 40_000),
            "rank 0 on w1 had not finished its step and written its checkpoint shard within 40 s",
        ),
        (
            Overdue::new(None, GracefulStop::WithCheckpoint, 40_000),
            "its checkpoint was not committed within 40 s",
        ),
    ];
    check(&overdue);
    let released = |overdue| Stopped::Released {
        cause: StopCause::Paused,
        overdue,
        resumes_from: Step(2),
    };
    let of_worker = |late| Stopped::Worker {
        cause: StopCause::Paused,
        worker: "w2".to_owned(),
        late,
    };
    let on = || names(&["w1", "w3"]);
    check(&[
        (released(None), "paused by a user; resumes from step 2"),
        (
            released(Some(slow)),
            "paused by a user; rank 0 on w1 had not finished its step within 2.5 s; resumes from \
             step 2",
        ),
        (Stopped::Continues { on: on() }, "continues on w1, w3"),
        (
            Stopped::ContinuesWarm { on: on() },
            "continues on w1, w3 without waiting for others to start",
        ),
        (of_worker(false), "paused by a user"),
        (
            of_worker(true),
            "paused by a user; w2 had not finished its units in time",
        ),
    ]);
}

#[test]
fn shortages() {
    let grace = Constraint::GracePeriod { workers_max: 4 };
    let quota = Constraint::Quota { quota: 4, used: 3 };
    check(&[
        (
            shortage(),
            "needs 2 cpu workers with 1 free device; none is up",
        ),
        (
            Shortage {
                workers_min: 1,
                devices_per_worker: 8,
                device: DeviceKind::Cuda,
                busy: names(&["w1"]),
                ..shortage()
            },
            "needs 1 cuda worker with 8 free devices; none is free; busy: w1",
        ),
        (
            crowded(),
            "needs 2 cpu workers with 1 free device; 1 is free (w1); busy: w2, w7; w3 is reserved \
             for demo-3, which is ahead in the queue; drained: w4, w8; too few devices: w5; w1 \
             and w6 cannot reach each other (from w6 to w1 at w1:7073: no answer)",
        ),
        (
            Shortage {
                constraint: grace,
                ready: names(&["w1", "w2"]),
                ..shortage()
            },
            "needs 2 cpu workers with 1 free device; 2 are free (w1, w2); waits briefly for up to \
             4 workers",
        ),
        (
            Shortage {
                constraint: quota,
                ..shortage()
            },
            "needs 2 devices; team vision holds 3 of the 4 that its quota allows",
        ),
    ]);
}

#[test]
fn what_would_end_a_shortage() {
    let limited = |constraint| Shortage {
        constraint,
        ..shortage()
    };
    let table = [
        (
            shortage(),
            "workers",
            "2 more cpu workers with 1 device joining",
        ),
        (
            crowded(),
            "connection",
            "a connection between the workers that cannot reach each other, or 1 worker of w2, w7 \
             becoming free, or demo-3 starting or leaving the queue, or `coordinator undrain` of \
             w4 or w8, or 1 more cpu worker with 1 device joining",
        ),
        (
            limited(Constraint::GracePeriod { workers_max: 4 }),
            "grace-period",
            "nothing: it starts shortly with the workers that are up",
        ),
        (
            limited(Constraint::Quota { quota: 4, used: 3 }),
            "quota",
            "jobs of team vision releasing 1 device, or a higher quota",
        ),
        (
            limited(Constraint::Quota { quota: 1, used: 0 }),
            "quota",
            "a quota of 2 devices for team vision, which has 1",
        ),
    ];
    for (shortage, constraint, remedy) in table {
        assert_eq!(shortage.constraint(), constraint);
        assert_eq!(shortage.remedy(), remedy);
    }
}

#[test]
fn at_most_four_pairs_are_named() {
    let one = "w1 and w9 cannot reach each other (from w9 to w1 at w1:7073: no answer)";
    check(&[(pair("w1", "w9"), one)]);
    let pairs = vec![pair("w1", "w9"); 6];
    let four = [one; 4].join(", ");
    let five = format!("{four}, and 1 more pair");
    let six = format!("{four}, and 2 more pairs");
    check_sentences(&[
        (Pairs(&pairs[..1]), one),
        (Pairs(&pairs[..4]), four.as_str()),
        (Pairs(&pairs[..5]), five.as_str()),
        (Pairs(&pairs), six.as_str()),
    ]);
}

#[test]
fn reasons_of_waiting_jobs() {
    let short_of = |holders: &[&str]| Waiting::Shortage {
        shortage: Box::new(shortage()),
        state_holders: names(holders),
    };
    let text = "a stored sentence".to_owned();
    let source = no_checkpoint();
    let stopped = Stopped::Continues { on: names(&["w1"]) };
    let fault = Fault::Worker { ending: lost() };
    check(&[
        (Waiting::Text { text }, "a stored sentence"),
        (Waiting::Submitted, "was just submitted"),
        (Waiting::Retried, "continues on request"),
        (Waiting::Upgraded, "starts again, in units"),
        (
            Waiting::Paused,
            "paused by a user; `coordinator resume` continues it",
        ),
        (
            Waiting::UnitsFailed {
                failed: 3,
                allowed: 2,
                units: 201,
                unit: 17,
                error: UnitError::Text("the server is away".into()),
            },
            "paused because 3 of 201 units failed for good, and 2 may; unit 17: the server is \
             away; `coordinator resume` tries them again",
        ),
        (
            short_of(&[]),
            "needs 2 cpu workers with 1 free device; none is up",
        ),
        (
            short_of(&["w1", "w2"]),
            "needs 2 cpu workers with 1 free device; none is up; its state is held by w1, w2",
        ),
        (
            Waiting::Release {
                jobs: vec![job(1), job(2)],
                workers: names(&["w1", "w2"]),
            },
            "waits for demo-1, demo-2 to release w1, w2",
        ),
        (
            Waiting::Source { source },
            "waits for the first checkpoint of demo-1",
        ),
        (Waiting::Stopped { stopped }, "continues on w1"),
        (
            Waiting::Fault { fault },
            "worker w1#7 sent no report for 1000 ms; its units are leased again",
        ),
    ]);
}

#[test]
fn dependencies() {
    let depends = |number, state| Dependency {
        job: job(number),
        state,
    };
    let running = || DependencyState::Pending(Phase::Running);
    let queued = || DependencyState::Pending(Phase::Queued);
    check(&[
        (depends(1, running()), "demo-1, which is running"),
        (depends(1, DependencyState::Failed), "demo-1 failed"),
        (
            depends(1, DependencyState::Cancelled),
            "demo-1 was cancelled",
        ),
        (
            depends(1, DependencyState::Unreadable),
            "the record of demo-1 cannot be read",
        ),
        (
            depends(1, DependencyState::Missing),
            "there is no job demo-1 any more",
        ),
    ]);
    check(&[
        (
            Waiting::Dependencies {
                dependencies: vec![depends(1, running()), depends(2, queued())],
            },
            "waits for demo-1, which is running, and for demo-2, which is queued",
        ),
        (
            Waiting::DependencyFailed {
                job: job(3),
                dependencies: vec![
                    depends(1, DependencyState::Failed),
                    depends(2, DependencyState::Cancelled),
                ],
            },
            "dependency-failed: demo-1 failed, demo-2 was cancelled; `coordinator retry` \
             continues a failed job, or cancel demo-3",
        ),
    ]);
}

#[test]
fn missing_sources() {
    let lost_job = |unreadable| MissingSource::Job {
        job: job(1),
        unreadable,
    };
    let no_step = |steps: &[u64]| MissingSource::NoStep {
        job: job(1),
        step: Step(4),
        steps: steps.iter().copied().map(Step).collect(),
    };
    check(&[
        (lost_job(false), "there is no job demo-1"),
        (lost_job(true), "the record of job demo-1 cannot be read"),
        (
            no_checkpoint(),
            "job demo-1 has no committed checkpoint yet",
        ),
        (
            no_step(&[]),
            "job demo-1 has no checkpoint of step 4; it has: none",
        ),
        (
            no_step(&[2, 3]),
            "job demo-1 has no checkpoint of step 4; it has: 2, 3",
        ),
    ]);
    let awaits = |source| Waiting::Source { source };
    check(&[
        (awaits(lost_job(false)), "waits for job demo-1"),
        (
            awaits(no_step(&[2])),
            "waits for the checkpoint of step 4 of demo-1",
        ),
    ]);
}

#[test]
fn violations() {
    let (reported, newest) = (Generation(3), Generation(2));
    check_sentences(&[
        (
            Violation::UnknownJob { job: job(9) },
            "reports a rank of demo-9, which was never submitted here",
        ),
        (
            Violation::OldBoot {
                newer: worker("w2"),
            },
            "reports although w2#7 has replaced it",
        ),
        (
            Violation::FutureGeneration {
                job: job(1),
                reported,
                newest,
            },
            "reports generation 3 of demo-1, whose newest generation is 2",
        ),
        (
            Violation::OldGeneration {
                job: job(1),
                reported: Generation(1),
                newest,
            },
            "still reports generation 1 of demo-1, which is at generation 2",
        ),
        (
            Violation::NotMember {
                job: job(1),
                generation: newest,
            },
            "reports a rank of demo-1 generation 2, of which it is not a member",
        ),
        (
            Violation::RankOutside {
                rank: Rank(1),
                first: Rank(2),
                ranks: 4,
            },
            "reports rank 1; it runs 4 ranks starting at rank 2",
        ),
    ]);
    check_sentences(&[
        (
            Violation::StepOutside {
                step: Step(5),
                steps_max: Step(4),
            },
            "reports step 5 of a job that has steps 1 to 4",
        ),
        (
            Violation::ShardPath {
                path: "../x".to_owned(),
            },
            "reports shard `../x`; a shard path must be a file name that no other rank of the \
             step uses",
        ),
        (
            Violation::UnitOutside { unit: 99, units: 4 },
            "reports unit 99 of a job of 4 units",
        ),
    ]);
}

#[test]
fn events_of_generations_and_standbys() {
    let fault = Fault::Worker { ending: lost() };
    check_sentences(&[
        (
            GenerationEnd::Ending(failed()),
            "rank 1 on w2#7 failed: no space left",
        ),
        (
            GenerationEnd::Fault(fault),
            "worker w1#7 sent no report for 1000 ms; its units are leased again",
        ),
        (GenerationEnd::UnitsRetried, "units that failed are retried"),
        (
            GenerationEnd::CoordinatorReplaced,
            "the coordinator that asked it to leave has been replaced",
        ),
    ]);
    check_sentences(&[
        (StandbyLoss::Failed(no_space()), "no space left"),
        (StandbyLoss::NotReported, "its worker does not report it"),
    ]);
}

#[test]
fn a_foreign_error_is_shortened() {
    let long = "x".repeat(5000);
    let RankFailure::Error { text, .. } = RankFailure::error(&long, false) else {
        panic!("an error")
    };
    let unit = UnitError::text(&long).to_string();
    for text in [&text, &unit] {
        assert!(
            text.len() <= 1200 && text.contains("(cut: it has"),
            "{text}"
        );
    }
}

/// The fields of a stored job that older releases stored as sentences.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Stored {
    #[serde(deserialize_with = "data_or_sentence")]
    waiting: Waiting,
    #[serde(deserialize_with = "data_or_sentence")]
    cause: Cause,
    #[serde(deserialize_with = "data_or_sentence")]
    fault: Fault,
}

#[test]
fn a_stored_sentence_is_read_as_text() {
    let text = || "a stored sentence".to_owned();
    let json = format!(
        r#"{{"waiting": "{0}", "cause": "{0}", "fault": "{0}"}}"#,
        text()
    );
    let read: Stored = serde_json::from_str(&json).unwrap();
    let expected = Stored {
        waiting: Waiting::Text { text: text() },
        cause: Cause::Text { text: text() },
        fault: Fault::Text { text: text() },
    };
    assert_eq!(read, expected);
    // This release writes it as data.
    let json = serde_json::to_string(&expected).unwrap();
    assert_eq!(serde_json::from_str::<Stored>(&json).unwrap(), expected);
}

#[test]
fn stored_data_is_read_as_such_and_anything_else_is_refused() {
    let fault = || Fault::Process {
        ending: failed(),
        unit: Some(u64::MAX),
        consequence: Consequence::Continues,
    };
    let stored = Stored {
        waiting: Waiting::Fault { fault: fault() },
        cause: Cause::Fault {
            fault: fault(),
            checkpoint: Some(LastGood { step: None }),
        },
        fault: fault(),
    };
    let json = serde_json::to_string(&stored).unwrap();
    assert_eq!(serde_json::from_str::<Stored>(&json).unwrap(), stored);
    for fault in ["7", "null", r#"{"kind": "levitates"}"#] {
        let json = format!(r#"{{"waiting": "", "cause": "", "fault": {fault}}}"#);
        assert!(serde_json::from_str::<Stored>(&json).is_err(), "{json}");
    }
}

#[test]
fn a_flood_is_named_with_its_sender_and_its_rate() {
    let of = |excess, address: Option<&str>, last: &str| Pressure {
        excess,
        address: address.map(|it| it.parse().unwrap()),
        count: 25,
        within_ms: 10_000,
        busy_ms: if excess == Excess::Work { 7_400 } else { 0 },
        last: last.to_owned(),
    };
    let from = Some("10.0.0.9");
    check(&[
        (
            of(Excess::Connections, from, ""),
            "the coordinator is refusing or closing 2.5 connections/s from 10.0.0.9",
        ),
        (
            of(Excess::Strays, Some("2001:db8::"), ""),
            "2.5 connections/s from 2001:db8:: end without a request",
        ),
        (
            of(Excess::Requests, from, "job.toml: name: is missing"),
            "the coordinator is refusing 2.5 requests/s from 10.0.0.9; the last: job.toml: name: \
             is missing",
        ),
        (
            of(Excess::Work, from, ""),
            "the coordinator is answering 2.5 requests/s from 10.0.0.9, which took 7.4 s of the \
             last 10.0 s",
        ),
        (
            of(Excess::Reports, from, "worker w1#7"),
            "the coordinator is skipping 2.5 reports/s from 10.0.0.9; the last: worker w1#7",
        ),
        (
            of(Excess::Workers, from, ""),
            "2.5 workers/s attach from 10.0.0.9",
        ),
        (
            of(Excess::Lines, None, ""),
            "the coordinator is dropping 2.5 log lines/s from several addresses",
        ),
        (
            of(Excess::Delays, from, "requests"),
            "the coordinator is delaying 2.5 requests/s from 10.0.0.9, which use more than their \
             share of its time; the last: requests",
        ),
    ]);
}
