//! The newest lines of a daemon's own log, in memory and bounded, for whoever asks the daemon.
//! Filled by [`crate::log`] with what it writes, escaped as it is there.

use std::collections::VecDeque;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// Lines that are kept.
const LINES_MAX: usize = 10_000;
/// Bytes of their texts that are kept.
const BYTES_MAX: usize = 4 << 20;

static RECENT: LazyLock<Recent> = LazyLock::new(Recent::default);

/// A line of the log without its line end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Counted from 1 since the process began.
    pub number: u64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    pub text: String,
}

/// Up to `limit` lines after this number that are still there, oldest first.
#[must_use]
pub fn after(number: u64, limit: usize) -> Vec<Line> {
    RECENT.lock().after(number, limit)
}

/// The number before the last `lines` lines that are not older than `since_ms`.
#[must_use]
pub fn before_last(since_ms: u64, lines: usize) -> u64 {
    RECENT.lock().before_last(since_ms, lines)
}

/// Changes with every line.
#[must_use]
pub fn changes() -> watch::Receiver<u64> {
    RECENT.newest.subscribe()
}

/// Adds what was written to the log, perhaps with colours.
pub(crate) fn add(text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let at_ms = u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
    let number = RECENT.lock().add(plain(text.trim_end()), at_ms);
    // Not `send`, which drops the value while nobody is subscribed.
    RECENT.newest.send_replace(number);
}

/// Without the colours of `tracing`: sequences from ESC to the letter that ends them. All other
/// control characters have been escaped.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            characters.by_ref().find(char::is_ascii_alphabetic);
        } else {
            plain.push(character);
        }
    }
    plain
}

#[derive(Debug)]
struct Recent {
    lines: Mutex<Lines>,
    newest: watch::Sender<u64>,
}

impl Default for Recent {
    fn default() -> Self {
        Self {
            lines: Mutex::default(),
            newest: watch::Sender::new(0),
        }
    }
}

impl Recent {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct Lines {
    lines: VecDeque<Line>,
    bytes: usize,
    newest: u64,
}

impl Lines {
    fn add(&mut self, text: String, at_ms: u64) -> u64 {
        self.newest += 1;
        self.bytes += text.len();
        self.lines.push_back(Line {
            number: self.newest,
            at_ms,
            text,
        });
        while LINES_MAX < self.lines.len() || BYTES_MAX < self.bytes {
            let Some(oldest) = self.lines.pop_front() else {
                break;
            };
            self.bytes -= oldest.text.len();
        }
        self.newest
    }

    fn after(&self, number: u64, limit: usize) -> Vec<Line> {
        let start = self.lines.partition_point(|line| line.number <= number);
        self.lines.range(start..).take(limit).cloned().collect()
    }

    fn before_last(&self, since_ms: u64, lines: usize) -> u64 {
        let matching = self
            .lines
            .iter()
            .rev()
            .filter(|line| since_ms <= line.at_ms);
        let first = matching.take(lines).last();
        first.map_or(self.newest, |line| line.number - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_lines_are_kept_and_numbered() {
        let mut lines = Lines::default();
        for number in 1..=LINES_MAX as u64 + 3 {
            assert_eq!(lines.add(format!("line {number}"), number), number);
        }
        assert_eq!(lines.after(0, usize::MAX).len(), LINES_MAX);
        let page = lines.after(7, 2);
        let numbers: Vec<u64> = page.iter().map(|line| line.number).collect();
        assert_eq!((numbers, page[0].text.as_str()), (vec![8, 9], "line 8"));
        assert_eq!(lines.before_last(0, 2), 10_001);
        assert_eq!(lines.before_last(10_003, 9), 10_002);
        assert_eq!(lines.before_last(99_999, 9), 10_003);
        assert_eq!(lines.before_last(0, 0), 10_003);
        lines.add("x".repeat(BYTES_MAX), 0);
        assert_eq!(lines.lines.len(), 1, "long lines displace more");
        lines.add("x".repeat(BYTES_MAX + 1), 0);
        assert_eq!((lines.lines.len(), lines.bytes), (0, 0));
    }

    #[test]
    fn colours_are_left_out() {
        let line = "\u{1b}[2m2026\u{1b}[0m \u{1b}[32m INFO\u{1b}[0m worker=w1";
        assert_eq!(plain(line), "2026  INFO worker=w1");
    }
}
