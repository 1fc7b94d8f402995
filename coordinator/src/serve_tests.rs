//! Runs the whole server in this process, on port 0 and a temporary folder, and talks to it over
//! gRPC as commands and workers do.

#![allow(clippy::unwrap_used)]

use crate::config::Config;
use crate::fixture;
use crate::serve::{Running, start};
use proto::pb;
use proto::pb::control_client::ControlClient;
use proto::pb::fleet_client::FleetClient;
use proto::pb::rank_report::Phase;
use proto::version::{self, Stamp};
use std::path::Path;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

pub(crate) type Client = ControlClient<InterceptedService<Channel, Stamp>>;

pub(crate) async fn channel(running: &Running) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", running.rpc)).unwrap();
    endpoint.connect().await.unwrap()
}

pub(crate) async fn server(dir: &Path) -> (Running, Client) {
    let variables = [
        ("RETRI_COORDINATOR__LISTEN", "127.0.0.1:0".to_owned()),
        (
            "RETRI_COORDINATOR__METRICS_LISTEN",
            "127.0.0.1:0".to_owned(),
        ),
        ("RETRI_COORDINATOR__WEB_LISTEN", "127.0.0.1:0".to_owned()),
        (
            "RETRI_COORDINATOR__STORE",
            format!("file://{}/store", dir.display()),
        ),
    ];
    let variables = variables
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value));
    let running = start(Config::load(None, variables).unwrap()).await.unwrap();
    let stamp: Stamp = version::stamp;
    let client = ControlClient::with_interceptor(channel(&running).await, stamp);
    (running, client)
}

pub(crate) async fn submit(client: &mut Client, job_toml: String) -> Result<String, Status> {
    let request = pb::SubmitRequest {
        file_name: "j.toml".into(),
        job_toml,
        dry_run: false,
        ..Default::default()
    };
    Ok(client.submit(request).await?.into_inner().job)
}

fn request(job: &str) -> pb::JobRequest {
    pb::JobRequest { job: job.into() }
}

/// A fake worker daemon.
pub(crate) struct FakeWorker {
    pub(crate) report: pb::WorkerReport,
    reports: mpsc::Sender<pb::WorkerReport>,
    desired: Streaming<pb::DesiredState>,
}

impl FakeWorker {
    pub(crate) async fn attach(running: &Running, boot: u64) -> Self {
        let report = pb::WorkerReport {
            worker: Some(pb::WorkerId {
                name: "w1".into(),
                boot,
            }),
            device: "cpu".into(),
            devices: 1,
            ..Default::default()
        };
        let (reports, stream) = mpsc::channel(4);
        reports.send(report.clone()).await.unwrap();
        let mut client = FleetClient::with_interceptor(channel(running).await, version::stamp);
        let desired = client
            .attach(ReceiverStream::new(stream))
            .await
            .unwrap()
            .into_inner();
        Self {
            report,
            reports,
            desired,
        }
    }

    pub(crate) async fn send(&mut self) {
        self.reports.send(self.report.clone()).await.unwrap();
    }

    /// Reports repeatedly, as daemons do, until the desired state satisfies `accept`.
    pub(crate) async fn until(
        &mut self,
        accept: impl Fn(&pb::DesiredState) -> bool,
    ) -> pb::DesiredState {
        loop {
            self.reports.send(self.report.clone()).await.unwrap();
            let state = self.desired.message().await.unwrap().unwrap();
            if accept(&state) {
                return state;
            }
        }
    }

    /// Sets the report: rank 0 is training and has done these steps.
    pub(crate) fn train(
        &mut self,
        assignment: &pb::Assignment,
        steps: std::ops::RangeInclusive<u64>,
    ) {
        let step = |step| pb::StepReport {
            step,
            loss: 1.0,
            samples: 4,
            seconds: Some(pb::PhaseSeconds {
                forward: 1.0,
                ..Default::default()
            }),
            ..Default::default()
        };
        self.report.ranks = vec![pb::RankReport {
            job: assignment.job.clone(),
            generation: assignment.generation,
            rank: 0,
            phase: Phase::Training.into(),
            store_address: Some("127.0.0.1:9".into()),
            steps: steps.map(step).collect(),
            ..Default::default()
        }];
    }
}

