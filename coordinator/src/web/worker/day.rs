//! The devices of a worker over 24 hours as a drawing, and the jobs that used them. Pure.

use crate::web::history::{DAY_MS, Span};
use crate::web::rows::Link;
use crate::web::show::{self, At, Moment, colour};
use std::collections::HashMap;

/// Width and height of the drawing.
const SIZE: (f64, f64) = (1000.0, 64.0);
/// Jobs in the table.
const JOBS: usize = 12;

#[derive(Debug)]
pub(super) struct Day {
    pub(super) bars: Vec<Bar>,
    /// From where on something is known, if not all of it.
    pub(super) since: Option<Moment>,
    pub(super) jobs: Vec<Used>,
    pub(super) more: usize,
    pub(super) busy: String,
}

/// So many devices for some time.
#[derive(Debug)]
pub(super) struct Bar {
    pub(super) x: At,
    pub(super) y: At,
    pub(super) width: At,
    pub(super) height: At,
    /// `job`, `free`, `drained`, `sick`, `cut-off` or `down`.
    pub(super) state: String,
    pub(super) colour: usize,
    pub(super) title: String,
}

/// A job that used devices.
#[derive(Debug)]
pub(super) struct Used {
    pub(super) job: Link,
    pub(super) colour: usize,
    pub(super) hours: String,
    pub(super) share: String,
}

/// `since_ms`: when the looks began.
#[allow(clippy::cast_precision_loss)] // Pixels.
pub(super) fn day(spans: &[Span], since_ms: u64, now_ms: u64) -> Day {
    let begin = now_ms.saturating_sub(DAY_MS);
    let x = |ms: u64| SIZE.0 * (ms.clamp(begin, now_ms) - begin) as f64 / DAY_MS as f64;
    let mut bars = Vec::new();
    let mut used: HashMap<&str, u64> = HashMap::new();
    let mut all_ms = 0;
    for (index, span) in spans.iter().enumerate() {
        let until = spans.get(index + 1).map_or(now_ms, |next| next.from_ms);
        let ms = until.max(begin) - span.from_ms.clamp(begin, until.max(begin));
        let height = SIZE.1 / span.devices.max(1) as f64;
        let mut taken = 0;
        all_ms += ms * span.devices as u64;
        let mut bar = |count: usize, state: &str, colour: usize, what: &str| {
            if count == 0 {
                return;
            }
            taken += count;
            bars.push(Bar {
                x: At(x(span.from_ms)),
                y: At(SIZE.1 - height * taken as f64),
                width: At((x(until) - x(span.from_ms)).max(1.0)),
                height: At(height * count as f64),
                state: state.to_owned(),
                colour,
                title: format!(
                    "{what}: {count} of {}, {} to {}",
                    span.devices,
                    Moment::of(span.from_ms.max(begin)).text,
                    Moment::of(until).text
                ),
            });
        };
        let mut busy = 0;
        for (job, count) in &span.jobs {
            bar(*count, "job", colour(job), job);
            busy += count;
            *used.entry(job).or_default() += ms * *count as u64;
        }
        let (state, what) = match span.state {
            "up" => ("free", "free"),
            "cut off" => ("cut-off", "cut off"),
            other => (other, other),
        };
        bar(span.devices.saturating_sub(busy), state, 0, what);
    }
    let busy_ms: u64 = used.values().sum();
    let mut jobs: Vec<(&str, u64)> = used.into_iter().collect();
    jobs.sort_by(|(a, x), (b, y)| y.cmp(x).then(a.cmp(b)));
    let row = |(job, ms): &(&str, u64)| Used {
        job: Link::job(job),
        colour: colour(job),
        hours: show::hours(*ms),
        share: show::percent(show::fraction(*ms, all_ms)),
    };
    let from = spans.first().map_or(now_ms, |it| it.from_ms).max(since_ms);
    Day {
        since: (begin < from).then(|| Moment::of(from)),
        more: jobs.len().saturating_sub(JOBS),
        jobs: jobs.iter().take(JOBS).map(row).collect(),
        busy: show::percent(show::fraction(busy_ms, all_ms)),
        bars,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(from_ms: u64, state: &'static str, jobs: &[(&str, usize)]) -> Span {
        Span {
            from_ms,
            state,
            devices: 4,
            jobs: jobs
                .iter()
                .map(|(job, count)| ((*job).to_owned(), *count))
                .collect(),
        }
    }

    #[test]
    fn devices_are_stacked_and_hours_are_counted_from_a_day_ago() {
        let now = 10 * DAY_MS;
        let hour = DAY_MS / 24;
        let spans = [
            span(now - 2 * DAY_MS, "up", &[("a-1", 4)]),
            span(now - 12 * hour, "up", &[("a-1", 1), ("b-2", 2)]),
            span(now - 6 * hour, "down", &[]),
        ];
        let day = day(&spans, 5, now);
        let bars: Vec<_> = day
            .bars
            .iter()
            .map(|it| (it.x.0, it.y.0, it.width.0, it.height.0))
            .collect();
        assert_eq!(
            bars,
            [
                (0.0, 0.0, 500.0, 64.0),
                (500.0, 48.0, 250.0, 16.0),
                (500.0, 16.0, 250.0, 32.0),
                (500.0, 0.0, 250.0, 16.0),
                (750.0, 0.0, 250.0, 64.0),
            ]
        );
        let states: Vec<&str> = day.bars.iter().map(|it| it.state.as_str()).collect();
        assert_eq!(states, ["job", "job", "job", "free", "down"]);
        let jobs: Vec<_> = day
            .jobs
            .iter()
            .map(|it| (it.job.text.as_str(), it.hours.as_str()))
            .collect();
        assert_eq!(jobs, [("a-1", "54.00"), ("b-2", "12.00")]);
        assert_eq!((day.since, day.busy.as_str()), (None, "68.8 %"));
    }

    #[test]
    fn it_says_from_when_on_something_is_known() {
        let now = 10 * DAY_MS;
        let known = day(&[span(now - 1000, "up", &[])], now - 1000, now);
        assert_eq!(known.since, Some(Moment::of(now - 1000)));
        assert!(day(&[], 0, now).bars.is_empty());
    }
}
