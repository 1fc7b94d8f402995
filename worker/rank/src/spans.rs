//! What this process did lately, and when, for `coordinator trace`. A ring in memory: recording
//! takes a lock that nobody holds for long, some ten times in a step. Filled by
//! [`crate::watchdog`], by [`crate::step`] and by [`crate::prefetch`]; read by [`crate::probe`].

use proto::probe::{ANSWER_BYTES, Lane, SPANS, Span, Trace};
use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Bytes of a span as JSON, at most.
const SPAN_BYTES: usize = 160;

/// Cheap to clone; all clones share one ring.
#[derive(Debug, Clone)]
pub(crate) struct Spans(Arc<Mutex<Ring>>);

#[derive(Debug)]
struct Ring {
    spans: VecDeque<Recorded>,
    generation: u64,
    /// The same moment by both clocks.
    origin: (Instant, u64),
}

#[derive(Debug, Clone, Copy)]
struct Recorded {
    lane: Lane,
    name: &'static str,
    step: u64,
    generation: u64,
    start: Instant,
    end: Instant,
}

impl Default for Spans {
    fn default() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let micros = u64::try_from(since.unwrap_or_default().as_micros()).unwrap_or(0);
        Self(Arc::new(Mutex::new(Ring {
            spans: VecDeque::new(),
            generation: 0,
            origin: (Instant::now(), micros),
        })))
    }
}

impl Spans {
    /// What follows belongs to this generation.
    pub(crate) fn generation(&self, generation: u64) {
        self.ring().generation = generation;
    }

    pub(crate) fn add(
        &self,
        lane: Lane,
        name: &'static str,
        step: u64,
        (start, end): (Instant, Instant),
    ) {
        let mut ring = self.ring();
        if ring.spans.len() == SPANS {
            ring.spans.pop_front();
        }
        let generation = ring.generation;
        ring.spans.push_back(Recorded {
            lane,
            name,
            step,
            generation,
            start,
            end,
        });
    }

    /// Runs `work` as a span.
    pub(crate) fn timed<T>(&self, name: &'static str, step: u64, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.add(Lane::Model, name, step, (start, Instant::now()));
        result
    }

    /// The spans of these steps, oldest first, as many as fit into an answer.
    pub(crate) fn of(&self, steps: &RangeInclusive<u64>) -> Trace {
        let ring = self.ring();
        let numbers = ring.spans.iter().map(|span| span.step);
        let remembers = numbers.clone().min().zip(numbers.max());
        let asked = ring.spans.iter().filter(|it| steps.contains(&it.step));
        let spans = asked
            .take(ANSWER_BYTES / SPAN_BYTES)
            .map(|it| ring.span(it));
        Trace {
            spans: spans.collect(),
            remembers,
        }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn span(&self, it: &Recorded) -> Span {
        let (origin, epoch_us) = self.origin;
        let micros = |from: Instant, to: Instant| {
            u64::try_from(to.saturating_duration_since(from).as_micros()).unwrap_or(u64::MAX)
        };
        Span {
            lane: it.lane,
            name: it.name.to_owned(),
            step: it.step,
            generation: it.generation,
            start_us: epoch_us.saturating_add(micros(origin, it.start)),
            micros: micros(it.start, it.end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_newest_spans_are_kept_and_those_of_the_steps_are_returned() {
        let spans = Spans::default();
        let origin = spans.ring().origin;
        let at = |ms| origin.0 + Duration::from_millis(ms);
        spans.generation(3);
        for step in 1..=SPANS as u64 + 2 {
            spans.add(Lane::Model, "update", step, (at(step), at(step + 5)));
        }
        let trace = spans.of(&(7..=8));
        assert_eq!(trace.remembers, Some((3, SPANS as u64 + 2)));
        let expected = |step: u64| Span {
            lane: Lane::Model,
            name: "update".into(),
            step,
            generation: 3,
            start_us: origin.1 + step * 1000,
            micros: 5000,
        };
        assert_eq!(trace.spans, [expected(7), expected(8)]);
        let json = serde_json::to_string(&trace.spans[0]).unwrap_or_default();
        assert!(json.len() < SPAN_BYTES, "{json}");
        assert_eq!(spans.of(&(1..=2)).spans, []);
        assert_eq!(Spans::default().of(&(1..=2)).remembers, None);
    }
}
