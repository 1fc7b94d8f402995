//! The floods: what one sender does, again and again, until it is told to stop. Each runs on a
//! thread of its own, from an address of its own, and counts what it sent and what was refused.

use super::{Kind, cpu};
use crate::cluster::job::TinyJob;
use anyhow::{Context, Result};
use proto::pb::control_client::ControlClient;
use proto::pb::fleet_client::FleetClient;
use proto::pb::{JobRequest, LogLine, SubmitRequest, WorkerId, WorkerReport};
use proto::version::{self, Stamp};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::net::TcpSocket;
use tokio::sync::mpsc;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

/// Open connections of a flood of connections; below the usual limit of open files.
const CONNECTIONS: usize = 600;
/// Between two rounds of a flood that only holds things open.
const PAUSE: Duration = Duration::from_millis(20);
/// The lowest priority: the flood must reach the victim through the coordinator, not by taking the
/// processors of the machine that both share.
const NICE: i32 = 19;
/// The share of one processor that a limited flood gets.
const SHARE: f64 = 0.25;
/// A limited flood rests for at most this long at a time.
const REST_MAX: Duration = Duration::from_millis(500);

/// Whom a flood is aimed at.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// host:port of the coordinator.
    pub(crate) address: String,
    pub(crate) victim: String,
    pub(crate) dataset: String,
    /// The flood gets only [`SHARE`] of a processor.
    pub(crate) is_limited: bool,
}

/// What a flood sent and what became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    pub sent: u64,
    pub refused: u64,
    /// The first refusal.
    pub words: Option<String>,
}

impl Tally {
    fn count(&mut self, result: Result<(), Status>) {
        self.sent += 1;
        if let Err(status) = result {
            self.refused += 1;
            let words = || format!("{:?}: {}", status.code(), status.message());
            self.words.get_or_insert_with(words);
        }
    }
}

/// A running flood.
#[derive(Debug)]
pub(crate) struct Attack {
    stop: Arc<AtomicBool>,
    /// Rounds that it has completed, since it is at full strength.
    rounds: Arc<AtomicU64>,
    thread: JoinHandle<Result<Tally>>,
}

impl Attack {
    pub(crate) fn start(kind: Kind, target: &Target) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let mut flood = Flood {
            target: target.clone(),
            tally: Tally::default(),
            stop: Arc::clone(&stop),
            rounds: Arc::clone(&rounds),
            since: Instant::now(),
            kind,
        };
        let thread = std::thread::spawn(move || {
            // Without the right to do so it runs at the usual priority.
            rustix::process::nice(NICE).ok();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("a runtime for a flood")?;
            runtime.block_on(flood.run())?;
            Ok(flood.tally)
        });
        Self {
            stop,
            rounds,
            thread,
        }
    }

    /// Whether it has done all that it does at least once, or has ended.
    pub(crate) fn has_begun(&self) -> bool {
        0 < self.rounds.load(Ordering::Relaxed) || self.thread.is_finished()
    }

    pub(crate) fn stop(self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a flood does not panic")
    }
}

struct Flood {
    target: Target,
    tally: Tally,
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    since: Instant,
    kind: Kind,
}

type Control = ControlClient<InterceptedService<Channel, Stamp>>;

