//! The shipped monitoring with a running job: Prometheus reads our configuration and scrapes all
//! daemons, the query of every panel of every dashboard returns data, an alert reaches a webhook
//! through Alertmanager, and every alert has a case in which it fires and one in which it does not.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use tests::cluster::job::{TinyJob, synthesize};
use tests::cluster::nvml::FakeNvml;
use tests::cluster::prometheus::{Alertmanager, Prometheus, Webhook, lint_metrics, promtool};
use tests::cluster::{Cluster, Options, checkout, http};
use tests::monitoring;

/// Prometheus scrapes once per second and `rate` needs two scrapes; the job sends several views per
/// second.
const TRIES_MAX: usize = 2000;
const DASHBOARDS: [&str; 3] = ["training", "fleet", "incident"];

/// What a program serves is as Prometheus wants it.
fn check_page(address: &str) -> Result<()> {
    let page = http::get(&format!("http://{address}/metrics"))?;
    let found = lint_metrics(&page)?;
    ensure!(
        found.trim().is_empty(),
        "promtool on {address}: {found}\n{page}"
    );
    // Prometheus sets this label itself, and would rename ours to `exported_job`.
    ensure!(
        page.contains("{training_job=") && !page.contains("{job=") && !page.contains(",job="),
        "{address} serves a label `job`, or no label `training_job`:\n{page}"
    );
    http::get(&format!("http://{address}/healthz"))?;
    Ok(())
}

#[test]
fn every_panel_shows_data_of_a_running_job() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let nvml = FakeNvml::build(folder.path())?;
    let cluster = Cluster::start(Options {
        environment: vec![nvml.variable()],
        ..Options::with_workers(2)
    })?;
    let dataset = format!("file://{}", cluster.directory().join("figures").display());
    cluster.ok(&synthesize(&dataset))?;
    let addresses = (0..2).map(|worker| Ok(strip(&cluster.worker_metrics(worker)?)));
    let addresses = addresses.collect::<Result<Vec<_>>>()?;
    let webhook = Webhook::start()?;
    let alertmanager = Alertmanager::start(cluster.directory(), &webhook.address)?;
    let prometheus = Prometheus::start(
        cluster.directory(),
        &strip(cluster.coordinator_metrics()),
        &addresses,
        Some(&alertmanager),
    )?;

    let endless = TinyJob {
        name: "seen".to_owned(),
        dataset,
        workers: 2,
        steps: 1_000_000,
        checkpoint_every: 10,
    };
    // Of the few characters, some must be held out.
    let validated = endless
        .to_toml()
        .replace("holdout = 0.25", "holdout = 0.75")
        .replace(
            "[checkpoint]",
            "validate_every = 5\nvalidate_samples = 2\n[checkpoint]",
        );
    let id = cluster.submit(&validated)?;
    let mut watch = cluster.watch(&id)?;
    let mut left: Vec<(String, String)> = Vec::new();
    for name in DASHBOARDS {
        left.extend(queries(name, &id)?);
    }
    ensure!(
        60 < left.len(),
        "the dashboards have only {} queries",
        left.len()
    );
    for _ in 0..TRIES_MAX {
        // Waits for the job's next view instead of sleeping.
        watch.next_view()?.context("the job ended by itself")?;
        let mut empty = Vec::new();
        for (panel, expression) in left {
            if prometheus.query(&expression)?.is_empty() {
                empty.push((panel, expression));
            }
        }
        left = empty;
        if left.is_empty() {
            break;
        }
    }
    ensure!(left.is_empty(), "these panels show nothing: {left:#?}");

    for address in addresses {
        check_page(&address)?;
    }
    check_page(&strip(cluster.coordinator_metrics()))?;
    cluster.ok(&["cancel", &id])?;

    // A job that fails: its time is used up after the first step.
    let brief = TinyJob {
        name: "brief".to_owned(),
        ..endless
    };
    let brief = brief
        .to_toml()
        .replace("[train]", "[train]\ntime_limit = \"1s\"");
    let brief = cluster.submit(&brief)?;
    // Blocks until Alertmanager posts; the alerts of other jobs may come before.
    loop {
        let notification: Value = serde_json::from_str(&webhook.next()?)?;
        let alerts = notification["alerts"].as_array().context("no alerts")?;
        let ours = alerts.iter().find(|alert| {
            alert["labels"]["alertname"] == "RetriJobFailed"
                && alert["labels"]["training_job"] == brief.as_str()
        });
        if let Some(alert) = ours {
            let summary = alert["annotations"]["summary"].as_str();
            ensure!(summary == Some(&format!("Job {brief} failed")), "{alert}");
            break;
        }
    }
    cluster.stop()
}

#[test]
fn the_files_are_those_that_make_monitoring_writes() -> Result<()> {
    for (name, made) in monitoring::files() {
        let file = checkout().join("deploy").join(name);
        let found = std::fs::read_to_string(&file)
            .with_context(|| format!("reading {}", file.display()))?;
        ensure!(found == made, "{name} is stale: run `make monitoring`");
    }
    Ok(())
}