#[tokio::test]
async fn wrong_requests_are_refused_with_what_and_why() {
    let dir = tempfile::tempdir().unwrap();
    let (running, mut client) = server(dir.path()).await;
    let refused = |status: &Status, code, part: &str| {
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(part), "{}", status.message());
    };
    let status = client.describe_job(request("demo-7")).await.unwrap_err();
    refused(
        &status,
        Code::NotFound,
        "there is no job demo-7; there are no jobs yet",
    );
    let status = client.describe_job(request("../x")).await.unwrap_err();
    refused(&status, Code::InvalidArgument, "field `job`");
    let status = submit(&mut client, "name = 3".into()).await.unwrap_err();
    refused(&status, Code::InvalidArgument, "j.toml:1");
    let missing = format!("file://{}/nowhere", dir.path().display());
    let status = submit(&mut client, fixture::job_toml(&missing))
        .await
        .unwrap_err();
    refused(
        &status,
        Code::InvalidArgument,
        "data.dataset: there is no folder",
    );
    assert!(
        !dir.path().join("nowhere").exists(),
        "checking a data set creates no folder"
    );

    let job = submit(
        &mut client,
        fixture::job_toml(&fixture::dataset(dir.path()).await),
    )
    .await
    .unwrap();
    let images =
        |of: &str, line: &str| format!("name = \"images\"\n[sample]\njob = \"{of}\"\n{line}\n");
    let status = submit(&mut client, images(&job, "")).await.unwrap_err();
    refused(&status, Code::FailedPrecondition, "no committed checkpoint");
    let status = submit(&mut client, images(&job, "prompt = \"loud\""))
        .await
        .unwrap_err();
    refused(&status, Code::InvalidArgument, "sample.prompt");
    let status = submit(&mut client, images("nobody-7", ""))
        .await
        .unwrap_err();
    refused(&status, Code::NotFound, "there is no job nobody-7");
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_dry_run_stores_nothing_and_a_submit_outlives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = fixture::dataset(dir.path()).await;
    let (running, mut client) = server(dir.path()).await;
    let dry = pb::SubmitRequest {
        file_name: String::new(),
        job_toml: fixture::job_toml(&dataset),
        dry_run: true,
        ..Default::default()
    };
    let reply = client.submit(dry).await.unwrap().into_inner();
    assert_eq!(reply.job, "");
    assert!(
        reply.summary.contains("4 steps of 4 samples"),
        "{}",
        reply.summary
    );
    assert!(
        client
            .list_jobs(pb::ListJobsRequest::default())
            .await
            .unwrap()
            .into_inner()
            .jobs
            .is_empty()
    );

    let job = submit(&mut client, fixture::job_toml(&dataset))
        .await
        .unwrap();
    let before = client
        .describe_job(request(&job))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(before.phase, "queued");
    assert_eq!(before.dataset_version.len(), 64);
    running.stop().await.unwrap();

    let (running, mut client) = server(dir.path()).await;
    let after = client
        .describe_job(request(&job))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (after.job_toml, after.submitted_ms),
        (before.job_toml, before.submitted_ms)
    );
    let phase = client
        .cancel(pb::JobRequest { job: job.clone() })
        .await
        .unwrap()
        .into_inner()
        .phase;
    assert_eq!(phase, "cancelled");
    let mut views = client.watch_job(request(&job)).await.unwrap().into_inner();
    assert_eq!(views.message().await.unwrap().unwrap().phase, "cancelled");
    assert!(
        views.message().await.unwrap().is_none(),
        "the watch of an ended job ends"
    );
    running.stop().await.unwrap();
}

fn gang(assignment: &pb::Assignment) -> &pb::GangOrder {
    match &assignment.run {
        Some(pb::assignment::Run::Gang(order)) => order,
        run => panic!("{run:?} is no gang order"),
    }
}

/// Sends lines 1 to 9, of ranks 0 and 1 in turn, each one second later, and asks for some.
async fn the_coordinator_selects_log_lines(
    client: &mut Client,
    worker: &mut FakeWorker,
    job: &str,
) {
    let line = |second: u64| pb::LogLine {
        job: job.into(),
        rank: u32::try_from(second % 2).unwrap(),
        at_ms: second * 1000,
        text: format!("line {second}"),
        ..Default::default()
    };
    worker.report.logs = (1..=9).map(line).collect();
    worker.reports.send(worker.report.clone()).await.unwrap();
    worker.report.logs.clear();
    worker.until(|_| true).await;
    let all = pb::LogsRequest {
        job: job.to_owned(),
        ..Default::default()
    };
    let cases = [
        (
            pb::LogsRequest {
                tail: Some(2),
                ..all.clone()
            },
            "8 9",
        ),
        (
            pb::LogsRequest {
                tail: Some(0),
                ..all.clone()
            },
            "",
        ),
        (
            pb::LogsRequest {
                since_ms: Some(7_000),
                ..all.clone()
            },
            "7 8 9",
        ),
        (
            pb::LogsRequest {
                tail: Some(2),
                rank: Some(0),
                ..all.clone()
            },
            "6 8",
        ),
        (
            pb::LogsRequest {
                tail: Some(9),
                rank: Some(1),
                since_ms: Some(6_000),
                ..all.clone()
            },
            "7 9",
        ),
        (
            pb::LogsRequest {
                since_ms: Some(10_000),
                ..all
            },
            "",
        ),
    ];
    for (request, expected) in cases {
        let mut stream = client.logs(request.clone()).await.unwrap().into_inner();
        let mut found = Vec::new();
        while let Some(line) = stream.message().await.unwrap() {
            found.push(line.text.replace("line ", ""));
        }
        assert_eq!(found.join(" "), expected, "{request:?}");
    }
}

