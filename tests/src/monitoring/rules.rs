//! Prometheus' rules and their test cases, as YAML.

use super::alert::{Alert, Series, alerts};
use std::fmt::Write as _;

/// The runbook, as a path in the checkout. An installation that serves it somewhere replaces this
/// by its address.
pub(super) const RUNBOOK: &str = "deploy/README.md";

const HEAD: &str = "# Made by `make monitoring` from tests/src/monitoring; do not edit.\n";

/// As a YAML string in single quotes.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn runbook(alert: &Alert) -> String {
    format!("{RUNBOOK}#{}", alert.runbook)
}

pub(super) fn rules() -> String {
    let mut text = HEAD.to_owned();
    text += "# To check this file: promtool check rules alerts.yml; its test cases:\n\
             # promtool test rules alerts.test.yml\n\
             groups:\n  - name: retri\n    rules:\n";
    for alert in alerts() {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "      - alert: {}\n        expr: {}\n        for: {}\n        labels:\n          \
             severity: {}\n        annotations:\n          summary: {}\n          \
             runbook_url: {}\n",
            alert.name,
            quoted(&alert.expression),
            alert.hold,
            alert.severity,
            quoted(alert.summary),
            quoted(&runbook(&alert)),
        );
    }
    text
}

/// Two cases of each alert: one in which it fires, one in which it does not.
pub(super) fn cases() -> String {
    let mut text = HEAD.to_owned();
    text += "rule_files: [alerts.yml]\nevaluation_interval: 1m\ntests:\n";
    for alert in alerts() {
        let labels: Vec<String> = alert
            .labels
            .iter()
            .map(|(label, value)| format!("{label}: {}", quoted(value)))
            .collect();
        let labels = [vec![format!("severity: {}", alert.severity)], labels].concat();
        let expected = format!(
            "          - exp_labels: {{ {} }}\n            exp_annotations:\n              \
             summary: {}\n              runbook_url: {}\n",
            labels.join(", "),
            quoted(&summary(&alert)),
            quoted(&runbook(&alert)),
        );
        case(&mut text, &alert, "fires", &alert.fires, &expected);
        case(&mut text, &alert, "is quiet", &alert.quiet, "");
    }
    text
}

fn case(text: &mut String, alert: &Alert, what: &str, series: &[Series], expected: &str) {
    let _ = write!(
        text,
        "  - name: {} {what}\n    interval: 1m\n    input_series:\n",
        alert.name
    );
    for (selector, values) in series {
        let _ = writeln!(
            text,
            "      - series: {}\n        values: {}",
            quoted(selector),
            quoted(values)
        );
    }
    let _ = writeln!(
        text,
        "    alert_rule_test:\n      - eval_time: {}\n        alertname: {}\n        exp_alerts:{}",
        alert.at,
        alert.name,
        if expected.is_empty() { " []" } else { "" }
    );
    text.push_str(expected);
}

/// The summary with the labels of the case that fires.
fn summary(alert: &Alert) -> String {
    let mut text = alert.summary.to_owned();
    for (label, value) in &alert.labels {
        text = text.replace(&format!("{{{{ $labels.{label} }}}}"), value);
    }
    // The values of the cases that are named in a summary.
    let value = match alert.name {
        "RetriLossScaleLow" => "0.5",
        _ => "1",
    };
    text.replace("{{ $value }}", value)
}
