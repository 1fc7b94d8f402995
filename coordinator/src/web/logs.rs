//! The ends of logs, kept for pages that are looked at, and pages of a whole log. A page is made
//! every second while somebody looks, and a log may have 20,000 lines.

use super::show::Moment;
use crate::journal::Journal;
use crate::store::StateError;
use proto::id::JobId;
use proto::pb;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex as Sync, PoisonError};
use std::time::Instant;
use tokio::sync::Mutex;

/// Jobs whose last lines are kept, and how many of each.
const JOBS: usize = 64;
const LINES: usize = 400;
/// Lines per read from the store.
const PAGE: usize = 2048;

#[derive(Debug)]
pub(super) struct LogRow {
    pub(super) number: u64,
    pub(super) at: Moment,
    pub(super) generation: u64,
    pub(super) rank: u32,
    /// `error`, `warn`, `info`, `debug` or empty.
    pub(super) level: &'static str,
    pub(super) text: String,
}

impl LogRow {
    pub(super) fn of(number: u64, line: &pb::LogLine) -> Self {
        Self {
            number,
            at: Moment::of(line.at_ms),
            generation: line.generation,
            rank: line.rank,
            level: level(&line.text),
            text: line.text.clone(),
        }
    }
}

/// The level that a line names near its beginning, as loggers write it. Empty: it names none.
pub(super) fn level(text: &str) -> &'static str {
    let begin: String = text.chars().take(64).collect();
    let words = begin.split(|it: char| !it.is_ascii_alphabetic());
    for word in words {
        match word {
            "ERROR" | "CRITICAL" | "panicked" | "Traceback" => return "error",
            "WARN" | "WARNING" => return "warn",
            "INFO" => return "info",
            "DEBUG" | "TRACE" => return "debug",
            _ => {}
        }
    }
    ""
}

/// Which lines are shown.
#[derive(Debug, Clone, Default)]
pub(super) struct LogFilter {
    pub(super) rank: Option<u64>,
    pub(super) generation: Option<u64>,
    pub(super) level: &'static str,
    /// In lower case; empty: all.
    pub(super) search: String,
}

impl LogFilter {
    pub(super) fn matches(&self, line: &pb::LogLine) -> bool {
        self.rank.is_none_or(|it| it == u64::from(line.rank))
            && self.generation.is_none_or(|it| it == line.generation)
            && match self.level {
                "error" => level(&line.text) == "error",
                "warn" => matches!(level(&line.text), "error" | "warn"),
                _ => true,
            }
            && (self.search.is_empty() || line.text.to_lowercase().contains(&self.search))
    }
}

#[derive(Debug, Default)]
struct Tail {
    next: u64,
    lines: VecDeque<(u64, pb::LogLine)>,
}

type Kept = HashMap<String, (Instant, Arc<Mutex<Tail>>)>;

/// Cheap to clone; all clones share the lines.
#[derive(Debug, Clone)]
pub(super) struct Tails {
    journal: Journal,
    kept: Arc<Sync<Kept>>,
}

impl Tails {
    pub(super) fn new(journal: Journal) -> Self {
        Self {
            journal,
            kept: Arc::default(),
        }
    }

    fn entry(&self, job: &JobId) -> Arc<Mutex<Tail>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if JOBS <= kept.len() && !kept.contains_key(&job.0) {
            let oldest = kept.iter().min_by_key(|(_, (used, _))| *used);
            if let Some(oldest) = oldest.map(|(job, _)| job.clone()) {
                kept.remove(&oldest);
            }
        }
        let fresh = || (Instant::now(), Arc::default());
        let entry = kept.entry(job.0.clone()).or_insert_with(fresh);
        entry.0 = Instant::now();
        Arc::clone(&entry.1)
    }

    /// The last `count` lines of a job that match, oldest first, of the last [`LINES`].
    pub(super) async fn last(
        &self,
        job: &JobId,
        count: usize,
        filter: &LogFilter,
    ) -> Result<Vec<LogRow>, StateError> {
        let entry = self.entry(job);
        let mut tail = entry.lock().await;
        loop {
            let page = self.journal.logs(job, tail.next, PAGE).await?;
            let is_last = page.len() < PAGE;
            for (number, line) in page {
                tail.next = number + 1;
                tail.lines.push_back((number, line));
            }
            let surplus = tail.lines.len().saturating_sub(LINES);
            tail.lines.drain(..surplus);
            if is_last {
                break;
            }
        }
        let matching = tail
            .lines
            .iter()
            .rev()
            .filter(|(_, line)| filter.matches(line));
        let mut rows: Vec<LogRow> = matching
            .take(count)
            .map(|(number, line)| LogRow::of(*number, line))
            .collect();
        rows.reverse();
        Ok(rows)
    }

    /// The last `count` lines that match below line `before`, oldest first, of all that are stored;
    /// and whether there are earlier ones.
    pub(super) async fn before(
        &self,
        job: &JobId,
        before: u64,
        count: usize,
        filter: &LogFilter,
    ) -> Result<(Vec<LogRow>, bool), StateError> {
        let mut rows: VecDeque<LogRow> = VecDeque::new();
        let mut next = 0;
        let mut earlier = false;
        loop {
            let page = self.journal.logs(job, next, PAGE).await?;
            let Some((last, _)) = page.last() else { break };
            next = last + 1;
            let below = page.iter().filter(|(number, _)| *number < before);
            for (number, line) in below.filter(|(_, line)| filter.matches(line)) {
                rows.push_back(LogRow::of(*number, line));
                if count < rows.len() {
                    rows.pop_front();
                    earlier = true;
                }
            }
            if page.len() < PAGE || before <= next {
                break;
            }
        }
        Ok((rows.into(), earlier))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_level_that_its_logger_wrote() {
        for (text, expected) in [
            ("2026-01-01T00:00:00Z  WARN rank: slow", "warn"),
            ("[ERROR] no space", "error"),
            ("thread 'main' panicked at src/x.rs", "error"),
            ("the ERRORS of others", ""),
            ("step 3 done", ""),
        ] {
            assert_eq!(level(text), expected, "{text}");
        }
    }

    #[test]
    fn lines_are_found_by_rank_level_and_text() {
        let line = |rank, text: &str| pb::LogLine {
            rank,
            text: text.to_owned(),
            ..Default::default()
        };
        let filter = LogFilter {
            rank: Some(1),
            level: "warn",
            search: "space".to_owned(),
            ..LogFilter::default()
        };
        assert!(filter.matches(&line(1, "ERROR no Space left")));
        assert!(!filter.matches(&line(0, "ERROR no Space left")));
        assert!(!filter.matches(&line(1, "INFO much space left")));
        assert!(!filter.matches(&line(1, "WARN slow")));
    }
}
