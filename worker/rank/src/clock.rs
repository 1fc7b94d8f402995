//! Splits a step's wall time into contiguous phases: each lap starts where the previous one ended.

use std::time::Instant;

#[derive(Debug)]
pub(crate) struct Clock {
    last: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            last: Instant::now(),
        }
    }

    /// Seconds since the start or the last lap.
    pub(crate) fn lap(&mut self) -> f64 {
        let now = Instant::now();
        let lap = now - self.last;
        self.last = now;
        lap.as_secs_f64()
    }
}
