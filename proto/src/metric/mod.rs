//! The metrics of the programs: one table each. What a program serves, what the dashboards query
//! and what the alerts watch is taken from here, so that none can name what does not exist. No I/O;
//! `shell::exposition` writes the text that Prometheus reads.
//!
//! Names follow Prometheus' rules: base units as suffixes, `_total` for counters. No label is
//! called `job` or `instance`, which Prometheus sets itself. The values of every label are bounded:
//! they are names of a fixed list, or of jobs and workers that exist.

pub mod coordinator;
pub mod worker;

/// What kind of number a metric is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// It goes up and down.
    Gauge,
    /// It rises, from 0 again after a restart of the program.
    Counter,
    /// How many observations were not greater than each of these bounds, ascending.
    Histogram(&'static [f64]),
}

impl Kind {
    /// As in a `# TYPE` line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// One metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    /// `seconds`, `bytes`, …; empty: a plain number. If it is a suffix of the name, it is announced
    /// as OpenMetrics' unit.
    pub unit: &'static str,
    pub labels: &'static [&'static str],
    /// One sentence without a full stop.
    pub help: &'static str,
}

/// The label of a job's id.
pub const TRAINING_JOB: &str = "training_job";

/// A table of metrics: a constant of each, and all of them as `TABLE`, in this order.
macro_rules! table {
    ($($id:ident: $name:literal $kind:expr, $unit:literal, [$($label:expr),*],
        $help:literal;)*) => {
        $(pub const $id: Metric = Metric {
            name: $name,
            kind: $kind,
            unit: $unit,
            labels: &[$($label),*],
            help: $help,
        };)*
        /// Every metric of the program.
        pub const TABLE: &[Metric] = &[$($id),*];
    };
}
use table;

/// All tables, by program.
pub const TABLES: [(&str, &[Metric]); 2] = [
    ("coordinator", coordinator::TABLE),
    ("worker", worker::TABLE),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_and_labels_follow_the_rules() {
        let mut names = BTreeSet::new();
        for metric in TABLES.iter().flat_map(|(_, table)| table.iter()) {
            let name = metric.name;
            assert!(names.insert(name), "{name} is there twice");
            assert!(name.starts_with("retri_"), "{name}");
            let plain = |text: &str| {
                let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
                text.chars().all(allowed)
            };
            assert!(plain(name), "{name}");
            assert_eq!(
                name.ends_with("_total"),
                metric.kind == Kind::Counter,
                "{name}: `_total` is for counters, and for them alone"
            );
            for label in metric.labels {
                assert!(plain(label), "{name}: {label}");
                assert!(
                    !["job", "instance", "le"].contains(label),
                    "{name}: {label}"
                );
            }
            assert!(
                !metric.help.is_empty() && !metric.help.ends_with('.'),
                "{name}"
            );
            if let Kind::Histogram(bounds) = metric.kind {
                assert!(bounds.is_sorted() && !bounds.is_empty(), "{name}");
            }
        }
    }
}
