//! One worker's stream: its reports go up to the daemon's loop, the newest desired state goes down.
//! Each stream has one task; a worker that reads slowly gets only the newest state, so nothing
//! queues up. Called by tonic.

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

/// The service of worker daemons.
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
                tracing::warn!(code = ?status.code(), reason = status.message(), "worker stream \
                ended");
                // The worker may have gone already.
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
    let (report, logs) = plain(first)?;
    let mut session = handle
        .attach(report.worker.clone())
        .await
        .map_err(stopping)?;
    let worker = report.worker.clone();
    handle.heard(report, logs).await.map_err(stopping)?;
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
                let (report, logs) = plain(message)?;
                if report.worker != *worker {
                    return Err(Status::invalid_argument(format!(
                        "field `worker` is {}; this stream is {worker}'s", report.worker
                    )));
                }
                handle.heard(report, logs).await.map_err(stopping)?;
            }
            changed = session.desired.changed() => {
                if changed.is_err() {
                    return Err(Status::aborted(format!("{worker} came again on another stream, or \
                    the coordinator is stopping")));
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

/// The checked report and its log lines.
fn plain(
    mut message: pb::WorkerReport,
) -> Result<(WorkerReport, Vec<(JobId, pb::LogLine)>), Status> {
    let wrong = |error: WireError| Status::invalid_argument(error.to_string());
    let lines = std::mem::take(&mut message.logs);
    let report = message.try_into().map_err(wrong)?;
    let logs = lines
        .into_iter()
        .map(|line| Ok((job_id(line.job.clone())?, line)));
    Ok((
        report,
        logs.collect::<Result<_, WireError>>().map_err(wrong)?,
    ))
}

fn stopping(error: crate::daemon::Stopping) -> Status {
    Status::unavailable(error.to_string())
}
