//! Whatever workers claim, in whatever order, the coordinator's machine does not panic, and its deadline
//! moves on.

#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with others, which together use all of it")]
mod desk;

use coordinator_core::event::{Event, JobPhase};
use desk::{Desk, failed, rank, spec, with_shard, with_step};
use proptest::prelude::*;
use proto::id::JobId;
use proto::message::{RankPhase, RankReport};

#[derive(Debug, Clone)]
enum Act {
    Hear {
        worker: &'static str,
        ranks: Vec<RankReport>,
    },
    Wait {
        ms: u64,
    },
    Back {
        ms: u64,
    },
    Submit {
        min: u32,
        max: u32,
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

fn job(number: u64) -> JobId {
    JobId(format!("toy-{number}"))
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
    (0..4_u64, 0..5_u64, ranks, phase, steps.clone(), steps).prop_map(
        |(number, generation, of, phase, steps, shards)| {
            let report = rank(&job(number), generation, of, phase);
            let report = steps.into_iter().fold(report, with_step);
            shards.into_iter().fold(report, with_shard)
        },
    )
}

fn act() -> impl Strategy<Value = Act> {
    let worker = prop::sample::select(vec!["w1", "w2", "w2#2", "w3", "w3#9"]);
    prop_oneof![
        8 => (worker, prop::collection::vec(report(), 0..3)).prop_map(|(worker, ranks)| Act::Hear { worker, ranks }),
        2 => (0..3_000_u64).prop_map(|ms| Act::Wait { ms }),
        1 => (0..9_000_u64).prop_map(|ms| Act::Back { ms }),
        2 => (1..3_u32, 0..2_u32).prop_map(|(min, more)| Act::Submit { min, max: min + more }),
        1 => (0..4_u64).prop_map(|job| Act::Cancel { job }),
        3 => (0..4_u64, 0..5_u64, 0..5_u64, any::<bool>())
            .prop_map(|(job, step, generation, fine)| Act::Written { job, step, generation, fine }),
        1 => Just(Act::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn strange_input_never_breaks_the_machine(acts in prop::collection::vec(act(), 1..60)) {
        let mut desk = Desk::new();
        for act in acts {
            match act {
                Act::Hear { worker, ranks } => drop(desk.hear(worker, ranks)),
                Act::Wait { ms } => drop(desk.wait(ms)),
                Act::Back { ms } => desk.now -= ms.min(desk.now),
                Act::Submit { min, max } => drop(desk.submit(spec(min, max))),
                Act::Cancel { job: number } => drop(desk.ask(|request| Event::Cancel { request, job: job(number) })),
                Act::Written { job: number, step, generation, fine } => {
                    let checkpoint = proto::checkpoint::CheckpointRef {
                        step: proto::id::Step(step),
                        generation: proto::id::Generation(generation),
                    };
                    let result = if fine { Ok(()) } else { Err("503".to_owned()) };
                    desk.handle(Event::ManifestWritten { job: job(number), checkpoint, result });
                }
                Act::Restart => desk.restart(),
            }
            let now = desk.now;
            desk.handle(Event::Deadline);
            prop_assert!(desk.machine.next_deadline().is_none_or(|deadline| now < deadline));
            // Nothing waits without a deadline or a reason.
            for record in desk.durable.jobs.values() {
                let waits = matches!(&record.phase, JobPhase::Queued { reason } if reason.is_empty());
                prop_assert!(!waits);
            }
        }
    }
}
