//! What the server refuses, over gRPC: each refusal names the limit.

#![allow(clippy::unwrap_used)]

use crate::config::Config;
use crate::fixture;
use crate::serve::{Running, start};
use crate::serve_tests::{channel, submit};
use proto::pb;
use proto::pb::control_client::ControlClient;
use proto::pb::fleet_client::FleetClient;
use proto::reason::Excess;
use proto::version::{self, Stamp};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

type Client = ControlClient<InterceptedService<Channel, Stamp>>;

async fn server(dir: &Path, change: impl FnOnce(&mut Config)) -> (Running, Client) {
    let variables = [
        ("LISTEN", "127.0.0.1:0".to_owned()),
        ("METRICS_LISTEN", "127.0.0.1:0".to_owned()),
        ("WEB_LISTEN", "127.0.0.1:0".to_owned()),
        ("STORE", format!("file://{}/store", dir.display())),
    ];
    let variables = variables.map(|(name, value)| (format!("RETRI_COORDINATOR__{name}"), value));
    let mut config = Config::load(None, variables.into_iter()).unwrap();
    change(&mut config);
    let running = start(config).await.unwrap();
    let stamp: Stamp = version::stamp;
    let client = ControlClient::with_interceptor(channel(&running).await, stamp);
    (running, client)
}

type Attached = (mpsc::Sender<pb::WorkerReport>, Streaming<pb::DesiredState>);

async fn attach(running: &Running, report: pb::WorkerReport) -> Result<Attached, Status> {
    let (reports, stream) = mpsc::channel(4);
    reports.send(report).await.unwrap();
    let mut client = FleetClient::with_interceptor(channel(running).await, version::stamp);
    let mut states = client
        .attach(ReceiverStream::new(stream))
        .await?
        .into_inner();
    states.message().await?;
    Ok((reports, states))
}

fn report(name: &str) -> pb::WorkerReport {
    pb::WorkerReport {
        worker: Some(pb::WorkerId {
            name: name.into(),
            boot: 1,
        }),
        device: "cpu".into(),
        devices: 1,
        ..Default::default()
    }
}

fn refused(status: &Status, code: Code, part: &str) {
    assert_eq!(status.code(), code, "{status}");
    assert!(status.message().contains(part), "{}", status.message());
}

