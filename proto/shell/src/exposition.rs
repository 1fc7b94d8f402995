//! The text that Prometheus reads from `/metrics`: OpenMetrics, or the older text format, as the
//! client asks. What may be written is a table ([`proto::metric`]): a value of another metric, or
//! with other labels, is a bug and panics in tests.

use proto::metric::{Kind, Metric};
use proto::printable::printable;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Most buckets that a histogram may have.
const BUCKETS_MAX: usize = 16;

/// A form of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    OpenMetrics,
    /// Prometheus' text format 0.0.4, which every reader understands.
    Classic,
}

impl Form {
    /// The form that a client accepts, by its `Accept` header: OpenMetrics if it names it and does
    /// not prefer the older one.
    #[must_use]
    pub fn of(accept: &str) -> Self {
        let weight = |kind: &str| {
            let of_kind = accept.split(',').filter_map(|entry| {
                let mut parts = entry.split(';').map(str::trim);
                (parts.next() == Some(kind)).then(|| {
                    let quality = parts.find_map(|part| part.strip_prefix("q="));
                    quality.and_then(|it| it.parse::<f64>().ok()).unwrap_or(1.0)
                })
            });
            of_kind.fold(0.0, f64::max)
        };
        let open = weight("application/openmetrics-text");
        if 0.0 < open && weight("text/plain") <= open {
            Self::OpenMetrics
        } else {
            Self::Classic
        }
    }

    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Counts observations; shared by threads, and may be a static.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// Per bucket; the last one counts what is above all bounds.
    counts: [AtomicU64; BUCKETS_MAX + 1],
    sum_micros: AtomicU64,
}

impl Histogram {
    /// # Panics
    /// There are more bounds than [`BUCKETS_MAX`].
    #[must_use]
    pub const fn new(bounds: &'static [f64]) -> Self {
        assert!(bounds.len() <= BUCKETS_MAX, "too many buckets");
        Self {
            bounds,
            counts: [const { AtomicU64::new(0) }; BUCKETS_MAX + 1],
            sum_micros: AtomicU64::new(0),
        }
    }

    pub fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = self.bounds.partition_point(|bound| *bound < seconds);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.sum_micros.fetch_add(micros, Ordering::Relaxed);
    }
}

#[derive(Debug, Clone)]
enum Value {
    Number(f64),
    /// Cumulative counts per bound, all of them, and the sum.
    Counts(Vec<(f64, u64)>, u64, f64),
}

/// A value that was set, and the labels of its series as they are written: `a="x",b="y"`.
#[derive(Debug)]
struct Entry {
    labels: String,
    value: Value,
    /// It counts only if it is larger than what its series has already.
    raises: bool,
}

/// One page. A large cluster has 100,000 series: each costs one short text until the page is
/// written.
#[derive(Debug)]
pub struct Page {
    table: &'static [Metric],
    /// In the order in which they were set.
    families: BTreeMap<&'static str, Vec<Entry>>,
}

impl Page {
    #[must_use]
    pub fn new(table: &'static [Metric]) -> Self {
        Self {
            table,
            families: BTreeMap::new(),
        }
    }

    /// The value of one series. A later one replaces it.
    pub fn set(&mut self, metric: &Metric, labels: &[&str], value: f64) {
        debug_assert!(
            !matches!(metric.kind, Kind::Histogram(_)),
            "{}",
            metric.name
        );
        self.insert(metric, labels, Value::Number(value), false);
    }

    /// The larger one of this value and that which the series has already.
    pub fn raise(&mut self, metric: &Metric, labels: &[&str], value: f64) {
        self.insert(metric, labels, Value::Number(value), true);
    }

    pub fn histogram(&mut self, metric: &Metric, labels: &[&str], histogram: &Histogram) {
        debug_assert_eq!(
            metric.kind,
            Kind::Histogram(histogram.bounds),
            "{}",
            metric.name
        );
        let mut total = 0;
        let mut next = |count: &AtomicU64| {
            total += count.load(Ordering::Relaxed);
            total
        };
        let bounds = histogram.bounds.iter().zip(&histogram.counts);
        let counts: Vec<(f64, u64)> = bounds.map(|(it, count)| (*it, next(count))).collect();
        let count = next(&histogram.counts[histogram.bounds.len()]);
        #[allow(clippy::cast_precision_loss)]
        let sum = histogram.sum_micros.load(Ordering::Relaxed) as f64 / 1e6;
        self.insert(metric, labels, Value::Counts(counts, count, sum), false);
    }

