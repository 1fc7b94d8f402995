//! Values as pages show them: numbers that can be compared at a glance, times that a browser makes
//! relative, links. Pure.

use crate::text::duration;
use crate::time::rfc3339;
use std::fmt::{self, Display};
use std::time::Duration;

/// What is shown in place of a value that there is not.
pub(crate) const NONE: &str = "–";

/// A moment: a browser shows how long ago it was, and one without scripts the time in UTC.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Moment {
    /// RFC 3339; empty: there is none.
    pub(crate) iso: String,
    pub(crate) text: String,
}

impl Moment {
    /// Milliseconds since 1970; 0: there is none.
    pub(crate) fn of(ms: u64) -> Self {
        if ms == 0 {
            return Self {
                iso: String::new(),
                text: NONE.to_owned(),
            };
        }
        let iso = rfc3339(ms);
        let text = match (iso.get(..10), iso.get(11..19)) {
            (Some(day), Some(time)) => format!("{day} {time}"),
            _ => iso.clone(),
        };
        Self { iso, text }
    }

    /// `2026-01-31 08:00`, or `08:00` if it is the day of `today`.
    pub(crate) fn to_minute(&self, today: &Self) -> String {
        let whole = self.text.get(..16).unwrap_or("");
        match (self.text.get(..10), whole.get(11..)) {
            (Some(day), Some(time)) if today.text.starts_with(day) => time.to_owned(),
            _ => whole.to_owned(),
        }
    }
}

/// `1,234,567`.
pub(crate) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index != 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Four significant digits: `0.1234`, `12.34`, `1.2e-05`.
pub(crate) fn number(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        return value.to_string();
    }
    if size == 0.0 {
        return "0".to_owned();
    }
    if !(0.001..1e6).contains(&size) {
        return format!("{value:.2e}");
    }
    let decimals = match size {
        size if size < 1.0 => 4,
        size if size < 10.0 => 3,
        size if size < 100.0 => 2,
        size if size < 1000.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

/// `12.3 %` of a fraction.
pub(crate) fn percent(fraction: f64) -> String {
    format!("{:.1} %", 100.0 * fraction)
}

/// `3d04h`, `2h03m`, `12s`.
pub(crate) fn span(ms: u64) -> String {
    let hours = ms / 3_600_000;
    if hours < 48 {
        let whole = if ms < 1000 { ms } else { ms / 1000 * 1000 };
        return duration(Duration::from_millis(whole));
    }
    format!("{}d{:02}h", hours / 24, hours % 24)
}

/// Device-hours of device-milliseconds.
#[allow(clippy::cast_precision_loss)] // Two decimals are shown.
pub(crate) fn hours(device_ms: u64) -> String {
    format!("{:.2}", device_ms as f64 / 3_600_000.0)
}

#[allow(clippy::cast_precision_loss)] // Parts of a bar.
pub(crate) fn fraction(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

/// A sentence as it is shown beside a state: with a capital, without `it ` before it, and without
/// what the state says already. A key of job.toml keeps its case.
pub(crate) fn sentence(text: &str) -> String {
    const SAID: [&str; 4] = [
        "it is training: ",
        "it is running units: ",
        "it failed: ",
        "it ",
    ];
    let rest = SAID.iter().find_map(|begin| text.strip_prefix(begin));
    let text = rest.unwrap_or(text);
    let first = text.split(' ').next().unwrap_or("");
    if first.contains(['.', '_', '/']) {
        return text.to_owned();
    }
    let mut rest = text.chars();
    rest.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(rest).collect()
    })
}

/// The parts of a sentence: whether it is a command, which sentences have between backticks, and
/// the text.
pub(crate) fn parts(text: &str) -> Vec<(bool, String)> {
    let parts = text.split('`').enumerate();
    let parts = parts.map(|(index, part)| (index % 2 == 1, part.to_owned()));
    parts.filter(|(_, part)| !part.is_empty()).collect()
}

/// Escapes a text for a path or a query of a URL.
pub(crate) fn in_url(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes())
        .collect::<String>()
        // In a path a plus is a plus.
        .replace('+', "%20")
}

/// Undoes [`in_url`] for a part of a path. What is no UTF-8 becomes replacement characters.
pub(crate) fn from_url(part: &str) -> String {
    let text = part
        .replace('+', "%2B")
        .replace('&', "%26")
        .replace('=', "%3D");
    let mut pairs = url::form_urlencoded::parse(text.as_bytes());
    pairs
        .next()
        .map_or_else(String::new, |(text, _)| text.into_owned())
}

/// A number of one of eight colours, the same for a name on every page.
pub(crate) fn colour(name: &str) -> usize {
    // FNV-1a.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    usize::try_from((hash >> 32) % 8).unwrap_or(0)
}

/// A number with a decimal for coordinates of a drawing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct At(pub(crate) f64);

impl Display for At {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{:.1}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_as_many_digits_as_can_be_compared() {
        let cases = [
            (0.0, "0"),
            (0.123_456, "0.1235"),
            (12.345, "12.35"),
            (123.45, "123.5"),
            (65_536.0, "65536"),
            (0.000_012, "1.20e-5"),
            (f64::NAN, "NaN"),
            (-3.5, "-3.500"),
        ];
        for (value, expected) in cases {
            assert_eq!(number(value), expected);
        }
        assert_eq!(
            (count(0), count(1_234_567)),
            ("0".into(), "1,234,567".into())
        );
        assert_eq!(count(100), "100");
        assert_eq!(span(100 * 3_600_000), "4d04h");
        assert_eq!(span(61_900), "1m01s");
        assert_eq!(percent(0.1234), "12.3 %");
    }

    #[test]
    fn moments_and_names_are_shown() {
        let moment = Moment::of(1_769_846_400_250);
        assert_eq!(moment.text, "2026-01-31 08:00:00");
        assert_eq!(Moment::of(0).text, NONE);
        let next = Moment::of(1_769_846_400_250 + 86_400_000);
        assert_eq!(moment.to_minute(&moment), "08:00");
        assert_eq!(next.to_minute(&moment), "2026-02-01 08:00");
        assert_eq!(in_url("a b/\"é"), "a%20b%2F%22%C3%A9");
        assert_eq!(from_url("a%20b%2F%22%C3%A9+=&"), "a b/\"é+=&");
        let found = parts("`coordinator resume a-1`, or wait");
        assert_eq!(found[0], (true, "coordinator resume a-1".to_owned()));
        assert_eq!(found[1], (false, ", or wait".to_owned()));
        assert_eq!(sentence("it waits for w1"), "Waits for w1");
        assert_eq!(sentence("it is training: step 3"), "Step 3");
        assert_eq!(sentence("it failed: train.steps is"), "train.steps is");
        assert!(colour("demo-1") < 8 && colour("demo-1") == colour("demo-1"));
    }
}
