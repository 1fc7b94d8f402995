//! Durations as users write them: `90m`, `36h`, `1h30m`, `2d`. Used by job.toml and by options of
//! the command line. Resolution: one second.

use std::time::Duration;

/// What [`parse`] accepts, for error messages.
pub const EXPECTED: &str = "a duration such as \"45s\", \"90m\", \"1h30m\", \"36h\" or \"2d\"";

/// Units from the largest to the smallest, in seconds.
const UNITS: [(char, u64); 4] = [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];

/// Longest duration that is accepted: a hundred years.
const SECONDS_MAX: u64 = 100 * 365 * 86_400;

/// Parses whole numbers with the units d, h, m and s, each at most once and the largest first. None
/// if the text has another form, is zero or exceeds a hundred years.
#[must_use]
pub fn parse(text: &str) -> Option<Duration> {
    let mut seconds = 0_u64;
    let mut rest = text;
    let mut units = UNITS.iter();
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        let unit = rest[digits..].chars().next()?;
        let (_, factor) = units.find(|(name, _)| *name == unit)?;
        seconds = seconds.checked_add(number.checked_mul(*factor)?)?;
        rest = &rest[digits + unit.len_utf8()..];
    }
    (1..=SECONDS_MAX)
        .contains(&seconds)
        .then(|| Duration::from_secs(seconds))
}

/// Writes a duration of whole seconds so that [`parse`] returns it. Fractions are cut off.
#[must_use]
pub fn format(duration: Duration) -> String {
    let mut seconds = duration.as_secs();
    let mut text = String::new();
    for (name, factor) in UNITS {
        if seconds >= factor {
            text += &format!("{}{name}", seconds / factor);
            seconds %= factor;
        }
    }
    if text.is_empty() {
        text.push_str("0s");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written_back() {
        for (text, seconds, canonical) in [
            ("45s", 45, "45s"),
            ("90m", 5_400, "1h30m"),
            ("1h30m", 5_400, "1h30m"),
            ("36h", 129_600, "1d12h"),
            ("2d", 172_800, "2d"),
            ("1d0h5s", 86_405, "1d5s"),
        ] {
            let expected = Duration::from_secs(seconds);
            assert_eq!(parse(text), Some(expected), "{text}");
            assert_eq!(format(expected), canonical);
            assert_eq!(parse(canonical), Some(expected));
        }
        assert_eq!(format(Duration::from_millis(900)), "0s");
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "0s",
            "0h0m",
            "36",
            "h",
            "-1h",
            "1.5h",
            "1 h",
            "1w",
            "30m1h",
            "1h1h",
            "1H",
            "1µ",
            "101d36500d",
            "99999999999999999999h",
            "9999999999999999d",
            "36501d",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
