//! Points in time as users read and write them: UTC in RFC 3339. Pure.

use chrono::{DateTime, NaiveDate, NaiveTime, SecondsFormat};
use proto::duration;

/// `2026-01-31T08:00:00.250Z` for milliseconds since 1970. A number that is no date is returned as
/// it is.
pub(crate) fn rfc3339(ms: u64) -> String {
    let time = i64::try_from(ms)
        .ok()
        .and_then(DateTime::from_timestamp_millis);
    time.map_or_else(
        || format!("{ms} ms"),
        |time| time.to_rfc3339_opts(SecondsFormat::Millis, true),
    )
}

/// A point in time, or how long it is ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    /// Milliseconds since 1970.
    Time(u64),
    /// Milliseconds before now.
    Ago(u64),
}

impl Since {
    /// Parses a duration, an RFC 3339 time or a UTC date.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if let Some(duration) = duration::parse(text) {
            return Ok(Self::Ago(millis(duration.as_millis())));
        }
        let midnight = |date: NaiveDate| date.and_time(NaiveTime::MIN).and_utc();
        let time = DateTime::parse_from_rfc3339(text)
            .map(|time| time.to_utc())
            .or_else(|_| NaiveDate::parse_from_str(text, "%Y-%m-%d").map(midnight));
        let time = time.ok().map(|time| time.timestamp_millis());
        match time.and_then(|ms| u64::try_from(ms).ok()) {
            Some(ms) => Ok(Self::Time(ms)),
            None => Err(format!(
                "it must be {}, or a time such as 2026-01-31T08:00:00Z, or a date such as \
                2026-01-31",
                duration::EXPECTED
            )),
        }
    }

    /// Milliseconds since 1970. `now`: the same.
    pub(crate) fn at(self, now: u64) -> u64 {
        match self {
            Self::Time(ms) => ms,
            Self::Ago(ms) => now.saturating_sub(ms),
        }
    }
}

fn millis(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn times_are_written_in_utc_and_read_back() {
        let ms = 1_769_846_400_250;
        assert_eq!(rfc3339(ms), "2026-01-31T08:00:00.250Z");
        assert_eq!(Since::parse(&rfc3339(ms)), Ok(Since::Time(ms)));
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(u64::MAX), "18446744073709551615 ms");
    }

    #[test]
    fn a_time_a_date_or_a_duration_is_accepted() {
        let at = |text| Since::parse(text).unwrap().at(10_000_000);
        assert_eq!(at("2026-01-31T09:00:00+01:00"), 1_769_846_400_000);
        assert_eq!(at("2026-01-31"), 1_769_817_600_000);
        assert_eq!(at("90s"), 9_910_000);
        assert_eq!(at("2d"), 0, "before 1970");
        for wrong in ["", "yesterday", "90", "2026-13-01", "1950-01-01", "08:00"] {
            let error = Since::parse(wrong).unwrap_err();
            assert!(
                error.starts_with("it must be a duration such as"),
                "{error}"
            );
        }
    }
}