impl Flood {
    async fn run(&mut self) -> Result<()> {
        match self.kind {
            Kind::IdleConnections => self.hold_connections(&[]).await,
            Kind::Garbage => self.hold_connections(&[0xff; 512]).await,
            Kind::LargeMessages => {
                // Six numbers for every byte of TOML that a reader would have to keep.
                let text = |count| format!("name = \"x\"\nx = [{}]\n", "1,".repeat(count));
                let mut texts = vec![text(29_000_000)];
                // To send these takes less time.
                texts.resize_with(20, || text(1_000_000));
                self.submit_again(&texts, true).await
            }
            Kind::LongTexts => {
                let texts = [self.long_url(), self.many_prompts(400), self.many_errors()];
                self.submit_again(&texts, true).await
            }
            Kind::LargeJobs => self.submit_again(&[self.many_prompts(60)], true).await,
            Kind::Submits => self.submit_again(&[self.waiting_job()], false).await,
            Kind::Watches => self.watch().await,
            Kind::InventedWorkers => self.invent_workers().await,
            Kind::Reports => self.report().await,
        }
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Rests if this thread has had more than its share of a processor. Called after every piece of
    /// work.
    async fn rest(&self) {
        if !self.target.is_limited {
            return;
        }
        let used = cpu::of_this_thread().unwrap_or(0.0);
        let due = Duration::try_from_secs_f64(used / SHARE).unwrap_or_default();
        let wait = due.saturating_sub(self.since.elapsed());
        if Duration::from_millis(1) <= wait {
            tokio::time::sleep(wait.min(REST_MAX)).await;
        }
    }

    fn round(&self) {
        self.rounds.fetch_add(1, Ordering::Relaxed);
    }

    async fn channel(&self) -> Result<Channel> {
        let url = format!("http://{}", self.target.address);
        let endpoint = Endpoint::from_shared(url)?.local_address(Some(self.kind.address()));
        Ok(endpoint.connect().await?)
    }

    async fn control(&self) -> Result<Control> {
        let stamp: Stamp = version::stamp;
        Ok(ControlClient::with_interceptor(
            self.channel().await?,
            stamp,
        ))
    }

    /// Keeps connections open that say only this, and opens new ones for those that are closed.
    async fn hold_connections(&mut self, words: &[u8]) -> Result<()> {
        let address: SocketAddr = self.target.address.parse()?;
        let mut open: Vec<TcpStream> = Vec::new();
        while self.goes_on() {
            let before = open.len();
            open.retain_mut(|stream| {
                let read = stream.read(&mut [0; 64]);
                read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
            });
            self.tally.refused += (before - open.len()) as u64;
            while open.len() < CONNECTIONS && self.goes_on() {
                let socket = TcpSocket::new_v4()?;
                socket.bind(SocketAddr::new(self.kind.address(), 0))?;
                // A full backlog refuses, too.
                let Ok(stream) = socket.connect(address).await else {
                    self.tally.refused += 1;
                    break;
                };
                let mut stream = stream.into_std()?;
                self.tally.sent += 1;
                // It may be closed already.
                stream.write_all(words).ok();
                open.push(stream);
                self.rest().await;
            }
            self.round();
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Submits these texts in turn. A connection that was closed is opened again.
    async fn submit_again(&mut self, texts: &[String], dry_run: bool) -> Result<()> {
        while self.goes_on() {
            let Ok(mut client) = self.control().await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let mut connected = true;
            while connected && self.goes_on() {
                for text in texts {
                    let request = SubmitRequest {
                        job_toml: text.clone(),
                        dry_run,
                        ..Default::default()
                    };
                    let answer = client.submit(request).await.map(|_| ());
                    let broken = |status: &Status| {
                        matches!(
                            status.code(),
                            Code::Unavailable | Code::Unknown | Code::Internal
                        )
                    };
                    connected &= !answer.as_ref().is_err_and(broken);
                    self.tally.count(answer);
                    self.rest().await;
                }
                // Jobs that are stored are a flood only when there is no room for more.
                if dry_run || 0 < self.tally.refused {
                    self.round();
                }
            }
        }
        Ok(())
    }

    /// More streams of views than anybody needs, of which nothing is read.
    async fn watch(&mut self) -> Result<()> {
        let mut client = self.control().await?;
        let mut streams: Vec<Streaming<_>> = Vec::new();
        while self.goes_on() {
            // Some on every connection, because one connection carries only a few.
            if streams.len() % 16 == 15 {
                match self.control().await {
                    Ok(another) => client = another,
                    Err(_) => tokio::time::sleep(PAUSE).await,
                }
            }
            let job = self.target.victim.clone();
            match client.watch_job(JobRequest { job }).await {
                Ok(stream) => {
                    self.tally.count(Ok(()));
                    streams.push(stream.into_inner());
                }
                Err(status) => {
                    self.tally.count(Err(status));
                    self.round();
                    tokio::time::sleep(PAUSE).await;
                }
            }
            self.rest().await;
        }
        Ok(())
    }

    /// Workers that report once, each with a new name, and go.
    async fn invent_workers(&mut self) -> Result<()> {
        while self.goes_on() {
            for _ in 0..50 {
                let Ok(channel) = self.channel().await else {
                    continue;
                };
                let mut report = self.report_of(&format!("invented-{}", self.tally.sent));
                // No job here asks for this kind of device.
                report.device = "cuda".into();
                let attached = attach(channel, 1, report).await;
                self.tally.count(attached.map(|_| ()));
                self.rest().await;
            }
            self.round();
        }
        Ok(())
    }

    /// One worker that reports without a pause, with lines for the victim's log.
    async fn report(&mut self) -> Result<()> {
        let mut report = self.report_of("talker");
        report.device = "cuda".into();
        let line = LogLine {
            job: self.target.victim.clone(),
            text: "x".repeat(200),
            ..Default::default()
        };
        report.logs = vec![line; 64];
        while self.goes_on() {
            let Ok(channel) = self.channel().await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let (reports, mut states) = match attach(channel, 64, report.clone()).await {
                Ok(attached) => attached,
                Err(status) => {
                    self.tally.count(Err(status));
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            while self.goes_on() {
                tokio::select! {
                    sent = reports.send(report.clone()) => {
                        self.tally.sent += 1;
                        if sent.is_err() {
                            break;
                        }
                        if self.tally.sent.is_multiple_of(1000) {
                            self.round();
                        }
                        if self.tally.sent.is_multiple_of(16) {
                            self.rest().await;
                        }
                    }
                    state = states.message() => {
                        if let Err(status) = state {
                            self.tally.count(Err(status));
                            break;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn report_of(&self, name: &str) -> WorkerReport {
        WorkerReport {
            worker: Some(WorkerId {
                name: name.to_owned(),
                boot: 1,
            }),
            device: "cpu".into(),
            devices: 1,
            ..Default::default()
        }
    }

    /// A job for more workers than there are.
    fn waiting_job(&self) -> String {
        let job = TinyJob {
            name: "flood".to_owned(),
            dataset: self.target.dataset.clone(),
            workers: 2,
            steps: 10,
            checkpoint_every: 10,
        };
        // It has two micro-batches, so two workers with one device are the most that it can have.
        job.to_toml()
            .replace("[resources]\n", "[resources]\ndevice = \"cuda\"\n")
    }

    fn long_url(&self) -> String {
        let dataset = format!("file:///{}", "./".repeat(400_000));
        self.waiting_job().replace(&self.target.dataset, &dataset)
    }

    /// Images of the victim with this many prompts of 16 KiB.
    fn many_prompts(&self, count: usize) -> String {
        let prompts = vec!["x".repeat(16 << 10); count];
        format!(
            "name = \"prompts\"\n[sample]\njob = \"{}\"\ncount = 1\nprompts = {prompts:?}\n",
            self.target.victim
        )
    }

    /// Every id is wrong.
    fn many_errors(&self) -> String {
        let ids: Vec<String> = (0..256)
            .map(|id| format!("{id}/{}", "x".repeat(3000)))
            .collect();
        format!("after = {ids:?}\n{}", self.waiting_job())
    }
}

type Attached = (
    mpsc::Sender<WorkerReport>,
    Streaming<proto::pb::DesiredState>,
);

/// Attaches as a worker and returns when its first report was answered.
async fn attach(channel: Channel, queue: usize, first: WorkerReport) -> Result<Attached, Status> {
    let (reports, stream) = mpsc::channel(queue);
    reports
        .send(first)
        .await
        .map_err(|_| Status::cancelled("the channel is closed"))?;
    let stamp: Stamp = version::stamp;
    let mut client = FleetClient::with_interceptor(channel, stamp);
    let stream = futures::stream::unfold(stream, |mut stream: mpsc::Receiver<_>| async move {
        let report = stream.recv().await?;
        Some((report, stream))
    });
    let mut states = client.attach(stream).await?.into_inner();
    match states.message().await? {
        Some(_) => Ok((reports, states)),
        None => Err(Status::aborted("the stream was closed")),
    }
}
