//! How long to wait before the next attempt. Pure.

use std::time::Duration;

/// The longest wait, also if the server asks for more.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// The wait after failed attempt number `attempt` (from 1): doubled each time, or what the server
/// asks for if that is longer. `spread` is a fraction in [0, 1) by which requests that failed
/// together are spread, so that they do not return together.
pub(crate) fn wait(
    attempt: u32,
    first: Duration,
    retry_after: Option<Duration>,
    spread: f64,
) -> Duration {
    let doubled = first.saturating_mul(1 << attempt.saturating_sub(1).min(16));
    let own = doubled.min(WAIT_MAX).mul_f64(0.5 + 0.5 * spread);
    own.max(retry_after.unwrap_or_default()).min(WAIT_MAX)
}

/// The value of a `Retry-After` header in seconds; dates are ignored.
pub(crate) fn retry_after(value: &str) -> Option<Duration> {
    value.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_minute_and_follow_the_server() {
        let first = Duration::from_secs(1);
        let of = |attempt| wait(attempt, first, None, 1.0).as_millis();
        assert_eq!([of(1), of(2), of(5)], [1000, 2000, 16_000]);
        assert_eq!([of(7), of(u32::MAX)], [60_000, 60_000]);
        assert_eq!(wait(1, first, None, 0.0).as_millis(), 500);
        let asked = Some(Duration::from_secs(9));
        assert_eq!(wait(1, first, asked, 0.3).as_secs(), 9);
        assert_eq!(wait(1, first, Some(Duration::MAX), 0.3), WAIT_MAX);
        assert_eq!(retry_after(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Wed, 21 Oct 2026 07:28:00 GMT"), None);
    }
}
