//! Protocol N talks with N - 1 and N + 1. Here the messages of protocol 7 are recorded, so that
//! every later release reads them, and the next protocol is invented, so that this one is held
//! against a newer one.

#![allow(clippy::unwrap_used)]

use prost::Message;
use proto::id::{JobId, Step};
use proto::message::{DesiredState, RankPhase, WorkerReport};
use proto::pb;
use proto::reason::RankFailure;

/// A worker's report as protocol 7 sent it: a failed rank with a finished step and a shard.
const REPORT: &str = include_str!("protocol-7/report.hex");
/// What protocol 7 ordered: a gang of two ranks that resumes from step 4 and stops with a
/// checkpoint.
const ORDER: &str = include_str!("protocol-7/order.hex");
/// The canonical text of a job as protocol 7 sent it to workers.
const JOB: &str = include_str!("protocol-7/job.toml");

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

#[test]
fn a_report_of_protocol_7_is_read() {
    let report = pb::WorkerReport::decode(&bytes(REPORT)[..]).unwrap();
    let report = WorkerReport::try_from(report).unwrap();
    assert_eq!((report.worker.name.as_str(), report.devices), ("w1", 2));
    let rank = &report.ranks[0];
    assert_eq!(rank.job, JobId("demo-1".to_owned()));
    assert_eq!(
        rank.phase,
        RankPhase::Failed {
            failure: RankFailure::error("no space", true)
        }
    );
    assert_eq!((rank.steps[0].step, rank.steps[0].loss), (Step(3), 0.5));
    assert_eq!(rank.shards[0].shard.path, "rank-1-of-2.safetensors");
}

#[test]
fn an_order_of_protocol_7_is_read() {
    let state = pb::DesiredState::decode(&bytes(ORDER)[..]).unwrap();
    let state = DesiredState::try_from(state).unwrap();
    let assignment = &state.assignments[0];
    assert_eq!(assignment.gang().unwrap().resume.unwrap().step, Step(4));
    assert!(assignment.graceful_stop.is_some());
    assert_eq!(assignment.job_toml, "name = \"a\"");
}

/// A worker of protocol 7 must be able to parse the text of every job that uses nothing newer.
#[test]
fn the_text_of_a_job_that_uses_nothing_newer_is_that_of_protocol_7() {
    let id = JobId("demo-1".to_owned());
    let spec = proto::job::parse_stored(&id, JOB).unwrap();
    assert_eq!(proto::job::to_toml(&spec), JOB);
}

/// A rank's report of the next protocol, which is invented: fields and enum values that this one
/// does not know.
#[derive(Clone, PartialEq, Message)]
struct NextRankReport {
    #[prost(string, tag = "1")]
    job: String,
    #[prost(uint64, tag = "2")]
    generation: u64,
    #[prost(uint32, tag = "3")]
    rank: u32,
    #[prost(int32, tag = "4")]
    phase: i32,
    #[prost(message, optional, tag = "11")]
    activity: Option<pb::Activity>,
    #[prost(message, optional, tag = "13")]
    failure: Option<pb::Failure>,
    #[prost(string, tag = "100")]
    mood: String,
}

#[derive(Clone, PartialEq, Message)]
struct NextWorkerReport {
    #[prost(message, optional, tag = "1")]
    worker: Option<pb::WorkerId>,
    #[prost(string, tag = "2")]
    device: String,
    #[prost(uint32, tag = "3")]
    devices: u32,
    #[prost(message, repeated, tag = "4")]
    ranks: Vec<NextRankReport>,
    #[prost(bytes = "vec", tag = "101")]
    telemetry: Vec<u8>,
}

