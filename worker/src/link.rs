//! The stream to the coordinator: sends the newest report and new log lines up, hands desired
//! states down to the machine, and connects again, with growing pauses, whenever it breaks. Decides
//! nothing. One task, started by [`crate::daemon`].

use crate::logs::{Line, Logs};
use proto::message::{DesiredState, WorkerReport};
use proto::pb;
use proto::pb::fleet_client::FleetClient;
use proto::text::chain;
use proto::version::{self, Stamp};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use worker_core::event::Input;

/// `detect_within` until the coordinator has told it: what is shipped.
const UNTIL_TOLD: Duration = Duration::from_secs(3);
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The daemon's end. A report replaces one that was not sent yet: each says everything.
#[derive(Debug)]
pub(crate) struct Link {
    reports: watch::Sender<Option<WorkerReport>>,
}

impl Link {
    /// Starts the task. `events` gets [`Input::Connected`], [`Input::Disconnected`] and
    /// [`Input::Desired`].
    pub(crate) fn start(
        coordinator: &str,
        events: mpsc::Sender<Input>,
        logs: Logs,
    ) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(coordinator.to_owned())?.keep_alive_while_idle(true);
        let (reports, receiver) = watch::channel(None);
        tokio::spawn(keep(endpoint, receiver, events, logs));
        Ok(Self { reports })
    }

    /// Sent at once when there is a stream, else dropped.
    pub(crate) fn report(&self, report: WorkerReport) {
        self.reports.send_replace(Some(report));
    }
}

/// Connects for ever; ends when the daemon does.
async fn keep(
    endpoint: Endpoint,
    reports: watch::Receiver<Option<WorkerReport>>,
    events: mpsc::Sender<Input>,
    logs: Logs,
) {
    let mut detect_within = UNTIL_TOLD;
    let mut pause = PAUSE_MIN;
    let mut complained = false;
    let coordinator = endpoint.uri().to_string();
    while !events.is_closed() {
        let endpoint = endpoint
            .clone()
            .connect_timeout(detect_within)
            .http2_keep_alive_interval(detect_within / 3)
            .keep_alive_timeout(detect_within);
        match endpoint.connect().await {
            Ok(channel) => {
                let stamp: Stamp = version::stamp;
                let client = FleetClient::with_interceptor(channel, stamp);
                let (told, reason) = attend(client, reports.clone(), &events, &logs).await;
                if let Some(told) = told {
                    (detect_within, pause, complained) = (told, PAUSE_MIN, false);
                }
                if !complained {
                    tracing::warn!(
                        coordinator,
                        reason,
                        "stream to the coordinator broke; ranks go on"
                    );
                }
            }
            Err(error) if !complained => {
                let reason = chain(&error);
                tracing::warn!(
                    coordinator,
                    reason,
                    "cannot reach the coordinator; trying on"
                );
            }
            Err(_) => {}
        }
        complained = true;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min((detect_within / 3).max(PAUSE_MIN));
    }
}

/// One stream, from open to broken. Returns the `detect_within` that the coordinator last told, if
/// it ever said something, and why the stream ended.
async fn attend(
    mut client: FleetClient<InterceptedService<Channel, Stamp>>,
    reports: watch::Receiver<Option<WorkerReport>>,
    events: &mpsc::Sender<Input>,
    logs: &Logs,
) -> (Option<Duration>, String) {
    let mut reports = reports;
    // Only reports made from here on go to this stream; the machine makes one when it hears of the
    // connection, which must be before the coordinator answers, because the coordinator answers to
    // the first report.
    reports.mark_unchanged();
    if events.send(Input::Connected).await.is_err() {
        return (None, "the daemon ends".into());
    }
    let mut told = None;
    let reason = match client.attach(outgoing(reports, logs.clone())).await {
        Err(status) => status.message().to_owned(),
        Ok(reply) => {
            tracing::info!("attached to the coordinator");
            let mut states = reply.into_inner();
            loop {
                match states.message().await {
                    Ok(Some(state)) => {
                        told = hear(state, events).await.or(told);
                    }
                    Ok(None) => break "the coordinator closed it".to_owned(),
                    Err(status) => break chain(&status),
                }
            }
        }
    };
    // Ignored: without a receiver the daemon ends.
    let _ = events.send(Input::Disconnected).await;
    (told, reason)
}

/// Hands it on; returns its `detect_within`.
async fn hear(state: pb::DesiredState, events: &mpsc::Sender<Input>) -> Option<Duration> {
    match DesiredState::try_from(state) {
        Ok(state) => {
            let told = Duration::from_millis(state.detect_within_ms);
            // Ignored: without a receiver the daemon ends.
            let _ = events.send(Input::Desired(state)).await;
            Some(told)
        }
        Err(error) => {
            tracing::error!(%error, "coordinator says what makes no sense; ignored");
            None
        }
    }
}

