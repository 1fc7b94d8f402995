//! The newest events of jobs and workers, for `coordinator events` and for pages. It is in memory
//! and bounded: a restart of the coordinator begins a new one. What must outlive that is in the
//! jobs' records: incidents, checkpoints, and the account of their time.

use crate::events;
use coordinator_core::event::Event;
use proto::pb;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Events that are kept. Steps are none of them.
const EVENTS_MAX: usize = 10_000;

/// Cheap to clone; all clones share the events.
#[derive(Debug, Clone)]
pub(crate) struct EventLog {
    lines: Arc<Mutex<VecDeque<pb::EventLine>>>,
    /// The number of the newest one; 0: there is none.
    newest: Arc<watch::Sender<u64>>,
}

impl EventLog {
    pub(crate) fn new() -> Self {
        Self {
            lines: Arc::default(),
            newest: Arc::new(watch::Sender::new(0)),
        }
    }

    pub(crate) fn add(&self, event: &Event, at_ms: u64) {
        if let Some(line) = events::line(event) {
            self.add_line(line, at_ms);
        }
    }

    /// For what is no event of the machine.
    pub(crate) fn add_line(&self, line: pb::EventLine, at_ms: u64) {
        let mut lines = self.lock();
        let number = *self.newest.borrow() + 1;
        lines.push_back(pb::EventLine {
            number,
            at_ms,
            ..line
        });
        let surplus = lines.len().saturating_sub(EVENTS_MAX);
        lines.drain(..surplus);
        drop(lines);
        self.newest.send_replace(number);
    }

    /// Up to `limit` events of this job (of all, if it is empty) with a higher number, oldest
    /// first; and the number up to which there are no more.
    pub(crate) fn after(&self, job: &str, after: u64, limit: usize) -> (Vec<pb::EventLine>, u64) {
        let lines = self.lock();
        let matches =
            |line: &&pb::EventLine| after < line.number && (job.is_empty() || line.job == job);
        let found: Vec<pb::EventLine> = lines.iter().filter(matches).take(limit).cloned().collect();
        let through = match found.last() {
            Some(last) if found.len() == limit => last.number,
            _ => lines.back().map_or(after, |last| last.number.max(after)),
        };
        (found, through)
    }

    /// Up to `limit` events that match, the newest first, of numbers below `before`.
    pub(crate) fn newest(
        &self,
        before: u64,
        limit: usize,
        matches: impl Fn(&pb::EventLine) -> bool,
    ) -> Vec<pb::EventLine> {
        let lines = self.lock();
        let newest = lines.iter().rev().filter(|it| it.number < before);
        newest
            .filter(|it| matches(it))
            .take(limit)
            .cloned()
            .collect()
    }

    /// Changes with every event.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<pb::EventLine>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::id::{JobId, Step};

    fn done(job: &str) -> Event {
        Event::JobDone {
            job: JobId(job.to_owned()),
            step: Step(4),
        }
    }

    #[test]
    fn it_keeps_the_newest_and_pages_through_those_of_a_job() {
        let log = EventLog::new();
        for number in 0..EVENTS_MAX + 5 {
            log.add(&done(if number % 2 == 0 { "a-1" } else { "b-2" }), 7);
        }
        let (all, _) = log.after("", 0, usize::MAX);
        assert_eq!(all.len(), EVENTS_MAX);
        assert_eq!(all.first().map(|it| it.number), Some(6));
        let (page, through) = log.after("b-2", 0, 2);
        let numbers: Vec<u64> = page.iter().map(|it| it.number).collect();
        assert_eq!((numbers, through), (vec![6, 8], 8));
        let newest = log.newest(10_003, 2, |line| line.job == "a-1");
        let numbers: Vec<u64> = newest.iter().map(|it| it.number).collect();
        assert_eq!(numbers, [10_001, 9_999]);
        let (rest, through) = log.after("b-2", 10_003, 5);
        assert_eq!((rest.len(), through), (1, 10_005));
        assert_eq!(rest[0].text, "job is done after step 4");
    }
}