    fn insert(&mut self, metric: &Metric, labels: &[&str], value: Value, raises: bool) {
        debug_assert!(
            self.table.contains(metric) && metric.labels.len() == labels.len(),
            "{} is not in the table, or has other labels",
            metric.name
        );
        let family = self.families.entry(metric.name).or_default();
        family.push(Entry {
            labels: written(metric.labels, labels),
            value,
            raises,
        });
    }

    /// In the order of the table, each series once. Metrics without a value are left out.
    #[must_use]
    pub fn text(mut self, form: Form) -> String {
        let mut text = String::new();
        for metric in self.table {
            if let Some(family) = self.families.remove(metric.name) {
                describe(&mut text, metric, form);
                for Entry { labels, value, .. } in newest(family) {
                    samples(&mut text, metric, &labels, &value);
                }
            }
        }
        if form == Form::OpenMetrics {
            text.push_str("# EOF\n");
        }
        text
    }
}

/// Sorted, and one of each series.
fn newest(mut family: Vec<Entry>) -> Vec<Entry> {
    // Stable: of one series, what was set last is last.
    family.sort_by(|a, b| a.labels.cmp(&b.labels));
    let mut series: Vec<Entry> = Vec::with_capacity(family.len());
    for entry in family {
        match series.last_mut().filter(|it| it.labels == entry.labels) {
            Some(known) if entry.raises && entry.value.number() <= known.value.number() => {}
            Some(known) => *known = entry,
            None => series.push(entry),
        }
    }
    series
}

impl Value {
    fn number(&self) -> f64 {
        match self {
            Self::Number(value) => *value,
            Self::Counts(_, _, sum) => *sum,
        }
    }
}

/// Labels as the page has them. Reports name workers and terms, and whoever reads the page may
/// print them.
fn written(names: &[&str], values: &[&str]) -> String {
    let mut text = String::new();
    for (name, value) in names.iter().zip(values) {
        label(&mut text, name, &printable(value));
    }
    text
}

fn label(text: &mut String, name: &str, value: &str) {
    if !text.is_empty() {
        text.push(',');
    }
    text.push_str(name);
    text.push_str("=\"");
    text.push_str(&escape(value, true));
    text.push('"');
}

fn describe(text: &mut String, metric: &Metric, form: Form) {
    let Metric { name, help, .. } = metric;
    // OpenMetrics names the family of a counter without the suffix of its samples.
    let family = match form {
        Form::OpenMetrics => name.strip_suffix("_total").unwrap_or(name),
        Form::Classic => name,
    };
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "# HELP {family} {}",
        escape(help, form == Form::OpenMetrics)
    );
    let _ = writeln!(text, "# TYPE {family} {}", metric.kind.word());
    if form == Form::OpenMetrics
        && !metric.unit.is_empty()
        && family.ends_with(&format!("_{}", metric.unit))
    {
        let _ = writeln!(text, "# UNIT {family} {}", metric.unit);
    }
}

fn samples(text: &mut String, metric: &Metric, labels: &str, value: &Value) {
    let name = metric.name;
    match value {
        Value::Number(value) => line(text, name, "", labels, *value),
        Value::Counts(counts, count, sum) => {
            #[allow(clippy::cast_precision_loss)]
            let mut bucket = |bound: &str, count: u64| {
                let mut labels = labels.to_owned();
                label(&mut labels, "le", bound);
                line(text, name, "_bucket", &labels, count as f64);
            };
            for (bound, count) in counts {
                let mut written = String::new();
                number(&mut written, *bound);
                bucket(&written, *count);
            }
            bucket("+Inf", *count);
            line(text, name, "_sum", labels, *sum);
            #[allow(clippy::cast_precision_loss)]
            line(text, name, "_count", labels, *count as f64);
        }
    }
}

fn line(text: &mut String, name: &str, suffix: &str, labels: &str, value: f64) {
    text.push_str(name);
    text.push_str(suffix);
    if !labels.is_empty() {
        text.push('{');
        text.push_str(labels);
        text.push('}');
    }
    text.push(' ');
    number(text, value);
    text.push('\n');
}

/// Bounds of buckets always have a point: OpenMetrics wants `1.0`.
fn number(text: &mut String, value: f64) {
    if value.is_nan() {
        text.push_str("NaN");
    } else if value.is_infinite() {
        text.push_str(if 0.0 < value { "+Inf" } else { "-Inf" });
    } else {
        // Writing to a String cannot fail.
        let _ = write!(text, "{value:?}");
    }
}

