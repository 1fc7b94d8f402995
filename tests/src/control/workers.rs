//! Many workers, each a real stream on a connection of its own, that report as daemons do.

use super::Load;
use anyhow::{Context, Result};
use proto::pb::fleet_client::FleetClient;
use proto::pb::{DesiredState, WorkerId, WorkerReport};
use proto::version::{self, Stamp};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::Streaming;
use tonic::transport::Endpoint;

/// Workers of one address, as of one rack behind a gateway: the coordinator limits what one address
/// may have.
const PER_ADDRESS: u32 = 40;
/// Workers that attach at a time.
const AT_A_TIME: u32 = 200;
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// Attached workers. They detach when this is dropped.
pub(super) struct Workers(Vec<Worker>);

struct Worker {
    number: u32,
    report: WorkerReport,
    reports: mpsc::Sender<WorkerReport>,
    states: Streaming<DesiredState>,
}

/// Of this worker, in 127.10.0.0/16.
fn address(number: u32) -> IpAddr {
    let rack = number / PER_ADDRESS;
    let [high, low] = [rack / 250, rack % 250 + 1].map(|it| it.to_be_bytes()[3]);
    Ipv4Addr::new(127, 10, high, low).into()
}

/// Attaches all, some at a time.
pub(super) async fn attach(rpc: &str, load: Load) -> Result<Workers> {
    let begun = Instant::now();
    let mut attaching = JoinSet::new();
    let mut workers = Vec::new();
    for number in 0..load.workers {
        if AT_A_TIME as usize <= attaching.len() {
            workers.extend(attaching.join_next().await.transpose()?);
        }
        attaching.spawn(one(rpc.to_owned(), number, load.detect_within));
    }
    while let Some(attached) = attaching.join_next().await {
        workers.push(attached?);
    }
    let workers = workers.into_iter().collect::<Result<Vec<Worker>>>()?;
    println!(
        "BENCH attach: {} workers in {:.1} s",
        workers.len(),
        begun.elapsed().as_secs_f64()
    );
    Ok(Workers(workers))
}

async fn one(rpc: String, number: u32, detect_within: Duration) -> Result<Worker> {
    let endpoint = Endpoint::from_shared(rpc)?
        .local_address(Some(address(number)))
        // As worker/src/link.rs.
        .keep_alive_while_idle(true)
        .http2_keep_alive_interval(detect_within / 3)
        .keep_alive_timeout(detect_within);
    let channel = endpoint
        .connect()
        .await
        .with_context(|| format!("worker {number}"))?;
    let stamp: Stamp = version::stamp;
    let mut client = FleetClient::with_interceptor(channel, stamp);
    let report = WorkerReport {
        worker: Some(WorkerId {
            name: format!("w{number}"),
            boot: 1,
        }),
        device: "cpu".to_owned(),
        devices: 8,
        peer_address: Some(format!("10.0.{}.{}:7073", number >> 8, number & 255)),
        ..Default::default()
    };
    let (reports, stream) = mpsc::channel(1);
    reports
        .send(report.clone())
        .await
        .context("the stream takes a report")?;
    let stream = futures::stream::unfold(stream, |mut stream: mpsc::Receiver<_>| async move {
        let report = stream.recv().await?;
        Some((report, stream))
    });
    let attached = client.attach(stream).await;
    let mut states = attached
        .with_context(|| format!("worker {number}"))?
        .into_inner();
    let first = timeout(ANSWER_WITHIN, states.message()).await;
    first.with_context(|| format!("worker {number} has no answer"))??;
    Ok(Worker {
        number,
        report,
        reports,
        states,
    })
}

impl Workers {
    /// Every worker reports three times in each `detect_within`, each at a moment of its own. How
    /// long the answers took, sorted.
    pub(super) async fn reports(&mut self, load: Load) -> Vec<Duration> {
        let begun = Instant::now();
        let end = begun + load.reports_for;
        let every = load.detect_within / 3;
        let mut reporting = JoinSet::new();
        for worker in self.0.drain(..) {
            let first = begun + every.mul_f64(f64::from(worker.number) / f64::from(load.workers));
            reporting.spawn(worker.report_until(first, every, end));
        }
        let mut latencies = Vec::new();
        while let Some(done) = reporting.join_next().await {
            if let Ok((worker, times)) = done {
                latencies.extend(times);
                self.0.push(worker);
            }
        }
        latencies.sort();
        latencies
    }
}

impl Worker {
    /// A report without an answer within a minute counts as that long.
    async fn report_until(
        mut self,
        first: Instant,
        every: Duration,
        end: Instant,
    ) -> (Self, Vec<Duration>) {
        let mut times = Vec::new();
        let mut next = first;
        while next < end {
            sleep_until(next).await;
            let sent = Instant::now();
            let answer = async {
                self.reports.send(self.report.clone()).await.ok()?;
                self.states.message().await.ok()?
            };
            match timeout(ANSWER_WITHIN, answer).await {
                Ok(Some(_)) => times.push(sent.elapsed()),
                Ok(None) | Err(_) => times.push(ANSWER_WITHIN),
            }
            next += every;
        }
        (self, times)
    }
}
