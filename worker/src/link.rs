//! The stream to the coordinator: sends the newest report and new log lines, passes desired states
//! to the machine, and reconnects with back-off whenever the stream breaks. It gives up only before
//! the first stream, and only where waiting cannot help ([`crate::patience`]). One task, started by
//! [`crate::daemon`].

use crate::gpu::Gpus;
use crate::logs::{Line, Logs};
use crate::patience::{Failure, Patience, of_connection, of_stream};
use crate::probe::Answers;
use prost::Message;
use proto::limits::{REPORT_BYTES, STATE_BYTES, TEXT_BYTES, cut};
use proto::message::{DesiredState, WorkerReport};
use proto::pb;
use proto::pb::fleet_client::FleetClient;
use proto::text::chain;
use proto::version::{self, Stamp};
use std::error::Error;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tonic::Status;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use worker_core::event::Input;

/// Used until the coordinator has sent `detect_within`: its shipped default.
const INITIAL_DETECT_WITHIN: Duration = Duration::from_secs(3);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// The same reason why there is no coordinator is said again after this time.
const REPEAT_AFTER: Duration = Duration::from_secs(60);

/// The daemon's handle of the task. A report replaces one that was not sent yet, because each
/// report is complete.
#[derive(Debug)]
pub(crate) struct Link {
    reports: watch::Sender<Option<WorkerReport>>,
    given_up: mpsc::Receiver<Unusable>,
    asked: mpsc::Receiver<pb::Probe>,
}

/// What reports carry beside what the machine says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Luggage {
    pub(crate) logs: Logs,
    pub(crate) answers: Answers,
    pub(crate) gpus: Gpus,
}

/// What the link tells the daemon, beside inputs of the machine.
#[derive(Debug)]
pub(crate) enum Told {
    /// The task has given up.
    Unusable(Unusable),
    /// A user asks ranks something. Repeated until it is answered.
    Asked(pb::Probe),
}

/// Where what the coordinator sends goes.
#[derive(Debug, Clone)]
struct Inbound {
    inputs: mpsc::Sender<Input>,
    asked: mpsc::Sender<pb::Probe>,
}

/// The daemon has never attached to its coordinator, and waiting does not help.
#[derive(Debug, thiserror::Error)]
#[error("`coordinator` {coordinator} cannot be used: {reason}; waiting does not help")]
pub(crate) struct Unusable {
    coordinator: String,
    reason: String,
}

impl Link {
    /// Starts the task. [`Input::Connected`], [`Input::Disconnected`] and [`Input::Desired`] are
    /// sent to `inputs`.
    pub(crate) fn start(
        coordinator: &str,
        inputs: mpsc::Sender<Input>,
        luggage: Luggage,
    ) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(coordinator.to_owned())?.keep_alive_while_idle(true);
        let (reports, receiver) = watch::channel(None);
        let (giving_up, given_up) = mpsc::channel(1);
        let (asking, asked) = mpsc::channel(1);
        let inbound = Inbound {
            inputs,
            asked: asking,
        };
        tokio::spawn(async move {
            if let Some(unusable) = stay_connected(endpoint, receiver, inbound, luggage).await {
                // Without a receiver the daemon has ended.
                giving_up.send(unusable).await.ok();
            }
        });
        Ok(Self {
            reports,
            given_up,
            asked,
        })
    }

    /// Waits for what the task has to tell.
    pub(crate) async fn told(&mut self) -> Told {
        tokio::select! {
            Some(unusable) = self.given_up.recv() => Told::Unusable(unusable),
            Some(probe) = self.asked.recv() => Told::Asked(probe),
            else => std::future::pending().await,
        }
    }

    /// Sends a report, if there is a stream.
    pub(crate) fn report(&self, report: WorkerReport) {
        self.reports.send_replace(Some(report));
    }
}

