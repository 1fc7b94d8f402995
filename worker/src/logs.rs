//! Buffers new output lines of the ranks on their way to the coordinator. The buffer is bounded and
//! drops the oldest lines, because logs must never block a job. Written by [`crate::child`],
//! drained by [`crate::link`].

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use worker_core::event::RankKey;

/// Maximum number of buffered lines.
const LINES_MAX: usize = 4096;
/// Maximum number of lines in one report, so that reports stay small.
const LINES_PER_REPORT: usize = 512;
/// Maximum length of a line in bytes; longer lines are truncated.
const LINE_BYTES_MAX: usize = 4096;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Line {
    pub(crate) key: RankKey,
    pub(crate) at_ms: u64,
    pub(crate) text: String,
}

/// Cheap to clone; all clones share one buffer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Logs {
    lines: Arc<Mutex<VecDeque<Line>>>,
}

impl Logs {
    pub(crate) fn push(&self, mut line: Line) {
        let mut end = LINE_BYTES_MAX.min(line.text.len());
        while !line.text.is_char_boundary(end) {
            end -= 1;
        }
        line.text.truncate(end);
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// Takes the oldest lines out of the buffer, at most [`LINES_PER_REPORT`].
    pub(crate) fn take(&self) -> Vec<Line> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let count = lines.len().min(LINES_PER_REPORT);
        lines.drain(..count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::id::{Generation, JobId, Rank};

    fn line(number: usize, text: &str) -> Line {
        let key = RankKey {
            job: JobId("a-1".into()),
            generation: Generation(1),
            rank: Rank(0),
        };
        Line {
            key,
            at_ms: number as u64,
            text: text.into(),
        }
    }

    #[test]
    fn the_oldest_lines_are_dropped_and_long_lines_are_cut_between_characters() {
        let logs = Logs::default();
        for number in 0..LINES_MAX + 3 {
            logs.push(line(number, "x"));
        }
        let first = logs.take();
        assert_eq!(first.len(), LINES_PER_REPORT);
        assert_eq!(first[0].at_ms, 3);
        let logs = Logs::default();
        logs.push(line(0, &format!("x{}", "ü".repeat(LINE_BYTES_MAX))));
        assert_eq!(logs.take()[0].text.len(), LINE_BYTES_MAX - 1);
        assert!(logs.take().is_empty());
    }
}
