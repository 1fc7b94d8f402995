//! Many workers, each a real stream on a connection of its own, that report as daemons do.

use super::Load;
use anyhow::{Context, Result};
use proto::pb::fleet_client::FleetClient;
use proto::pb::{DesiredState, WorkerId, WorkerReport};
use proto::version::{self, Stamp};
use std::net::Ipv4Addr;
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
pub(super) struct Workers(Vec<Stream>);

/// One attached worker.
pub(super) struct Stream {
    number: u32,
    pub(super) report: WorkerReport,
    /// What it was told last.
    pub(super) last: DesiredState,
    reports: mpsc::Sender<WorkerReport>,
    states: Streaming<DesiredState>,
}

/// An address of this machine, in 127.10.0.0/16.
pub(super) fn rack(number: u32) -> Ipv4Addr {
    let [high, low] = [number / 250, number % 250 + 1].map(|it| it.to_be_bytes()[3]);
    Ipv4Addr::new(127, 10, high, low)
}

/// Attaches all, some at a time.
pub(super) async fn attach(rpc: &str, load: Load) -> Result<Workers> {
    let mut attaching = JoinSet::new();
    let mut workers = Vec::new();
    for number in 0..load.workers {
        if AT_A_TIME as usize <= attaching.len() {
            workers.extend(attaching.join_next().await.transpose()?);
        }
        let rpc = rpc.to_owned();
        let address = rack(number / PER_ADDRESS);
        attaching.spawn(async move {
            let attached = Stream::attach(&rpc, number, address, load.detect_within);
            attached.await.with_context(|| format!("worker {number}"))
        });
    }
    while let Some(attached) = attaching.join_next().await {
        workers.push(attached?);
    }
    let workers = workers.into_iter().collect::<Result<Vec<Stream>>>()?;
    Ok(Workers(workers))
}

impl Workers {
    pub(super) fn add(&mut self, worker: Stream) {
        self.0.push(worker);
    }

    /// Every worker reports three times in each `detect_within`, each at a moment of its own. How
    /// long the answers took, sorted.
    pub(super) async fn reports(&mut self, load: Load) -> Vec<Duration> {
        let begun = Instant::now();
        let end = begun + load.reports_for;
        let every = load.detect_within / 3;
        let mut reporting = JoinSet::new();
        for worker in self.0.drain(..) {
            let part = f64::from(worker.number % load.workers.max(1)) / f64::from(load.workers);
            reporting.spawn(worker.report_until(begun + every.mul_f64(part), every, end));
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

impl Stream {
    pub(super) async fn attach(
        rpc: &str,
        number: u32,
        address: Ipv4Addr,
        detect_within: Duration,
    ) -> Result<Self> {
        let endpoint = Endpoint::from_shared(rpc.to_owned())?
            .local_address(Some(address.into()))
            // As worker/src/link.rs.
            .keep_alive_while_idle(true)
            .http2_keep_alive_interval(detect_within / 3)
            .keep_alive_timeout(detect_within);
        let stamp: Stamp = version::stamp;
        let mut client = FleetClient::with_interceptor(endpoint.connect().await?, stamp);
        let report = WorkerReport {
            worker: Some(WorkerId {
                name: format!("w{number}"),
                boot: 1,
            }),
            device: "cpu".to_owned(),
            devices: 8,
            peer_address: Some(format!("10.0.{}.{}:7073", number >> 8 & 255, number & 255)),
            ..Default::default()
        };
        let (reports, stream) = mpsc::channel(1);
        reports.send(report.clone()).await.context("a report")?;
        let stream = futures::stream::unfold(stream, |mut stream: mpsc::Receiver<_>| async move {
            let report = stream.recv().await?;
            Some((report, stream))
        });
        let mut states = client.attach(stream).await?.into_inner();
        let first = timeout(ANSWER_WITHIN, states.message()).await;
        let last = first.context("no answer")??.context("no state")?;
        Ok(Self {
            number,
            report,
            last,
            reports,
            states,
        })
    }

    /// Reports, and waits for the answer.
    pub(super) async fn exchange(&mut self) -> Result<()> {
        self.reports.send(self.report.clone()).await?;
        let answer = timeout(ANSWER_WITHIN, self.states.message()).await;
        self.last = answer.context("no answer")??.context("the stream ended")?;
        Ok(())
    }

    /// A report without an answer counts as [`ANSWER_WITHIN`].
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
            let answered = self.exchange().await;
            times.push(answered.map_or(ANSWER_WITHIN, |()| sent.elapsed()));
            next += every;
        }
        (self, times)
    }
}