/// Most texts have nothing to escape.
fn escape(text: &str, quotes: bool) -> Cow<'_, str> {
    let is_special = |it: char| matches!(it, '\\' | '\n') || (quotes && it == '"');
    if !text.contains(is_special) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match character {
            '\n' => escaped.push_str("\\n"),
            it if is_special(it) => {
                escaped.push('\\');
                escaped.push(it);
            }
            it => escaped.push(it),
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Kind::{Counter, Gauge};

    const UP: Metric = Metric {
        name: "retri_up",
        kind: Gauge,
        unit: "",
        labels: &["worker"],
        help: "Whether it \"runs\"",
    };
    const SPENT: Metric = Metric {
        name: "retri_spent_seconds_total",
        kind: Counter,
        unit: "seconds",
        labels: &[],
        help: "Time",
    };
    const TOOK: Metric = Metric {
        name: "retri_took_seconds",
        kind: Kind::Histogram(&[0.5, 1.0]),
        unit: "seconds",
        labels: &["what"],
        help: "Time",
    };
    const TABLE: &[Metric] = &[UP, SPENT, TOOK];

    fn page(histogram: &Histogram) -> Page {
        let mut page = Page::new(TABLE);
        page.set(&SPENT, &[], 1.5);
        page.set(&UP, &["\u{1b}[2Jw1\n\"} 1\nretri_forged{a=\"\u{202e}"], 1.0);
        page.histogram(&TOOK, &["save"], histogram);
        page
    }

    #[test]
    fn a_series_is_written_once_with_its_newest_or_its_largest_value() {
        let mut page = Page::new(TABLE);
        for (name, value) in [("b", 0.0), ("a", 1.0), ("b", 1.0), ("b", 0.0), ("a", 0.0)] {
            page.raise(&UP, &[name], value);
        }
        page.set(&SPENT, &[], 2.0);
        page.set(&SPENT, &[], 1.0);
        let text = page.text(Form::Classic);
        let samples: Vec<&str> = text.lines().filter(|it| !it.starts_with('#')).collect();
        let expected = [
            "retri_up{worker=\"a\"} 1.0",
            "retri_up{worker=\"b\"} 1.0",
            "retri_spent_seconds_total 1.0",
        ];
        assert_eq!(samples, expected);
    }

    #[test]
    fn both_forms_have_the_same_samples_and_their_own_descriptions() {
        static HISTOGRAM: Histogram = Histogram::new(&[0.5, 1.0]);
        for ms in [500, 600, 2_000] {
            HISTOGRAM.observe(Duration::from_millis(ms));
        }
        let classic = page(&HISTOGRAM).text(Form::Classic);
        assert_eq!(
            classic,
            "# HELP retri_up Whether it \"runs\"\n\
             # TYPE retri_up gauge\n\
             retri_up{worker=\
             \"\\\\u{1b}[2Jw1\\\\n\\\"} 1\\\\nretri_forged{a=\\\"\\\\u{202e}\"} 1.0\n\
             # HELP retri_spent_seconds_total Time\n\
             # TYPE retri_spent_seconds_total counter\n\
             retri_spent_seconds_total 1.5\n\
             # HELP retri_took_seconds Time\n\
             # TYPE retri_took_seconds histogram\n\
             retri_took_seconds_bucket{what=\"save\",le=\"0.5\"} 1.0\n\
             retri_took_seconds_bucket{what=\"save\",le=\"1.0\"} 2.0\n\
             retri_took_seconds_bucket{what=\"save\",le=\"+Inf\"} 3.0\n\
             retri_took_seconds_sum{what=\"save\"} 3.1\n\
             retri_took_seconds_count{what=\"save\"} 3.0\n"
        );
        let open = page(&HISTOGRAM).text(Form::OpenMetrics);
        let samples = |text: &str| -> Vec<String> {
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            lines.map(str::to_owned).collect()
        };
        assert_eq!(samples(&open), samples(&classic));
        for line in [
            "# HELP retri_up Whether it \\\"runs\\\"",
            "# TYPE retri_spent_seconds counter",
            "# UNIT retri_spent_seconds seconds",
            "# UNIT retri_took_seconds seconds",
        ] {
            assert!(
                open.lines().any(|it| it == line),
                "{line} is not in\n{open}"
            );
        }
        assert!(open.ends_with("\n# EOF\n"), "{open}");
    }

    #[test]
    fn the_form_is_the_one_that_the_client_asks_for() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.75,\
                          text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, form) in [
            ("", Form::Classic),
            ("*/*", Form::Classic),
            ("text/html,application/xhtml+xml", Form::Classic),
            ("text/plain;version=0.0.4", Form::Classic),
            (prometheus, Form::OpenMetrics),
            ("application/openmetrics-text", Form::OpenMetrics),
            (
                "application/openmetrics-text;q=0.2,text/plain",
                Form::Classic,
            ),
        ] {
            assert_eq!(Form::of(accept), form, "{accept}");
        }
    }
}
