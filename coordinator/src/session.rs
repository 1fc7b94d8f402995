//! One worker's stream: forwards its reports to the daemon's loop and sends it the newest desired
//! state. Each stream has one task. A slow reader gets only the newest state, and the loop only the
//! newest report, so that no queue builds up. Called by tonic.

use crate::budget::{Budgets, Payer, paid};
use crate::connections::{FIRST_WITHIN, Peer};
use crate::daemon::{AttachError, Handle, Session};
use crate::gaps::Gaps;
use crate::log_limit::LogLimit;
use crate::pressure::Pressures;
use crate::probes::Probes;
use proto::id::{JobId, WorkerId};
use proto::limits::{TEXT_BYTES, cut};
use proto::message::WorkerReport;
use proto::pb;
use proto::reason::Excess;
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
/// Log lines of one worker within [`WINDOW`], in bytes of their texts and [`LINE_BYTES`] each; more
/// are dropped, and counted. The store would take them, but they would fill memory and disk.
const LINES_BYTES_MAX: usize = 8 << 20;
const LINE_BYTES: usize = 64;
const WINDOW: Duration = Duration::from_secs(10);
/// So many reports of one worker within ten seconds deserve a warning.
const REPORTS_MANY: u64 = 5_000;
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
    budgets: Budgets,
    pressures: Pressures,
    probes: Probes,
}

impl FleetService {
    pub(crate) fn new(
        handle: Handle,
        detect_within: Duration,
        budgets: &Budgets,
        pressures: &Pressures,
        probes: &Probes,
    ) -> Self {
        Self {
            handle,
            detect_within,
            budgets: budgets.clone(),
            pressures: pressures.clone(),
            probes: probes.clone(),
        }
    }

    /// Counts what is too much of this worker.
    fn count(&self, excess: Excess, sender: Sender<'_>, count: usize) {
        if let Some(peer) = sender.peer.filter(|_| 0 < count) {
            let worker = format!("worker {}", sender.worker);
            let pressures = &self.pressures;
            pressures.count_many(excess, peer.address, count, &worker);
        }
    }
}

