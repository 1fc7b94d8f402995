//! The shipped monitoring with a running job: Prometheus reads our configuration and scrapes all
//! daemons, and the query of every panel of the dashboard returns data.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use tests::cluster::job::{TinyJob, synthesize};
use tests::cluster::prometheus::{Prometheus, lint_metrics, promtool};
use tests::cluster::{Cluster, Options, checkout, http};

/// Prometheus scrapes once per second and `rate` needs two scrapes; the job sends several views per
/// second.
const TRIES_MAX: usize = 2000;

#[test]
fn every_panel_shows_data_of_a_running_job() -> Result<()> {
    let cluster = Cluster::start(Options::with_workers(2))?;
    let dataset = format!("file://{}", cluster.directory().join("figures").display());
    cluster.ok(&synthesize(&dataset))?;
    let addresses = (0..2).map(|worker| Ok(strip(&cluster.worker_metrics(worker)?)));
    let addresses = addresses.collect::<Result<Vec<_>>>()?;
    let prometheus = Prometheus::start(
        cluster.directory(),
        &strip(cluster.coordinator_metrics()),
        &addresses,
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
    let mut left: Vec<(String, String)> = queries(&id)?;
    ensure!(!left.is_empty(), "the dashboard has no queries");
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

    for address in addresses
        .iter()
        .map(String::as_str)
        .chain([strip(cluster.coordinator_metrics()).as_str()])
    {
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
    }
    cluster.ok(&["cancel", &id])?;
    cluster.stop()
}

#[test]
fn the_configuration_passes_promtool() -> Result<()> {
    let config = checkout().join("deploy/prometheus/prometheus.yml");
    promtool(&["check", "config", &config.display().to_string()])?.success()?;
    Ok(())
}

#[test]
fn every_panel_has_a_title_a_description_a_unit_and_a_place_of_its_own() -> Result<()> {
    let dashboard = dashboard()?;
    let mut cells = BTreeSet::new();
    for panel in panels(&dashboard)? {
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

fn dashboard() -> Result<Value> {
    let file = checkout().join("deploy/grafana/training.json");
    let text =
        std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))
}

fn panels(dashboard: &Value) -> Result<&Vec<Value>> {
    dashboard["panels"]
        .as_array()
        .context("the dashboard has no panels")
}

/// Panel title and expression of every query, with the dashboard's variables substituted as in
/// Grafana: the job, and four scrape intervals as rate interval.
fn queries(job: &str) -> Result<Vec<(String, String)>> {
    let dashboard = dashboard()?;
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
                .replace("$__rate_interval", "4s");
            ensure!(
                !expression.contains('$'),
                "{title}: an unknown variable: {expression}"
            );
            queries.push((title.to_owned(), expression));
        }
    }
    Ok(queries)
}
