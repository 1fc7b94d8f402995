//! A real Prometheus with our configuration from `deploy/`, scraping a test's cluster.

use super::command::{Outcome, run};
use super::process::Process;
use super::{checkout, http, tool};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

#[derive(Debug)]
pub struct Prometheus {
    /// Killed when dropped.
    _process: Process,
    address: String,
}

impl Prometheus {
    /// Starts it with `deploy/prometheus/prometheus.yml`, with a shorter scrape interval and these
    /// targets (`host:port`). Its files are below `directory`.
    ///
    /// # Errors
    /// The tool is not installed, the configuration is wrong, or it did not start.
    pub fn start(directory: &Path, coordinator: &str, workers: &[String]) -> Result<Self> {
        let home = directory.join("prometheus");
        let targets = home.join("targets");
        std::fs::create_dir_all(&targets)
            .with_context(|| format!("creating {}", targets.display()))?;
        write_targets(&targets.join("coordinator.yml"), &[coordinator.to_owned()])?;
        write_targets(&targets.join("workers.yml"), workers)?;
        let shipped = std::fs::read_to_string(checkout().join("deploy/prometheus/prometheus.yml"))?;
        ensure!(
            shipped.contains("scrape_interval: 5s"),
            "prometheus.yml no longer says `scrape_interval: 5s`"
        );
        let config = home.join("prometheus.yml");
        std::fs::write(
            &config,
            shipped.replace("scrape_interval: 5s", "scrape_interval: 1s"),
        )?;
        let mut command = Command::new(tool::path("prometheus/usr/bin/prometheus")?);
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!(
            "--storage.tsdb.path={}",
            home.join("data").display()
        ));
        command.arg("--web.listen-address=127.0.0.1:0");
        let process = Process::start(
            "prometheus",
            command,
            directory,
            "Server is ready to receive web requests",
        )?;
        let address = process.announced("address")?;
        Ok(Self {
            _process: process,
            address,
        })
    }

    /// The result of an instant query: one entry per series.
    ///
    /// # Errors
    /// Prometheus refuses the query.
    pub fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let url = format!(
            "http://{}/api/v1/query?query={}",
            self.address,
            http::escape(expression)
        );
        let answer: Value =
            serde_json::from_str(&http::get(&url).with_context(|| expression.to_owned())?)?;
        let series = answer["data"]["result"].as_array().cloned();
        series.with_context(|| format!("the answer to {expression} is {answer}"))
    }
}

/// Writes the targets as JSON, which is valid YAML.
fn write_targets(file: &Path, targets: &[String]) -> Result<()> {
    std::fs::write(file, json!([{ "targets": targets }]).to_string())
        .with_context(|| format!("writing {}", file.display()))
}

/// Runs `promtool ARGUMENTS`.
///
/// # Errors
/// It is not installed.
pub fn promtool(arguments: &[&str]) -> Result<Outcome> {
    let mut command = Command::new(tool::path("prometheus/usr/bin/promtool")?);
    command.args(arguments);
    run(command)
}

/// The findings of `promtool check metrics` for an OpenMetrics page; empty if there are none.
///
/// # Errors
/// It is not installed.
pub fn lint_metrics(page: &str) -> Result<String> {
    let mut command = Command::new(tool::path("prometheus/usr/bin/promtool")?);
    command
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().context("starting promtool")?;
    // Closes the pipe at the end of this statement, which ends the page.
    child
        .stdin
        .take()
        .context("stdin was asked for")?
        .write_all(as_plain_text(page).as_bytes())?;
    let output = child.wait_with_output()?;
    let findings = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&findings).into_owned())
}

/// Converts OpenMetrics to the older text format, the only one that promtool reads: in it the
/// description of a counter uses the name of its samples, with `_total`.
fn as_plain_text(page: &str) -> String {
    let counters: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    let mut text = String::new();
    for line in page.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", kind, name, rest] if counters.contains(&name) => {
                text.push_str(&format!("# {kind} {name}_total {rest}\n"));
            }
            _ => text.extend([line, "\n"]),
        }
    }
    text
}