/// Reconnects until the daemon ends, or until waiting cannot help.
async fn stay_connected(
    endpoint: Endpoint,
    reports: watch::Receiver<Option<WorkerReport>>,
    inbound: Inbound,
    luggage: Luggage,
) -> Option<Unusable> {
    let mut detect_within = INITIAL_DETECT_WITHIN;
    let mut backoff = BACKOFF_MIN;
    let mut said = Said::default();
    let mut patience = Patience::default();
    let coordinator = endpoint.uri().to_string();
    while !inbound.inputs.is_closed() {
        let begun = Instant::now();
        let endpoint = endpoint
            .clone()
            .connect_timeout(detect_within)
            .http2_keep_alive_interval(detect_within / 3)
            .keep_alive_timeout(detect_within);
        // Its own timeout does not include the resolution of the name.
        let connecting = tokio::time::timeout(detect_within, endpoint.connect());
        let ended = match connecting.await {
            Ok(Ok(channel)) => {
                let stamp: Stamp = version::stamp;
                let client = FleetClient::with_interceptor(channel, stamp)
                    .max_decoding_message_size(STATE_BYTES);
                let ended = run_stream(client, reports.clone(), &inbound, &luggage).await;
                if let Some(received) = ended.detect_within {
                    (detect_within, backoff, said) = (received, BACKOFF_MIN, Said::default());
                    patience.attached();
                }
                if said.is_due(&ended.reason, Instant::now()) {
                    tracing::warn!(
                        coordinator,
                        reason = ended.reason,
                        "stream to the coordinator broke; ranks continue"
                    );
                }
                ended
            }
            Ok(Err(error)) => said.cannot_reach(&coordinator, chain(&error)),
            Err(_) => {
                let reason = format!("no connection within {} s", detect_within.as_secs_f64());
                said.cannot_reach(&coordinator, reason)
            }
        };
        if patience.is_over(ended.failure, begun, Instant::now()) {
            let reason = ended.reason;
            return Some(Unusable {
                coordinator,
                reason,
            });
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min((detect_within / 3).max(BACKOFF_MIN));
    }
    None
}

/// How an attempt to be attached ended.
#[derive(Debug)]
struct Ended {
    /// What the coordinator sent last, if anything.
    detect_within: Option<Duration>,
    reason: String,
    failure: Failure,
}

/// What was said about a coordinator that is away. It is said again when the reason changes, and
/// once a minute.
#[derive(Debug, Default)]
struct Said {
    last: Option<(String, Instant)>,
}

impl Said {
    fn is_due(&mut self, reason: &str, now: Instant) -> bool {
        let is_known = self
            .last
            .as_ref()
            .is_some_and(|(known, at)| known == reason && now.duration_since(*at) < REPEAT_AFTER);
        if !is_known {
            self.last = Some((reason.to_owned(), now));
        }
        !is_known
    }

    fn cannot_reach(&mut self, coordinator: &str, reason: String) -> Ended {
        if self.is_due(&reason, Instant::now()) {
            tracing::warn!(
                coordinator,
                reason,
                "waiting for the coordinator, which cannot be reached"
            );
        }
        Ended {
            detect_within: None,
            failure: of_connection(&reason),
            reason,
        }
    }
}

/// Runs one stream until it breaks.
async fn run_stream(
    mut client: FleetClient<InterceptedService<Channel, Stamp>>,
    reports: watch::Receiver<Option<WorkerReport>>,
    inbound: &Inbound,
    luggage: &Luggage,
) -> Ended {
    let inputs = &inbound.inputs;
    let mut reports = reports;
    // Only new reports are sent on this stream. The coordinator replies after the first report, so
    // `Connected`, which makes the machine report, must be sent before waiting for the reply.
    reports.mark_unchanged();
    if inputs.send(Input::Connected).await.is_err() {
        return Ended {
            detect_within: None,
            reason: "the daemon is shutting down".into(),
            failure: Failure::Passing,
        };
    }
    let mut detect_within = None;
    let mut failure = Failure::Passing;
    let mut ended = |status: &Status| {
        let causes = status.source().map_or_else(String::new, chain);
        failure = of_stream(status, &format!("{}: {causes}", status.message()));
        match causes.as_str() {
            "" => status.message().to_owned(),
            causes if causes.contains(status.message()) => causes.to_owned(),
            causes => format!("{}: {causes}", status.message()),
        }
    };
    let reason = match client.attach(outgoing(reports, luggage.clone())).await {
        Err(status) => ended(&status),
        Ok(reply) => {
            tracing::info!("attached to the coordinator");
            let mut states = reply.into_inner();
            loop {
                match states.message().await {
                    Ok(Some(state)) => {
                        detect_within = on_state(state, inbound).await.or(detect_within);
                    }
                    Ok(None) => break "closed by the coordinator".to_owned(),
                    Err(status) => break ended(&status),
                }
            }
        }
    };
    // A send error is ignored: without a receiver the daemon has ended.
    let _ = inputs.send(Input::Disconnected).await;
    Ended {
        detect_within,
        reason,
        failure,
    }
}

/// Passes the state to the machine. Returns its `detect_within`.
async fn on_state(mut state: pb::DesiredState, inbound: &Inbound) -> Option<Duration> {
    if let Some(probe) = state.probe.take() {
        // Fails while an earlier one is taken; it is repeated.
        inbound.asked.try_send(probe).ok();
    }
    match DesiredState::try_from(state) {
        Ok(state) => {
            let detect_within = Duration::from_millis(state.detect_within_ms);
            // A send error is ignored: without a receiver the daemon has ended.
            let _ = inbound.inputs.send(Input::Desired(state)).await;
            Some(detect_within)
        }
        Err(error) => {
            tracing::error!(%error, "invalid desired state from the coordinator; ignored");
            None
        }
    }
}

/// Every new report, with the log lines and answers since the last one.
fn outgoing(
    reports: watch::Receiver<Option<WorkerReport>>,
    luggage: Luggage,
) -> impl Stream<Item = pb::WorkerReport> + Send + 'static {
    futures::stream::unfold((reports, luggage), |(mut reports, luggage)| async move {
        loop {
            reports.changed().await.ok()?;
            let report = reports
                .borrow_and_update()
                .as_ref()
                .map(pb::WorkerReport::from);
            if let Some(mut report) = report {
                report.sick = luggage.gpus.sick().map(|sick| cut(&sick, TEXT_BYTES));
                shorten(&mut report);
                let room = REPORT_BYTES.saturating_sub(report.encoded_len());
                let lines = luggage.logs.take(room).into_iter();
                report.logs = lines.map(line_to_wire).collect();
                let room = REPORT_BYTES.saturating_sub(report.encoded_len());
                report.answers = luggage.answers.take(room);
                return Some((report, (reports, luggage)));
            }
        }
    })
}

