//! Output for people: formats durations, sizes and timestamps, and prints lines. Called by every
//! command that prints. What is printed comes from job files, data sets and workers, so all of it
//! is escaped: see [`shell::print`].

use proto::printable::printable;
use std::time::Duration;

pub(crate) use shell::print::out_lines;
pub(crate) use shell::{errln, outln};

/// `2h03m`, `4m07s`, `12s` or `250ms`.
pub(crate) fn duration(value: Duration) -> String {
    let seconds = value.as_secs();
    match seconds {
        0 => format!("{}ms", value.as_millis()),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// `1.5 GiB`.
#[allow(clippy::cast_precision_loss)] // One decimal is printed.
pub(crate) fn bytes(value: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut scaled = value as f64;
    let mut unit = 0;
    while 1024.0 <= scaled && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{value} B")
    } else {
        format!("{scaled:.1} {}", UNITS[unit])
    }
}

/// How long ago `then_ms` was at `now_ms`, both in milliseconds since 1970. A timestamp in the
/// future counts as now.
pub(crate) fn ago(then_ms: u64, now_ms: u64) -> String {
    format!(
        "{} ago",
        duration(Duration::from_secs(now_ms.saturating_sub(then_ms) / 1000)).replace("0ms", "0s")
    )
}

/// A field of a CSV file. A field that a spreadsheet would take for a formula gets an apostrophe.
pub(crate) fn csv(text: &str) -> String {
    let text = printable(text);
    let formula = text.starts_with(['=', '+', '-', '@']);
    let text = if formula {
        format!("'{text}")
    } else {
        text.into_owned()
    };
    if text.contains([',', '"']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text
    }
}

/// Milliseconds since 1970, by this machine's clock.
pub(crate) fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |it| u64::try_from(it.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_formatted() {
        assert_eq!(duration(Duration::from_secs(7387)), "2h03m");
        assert_eq!(duration(Duration::from_secs(247)), "4m07s");
        assert_eq!(duration(Duration::from_millis(250)), "250ms");
        assert_eq!(bytes(1_610_612_736), "1.5 GiB");
        assert_eq!(bytes(17), "17 B");
        assert_eq!(ago(9_000, 8_000), "0s ago");
        assert_eq!(ago(1_000, 13_500), "12s ago");
    }

    #[test]
    fn a_field_of_csv_is_one_field_and_no_formula() {
        assert_eq!(csv("figures"), "figures");
        assert_eq!(csv("a,\"b\""), "\"a,\"\"b\"\"\"");
        assert_eq!(csv("=cmd()"), "'=cmd()");
        assert_eq!(csv("a\nb\u{1b}[2J"), "a\\nb\\u{1b}[2J");
    }
}
