//! Arbitrary reports in arbitrary order, alone or together, never make the coordinator's machine
//! panic, and its deadline always advances.

#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with others, which together use all of it")]
mod harness;

use coordinator_core::event::{About, DatasetPin, Effect, Input, JobPhase, RequestId};
use harness::{Harness, failed, rank, received, sample_of, sampling, spec, with_shard, with_step};
use proptest::prelude::*;
use proto::id::JobId;
use proto::message::{Activity, RankPhase, RankReport, Stage, UnitFailure, UnitRange};
use proto::sample::Weights;
use proto::spec::OnFailedUnit;

#[derive(Debug, Clone)]
enum Act {
    Receive {
        worker: &'static str,
        ranks: Vec<RankReport>,
    },
    /// Reports, and the end of a job between them, that arrive together.
    Together {
        reports: Vec<(&'static str, Vec<RankReport>)>,
        cancel: u64,
    },
    Wait {
        ms: u64,
    },
    ClockBack {
        ms: u64,
    },
    Submit {
        min: u32,
        max: u32,
    },
    /// A job that samples from the base weights of the first job, if there is one.
    Images {
        count: u32,
        set_aside: bool,
    },
    Pause {
        job: u64,
        paused: bool,
    },
    Drain {
        worker: &'static str,
        drained: bool,
    },
    Cancel {
        job: u64,
    },
    Written {
        job: u64,
        step: u64,
        generation: u64,
        fine: bool,
    },
    Restart,
}

/// Every third job is a job of units.
fn job(number: u64) -> JobId {
    let name = if number % 3 == 2 { "images" } else { "toy" };
    JobId(format!("{name}-{number}"))
}

/// What a rank may report about units, whether possible or not.
fn units() -> impl Strategy<Value = (Vec<UnitRange>, Vec<u64>, Option<u64>)> {
    let number = || prop_oneof![8 => 0..12_u64, 1 => Just(u64::MAX)];
    let range = (number(), number()).prop_map(|(first, end)| UnitRange { first, end });
    let done = prop::collection::vec(range, 0..3);
    let failed = prop::collection::vec(number(), 0..2);
    (done, failed, prop::option::of(number()))
}

fn report() -> impl Strategy<Value = RankReport> {
    let phase = prop_oneof![
        Just(RankPhase::Starting),
        Just(RankPhase::Training),
        Just(RankPhase::Finished),
        Just(failed("connection closed by peer")),
        Just(failed("boom")),
    ];
    let steps = prop::collection::vec(prop_oneof![0..6_u64, Just(u64::MAX)], 0..3);
    let ranks = prop_oneof![0..3_u32, Just(u32::MAX)];
    (
        0..6_u64,
        0..9_u64,
        ranks,
        phase,
        steps.clone(),
        steps,
        units(),
    )
        .prop_map(
            |(number, generation, of, phase, steps, shards, (done, failed, activity))| {
                let mut report = rank(&job(number), generation, of, phase);
                report.units.done = done;
                let error = "no such thing".to_owned();
                report.units.failed = failed
                    .into_iter()
                    .map(|unit| UnitFailure {
                        unit,
                        error: error.clone(),
                    })
                    .collect();
                report.activity = activity.map(|unit| Activity {
                    step: proto::id::Step(0),
                    stage: Stage::Unit(unit),
                    for_ms: 5,
                });
                let report = steps.into_iter().fold(report, with_step);
                shards.into_iter().fold(report, with_shard)
            },
        )
}

fn act() -> impl Strategy<Value = Act> {
    let worker = prop::sample::select(vec!["w1", "w2", "w2#2", "w3", "w3#9"]);
    let reports = (worker.clone(), prop::collection::vec(report(), 0..3));
    prop_oneof![
        4 => (prop::collection::vec(reports, 0..5), 0..6_u64)
            .prop_map(|(reports, cancel)| Act::Together { reports, cancel }),
        8 => (worker, prop::collection::vec(report(), 0..3))
            .prop_map(|(worker, ranks)| Act::Receive { worker, ranks }),
        2 => (0..3_000_u64).prop_map(|ms| Act::Wait { ms }),
        1 => (0..9_000_u64).prop_map(|ms| Act::ClockBack { ms }),
        2 => (1..3_u32, 0..2_u32).prop_map(|(min, more)| Act::Submit { min, max: min + more }),
        3 => (1..12_u32, any::<bool>())
            .prop_map(|(count, set_aside)| Act::Images { count, set_aside }),
        1 => (0..6_u64, any::<bool>()).prop_map(|(job, paused)| Act::Pause { job, paused }),
        1 => (prop::sample::select(vec!["w1", "w2", "w3"]), any::<bool>())
            .prop_map(|(worker, drained)| Act::Drain { worker, drained }),
        1 => (0..6_u64).prop_map(|job| Act::Cancel { job }),
        3 => (0..4_u64, 0..5_u64, 0..5_u64, any::<bool>())
            .prop_map(|(job, step, generation, fine)| Act::Written { job, step, generation, fine }),
        1 => Just(Act::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn arbitrary_input_never_breaks_the_machine(acts in prop::collection::vec(act(), 1..80)) {
        let mut harness = Harness::new();
        for act in acts {
            match act {
                Act::Receive { worker, ranks } => drop(harness.receive(worker, ranks)),
                Act::Together { reports, cancel } => {
                    let reports = reports.into_iter();
                    let mut inputs: Vec<Input> =
                        reports.map(|(worker, ranks)| received(worker, &[], ranks)).collect();
                    let request = RequestId(u64::MAX);
                    let cancel = Input::Cancel { request, job: job(cancel) };
                    inputs.insert(inputs.len() / 2, cancel);
                    let effects = harness.handle_all(inputs);
                    let answers = effects.iter().filter(|effect| {
                        matches!(effect, Effect::Reply { request: to, .. } if *to == request)
                    });
                    prop_assert_eq!(answers.count(), 1);
                }
                Act::Wait { ms } => drop(harness.wait(ms)),
                Act::ClockBack { ms } => harness.now -= ms.min(harness.now),
                Act::Submit { min, max } => drop(harness.submit(spec(min, max))),
                Act::Images { count, set_aside } => {
                    let mut images = sample_of(&job(1));
                    let work = sampling(&mut images);
                    (work.count, work.weights) = (count, Weights::Base);
                    if set_aside {
                        work.on_failed_unit = OnFailedUnit::SetAside;
                    }
                    // Refused if there is no such job.
                    drop(harness.ask(|request| Input::Submit {
                        request,
                        job_toml: proto::job::to_toml(&images),
                        dataset: DatasetPin::default(),
                        spec: Box::new(images),
                        about: About::default(),
                        archived: vec![],
                    }));
                }
                Act::Pause { job: number, paused } => {
                    drop(harness.ask(|request| Input::Pause { request, job: job(number), paused }));
                }
                Act::Drain { worker, drained } => {
                    let worker = worker.to_owned();
                    drop(harness.ask(|request| Input::Drain { request, worker, drained }));
                }
                Act::Cancel { job: number } => {
                    drop(harness.ask(|request| Input::Cancel { request, job: job(number) }));
                }
                Act::Written { job: number, step, generation, fine } => {
                    let checkpoint = proto::checkpoint::CheckpointRef {
                        step: proto::id::Step(step),
                        generation: proto::id::Generation(generation),
                    };
                    let result = if fine { Ok(()) } else { Err("503".to_owned()) };
                    harness.handle(Input::ManifestWritten { job: job(number), checkpoint, result });
                }
                Act::Restart => harness.restart(),
            }
            let now = harness.now;
            harness.handle(Input::Deadline);
            prop_assert!(harness.machine.next_deadline().is_none_or(|deadline| now < deadline));
            // Every queued job has a reason.
            for record in harness.durable.jobs.values() {
                let JobPhase::Queued { reason } = &record.phase else { continue };
                prop_assert!(!reason.to_string().is_empty());
            }
        }
    }
}