/// Bytes of a unit's error in a report that is too long.
const UNIT_ERROR_BYTES: usize = 200;

/// Makes a report fit into one message. The newest steps wait: the machine repeats every step until
/// the coordinator has acknowledged it.
fn shorten(report: &mut pb::WorkerReport) {
    if report.encoded_len() <= REPORT_BYTES {
        return;
    }
    for failure in report.ranks.iter_mut().flat_map(|rank| &mut rank.units) {
        for failed in &mut failure.failed {
            failed.error = cut(&failed.error, UNIT_ERROR_BYTES);
        }
    }
    let mut steps = 0;
    while REPORT_BYTES < report.encoded_len() {
        let longest = report.ranks.iter_mut().max_by_key(|rank| rank.steps.len());
        let Some(rank) = longest.filter(|rank| !rank.steps.is_empty()) else {
            break;
        };
        let keep = rank.steps.len() / 2;
        steps += rank.steps.len() - keep;
        rank.steps.truncate(keep);
    }
    let bytes = report.encoded_len();
    tracing::warn!(
        steps,
        bytes,
        limit = REPORT_BYTES,
        "the report was too long; its newest steps wait for the next one"
    );
}

fn line_to_wire(line: Line) -> pb::LogLine {
    pb::LogLine {
        job: line.key.job.0,
        generation: line.key.generation.0,
        rank: line.key.rank.0,
        at_ms: line.at_ms,
        text: line.text,
        step: line.step,
        dropped: line.dropped,
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
    use tonic::{Request, Response, Streaming};
    use worker_core::event::RankKey;

    type States = mpsc::Sender<Result<pb::DesiredState, Status>>;

    /// A coordinator that passes each stream to the test after its first report.
    struct FakeCoordinator {
        streams: mpsc::Sender<(pb::WorkerReport, States, Streaming<pb::WorkerReport>)>,
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
        let (sender, mut inputs) = mpsc::channel(16);
        let logs = Logs::default();
        let key = RankKey {
            job: JobId("a-1".into()),
            generation: Generation(1),
            rank: Rank(0),
        };
        logs.push(Line {
            key,
            step: Some(3),
            at_ms: 7,
            text: "hello".into(),
            dropped: 2,
        });
        let luggage = Luggage {
            logs,
            ..Luggage::default()
        };
        let mut link = Link::start(&url, sender, luggage.clone()).unwrap();

        assert_eq!(inputs.recv().await, Some(Input::Connected));
        link.report(report(1));
        let (first, states, _reports) = opened.recv().await.unwrap();
        assert_eq!((first.devices, first.logs.len()), (1, 1));
        assert_eq!(first.logs[0].text, "hello");
        assert_eq!((first.logs[0].step, first.logs[0].dropped), (Some(3), 2));
        let state = DesiredState {
            worker: id(),
            assignments: vec![],
            detect_within_ms: 3_000,
            peers: vec![],
            refused: vec![],
            successor: None,
        };
        let probe = pb::Probe {
            number: 9,
            ..Default::default()
        };
        let asking = pb::DesiredState {
            probe: Some(probe.clone()),
            ..pb::DesiredState::from(&state)
        };
        states.send(Ok(asking)).await.unwrap();
        assert_eq!(inputs.recv().await, Some(Input::Desired(state)));
        assert!(matches!(link.told().await, Told::Asked(it) if it == probe));
        // An invalid state is ignored, and the stream stays open.
        states.send(Ok(pb::DesiredState::default())).await.unwrap();
        drop(states);
        assert_eq!(inputs.recv().await, Some(Input::Disconnected));

        assert_eq!(inputs.recv().await, Some(Input::Connected));
        link.report(report(2));
        let (second, ..) = opened.recv().await.unwrap();
        assert_eq!((second.devices, second.logs.len()), (2, 0));
    }

    #[test]
    fn a_report_that_is_too_long_keeps_the_oldest_steps() {
        let step = |step| pb::StepReport {
            step,
            seconds: Some(pb::PhaseSeconds::default()),
            terms: vec![
                pb::LossTerm {
                    name: "t".repeat(64),
                    value: 1.0,
                };
                32
            ],
            ..Default::default()
        };
        let rank = pb::RankReport {
            steps: (1..=512).map(step).collect(),
            ..Default::default()
        };
        let mut long = pb::WorkerReport {
            ranks: vec![rank; 8],
            ..Default::default()
        };
        assert!(REPORT_BYTES < long.encoded_len());
        shorten(&mut long);
        assert!(long.encoded_len() <= REPORT_BYTES);
        for rank in &long.ranks {
            let steps: Vec<u64> = rank.steps.iter().map(|step| step.step).collect();
            let oldest: Vec<u64> = (1..=steps.len() as u64).collect();
            assert!(!steps.is_empty() && steps == oldest, "{steps:?}");
        }
    }

    #[test]
    fn a_reason_is_said_once_a_minute_and_a_new_one_at_once() {
        let (mut said, start) = (Said::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        for (reason, seconds, expected) in [
            ("refused", 0, true),
            ("refused", 59, false),
            ("refused", 60, true),
            ("no route", 61, true),
            ("no route", 62, false),
        ] {
            assert_eq!(said.is_due(reason, after(seconds)), expected, "{seconds}");
        }
    }

    #[test]
    fn an_invalid_address_is_rejected() {
        let (sender, _events) = mpsc::channel(1);
        let link = Link::start("not a url", sender, Luggage::default());
        assert!(link.is_err());
    }
}
