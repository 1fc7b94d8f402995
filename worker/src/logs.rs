//! Buffers new output lines of the ranks on their way to the coordinator. The buffer is bounded and
//! drops lines, because logs must never block a job: the oldest of the job that has most of them,
//! so that one job does not cost another its lines. The next line of that job tells how many.
//! Written by [`crate::child`], drained by [`crate::link`].

use proto::id::JobId;
use proto::limits::cut;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use worker_core::event::RankKey;

/// Maximum number of buffered lines, of all jobs.
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
    /// The newest step that the rank had reported; None before the first.
    pub(crate) step: Option<u64>,
    pub(crate) at_ms: u64,
    pub(crate) text: String,
    /// Lines of the job that were dropped just before this one.
    pub(crate) dropped: u64,
}

/// Cheap to clone; all clones share one buffer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Logs {
    buffer: Arc<Mutex<Buffer>>,
}

/// No job in it is without lines.
#[derive(Debug, Default)]
struct Buffer {
    jobs: BTreeMap<JobId, VecDeque<Line>>,
    count: usize,
}

impl Buffer {
    fn push(&mut self, line: Line) {
        let job = line.key.job.clone();
        self.jobs.entry(job).or_default().push_back(line);
        self.count += 1;
        if LINES_MAX < self.count {
            self.drop_one();
        }
    }

    fn drop_one(&mut self) {
        let most = self.jobs.values_mut().max_by_key(|lines| lines.len());
        // It has at least one other line, unless there are more jobs than lines.
        if let Some(lines) = most
            && let Some(oldest) = lines.pop_front()
        {
            self.count -= 1;
            if let Some(next) = lines.front_mut() {
                next.dropped += oldest.dropped + 1;
            }
        }
        self.jobs.retain(|_, lines| !lines.is_empty());
    }

    /// Takes a line of each job in turn.
    fn take(&mut self, room: usize) -> Vec<Line> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        while 0 < self.count {
            for lines in self.jobs.values_mut() {
                let Some(line) = lines.front() else { continue };
                bytes += line.text.len() + LINE_BYTES_MORE;
                if room < bytes || taken.len() == LINES_PER_REPORT {
                    self.jobs.retain(|_, lines| !lines.is_empty());
                    return taken;
                }
                taken.extend(lines.pop_front());
                self.count -= 1;
            }
        }
        self.jobs.clear();
        taken
    }
}

impl Logs {
    pub(crate) fn push(&self, mut line: Line) {
        line.text = cut(&line.text, LINE_BYTES_MAX);
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        buffer.push(line);
    }

    /// Takes lines out of the buffer, the oldest of each job first, at most [`LINES_PER_REPORT`],
    /// and no more than take this many bytes of a report.
    pub(crate) fn take(&self, room: usize) -> Vec<Line> {
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        buffer.take(room)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::id::{Generation, Rank};

    fn line_of(job: &str, number: usize, text: &str) -> Line {
        let key = RankKey {
            job: JobId(job.into()),
            generation: Generation(1),
            rank: Rank(0),
        };
        Line {
            key,
            step: None,
            at_ms: number as u64,
            text: text.into(),
            dropped: 0,
        }
    }

    fn line(number: usize, text: &str) -> Line {
        line_of("a-1", number, text)
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
        assert_eq!((first[0].at_ms, first[0].dropped), (3, 3));
        assert_eq!((first[1].at_ms, first[1].dropped), (4, 0));
        let logs = Logs::default();
        logs.push(line(0, &format!("x{}", "ü".repeat(LINE_BYTES_MAX))));
        let text = &logs.take(usize::MAX)[0].text;
        assert!(text.len() <= LINE_BYTES_MAX, "{} bytes", text.len());
        assert!(text.ends_with("(cut: it has 8193 bytes)"), "{text}");
        assert!(logs.take(usize::MAX).is_empty());
    }

    #[test]
    fn a_job_that_writes_much_costs_another_no_line_and_no_turn() {
        let logs = Logs::default();
        for number in 0..3 {
            logs.push(line_of("quiet-2", number, "x"));
        }
        for number in 0..2 * LINES_MAX {
            logs.push(line_of("loud-1", number, "x"));
        }
        let taken = logs.take(usize::MAX);
        let jobs: Vec<&str> = taken.iter().map(|it| it.key.job.0.as_str()).collect();
        assert_eq!(jobs[..4], ["loud-1", "quiet-2", "loud-1", "quiet-2"]);
        let lost: u64 = taken.iter().map(|it| it.dropped).sum();
        assert_eq!(lost, LINES_MAX as u64 + 3, "of the loud one");
        let mut rest = 0;
        loop {
            let more = logs.take(usize::MAX);
            if more.is_empty() {
                break;
            }
            rest += more.len();
        }
        assert_eq!(taken.len() + rest, LINES_MAX);
    }
}
