//! Makes the monitoring files of `deploy/` from the tables of metrics ([`proto::metric`]): three
//! Grafana dashboards, Prometheus' rules, and their test cases. A query names metrics by the
//! tables' constants and is checked against their labels, so that nothing can name what does not
//! exist. `make monitoring` writes the files; a test fails while they differ from what this makes.

mod alert;
mod fleet;
mod incident;
pub mod panel;
mod rules;
mod training;

pub use alert::{Alert, alerts};
use proto::metric::Metric;
use serde_json::Value;

/// The files, by their path below `deploy/`.
#[must_use]
pub fn files() -> Vec<(&'static str, String)> {
    let json = |dashboard: Value| format!("{dashboard:#}\n");
    vec![
        ("grafana/training.json", json(training::dashboard())),
        ("grafana/fleet.json", json(fleet::dashboard())),
        ("grafana/incident.json", json(incident::dashboard())),
        ("prometheus/alerts.yml", rules::rules()),
        ("prometheus/alerts.test.yml", rules::cases()),
        ("METRICS.md", table()),
    ]
}

/// A selector of a metric's series: its name and matchers such as `phase="queued"`.
///
/// # Panics
/// A matcher is of a label that the metric does not have.
#[must_use]
pub fn select(metric: &Metric, matchers: &[(&str, &str, &str)]) -> String {
    select_of(metric, "", matchers)
}

/// The same of the buckets of a histogram.
fn buckets(metric: &Metric, matchers: &[(&str, &str, &str)]) -> String {
    select_of(metric, "_bucket", matchers)
}

fn select_of(metric: &Metric, suffix: &str, matchers: &[(&str, &str, &str)]) -> String {
    let one = |(label, operator, value): &(&str, &str, &str)| {
        assert!(
            metric.labels.contains(label),
            "{} has no label {label}",
            metric.name
        );
        format!("{label}{operator}\"{value}\"")
    };
    let matchers: Vec<String> = matchers.iter().map(one).collect();
    if matchers.is_empty() {
        format!("{}{suffix}", metric.name)
    } else {
        format!("{}{suffix}{{{}}}", metric.name, matchers.join(","))
    }
}

/// All metrics, for people.
fn table() -> String {
    let mut text = "# Metrics\n\nMade by `make monitoring` from `proto/src/metric`. A counter\n\
                    begins \
                    at 0 again when its program restarts.\n"
        .to_owned();
    for (program, metrics) in proto::metric::TABLES {
        text += &format!(
            "\n## {program}\n\n| name | kind | unit | labels | meaning |\n|---|---|---|---|---|\n"
        );
        for metric in metrics {
            text += &format!(
                "| `{}` | {} | {} | {} | {} |\n",
                metric.name,
                metric.kind.word(),
                metric.unit,
                metric.labels.join(", "),
                metric.help
            );
        }
    }
    text
}
