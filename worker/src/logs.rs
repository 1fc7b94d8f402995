//! Buffers new output lines of the ranks on their way to the coordinator. The buffer is bounded and
//! drops the oldest lines, because logs must never block a job. Written by [`crate::child`],
//! drained by [`crate::link`].

use proto::limits::cut;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use worker_core::event::RankKey;

/// Maximum number of buffered lines.
const LINES_MAX: usize = 4096;
/// Maximum number of lines in one report, so that reports stay small.
const LINES_PER_REPORT: usize = 512;
/// Maximum length of a line in bytes; longer lines are cut.
pub(crate) const LINE_BYTES_MAX: usize = 4096;
/// What a line takes in a report beside its text, at most: the id of its job and numbers.
const LINE_BYTES_MORE: usize = 128;

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
        line.text = cut(&line.text, LINE_BYTES_MAX);
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// Takes the oldest lines out of the buffer, at most [`LINES_PER_REPORT`], and no more than
    /// take this many bytes of a report.
    pub(crate) fn take(&self, room: usize) -> Vec<Line> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = 0;
        let fits = lines.iter().take(LINES_PER_REPORT).take_while(|line| {
            bytes += line.text.len() + LINE_BYTES_MORE;
            bytes <= room
        });
        let count = fits.count();
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
        assert!(logs.take(LINE_BYTES_MORE).is_empty(), "there is no room");
        let first = logs.take(usize::MAX);
        assert_eq!(first.len(), LINES_PER_REPORT);
        assert_eq!(first[0].at_ms, 3);
        let logs = Logs::default();
        logs.push(line(0, &format!("x{}", "ü".repeat(LINE_BYTES_MAX))));
        let text = &logs.take(usize::MAX)[0].text;
        assert!(text.len() <= LINE_BYTES_MAX, "{} bytes", text.len());
        assert!(text.ends_with("(cut: it has 8193 bytes)"), "{text}");
        assert!(logs.take(usize::MAX).is_empty());
    }
}
