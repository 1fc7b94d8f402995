//! Arbitrary bytes and job texts give either a clear error or a valid value, and never a panic.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use prost::Message;
use proto::message::{Assignment, DesiredState, WorkerReport};
use proto::pb;

const DEMO: &str = include_str!("../../deploy/jobs/demo.toml");

fn strange_text() -> impl Strategy<Value = String> {
    let known = [
        "", "demo-1", "../x", "w1", "cpu", "tpu", "0", "\u{0}", "full", "ddim",
    ];
    prop_oneof![
        prop::sample::select(known.to_vec()).prop_map(String::from),
        prop::collection::vec(any::<char>(), 0..12).prop_map(|chars| chars.into_iter().collect()),
        Just("f".repeat(64)),
        Just("x".repeat(5000)),
    ]
}

fn strange_number() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..5_u64,
        Just(u64::MAX),
        Just(u64::from(u32::MAX)),
        any::<u64>()
    ]
}

fn step() -> impl Strategy<Value = pb::StepReport> {
    (strange_number(), any::<f64>(), any::<u32>(), any::<bool>()).prop_map(
        |(step, loss, samples, timed)| {
            let seconds = timed.then(pb::PhaseSeconds::default);
            pb::StepReport {
                step,
                loss,
                samples,
                seconds,
                ..Default::default()
            }
        },
    )
}

fn shard() -> impl Strategy<Value = pb::ShardReport> {
    let texts = (
        strange_text(),
        strange_text(),
        prop::option::of(strange_text()),
        strange_text(),
    );
    (strange_number(), texts, any::<u64>()).prop_map(
        |(step, (path, sha256, init_digest, environment), size_bytes)| pb::ShardReport {
            step,
            path,
            size_bytes,
            sha256,
            init_digest,
            rank_environment: Some(pb::RankEnvironment {
                host: environment.clone(),
                ..Default::default()
            }),
            environment,
        },
    )
}

fn rank() -> impl Strategy<Value = pb::RankReport> {
    let identity = (strange_text(), strange_number(), any::<u32>(), -1..8_i32);
    let lists = (
        prop::collection::vec(step(), 0..3),
        prop::collection::vec(shard(), 0..3),
    );
    let digests = prop::collection::vec((strange_number(), strange_text()), 0..3);
    let units = prop::option::of((
        prop::collection::vec((strange_number(), strange_number()), 0..3),
        prop::collection::vec((strange_number(), strange_text()), 0..3),
    ));
    let activity = prop::option::of((
        strange_number(),
        -1..9_i32,
        strange_number(),
        strange_number(),
    ));
    (
        identity,
        strange_text(),
        prop::option::of(strange_text()),
        lists,
        (digests, activity, units),
    )
        .prop_map(
            |(
                (job, generation, rank, phase),
                error,
                store_address,
                (steps, shards),
                (digests, activity, units),
            )| {
                let digests = digests
                    .into_iter()
                    .map(|(step, sha256)| pb::WeightDigest { step, sha256 })
                    .collect();
                let units = units.map(|(done, failed): (Vec<_>, Vec<_>)| pb::UnitReport {
                    done: done
                        .into_iter()
                        .map(|(first, end)| pb::UnitRange { first, end })
                        .collect(),
                    failed: failed
                        .into_iter()
                        .map(|(unit, error)| pb::UnitFailure { unit, error })
                        .collect(),
                });
                let activity = activity.map(|(step, stage, number, for_ms)| pb::Activity {
                    step,
                    stage,
                    number,
                    for_ms,
                });
                pb::RankReport {
                    job,
                    generation,
                    rank,
                    phase,
                    error,
                    store_address,
                    steps,
                    shards,
                    digests,
                    activity,
                    units,
                    ..Default::default()
                }
            },
        )
}

fn report() -> impl Strategy<Value = pb::WorkerReport> {
    let worker = prop::option::of((strange_text(), strange_number()));
    (
        worker,
        strange_text(),
        any::<u32>(),
        prop::collection::vec(rank(), 0..3),
        prop::option::of(strange_text()),
        prop::collection::vec((strange_text(), strange_number(), strange_text()), 0..3),
    )
        .prop_map(
            |(worker, device, devices, ranks, peer_address, unreached)| {
                let worker = worker.map(|(name, boot)| pb::WorkerId { name, boot });
                let unreached = unreached
                    .into_iter()
                    .map(|(name, boot, error)| pb::Unreached {
                        peer: Some(pb::WorkerId { name, boot }),
                        error,
                    });
                pb::WorkerReport {
                    worker,
                    device,
                    devices,
                    ranks,
                    peer_address,
                    unreached: unreached.collect(),
                    ..Default::default()
                }
            },
        )
}

/// A valid job with some lines changed.
fn edited_job() -> impl Strategy<Value = String> {
    let value = prop::sample::select(vec![
        "0",
        "-1",
        "1e999",
        "nan",
        "\"\"",
        "[]",
        "{}",
        "true",
        "18446744073709551616",
        "4294967295",
        "\"a\u{0}b\"",
        "= =",
    ]);
    let edit = (any::<prop::sample::Index>(), 0..4_u8, value, strange_text());
    prop::collection::vec(edit, 1..5).prop_map(|edits| {
        let mut lines: Vec<String> = DEMO
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(String::from)
            .collect();
        for (position, kind, value, text) in edits {
            let index = position.index(lines.len());
            let key = lines[index]
                .split('=')
                .next()
                .unwrap_or_default()
                .to_owned();
            match kind {
                0 => lines[index] = format!("{key}= {value}"),
                1 => lines[index] = text,
                2 => lines[index].clear(),
                _ => lines.insert(index, format!("{key}x = {value}")),
            }
        }
        lines.join("\n")
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_bytes_are_a_report_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(report) = pb::WorkerReport::decode(bytes.as_slice()) {
            let _ = WorkerReport::try_from(report);
        }
        if let Ok(state) = pb::DesiredState::decode(bytes.as_slice()) {
            let _ = DesiredState::try_from(state);
        }
        if let Ok(assignment) = pb::Assignment::decode(bytes.as_slice()) {
            let _ = Assignment::try_from(assignment);
        }
    }

    #[test]
    fn a_strange_report_is_refused_by_name_or_means_what_it_says(wire in report()) {
        let bytes = wire.encode_to_vec();
        let wire = pb::WorkerReport::decode(bytes.as_slice()).unwrap();
        match WorkerReport::try_from(wire) {
            Ok(report) => {
                prop_assert!(!report.worker.name.is_empty() && report.devices <= 64);
                let again = pb::WorkerReport::from(&report);
                // NaN losses are not equal to themselves, so compare the debug text.
                let again = WorkerReport::try_from(again).unwrap();
                prop_assert_eq!(format!("{again:?}"), format!("{report:?}"));
            }
            Err(error) => prop_assert!(error.to_string().starts_with("field `"), "{}", error),
        }
    }

    #[test]
    fn an_edited_job_is_refused_with_its_line_or_means_what_its_canonical_text_says(
        text in edited_job()
    ) {
        match proto::job::parse("job.toml", &text, Some(std::path::Path::new("/jobs"))) {
            Ok(spec) => {
                let canonical = proto::job::to_toml(&spec);
                prop_assert_eq!(proto::job::parse("canonical", &canonical, None).unwrap(), spec);
            }
            Err(errors) => prop_assert!(errors.to_string().starts_with("job.toml:"), "{}", errors),
        }
    }

    #[test]
    fn any_text_is_a_job_or_an_error(text in strange_text()) {
        prop_assert!(proto::job::parse("job.toml", &text, None).is_err());
    }
}
