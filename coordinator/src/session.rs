//! One worker's stream: forwards its reports to the daemon's loop and sends it the newest desired
//! state. Each stream has one task. A slow reader gets only the newest state, and the loop only the
//! newest report, so that no queue builds up. Called by tonic.

use crate::connections::{FIRST_WITHIN, Peer};
use crate::daemon::{AttachError, Handle, Session};
use crate::log_limit::LogLimit;
use proto::id::{JobId, WorkerId};
use proto::message::WorkerReport;
use proto::pb;
use proto::wire::{WireError, job_id};
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Between two reports of one worker that reach the loop. Reports are complete, so those in between
/// are not needed, except for their log lines.
const REPORT_EVERY: Duration = Duration::from_millis(10);
/// Log lines of one worker that wait for its next report; more are dropped, and counted.
const LINES_MAX: usize = 4096;
/// A worker that sends no report for this many `detect_within` is gone, even if its connection is
/// not.
const SILENT: u32 = 10;

/// Warnings about dropped lines, and about streams that end with an error.
static DROPPED: LazyLock<LogLimit> = LazyLock::new(|| LogLimit::at_most(1));
static ENDED: LazyLock<LogLimit> = LazyLock::new(|| LogLimit::at_most(20));

type Outbound = mpsc::Sender<Result<pb::DesiredState, Status>>;
type Lines = Vec<(JobId, pb::LogLine)>;

/// The gRPC service that worker daemons attach to.
#[derive(Debug, Clone)]
pub(crate) struct FleetService {
    handle: Handle,
    detect_within: Duration,
}

impl FleetService {
    pub(crate) fn new(handle: Handle, detect_within: Duration) -> Self {
        Self {
            handle,
            detect_within,
        }
    }
}

#[tonic::async_trait]
impl pb::fleet_server::Fleet for FleetService {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<pb::DesiredState, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<pb::WorkerReport>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let (outbound, states) = mpsc::channel(1);
        let service = self.clone();
        let peer = request.extensions().get::<Arc<Peer>>().cloned();
        let in_progress = peer.as_ref().map(Peer::begin);
        tokio::spawn(async move {
            let served = service.serve(request.into_inner(), peer.as_ref(), &outbound);
            if let Err(status) = served.await {
                if let Some(count) = ENDED.admit() {
                    let (code, reason) = (status.code(), status.message());
                    let address = peer.as_ref().map(|peer| peer.address);
                    tracing::warn!(?code, reason, ?address, count, "worker stream ended");
                }
                // Fails if the worker has disconnected, or if it reads nothing.
                outbound.try_send(Err(status)).ok();
            }
            drop(in_progress);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(states))))
    }
}

impl FleetService {
    /// Serves the stream until either side ends it.
    async fn serve(
        &self,
        mut reports: Streaming<pb::WorkerReport>,
        peer: Option<&Arc<Peer>>,
        outbound: &Outbound,
    ) -> Result<(), Status> {
        let first = timeout(FIRST_WITHIN, reports.message()).await;
        let Some(first) = first.map_err(|_| no_report(FIRST_WITHIN))?? else {
            return Ok(());
        };
        let (report, lines) = decode(first)?;
        let worker = report.worker.clone();
        // Its connection does not count among the others any more.
        let attachment = peer.map(|peer| {
            peer.attach().ok_or_else(|| {
                Status::resource_exhausted("this connection carries a worker's reports already")
            })
        });
        let attachment = attachment.transpose()?;
        let mut session = self.handle.attach(worker.clone()).await.map_err(refused)?;
        self.report(report, lines).await?;
        let result = self
            .exchange(&worker, &mut session, &mut reports, outbound)
            .await;
        self.handle.detach(session).await;
        drop(attachment);
        result
    }

    async fn report(&self, report: WorkerReport, lines: Lines) -> Result<(), Status> {
        let sent = self.handle.report(report, lines).await;
        sent.map_err(|error| Status::unavailable(error.to_string()))
    }

    async fn exchange(
        &self,
        worker: &WorkerId,
        session: &mut Session,
        reports: &mut Streaming<pb::WorkerReport>,
        outbound: &Outbound,
    ) -> Result<(), Status> {
        let silent = self.detect_within * SILENT;
        let mut unsent = false;
        let mut heard = Instant::now();
        let mut newest: Option<(WorkerReport, Lines)> = None;
        let mut next = heard + REPORT_EVERY;
        loop {
            tokio::select! {
                message = reports.message() => {
                    let message = match message {
                        Ok(Some(message)) => message,
                        ended => {
                            // Its last report says what it left.
                            if let Some((report, lines)) = newest.take() {
                                self.report(report, lines).await?;
                            }
                            return ended.map(|_| ());
                        }
                    };
                    heard = Instant::now();
                    let (report, lines) = decode(message)?;
                    if report.worker != *worker {
                        return Err(Status::invalid_argument(format!(
                            "field `worker` is {}; this stream is {worker}'s", report.worker
                        )));
                    }
                    let earlier = newest.take().map_or_else(Vec::new, |(_, lines)| lines);
                    newest = Some((report, joined(worker, earlier, lines)));
                }
                () = sleep_until(next), if newest.is_some() => {
                    if let Some((report, lines)) = newest.take() {
                        self.report(report, lines).await?;
                    }
                    next = Instant::now() + REPORT_EVERY;
                }
                changed = session.desired.changed() => {
                    if changed.is_err() {
                        return Err(Status::aborted(format!("{worker} attached again on another \
                        stream, or the coordinator is stopping")));
                    }
                    unsent = true;
                }
                permit = outbound.reserve(), if unsent => {
                    let Ok(permit) = permit else { return Ok(()) };
                    unsent = false;
                    if let Some(state) = session.desired.borrow_and_update().as_ref() {
                        permit.send(Ok(state.into()));
                    }
                }
                () = sleep_until(heard + silent) => return Err(no_report(silent)),
            }
        }
    }
}

/// Lines that wait for the next report, with new ones.
fn joined(worker: &WorkerId, mut earlier: Lines, new: Lines) -> Lines {
    if earlier.is_empty() {
        return new;
    }
    earlier.extend(new);
    let dropped = earlier.len().saturating_sub(LINES_MAX);
    if 0 < dropped {
        if let Some(times) = DROPPED.admit() {
            tracing::warn!(%worker, dropped, times, "too many log lines; the oldest are lost");
        }
        earlier.drain(..dropped);
    }
    earlier
}

/// The validated report and its log lines. Lines of impossible jobs are left out.
fn decode(mut message: pb::WorkerReport) -> Result<(WorkerReport, Lines), Status> {
    let lines = std::mem::take(&mut message.logs);
    let report: WorkerReport = message
        .try_into()
        .map_err(|error: WireError| Status::invalid_argument(error.to_string()))?;
    let given = lines.len();
    let lines = lines
        .into_iter()
        .filter_map(|line| Some((job_id(line.job.clone()).ok()?, line)));
    let lines: Lines = lines.collect();
    let dropped = given - lines.len();
    if 0 < dropped
        && let Some(times) = DROPPED.admit()
    {
        let worker = &report.worker;
        tracing::warn!(%worker, dropped, times, "log lines name no job and were dropped");
    }
    Ok((report, lines))
}

fn no_report(within: Duration) -> Status {
    Status::deadline_exceeded(format!("no report within {} s", within.as_secs_f64()))
}

fn refused(error: AttachError) -> Status {
    match error {
        AttachError::Stopping(stopping) => Status::unavailable(stopping.to_string()),
        AttachError::Full { .. } => Status::resource_exhausted(error.to_string()),
    }
}