/// A worker and its connection.
#[derive(Debug, Clone, Copy)]
struct Sender<'a> {
    worker: &'a WorkerId,
    peer: Option<&'a Arc<Peer>>,
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
        let payer = self.payer(&worker, peer).await?;
        // Its connection does not count among the others any more.
        let attachment = peer.map(|peer| {
            peer.attach().ok_or_else(|| {
                Status::resource_exhausted("this connection carries a worker's reports already")
            })
        });
        let attachment = attachment.transpose()?;
        let attach = async {
            let session = self.handle.attach(worker.clone()).await.map_err(refused)?;
            self.report(report, lines).await?;
            Ok::<_, Status>(session)
        };
        let mut session = paid(payer.clone(), attach).await?;
        let sender = Sender {
            worker: &worker,
            peer,
        };
        self.count(Excess::Workers, sender, 1);
        let result = self
            .exchange(sender, &mut session, &mut reports, outbound)
            .await;
        paid(payer, self.handle.detach(session)).await;
        drop(attachment);
        result
    }

    /// Who pays for a worker's coming and going: its address, unless it has had an assignment.
    /// Anybody can invent workers. Waits until the address may use more.
    async fn payer(
        &self,
        worker: &WorkerId,
        peer: Option<&Arc<Peer>>,
    ) -> Result<Option<Payer>, Status> {
        let Some(peer) = peer else { return Ok(None) };
        let has_held = self.handle.has_held(worker.name.clone()).await;
        if has_held.map_err(|error| Status::unavailable(error.to_string()))? {
            return Ok(None);
        }
        self.budgets.wait(peer.address, "workers").await?;
        Ok(Some(self.budgets.payer(peer.address)))
    }

    async fn report(&self, report: WorkerReport, lines: Lines) -> Result<(), Status> {
        let sent = self.handle.report(report, lines).await;
        sent.map_err(|error| Status::unavailable(error.to_string()))
    }

    async fn exchange(
        &self,
        sender: Sender<'_>,
        session: &mut Session,
        reports: &mut Streaming<pb::WorkerReport>,
        outbound: &Outbound,
    ) -> Result<(), Status> {
        let worker = sender.worker;
        let silent = self.detect_within * SILENT;
        let mut unsent = false;
        let mut heard = Instant::now();
        let busy = LogLimit::burst(REPORTS_MANY);
        let mut budget = Budget::new(heard);
        let mut newest: Option<(WorkerReport, Lines)> = None;
        let mut next = heard + REPORT_EVERY;
        let mut probes = self.probes.changes();
        let mut sick = None;
        loop {
            tokio::select! {
                message = reports.message() => {
                    let mut message = match message {
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
                    if let Some(reports) = busy.admit() {
                        let text =
                            "a worker reports without a pause; only the newest reports count";
                        tracing::warn!(%worker, reports, "{text}");
                    }
                    let answers = std::mem::take(&mut message.answers);
                    self.probes.answer(&worker.name, answers);
                    let now_sick = message.sick.take().map(|text| cut(&text, TEXT_BYTES));
                    if now_sick != sick {
                        sick.clone_from(&now_sick);
                        let told = self.handle.sick(worker.clone(), now_sick).await;
                        told.map_err(|error| Status::unavailable(error.to_string()))?;
                    }
                    let (report, lines) = decode(message)?;
                    let (lines, dropped) = within(&mut budget, worker, lines);
                    self.count(Excess::Lines, sender, dropped);
                    if report.worker != *worker {
                        return Err(Status::invalid_argument(format!(
                            "field `worker` is {}; this stream is {worker}'s", report.worker
                        )));
                    }
                    let skipped = newest.take();
                    self.count(Excess::Reports, sender, usize::from(skipped.is_some()));
                    let earlier = skipped.map_or_else(Vec::new, |(_, lines)| lines);
                    let (lines, dropped) = joined(worker, earlier, lines, &mut budget.gaps);
                    self.count(Excess::Lines, sender, dropped);
                    newest = Some((report, lines));
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
                Ok(()) = probes.changed() => {
                    unsent |= self.probes.of(&worker.name).is_some();
                }
                permit = outbound.reserve(), if unsent => {
                    let Ok(permit) = permit else { return Ok(()) };
                    unsent = false;
                    if let Some(state) = session.desired.borrow_and_update().as_ref() {
                        let probe = self.probes.of(&worker.name);
                        permit.send(Ok(pb::DesiredState {
                            probe,
                            ..state.into()
                        }));
                    }
                }
                () = sleep_until(heard + silent) => return Err(no_report(silent)),
            }
        }
    }
}

/// How much one worker may still write to logs.
#[derive(Debug)]
struct Budget {
    since: Instant,
    left: usize,
    gaps: Gaps,
}

impl Budget {
    fn new(since: Instant) -> Self {
        Self {
            since,
            left: LINES_BYTES_MAX,
            gaps: Gaps::default(),
        }
    }

    /// Keeps the first lines, as many as it has room for. Returns how many were dropped.
    fn take(&mut self, lines: &mut Lines, now: Instant) -> usize {
        if self.since + WINDOW <= now {
            self.since = now;
            self.left = LINES_BYTES_MAX;
        }
        let given = lines.len();
        let mut is_full = false;
        lines.retain_mut(|(job, line)| {
            let rest = self.left.checked_sub(line.text.len() + LINE_BYTES);
            is_full |= rest.is_none();
            if is_full {
                self.gaps.add(job, line);
            } else {
                self.gaps.close(job, line);
                self.left = rest.unwrap_or(0);
            }
            !is_full
        });
        given - lines.len()
    }
}

/// The lines that the worker's budget has room for, and how many it has none for.
fn within(budget: &mut Budget, worker: &WorkerId, mut lines: Lines) -> (Lines, usize) {
    let dropped = budget.take(&mut lines, Instant::now());
    if 0 < dropped
        && let Some(times) = DROPPED.admit()
    {
        let seconds = WINDOW.as_secs();
        let text =
            "a worker writes more than 8 MiB of log lines within this time; the rest is lost";
        tracing::warn!(%worker, dropped, times, seconds, "{text}");
    }
    (lines, dropped)
}

/// Lines that wait for the next report, with new ones, and how many are too many.
fn joined(worker: &WorkerId, mut earlier: Lines, new: Lines, gaps: &mut Gaps) -> (Lines, usize) {
    if earlier.is_empty() {
        return (new, 0);
    }
    earlier.extend(new);
    let dropped = earlier.len().saturating_sub(LINES_MAX);
    if 0 < dropped {
        if let Some(times) = DROPPED.admit() {
            tracing::warn!(%worker, dropped, times, "too many log lines; the oldest are lost");
        }
        for (job, line) in earlier.drain(..dropped) {
            gaps.add(&job, &line);
        }
        for (job, line) in &mut earlier {
            gaps.close(job, line);
        }
    }
    (earlier, dropped)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_has_room_for_lines_again_after_a_while() {
        let line = |text: &str| {
            let text = text.to_owned();
            let line = pb::LogLine {
                text,
                ..Default::default()
            };
            (JobId("a-1".to_owned()), line)
        };
        let texts = |lines: &Lines| -> Vec<usize> {
            lines.iter().map(|(_, line)| line.text.len()).collect()
        };
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let large = "x".repeat(LINES_BYTES_MAX - 3 * LINE_BYTES - 2);
        let mut lines = vec![line("a"), line(&large), line("b"), line("c")];
        assert_eq!(budget.take(&mut lines, start), 1);
        assert_eq!(texts(&lines), [1, large.len(), 1]);
        let mut lines = vec![line(""), line("d")];
        assert_eq!(budget.take(&mut lines, start + WINDOW / 2), 2);
        // None is left out between others.
        let mut lines = vec![line("e"), line(&"x".repeat(LINES_BYTES_MAX)), line("f")];
        assert_eq!(budget.take(&mut lines, start + WINDOW), 2);
        assert_eq!(texts(&lines), [1]);
        assert_eq!(lines[0].1.dropped, 3, "of all three windows");
    }

    #[test]
    fn lines_that_wait_too_long_are_told_of_by_the_next_one() {
        let line = |_| (JobId("a-1".to_owned()), pb::LogLine::default());
        let worker = WorkerId {
            name: "w1".into(),
            boot: 1,
        };
        let earlier: Lines = (0..LINES_MAX).map(line).collect();
        let new: Lines = (0..2).map(line).collect();
        let (lines, dropped) = joined(&worker, earlier, new, &mut Gaps::default());
        assert_eq!((lines.len(), dropped), (LINES_MAX, 2));
        assert_eq!((lines[0].1.dropped, lines[1].1.dropped), (2, 0));
    }
}
