use prost::Message;
use proto::pb;
fn hex(b: &[u8]) -> String {
    let s: String = b.iter().map(|x| format!("{x:02x}")).collect();
    s.as_bytes()
        .chunks(96)
        .map(|c| String::from_utf8(c.to_vec()).unwrap())
        .collect::<Vec<_>>()
        .join("\n")
        + "\n"
}
fn main() {
    let w = Some(pb::WorkerId {
        name: "w1".into(),
        boot: 7,
    });
    let report = pb::WorkerReport {
        worker: w.clone(),
        device: "cpu".into(),
        devices: 2,
        ranks: vec![pb::RankReport {
            job: "demo-1".into(),
            generation: 3,
            rank: 1,
            phase: pb::rank_report::Phase::Failed.into(),
            failure: Some(pb::Failure {
                kind: pb::failure::Kind::Error.into(),
                text: "no space".into(),
                permanent: true,
                ..Default::default()
            }),
            steps: vec![pb::StepReport {
                step: 3,
                loss: 0.5,
                samples: 4,
                learning_rate: 1e-3,
                gradient_norm: 1.0,
                loss_scale: 1.0,
                peak_memory_bytes: 9,
                seconds: Some(pb::PhaseSeconds {
                    forward: 0.5,
                    ..Default::default()
                }),
                terms: vec![pb::LossTerm {
                    name: "target".into(),
                    value: 0.5,
                }],
                ..Default::default()
            }],
            shards: vec![pb::ShardReport {
                step: 3,
                path: "rank-1-of-2.safetensors".into(),
                size_bytes: 5,
                sha256: "ab".repeat(32),
                init_digest: Some("cd".repeat(32)),
                environment: "libtorch 2.10.0, cpu, 1 thread".into(),
                ..Default::default()
            }],
            digests: vec![pb::WeightDigest {
                step: 3,
                sha256: "ef".repeat(32),
            }],
            activity: Some(pb::Activity {
                step: 4,
                stage: pb::activity::Stage::MicroBatch.into(),
                number: 2,
                for_ms: 50,
            }),
            units: Some(pb::UnitReport {
                done: vec![pb::UnitRange { first: 1, end: 3 }],
                failed: vec![],
            }),
            ..Default::default()
        }],
        peer_address: Some("10.0.0.1:7073".into()),
        unreached: vec![pb::Unreached {
            peer: Some(pb::WorkerId {
                name: "w2".into(),
                boot: 8,
            }),
            error: "10.0.0.2:7073: no answer".into(),
        }],
        ..Default::default()
    };
    std::fs::write(
        "proto/tests/protocol-7/report.hex",
        hex(&report.encode_to_vec()),
    )
    .unwrap();
    let order = pb::DesiredState {
        worker: w,
        assignments: vec![pb::Assignment {
            job: "demo-1".into(),
            generation: 3,
            job_toml: "name = \"a\"".into(),
            dataset_version: "v".into(),
            store_url: "file:///s".into(),
            detect_within_ms: 3000,
            first_rank: 0,
            ranks: 1,
            graceful_stop: pb::assignment::GracefulStop::WithCheckpoint.into(),
            run: Some(pb::assignment::Run::Gang(pb::GangOrder {
                world: 2,
                store_address: Some("10.0.0.1:29500".into()),
                resume: Some(pb::CheckpointRef {
                    step: 4,
                    generation: 2,
                }),
                acknowledged_step: 5,
                committed_step: 4,
            })),
        }],
        detect_within_ms: 3000,
        peers: vec![pb::Peer {
            worker: Some(pb::WorkerId {
                name: "w2".into(),
                boot: 8,
            }),
            address: "10.0.0.2:7073".into(),
        }],
    };
    std::fs::write(
        "proto/tests/protocol-7/order.hex",
        hex(&order.encode_to_vec()),
    )
    .unwrap();
    let text = std::fs::read_to_string("deploy/jobs/figures.toml").unwrap();
    let spec =
        proto::job::parse("figures.toml", &text, Some(std::path::Path::new("/jobs"))).unwrap();
    std::fs::write(
        "proto/tests/protocol-7/job.toml",
        proto::job::to_toml(&spec),
    )
    .unwrap();
}
