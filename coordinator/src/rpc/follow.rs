//! What the streams send: views, steps, ledgers, log lines and events, and with `follow` what comes
//! next.

use super::{ControlService, failed, unavailable, unreadable};
use crate::daemon::Stopping;
use crate::streams::Reader;
use proto::id::JobId;
use proto::pb;
use proto::phase::is_over;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::sleep;
use tonic::Status;

/// Entries per read from the store.
const PAGE: usize = 512;
/// Between two looks at what a stream shows. Something changes with every report of every worker,
/// and no person reads faster.
const LOOK_EVERY: Duration = Duration::from_millis(50);

impl ControlService {
    /// Sends views until the job is over or the client has disconnected.
    pub(super) async fn watch(
        &self,
        job: JobId,
        mut last: pb::JobView,
        to: &Reader<pb::JobView>,
    ) -> Result<(), Status> {
        let mut changes = self.handle.changes();
        loop {
            let over = is_over(&last.phase);
            if !to.send(last.clone()).await? || over {
                return Ok(());
            }
            last = loop {
                sleep(LOOK_EVERY).await;
                changes.changed().await.map_err(|_| unavailable(Stopping))?;
                match self.jobs.get(&job).await.map_err(failed)? {
                    Some(view) if view != last => break view,
                    Some(_) => {}
                    None => return Err(Status::not_found(format!("job {job} no longer exists"))),
                }
            };
        }
    }

    pub(super) async fn send_steps(
        &self,
        job: &JobId,
        to: &Reader<pb::StepReport>,
    ) -> Result<(), Status> {
        self.journal.flushed().await;
        let mut after = 0;
        loop {
            let steps = self
                .journal
                .steps(job, after, PAGE)
                .await
                .map_err(unreadable)?;
            let Some(last) = steps.last() else {
                return Ok(());
            };
            after = last.step;
            for step in steps {
                if !to.send(step).await? {
                    return Ok(());
                }
            }
        }
    }

    pub(super) async fn send_ledger(
        &self,
        job: &JobId,
        to: &Reader<pb::LedgerLine>,
    ) -> Result<(), Status> {
        let mut from = 0;
        loop {
            let lines = self
                .journal
                .ledger(job, from, PAGE)
                .await
                .map_err(unreadable)?;
            if lines.is_empty() {
                return Ok(());
            }
            from += lines.len() as u64;
            for json in lines {
                if !to.send(pb::LedgerLine { json }).await? {
                    return Ok(());
                }
            }
        }
    }

    /// With `follow`, continues until the job is over and all its lines have been sent.
    pub(super) async fn send_logs(
        &self,
        job: &JobId,
        request: &pb::LogsRequest,
        to: &Reader<pb::LogLine>,
    ) -> Result<(), Status> {
        let mut written = self.journal.written();
        let mut changes = self.handle.changes();
        let mut next = 0;
        let matches = |line: &pb::LogLine| {
            request.rank.is_none_or(|it| it == line.rank)
                && request.since_ms.is_none_or(|it| it <= line.at_ms)
        };
        if let Some(lines) = request.tail {
            next = self.start_of_tail(job, lines, matches).await?;
        }
        // Of lines that do not match, the next one that does tells.
        let mut dropped: u64 = 0;
        loop {
            let over = match self.handle.job(job.clone()).await.map_err(unavailable)? {
                Some(view) => is_over(&view.phase),
                None => true,
            };
            // The phase was queried before reading, so that no line before the job's end is missed.
            self.journal.flushed().await;
            loop {
                let lines = self
                    .journal
                    .logs(job, next, PAGE)
                    .await
                    .map_err(unreadable)?;
                let Some((last, _)) = lines.last() else { break };
                next = last + 1;
                for (_, mut line) in lines {
                    dropped = dropped.saturating_add(line.dropped);
                    if matches(&line) {
                        line.dropped = std::mem::take(&mut dropped);
                        if !to.send(line).await? {
                            return Ok(());
                        }
                    }
                }
            }
            if over || !request.follow {
                return Ok(());
            }
            sleep(LOOK_EVERY).await;
            tokio::select! {
                changed = written.changed() => changed.map_err(|_| unavailable(Stopping))?,
                changed = changes.changed() => changed.map_err(|_| unavailable(Stopping))?,
                () = to.closed() => return Ok(()),
            }
        }
    }

    /// With `follow`, continues until the reader leaves.
    pub(super) async fn send_events(
        &self,
        request: &pb::EventsRequest,
        to: &Reader<pb::EventLine>,
    ) -> Result<(), Status> {
        let mut changes = self.event_log.changes();
        let mut after = request.after;
        loop {
            changes.mark_unchanged();
            loop {
                let (lines, through) = self.event_log.after(&request.job, after, PAGE);
                let is_page = lines.len() == PAGE;
                after = through;
                for line in lines {
                    if !to.send(line).await? {
                        return Ok(());
                    }
                }
                if !is_page {
                    break;
                }
            }
            if !request.follow {
                return Ok(());
            }
            tokio::select! {
                changed = changes.changed() => changed.map_err(|_| unavailable(Stopping))?,
                () = to.closed() => return Ok(()),
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// The number of the first of the last `lines` lines that match.
    async fn start_of_tail(
        &self,
        job: &JobId,
        lines: u64,
        matches: impl Fn(&pb::LogLine) -> bool,
    ) -> Result<u64, Status> {
        let limit = usize::try_from(lines).unwrap_or(usize::MAX);
        self.journal.flushed().await;
        let mut next = 0;
        let mut last = VecDeque::new();
        loop {
            let page = self
                .journal
                .logs(job, next, PAGE)
                .await
                .map_err(unreadable)?;
            let Some((newest, _)) = page.last() else {
                break;
            };
            next = newest + 1;
            last.extend(
                page.iter()
                    .filter(|(_, line)| matches(line))
                    .map(|(it, _)| *it),
            );
            let surplus = last.len().saturating_sub(limit);
            last.drain(..surplus);
        }
        Ok(last.front().copied().unwrap_or(next))
    }
}
