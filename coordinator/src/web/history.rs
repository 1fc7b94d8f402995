//! What each worker was doing in the last 24 hours: which jobs had how many of its devices, and
//! whether it was up. Looked at every few seconds and kept in memory, from the coordinator's start.
//! Pure; fed by [`super::look`].

use super::board::{Board, WorkerLine};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How far back.
pub(super) const DAY_MS: u64 = 86_400_000;
/// Between two looks.
const EVERY_MS: u64 = 10_000;
/// Changes of one worker that are kept.
const SPANS_MAX: usize = 128;

/// A worker from this time to the next span's, or until now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    /// Milliseconds since 1970.
    pub(super) from_ms: u64,
    /// As [`WorkerLine::state`].
    pub(super) state: &'static str,
    pub(super) devices: usize,
    /// Jobs, each with its number of devices.
    pub(super) jobs: Vec<(String, usize)>,
}

/// Cheap to clone; all clones share what is known.
#[derive(Debug, Clone, Default)]
pub(super) struct History(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// Of the first and the last look; 0: there was none.
    since_ms: u64,
    last_ms: u64,
    workers: HashMap<String, VecDeque<Span>>,
}

impl History {
    /// Remembers what the board shows, unless that was done a moment ago.
    pub(super) fn add(&self, board: &Board) {
        let mut inner = self.lock();
        let now = board.at_ms;
        if inner.last_ms != 0 && now < inner.last_ms.saturating_add(EVERY_MS) {
            return;
        }
        if inner.since_ms == 0 {
            inner.since_ms = now;
        }
        inner.last_ms = now;
        let mut lines: BTreeMap<&str, &WorkerLine> = BTreeMap::new();
        for line in &board.workers {
            let entry = lines.entry(line.name()).or_insert(line);
            // Of one that restarted the one that is up counts, or else the later.
            if entry.view.up <= line.view.up {
                *entry = line;
            }
        }
        let cutoff = now.saturating_sub(DAY_MS);
        for (name, line) in lines {
            let span = span(line, now);
            match inner.workers.get_mut(name) {
                Some(spans) => {
                    if spans.back().is_none_or(|last| !is_same(last, &span)) {
                        spans.push_back(span);
                    }
                }
                None => drop(
                    inner
                        .workers
                        .insert(name.to_owned(), VecDeque::from([span])),
                ),
            }
        }
        inner.workers.retain(|_, spans| {
            let is_past = |spans: &VecDeque<Span>| {
                spans.get(1).is_some_and(|next| next.from_ms <= cutoff) || SPANS_MAX < spans.len()
            };
            while is_past(spans) {
                spans.pop_front();
            }
            // One that is gone is forgotten after a day without a change.
            let is_gone = spans
                .back()
                .is_some_and(|it| it.state == "down" && it.from_ms <= cutoff);
            !is_gone
        });
    }

    /// The spans of a worker, oldest first; and since when it is known.
    pub(super) fn of(&self, worker: &str) -> (Vec<Span>, u64) {
        let inner = self.lock();
        let spans = inner.workers.get(worker);
        let spans: Vec<Span> = spans.into_iter().flatten().cloned().collect();
        (spans, inner.since_ms)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_same(a: &Span, b: &Span) -> bool {
    (a.state, a.devices, &a.jobs) == (b.state, b.devices, &b.jobs)
}

fn span(line: &WorkerLine, now: u64) -> Span {
    let mut jobs: Vec<(String, usize)> = Vec::new();
    for device in line.devices.iter().filter(|it| !it.job.is_empty()) {
        match jobs.iter_mut().find(|(job, _)| *job == device.job) {
            Some((_, count)) => *count += 1,
            None => jobs.push((device.job.clone(), 1)),
        }
    }
    Span {
        from_ms: now,
        state: line.state(),
        devices: line.devices.len(),
        jobs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::board::DeviceLine;
    use proto::pb;

    fn board(at_ms: u64, up: bool, jobs: &[&str]) -> Board {
        let device = |job: &&str| DeviceLine {
            job: (*job).to_owned(),
            ..DeviceLine::default()
        };
        let id = pb::WorkerId {
            name: "w1".to_owned(),
            boot: 1,
        };
        Board {
            at_ms,
            workers: vec![WorkerLine {
                view: pb::WorkerView {
                    worker: Some(id),
                    up,
                    ..Default::default()
                },
                devices: jobs.iter().map(device).collect(),
            }],
            ..Board::default()
        }
    }

    #[test]
    fn changes_of_a_day_are_kept() {
        let history = History::default();
        let day = 100 * DAY_MS;
        history.add(&board(day, true, &["", ""]));
        history.add(&board(day + 1, true, &["a-1", "a-1"]));
        let first = history.of("w1").0;
        assert_eq!(
            (first.len(), first[0].jobs.len()),
            (1, 0),
            "too soon after the first"
        );
        for (at, jobs) in [
            (10_000, ["a-1", "a-1"]),
            (20_000, ["a-1", "a-1"]),
            (30_000, ["a-1", "b-2"]),
        ] {
            history.add(&board(day + at, true, &jobs));
        }
        let (spans, since) = history.of("w1");
        let of = |span: &Span| (span.from_ms - day, span.jobs.len());
        assert_eq!(
            spans.iter().map(of).collect::<Vec<_>>(),
            [(0, 0), (10_000, 1), (30_000, 2)]
        );
        assert_eq!((since, spans[1].jobs[0].1), (day, 2));
        // A day later the span that reaches into it is the first.
        history.add(&board(day + DAY_MS + 20_000, true, &["", ""]));
        let spans = history.of("w1").0;
        assert_eq!(
            spans.iter().map(of).collect::<Vec<_>>(),
            [(10_000, 1), (30_000, 2), (DAY_MS + 20_000, 0)]
        );
        history.add(&board(day + DAY_MS + 40_000, false, &["", ""]));
        history.add(&board(day + 3 * DAY_MS, false, &["", ""]));
        assert_eq!(history.of("w1").0.len(), 0, "it is gone");
        assert_eq!(history.of("w2").0, []);
    }

    #[test]
    fn a_worker_that_changes_all_the_time_takes_bounded_memory() {
        let history = History::default();
        for at in 1..=3 * SPANS_MAX as u64 {
            let job = format!("a-{at}");
            history.add(&board(at * EVERY_MS, true, &[job.as_str()]));
        }
        let spans = history.of("w1").0;
        assert_eq!(
            (spans.len(), spans[0].jobs[0].0.as_str()),
            (SPANS_MAX, "a-257")
        );
    }
}