#[tokio::test]
async fn a_worker_gets_its_assignment_and_its_steps_become_curve_metrics_and_logs() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = fixture::dataset(dir.path()).await;
    let (running, mut client) = server(dir.path()).await;
    let mut worker = FakeWorker::attach(&running, 1).await;
    let toml = fixture::job_toml(&dataset).replace("max = 2", "max = 1");
    let job = submit(&mut client, toml).await.unwrap();
    let state = worker.until(|it| !it.assignments.is_empty()).await;
    let assignment = state.assignments[0].clone();
    assert_eq!(
        (
            assignment.job.as_str(),
            assignment.generation,
            gang(&assignment).world
        ),
        (job.as_str(), 1, 1)
    );

    worker.train(&assignment, 1..=3);
    let line = |job: &str, text: &str| pb::LogLine {
        job: job.into(),
        text: text.into(),
        ..Default::default()
    };
    worker.report.logs = vec![line(&job, "hello"), line("stranger-9", "not stored")];
    worker.reports.send(worker.report.clone()).await.unwrap();
    worker.report.logs.clear();
    worker
        .until(|it| {
            it.assignments
                .iter()
                .any(|it| gang(it).acknowledged_step == 3)
        })
        .await;

    let mut steps = client.list_steps(request(&job)).await.unwrap().into_inner();
    for step in 1..=3 {
        assert_eq!(steps.message().await.unwrap().unwrap().step, step);
    }
    assert!(steps.message().await.unwrap().is_none());
    let view = client
        .describe_job(request(&job))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (view.phase.as_str(), view.step, view.world),
        ("training", 3, 1),
        "{}",
        view.reason
    );
    assert_eq!(view.members[0].phases, ["training"]);
    let logs = pb::LogsRequest {
        job: job.clone(),
        ..Default::default()
    };
    let mut logs = client.logs(logs).await.unwrap().into_inner();
    assert_eq!(logs.message().await.unwrap().unwrap().text, "hello");
    assert!(logs.message().await.unwrap().is_none());
    the_coordinator_selects_log_lines(&mut client, &mut worker, &job).await;
    let workers = client
        .list_workers(pb::ListWorkersRequest {})
        .await
        .unwrap()
        .into_inner()
        .workers;
    assert!(workers[0].up && workers[0].jobs == [job], "{workers:?}");
    running.stop().await.unwrap();
}

#[tokio::test]
async fn an_invalid_report_ends_only_its_own_stream_and_names_the_field() {
    let dir = tempfile::tempdir().unwrap();
    let (running, mut client) = server(dir.path()).await;
    let mut worker = FakeWorker::attach(&running, 1).await;
    worker.until(|_| true).await;
    worker.report.devices = 5000;
    worker.reports.send(worker.report.clone()).await.unwrap();
    let status = loop {
        match worker.desired.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(
        status.message().contains("field `devices` is 5000"),
        "{status}"
    );
    assert!(
        client
            .list_jobs(pb::ListJobsRequest::default())
            .await
            .is_ok()
    );
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_second_stream_of_a_worker_replaces_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let (running, _client) = server(dir.path()).await;
    let mut first = FakeWorker::attach(&running, 1).await;
    first.until(|_| true).await;
    let mut second = FakeWorker::attach(&running, 1).await;
    second.until(|_| true).await;
    let status = loop {
        match first.desired.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended without a reason"),
            Err(status) => break status,
        }
    };
    assert!(
        status
            .message()
            .contains("attached again on another stream"),
        "{status}"
    );
    second.until(|_| true).await;
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_client_with_another_protocol_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (running, _client) = server(dir.path()).await;
    let mut unstamped = ControlClient::new(channel(&running).await);
    let status = unstamped
        .list_jobs(pb::ListJobsRequest::default())
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("names no protocol"), "{status}");
    let mut unstamped = FleetClient::new(channel(&running).await);
    let (_reports, stream) = mpsc::channel::<pb::WorkerReport>(1);
    let status = unstamped
        .attach(ReceiverStream::new(stream))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    running.stop().await.unwrap();
}

/// The first coordinator of a store fails at its first write after the takeover.
#[tokio::test]
async fn a_second_coordinator_takes_over_and_the_first_writes_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = fixture::dataset(dir.path()).await;
    let (first, mut client) = server(dir.path()).await;
    let job = submit(&mut client, fixture::job_toml(&dataset))
        .await
        .unwrap();
    let (second, mut other) = server(dir.path()).await;
    let jobs = other
        .list_jobs(pb::ListJobsRequest::default())
        .await
        .unwrap()
        .into_inner()
        .jobs;
    assert_eq!(
        jobs.iter().map(|it| it.job.as_str()).collect::<Vec<_>>(),
        [job.as_str()]
    );
    let status = client.cancel(request(&job)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let error = first.stop().await.unwrap_err().to_string();
    assert!(error.contains("another coordinator took over"), "{error}");
    let view = other
        .describe_job(request(&job))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        view.phase, "queued",
        "the request to the fenced coordinator had no effect"
    );
    second.stop().await.unwrap();
}