#[test]
fn every_alert_has_a_case_that_fires_and_one_that_does_not_and_a_page_of_the_runbook() -> Result<()>
{
    let folder = checkout().join("deploy/prometheus");
    let path = |name: &str| folder.join(name).display().to_string();
    promtool(&["check", "rules", &path("alerts.yml")])?.success()?;
    promtool(&["test", "rules", &path("alerts.test.yml")])?.success()?;
    let anchors = anchors()?;
    let cases = std::fs::read_to_string(folder.join("alerts.test.yml"))?;
    for alert in monitoring::alerts() {
        let name = alert.name;
        ensure!(
            anchors.contains(alert.runbook),
            "{name}: no heading {}",
            alert.runbook
        );
        for case in ["fires", "is quiet"] {
            ensure!(
                cases.contains(&format!("name: {name} {case}")),
                "{name} {case}: no case"
            );
        }
    }
    Ok(())
}

/// Of the headings of the runbook.
fn anchors() -> Result<BTreeSet<String>> {
    let runbook = std::fs::read_to_string(checkout().join("deploy/README.md"))?;
    let headings = runbook
        .lines()
        .filter_map(|line| line.strip_prefix("###").or(line.strip_prefix("##")));
    let anchor = |heading: &str| {
        let words = heading.trim().to_lowercase().replace(' ', "-");
        let kept = words.chars().filter(|c| c.is_alphanumeric() || *c == '-');
        kept.collect()
    };
    Ok(headings.map(anchor).collect())
}

/// Every URL in a dashboard.
fn urls(value: &Value) -> Vec<&str> {
    match value {
        Value::Object(fields) => {
            let own = fields.get("url").and_then(Value::as_str);
            own.into_iter()
                .chain(fields.values().flat_map(urls))
                .collect()
        }
        Value::Array(values) => values.iter().flat_map(urls).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn dashboards_link_to_the_pages_of_jobs_and_to_headings_of_the_runbook() -> Result<()> {
    let anchors = anchors()?;
    for name in DASHBOARDS {
        let dashboard = dashboard(name)?;
        let urls = urls(&dashboard);
        for url in &urls {
            if let Some(anchor) = url.strip_prefix("${runbook}#") {
                ensure!(anchors.contains(anchor), "{name}: no heading {anchor}");
            }
        }
        let page = match name {
            "fleet" => "${pages}/jobs/${__field.labels.training_job:percentencode}",
            _ => "${pages}/jobs/${job:percentencode}",
        };
        for needed in [page, "${runbook}", "/d/retri-fleet"] {
            let is_there = urls.iter().any(|url| url.starts_with(needed));
            ensure!(is_there, "{name}: no link to {needed}: {urls:?}");
        }
        let variables = dashboard["templating"]["list"].to_string();
        for variable in ["pages", "runbook"] {
            let named = format!("\"name\":\"{variable}\"");
            ensure!(variables.contains(&named), "{name}: no variable {variable}");
        }
    }
    Ok(())
}

#[test]
fn the_configuration_passes_promtool() -> Result<()> {
    let config = checkout().join("deploy/prometheus/prometheus.yml");
    promtool(&["check", "config", &config.display().to_string()])?.success()?;
    Ok(())
}

#[test]
fn every_panel_has_a_title_a_description_a_unit_and_a_place_of_its_own() -> Result<()> {
    for name in DASHBOARDS {
        check_panels(&dashboard(name)?).context(name)?;
    }
    Ok(())
}

fn check_panels(dashboard: &Value) -> Result<()> {
    let mut cells = BTreeSet::new();
    for panel in panels(dashboard)? {
        let title = panel["title"].as_str().context("a panel without a title")?;
        ensure!(
            panel["description"]
                .as_str()
                .is_some_and(|text| !text.is_empty()),
            "{title}: no description"
        );
        ensure!(
            panel["fieldConfig"]["defaults"]["unit"].is_string(),
            "{title}: no unit"
        );
        let position = &panel["gridPos"];
        let side = |name: &str| {
            position[name]
                .as_u64()
                .with_context(|| format!("{title}: gridPos.{name}"))
        };
        for x in side("x")?..side("x")? + side("w")? {
            for y in side("y")?..side("y")? + side("h")? {
                ensure!(x < 24, "{title}: reaches beyond the dashboard's 24 columns");
                ensure!(cells.insert((x, y)), "{title}: overlaps another panel");
            }
        }
    }
    Ok(())
}

fn strip(url: &str) -> String {
    url.trim_start_matches("http://").to_owned()
}

fn dashboard(name: &str) -> Result<Value> {
    let file = checkout().join(format!("deploy/grafana/{name}.json"));
    let text =
        std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))
}

/// All panels but the titles of rows.
fn panels(dashboard: &Value) -> Result<impl Iterator<Item = &Value>> {
    let panels = dashboard["panels"].as_array();
    let panels = panels.context("the dashboard has no panels")?.iter();
    Ok(panels.filter(|panel| panel["type"] != "row"))
}

/// Panel title and expression of every query, with variables substituted as in Grafana: the job,
/// four scrape intervals as rate interval, and a minute as the time shown.
fn queries(name: &str, job: &str) -> Result<Vec<(String, String)>> {
    let dashboard = dashboard(name)?;
    let mut queries = Vec::new();
    for panel in panels(&dashboard)? {
        let title = panel["title"].as_str().context("a panel without a title")?;
        for target in panel["targets"]
            .as_array()
            .with_context(|| format!("{title}: no targets"))?
        {
            let expression = target["expr"]
                .as_str()
                .with_context(|| format!("{title}: no expr"))?;
            let expression = expression
                .replace("$job", job)
                .replace("$__rate_interval", "4s")
                .replace("$__range", "1m");
            ensure!(
                !expression.contains('$'),
                "{title}: an unknown variable: {expression}"
            );
            queries.push((format!("{name}: {title}"), expression));
        }
    }
    Ok(queries)
}
