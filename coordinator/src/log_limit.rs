//! Log lines that one sender can cause without end: at most a few of a kind in ten seconds. The
//! rest is counted, and the number is a field of the next one.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_secs(10);

/// A kind of log line.
#[derive(Debug)]
pub(crate) struct LogLimit {
    /// Lines in a window before the first that is logged.
    first: u64,
    /// Lines that are logged in a window.
    most: u64,
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    since: Option<Instant>,
    count: u64,
    /// Lines that were not logged since the last one that was.
    left_out: u64,
}

impl LogLimit {
    /// The first `most` lines of every ten seconds.
    pub(crate) fn at_most(most: u64) -> Self {
        Self::new(0, most)
    }

    /// One line if something happens this often within ten seconds.
    pub(crate) fn burst(often: u64) -> Self {
        Self::new(often.saturating_sub(1), 1)
    }

    fn new(first: u64, most: u64) -> Self {
        Self {
            first,
            most,
            window: Mutex::default(),
        }
    }

    /// Counts a line. Returns how many it stands for, with those that were left out before it;
    /// None: it is left out.
    pub(crate) fn admit(&self) -> Option<u64> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.since.is_none_or(|since| WINDOW <= since.elapsed()) {
            // What is left of a burst that was none is no news.
            let left_out = if self.first == 0 { window.left_out } else { 0 };
            *window = Window {
                since: Some(Instant::now()),
                count: 0,
                left_out,
            };
        }
        window.count += 1;
        window.left_out += 1;
        let logged = self.first < window.count && window.count <= self.first + self.most;
        logged.then(|| std::mem::take(&mut window.left_out))
    }

    /// How many were left out, if the window is over.
    pub(crate) fn rest(&self) -> Option<u64> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = window.since.is_some_and(|since| WINDOW <= since.elapsed());
        (is_over && 0 < window.left_out).then(|| std::mem::take(&mut window.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next_window(limit: &LogLimit) {
        let mut window = limit.window.lock().unwrap_or_else(PoisonError::into_inner);
        window.since = Some(Instant::now() - WINDOW);
    }

    #[test]
    fn the_rest_is_counted_and_said_with_the_next_line() {
        let limit = LogLimit::at_most(2);
        let admitted: Vec<_> = (0..5).map(|_| limit.admit()).collect();
        assert_eq!(admitted, [Some(1), Some(1), None, None, None]);
        assert_eq!(limit.rest(), None, "the window is not over");
        next_window(&limit);
        assert_eq!(limit.admit(), Some(4));
        limit.admit();
        limit.admit();
        next_window(&limit);
        assert_eq!((limit.rest(), limit.rest()), (Some(1), None));
    }

    #[test]
    fn a_burst_is_said_once_and_single_events_are_not() {
        let limit = LogLimit::burst(3);
        assert_eq!((limit.admit(), limit.admit()), (None, None));
        next_window(&limit);
        let admitted: Vec<_> = (0..5).map(|_| limit.admit()).collect();
        assert_eq!(admitted, [None, None, Some(3), None, None]);
    }
}