#[test]
fn a_report_of_the_next_protocol_is_read_without_what_is_new() {
    let next = NextWorkerReport {
        worker: Some(pb::WorkerId {
            name: "w1".into(),
            boot: 1,
        }),
        device: "cpu".into(),
        devices: 1,
        ranks: vec![NextRankReport {
            job: "demo-1".into(),
            generation: 3,
            rank: 0,
            phase: pb::rank_report::Phase::Failed.into(),
            activity: Some(pb::Activity {
                step: 4,
                stage: 99,
                number: 0,
                for_ms: 5,
            }),
            failure: Some(pb::Failure {
                kind: 99,
                text: "levitated out of the rack".into(),
                ..Default::default()
            }),
            mood: "floating".into(),
        }],
        telemetry: vec![1, 2, 3],
    };
    let seen = pb::WorkerReport::decode(&next.encode_to_vec()[..]).unwrap();
    let report = WorkerReport::try_from(seen).unwrap();
    let rank = &report.ranks[0];
    assert_eq!(rank.activity, None, "an unknown stage is left out");
    assert_eq!(
        rank.phase,
        RankPhase::Failed {
            failure: RankFailure::Error {
                text: "levitated out of the rack".to_owned(),
                permanent: false,
                secondary: false,
            }
        }
    );
}

/// An assignment of the invented next protocol, which runs in a way that this one does not
/// know.
#[derive(Clone, PartialEq, Message)]
struct NextAssignment {
    #[prost(string, tag = "1")]
    job: String,
    #[prost(uint64, tag = "2")]
    generation: u64,
    #[prost(string, tag = "3")]
    job_toml: String,
    #[prost(string, tag = "4")]
    dataset_version: String,
    #[prost(string, tag = "5")]
    store_url: String,
    #[prost(uint64, tag = "6")]
    detect_within_ms: u64,
    #[prost(uint32, tag = "8")]
    ranks: u32,
    #[prost(string, tag = "50")]
    swarm: String,
}

#[derive(Clone, PartialEq, Message)]
struct NextDesiredState {
    #[prost(message, optional, tag = "1")]
    worker: Option<pb::WorkerId>,
    #[prost(message, repeated, tag = "2")]
    assignments: Vec<NextAssignment>,
    #[prost(uint64, tag = "3")]
    detect_within_ms: u64,
}

#[test]
fn an_order_that_this_protocol_cannot_carry_out_is_refused_by_name() {
    let next = NextDesiredState {
        worker: Some(pb::WorkerId {
            name: "w1".into(),
            boot: 1,
        }),
        assignments: vec![NextAssignment {
            job: "demo-1".into(),
            generation: 1,
            job_toml: "name = \"a\"".into(),
            dataset_version: "v".into(),
            store_url: "file:///s".into(),
            detect_within_ms: 3000,
            ranks: 1,
            swarm: "all of them".into(),
        }],
        detect_within_ms: 3000,
    };
    let seen = pb::DesiredState::decode(&next.encode_to_vec()[..]).unwrap();
    let state = DesiredState::try_from(seen).unwrap();
    assert_eq!(state.assignments, []);
    let [refusal] = state.refused.as_slice() else {
        panic!("{:?}", state.refused)
    };
    assert_eq!((refusal.job.0.as_str(), refusal.ranks), ("demo-1", 1));
    assert!(refusal.error.contains("`run`"), "{}", refusal.error);
}

/// A job that uses a field of the next protocol is refused by the older side, by the field's name.
#[test]
fn a_job_that_uses_a_newer_field_is_refused_by_name() {
    let id = JobId("demo-1".to_owned());
    let text = JOB.replace("[train]\n", "[train]\nlevitate = true\n");
    let error = proto::job::parse_stored(&id, &text)
        .unwrap_err()
        .to_string();
    assert!(error.contains("levitate"), "{error}");
}

/// And a view of protocol 7 is read by the invented newer command line, whose new field is absent.
#[test]
fn a_newer_reader_sees_the_default_of_what_is_new() {
    let report = pb::WorkerReport::decode(&bytes(REPORT)[..]).unwrap();
    let next = NextWorkerReport::decode(&report.encode_to_vec()[..]).unwrap();
    assert_eq!(next.ranks[0].job, "demo-1");
    assert!(next.telemetry.is_empty() && next.ranks[0].mood.is_empty());
}