#[tokio::test]
async fn what_is_too_long_is_refused_and_the_answer_is_short() {
    let dir = tempfile::tempdir().unwrap();
    let (running, mut client) = server(dir.path(), |_| {}).await;
    let large = format!("name = \"x\"\nx = [{}]\n", "1,".repeat(1 << 20));
    let status = submit(&mut client, large).await.unwrap_err();
    refused(&status, Code::OutOfRange, "the limit is: 1048576 bytes");
    let url = format!("file:///{}", "x".repeat(3000));
    let status = submit(&mut client, fixture::job_toml(&url))
        .await
        .unwrap_err();
    let words = "data.dataset: is a URL of 3008 bytes; at most 2048 are accepted";
    refused(&status, Code::InvalidArgument, words);
    let ids: Vec<String> = (0..256)
        .map(|id| format!("{id} {}", "x".repeat(2000)))
        .collect();
    let text = format!("after = {ids:?}\n{}", fixture::job_toml("file:///data"));
    let status = submit(&mut client, text).await.unwrap_err();
    refused(&status, Code::InvalidArgument, "(cut: it has");
    assert!(status.message().len() <= 8 << 10);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn workers_are_attached_up_to_the_setting_and_names_are_plain() {
    let dir = tempfile::tempdir().unwrap();
    let (running, mut client) = server(dir.path(), |config| config.max_workers = 1).await;
    let first = attach(&running, report("w1")).await.unwrap();
    let status = attach(&running, report("w2")).await.unwrap_err();
    let words = "1 workers are attached, and `max_workers` is 1; raise it";
    refused(&status, Code::ResourceExhausted, words);
    // A restarted worker need not wait for the end of its earlier stream.
    let mut again = report("w1");
    again.worker.as_mut().unwrap().boot = 2;
    let second = attach(&running, again).await.unwrap();
    let status = attach(&running, report("w\u{1b}[2J\nx")).await.unwrap_err();
    refused(&status, Code::InvalidArgument, "field `worker.name` is");
    let workers = client
        .list_workers(pb::ListWorkersRequest {})
        .await
        .unwrap();
    assert_eq!(workers.into_inner().workers.len(), 1);
    drop((first, second));
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_connection_carries_one_worker_and_a_bad_rank_fails_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (running, _client) = server(dir.path(), |_| {}).await;
    let stamp: Stamp = version::stamp;
    let mut fleet = FleetClient::with_interceptor(channel(&running).await, stamp);
    let mut streams = Vec::new();
    for name in ["w1", "w2"] {
        let (reports, stream) = mpsc::channel(4);
        let mut report = report(name);
        // Of no job, with an address that is too long: the report is nevertheless taken.
        report.ranks = vec![pb::RankReport {
            job: "nothing-1".into(),
            generation: 1,
            phase: pb::rank_report::Phase::Training.into(),
            store_address: Some("a".repeat(3000)),
            ..Default::default()
        }];
        reports.send(report).await.unwrap();
        let states = fleet.attach(ReceiverStream::new(stream)).await.unwrap();
        let mut states = states.into_inner();
        let state = states.message().await;
        streams.push((reports, states, state));
    }
    assert!(streams[0].2.is_ok(), "{:?}", streams[0].2);
    let status = streams[1].2.as_ref().unwrap_err();
    refused(
        status,
        Code::ResourceExhausted,
        "carries a worker's reports already",
    );
    drop(streams);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn ended_and_waiting_jobs_of_a_team_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let (running, mut client) = server(dir.path(), |config| {
        config.waiting.other = 2;
        config.ended.other = 1;
    })
    .await;
    let dataset = fixture::dataset(dir.path()).await;
    let toml = fixture::job_toml(&dataset);
    let first = submit(&mut client, toml.clone()).await.unwrap();
    submit(&mut client, toml.clone()).await.unwrap();
    let status = submit(&mut client, toml.clone()).await.unwrap_err();
    let words = "team default has 2 waiting jobs, and its quota is 2";
    refused(&status, Code::FailedPrecondition, words);
    client
        .cancel(pb::JobRequest { job: first.clone() })
        .await
        .unwrap();
    let status = submit(&mut client, toml.clone()).await.unwrap_err();
    let words = "team default has 1 ended jobs, and its quota is 1";
    refused(&status, Code::FailedPrecondition, words);
    let delete = pb::DeleteRequest {
        job: first,
        checkpoints: false,
    };
    client.delete(delete).await.unwrap();
    submit(&mut client, toml).await.unwrap();
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_job_beside_a_flood_is_told_of_what_and_from_whom() {
    let dir = tempfile::tempdir().unwrap();
    let (running, mut client) = server(dir.path(), |_| {}).await;
    let dataset = fixture::dataset(dir.path()).await;
    let job = submit(&mut client, fixture::job_toml(&dataset))
        .await
        .unwrap();
    let victim = || pb::JobRequest { job: job.clone() };
    let before = client.why(victim()).await.unwrap().into_inner();
    assert_eq!(before.pressure, [], "one request is no flood");
    for _ in 0..30 {
        let url = format!("file:///{}", "x".repeat(3000));
        submit(&mut client, fixture::job_toml(&url))
            .await
            .unwrap_err();
    }
    let why = client.why(victim()).await.unwrap().into_inner();
    let pressure = why.pressure[0].pressure().unwrap();
    assert_eq!(pressure.excess, Excess::Requests);
    assert_eq!(pressure.address, Some(IpAddr::from([127, 0, 0, 1])));
    assert_eq!(pressure.count, 30);
    assert!(pressure.last.contains("at most 2048"), "{pressure}");
    let sentence = why.pressure[0].sentence().unwrap();
    assert!(
        sentence.starts_with("the coordinator is refusing ")
            && sentence.contains(" requests/s from 127.0.0.1; the last: "),
        "{sentence}"
    );
    let view = client.describe_job(victim()).await.unwrap().into_inner();
    assert_eq!(view.pressure[0].pressure().unwrap().count, 30);
    // Not of interest for a job that is over.
    client.cancel(victim()).await.unwrap();
    let over = client.why(victim()).await.unwrap().into_inner();
    assert_eq!(over.pressure, []);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn an_address_without_time_waits_alone_and_not_with_a_worker_that_has_a_job() {
    let dir = tempfile::tempdir().unwrap();
    let (running, mut client) = server(dir.path(), |_| {}).await;
    let dataset = fixture::dataset(dir.path()).await;
    let toml = fixture::job_toml(&dataset).replace("max = 2", "max = 1");
    let job = submit(&mut client, toml).await.unwrap();
    // Its first desired state has the job.
    let worker = attach(&running, report("w1")).await.unwrap();
    let home = IpAddr::from([127, 0, 0, 1]);
    running.budgets.charge(home, Duration::from_secs(3600));
    let waiting = async {
        let list = client.list_workers(pb::ListWorkersRequest {});
        let newcomer = attach(&running, report("w2"));
        tokio::select! {
            listed = list => format!("{listed:?}"),
            attached = newcomer => format!("{attached:?}"),
        }
    };
    let elsewhere = Endpoint::from_shared(format!("http://{}", running.rpc)).unwrap();
    let elsewhere = elsewhere.local_address(Some(IpAddr::from([127, 0, 0, 2])));
    let stamp: Stamp = version::stamp;
    let mut other = ControlClient::with_interceptor(elsewhere.connect().await.unwrap(), stamp);
    let others = async {
        let again = attach(&running, report("w1")).await.unwrap();
        // Both are named as soon as they wait.
        loop {
            let request = pb::JobRequest { job: job.clone() };
            let why = other.why(request).await.unwrap().into_inner();
            let pressure = why.pressure.first().and_then(pb::Reason::pressure);
            if let Some(pressure) = pressure.filter(|it| it.count == 2) {
                break (again, pressure);
            }
        }
    };
    let (again, pressure) = tokio::select! {
        early = waiting => panic!("{early}"),
        done = others => done,
    };
    assert_eq!(pressure.excess, Excess::Delays);
    assert_eq!(pressure.address, Some(home));
    drop((worker, again));
    running.stop().await.unwrap();
}