/// Every new report, with the log lines that have come up since the last.
fn outgoing(
    reports: watch::Receiver<Option<WorkerReport>>,
    logs: Logs,
) -> impl Stream<Item = pb::WorkerReport> + Send + 'static {
    futures::stream::unfold((reports, logs), |(mut reports, logs)| async move {
        loop {
            reports.changed().await.ok()?;
            let report = reports
                .borrow_and_update()
                .as_ref()
                .map(pb::WorkerReport::from);
            if let Some(mut report) = report {
                report.logs = logs.take().into_iter().map(wire).collect();
                return Some((report, (reports, logs)));
            }
        }
    })
}

fn wire(line: Line) -> pb::LogLine {
    pb::LogLine {
        job: line.key.job.0,
        generation: line.key.generation.0,
        rank: line.key.rank.0,
        at_ms: line.at_ms,
        text: line.text,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proto::id::{Generation, JobId, Rank, WorkerId};
    use proto::pb::fleet_server::{Fleet, FleetServer};
    use proto::spec::DeviceKind;
    use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
    use tonic::{Request, Response, Status, Streaming};
    use worker_core::event::RankKey;

    type Answers = mpsc::Sender<Result<pb::DesiredState, Status>>;

    /// A coordinator that hands each stream to the test, once its first report is there.
    struct FakeCoordinator {
        streams: mpsc::Sender<(pb::WorkerReport, Answers, Streaming<pb::WorkerReport>)>,
    }

    #[tonic::async_trait]
    impl Fleet for FakeCoordinator {
        type AttachStream = ReceiverStream<Result<pb::DesiredState, Status>>;

        async fn attach(
            &self,
            request: Request<Streaming<pb::WorkerReport>>,
        ) -> Result<Response<Self::AttachStream>, Status> {
            let mut reports = request.into_inner();
            let first = reports
                .message()
                .await?
                .ok_or_else(|| Status::cancelled("no report"))?;
            let (sender, receiver) = mpsc::channel(4);
            self.streams
                .send((first, sender, reports))
                .await
                .map_err(|_| Status::cancelled("test ended"))?;
            Ok(Response::new(ReceiverStream::new(receiver)))
        }
    }

    fn id() -> WorkerId {
        WorkerId {
            name: "w1".into(),
            boot: 5,
        }
    }

    fn report(devices: u32) -> WorkerReport {
        WorkerReport {
            worker: id(),
            device: DeviceKind::Cpu,
            devices,
            ranks: vec![],
            peer_address: None,
            unreached: vec![],
        }
    }

    #[tokio::test]
    async fn a_broken_stream_is_opened_again_and_reports_carry_log_lines_once() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (streams, mut opened) = mpsc::channel(4);
        let server = tonic::transport::Server::builder()
            .add_service(FleetServer::new(FakeCoordinator { streams }));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let (sender, mut events) = mpsc::channel(16);
        let logs = Logs::default();
        let key = RankKey {
            job: JobId("a-1".into()),
            generation: Generation(1),
            rank: Rank(0),
        };
        logs.push(Line {
            key,
            at_ms: 7,
            text: "hello".into(),
        });
        let link = Link::start(&url, sender, logs).unwrap();

        assert_eq!(events.recv().await, Some(Input::Connected));
        link.report(report(1));
        let (first, answers, _reports) = opened.recv().await.unwrap();
        assert_eq!((first.devices, first.logs.len()), (1, 1));
        assert_eq!(first.logs[0].text, "hello");
        let state = DesiredState {
            worker: id(),
            assignments: vec![],
            detect_within_ms: 3_000,
            peers: vec![],
        };
        answers
            .send(Ok(pb::DesiredState::from(&state)))
            .await
            .unwrap();
        assert_eq!(events.recv().await, Some(Input::Desired(state)));
        // Nonsense is ignored, and the stream lives on.
        answers.send(Ok(pb::DesiredState::default())).await.unwrap();
        drop(answers);
        assert_eq!(events.recv().await, Some(Input::Disconnected));

        assert_eq!(events.recv().await, Some(Input::Connected));
        link.report(report(2));
        let (second, ..) = opened.recv().await.unwrap();
        assert_eq!((second.devices, second.logs.len()), (2, 0));
    }

    #[test]
    fn an_address_that_is_none_is_refused() {
        let (sender, _events) = mpsc::channel(1);
        let link = Link::start("not a url", sender, Logs::default());
        assert!(link.is_err());
    }
}
