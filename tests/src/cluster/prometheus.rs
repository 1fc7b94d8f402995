//! A real Prometheus with our configuration from `deploy/`, scraping a test's cluster.

use super::command::{Outcome, run};
use super::process::Process;
use super::{checkout, http, tool};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// Alertmanager posts an alert soon after it fires.
const POST_WITHIN: Duration = Duration::from_secs(60);

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
    pub fn start(
        directory: &Path,
        coordinator: &str,
        workers: &[String],
        alertmanager: Option<&Alertmanager>,
    ) -> Result<Self> {
        let home = directory.join("prometheus");
        let targets = home.join("targets");
        std::fs::create_dir_all(&targets)
            .with_context(|| format!("creating {}", targets.display()))?;
        write_targets(&targets.join("coordinator.yml"), &[coordinator.to_owned()])?;
        let receivers = alertmanager.map(|it| it.address.clone());
        let receivers: Vec<String> = receivers.into_iter().collect();
        write_targets(&targets.join("alertmanager.yml"), &receivers)?;
        std::fs::copy(
            checkout().join("deploy/prometheus/alerts.yml"),
            home.join("alerts.yml"),
        )?;
        write_targets(&targets.join("workers.yml"), workers)?;
        let shipped = std::fs::read_to_string(checkout().join("deploy/prometheus/prometheus.yml"))?;
        ensure!(
            shipped.contains("scrape_interval: 5s"),
            "prometheus.yml no longer says `scrape_interval: 5s`"
        );
        let config = home.join("prometheus.yml");
        std::fs::write(
            &config,
            shipped
                .replace("scrape_interval: 5s", "scrape_interval: 1s")
                .replace("evaluation_interval: 5s", "evaluation_interval: 1s"),
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

/// A real Alertmanager with `deploy/prometheus/alertmanager.yml`.
#[derive(Debug)]
pub struct Alertmanager {
    /// Killed when dropped.
    _process: Process,
    address: String,
}

impl Alertmanager {
    /// Starts it so that it passes alerts on to `receiver`, an address, without waiting for more.
    ///
    /// # Errors
    /// The tool is not installed, the configuration is wrong, or it did not start.
    pub fn start(directory: &Path, receiver: &str) -> Result<Self> {
        let home = directory.join("alertmanager");
        std::fs::create_dir_all(&home).with_context(|| format!("creating {}", home.display()))?;
        let file = checkout().join("deploy/prometheus/alertmanager.yml");
        let shipped = std::fs::read_to_string(&file)?;
        let config = home.join("alertmanager.yml");
        let ours = shipped
            .replace("127.0.0.1:9095", receiver)
            .replace("group_wait: 10s", "group_wait: 0s");
        ensure!(
            ours.contains(receiver),
            "{} names no receiver",
            file.display()
        );
        std::fs::write(&config, ours)?;
        let mut command = Command::new(tool::path("alertmanager/usr/bin/prometheus-alertmanager")?);
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.path={}", home.join("data").display()));
        command.arg("--web.listen-address=127.0.0.1:0");
        command.arg("--cluster.listen-address=");
        let ready = "Listening on";
        let process = Process::start("alertmanager", command, directory, ready)?;
        let address = process.announced("address")?;
        Ok(Self {
            _process: process,
            address,
        })
    }
}

/// Takes what is posted to an address of its own.
#[derive(Debug)]
pub struct Webhook {
    pub address: String,
    bodies: mpsc::Receiver<Result<String>>,
}

impl Webhook {
    /// # Errors
    /// No address is free.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let (sender, bodies) = mpsc::channel();
        // Ends with the process, or with the receiver.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let body = stream.map_err(anyhow::Error::from).and_then(take_post);
                if sender.send(body).is_err() {
                    return;
                }
            }
        });
        Ok(Self { address, bodies })
    }

    /// The body of the next request.
    ///
    /// # Errors
    /// There is none for a minute, or it is no HTTP request with a length.
    pub fn next(&self) -> Result<String> {
        let body = self.bodies.recv_timeout(POST_WITHIN);
        body.context("nothing was posted")?
    }
}

fn take_post(stream: TcpStream) -> Result<String> {
    let mut reader = BufReader::new(stream);
    let mut length = None;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = Some(value.trim().parse::<usize>()?);
        }
    }
    let mut body = vec![0; length.context("a request without a length")?];
    reader.read_exact(&mut body)?;
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    reader.get_mut().write_all(answer)?;
    Ok(String::from_utf8(body)?)
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

/// The findings of `promtool check metrics` for a page in the classic text format; empty if there
/// are none.
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
        .write_all(page.as_bytes())?;
    let output = child.wait_with_output()?;
    let findings = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&findings).into_owned())
}
