//! One worker's stream: forwards its reports to the daemon's loop and sends it the newest desired
//! state. Each stream has one task. A slow reader gets only the newest state, so that no queue
//! builds up. Called by tonic.

use crate::daemon::{Handle, Session};
use proto::id::{JobId, WorkerId};
use proto::message::WorkerReport;
use proto::pb;
use proto::wire::{WireError, job_id};
use std::pin::Pin;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

type Outbound = mpsc::Sender<Result<pb::DesiredState, Status>>;

/// The gRPC service that worker daemons attach to.
#[derive(Debug, Clone)]
pub(crate) struct FleetService {
    handle: Handle,
}

impl FleetService {
    pub(crate) fn new(handle: Handle) -> Self {
        Self { handle }
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
        let handle = self.handle.clone();
        tokio::spawn(async move {
            if let Err(status) = serve(&handle, request.into_inner(), &outbound).await {
                let (code, reason) = (status.code(), status.message());
                tracing::warn!(?code, reason, "worker stream ended");
                // Fails if the worker has disconnected.
                outbound.send(Err(status)).await.ok();
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(states))))
    }
}

/// Serves the stream until either side ends it.
async fn serve(
    handle: &Handle,
    mut reports: Streaming<pb::WorkerReport>,
    outbound: &Outbound,
) -> Result<(), Status> {
    let Some(first) = reports.message().await? else {
        return Ok(());
    };
    let (report, logs) = decode(first)?;
    let mut session = handle
        .attach(report.worker.clone())
        .await
        .map_err(unavailable)?;
    let worker = report.worker.clone();
    handle.report(report, logs).await.map_err(unavailable)?;
    let result = exchange(handle, &worker, &mut session, &mut reports, outbound).await;
    handle.detach(session).await;
    result
}

async fn exchange(
    handle: &Handle,
    worker: &WorkerId,
    session: &mut Session,
    reports: &mut Streaming<pb::WorkerReport>,
    outbound: &Outbound,
) -> Result<(), Status> {
    let mut unsent = false;
    loop {
        tokio::select! {
            message = reports.message() => {
                let Some(message) = message? else { return Ok(()) };
                let (report, logs) = decode(message)?;
                if report.worker != *worker {
                    return Err(Status::invalid_argument(format!(
                        "field `worker` is {}; this stream is {worker}'s", report.worker
                    )));
                }
                handle.report(report, logs).await.map_err(unavailable)?;
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
        }
    }
}

/// The validated report and its log lines.
fn decode(
    mut message: pb::WorkerReport,
) -> Result<(WorkerReport, Vec<(JobId, pb::LogLine)>), Status> {
    let invalid = |error: WireError| Status::invalid_argument(error.to_string());
    let lines = std::mem::take(&mut message.logs);
    let report = message.try_into().map_err(invalid)?;
    let logs = lines
        .into_iter()
        .map(|line| Ok((job_id(line.job.clone())?, line)));
    Ok((
        report,
        logs.collect::<Result<_, WireError>>().map_err(invalid)?,
    ))
}

fn unavailable(error: crate::daemon::Stopping) -> Status {
    Status::unavailable(error.to_string())
}
