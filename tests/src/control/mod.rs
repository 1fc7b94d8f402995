//! `make bench-control`: the coordinator under the load of a large cluster, on this machine. Many
//! real worker streams, each on its own connection, beside one process that is the coordinator;
//! many submits; and `/metrics` with all of it. Only measures; see `tests/src/bin/control.rs`.

mod state;
mod submits;
mod workers;

use crate::cluster::job::synthesize;
use crate::cluster::{binary, http};
use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The size of the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    pub workers: u32,
    /// Jobs that are submitted and wait.
    pub jobs: u32,
    /// Jobs that ended before. With 100,000 the quota of all teams is used up, and nothing more can
    /// be submitted.
    pub ended: u32,
    /// A worker reports three times in it.
    pub detect_within: Duration,
    /// For how long reports are measured.
    pub reports_for: Duration,
    /// How often `/metrics` is read.
    pub scrapes: u32,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            workers: 10_000,
            jobs: 1_000,
            ended: 99_999,
            detect_within: Duration::from_secs(30),
            reports_for: Duration::from_secs(30),
            scrapes: 20,
        }
    }
}

/// A running coordinator.
#[derive(Debug)]
struct Coordinator {
    process: Child,
    rpc: String,
    metrics: String,
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        // It has ended already, or ends now; its store is deleted.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Coordinator {
    fn start(folder: &Path, store: &str, load: Load) -> Result<Self> {
        let settings = format!(
            "listen = \"127.0.0.1:0\"\nmetrics_listen = \"127.0.0.1:0\"\nstore = \"{store}\"\n\
             detect_within_ms = {}\nmax_workers = {}\n\
             quotas = [\"*=any waiting={} ended={}\"]\n[log]\nfilter = \"error\"\n",
            load.detect_within.as_millis(),
            load.workers.max(1),
            load.jobs.max(1),
            load.ended + 1,
        );
        let file = folder.join("coordinator.toml");
        std::fs::write(&file, settings)?;
        let mut process = Command::new(binary("coordinator")?)
            .args(["serve", "--config"])
            .arg(&file)
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the coordinator")?;
        let stdout = process.stdout.take().context("stdout was asked for")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let word = |key: &str| {
            let words = line.split_whitespace();
            let found = words.filter_map(|word| word.strip_prefix(key)).next();
            found
                .map(str::to_owned)
                .with_context(|| format!("no {key} in {line:?}"))
        };
        let (rpc, metrics) = (word("rpc=")?, word("metrics=")?);
        Ok(Self {
            process,
            rpc,
            metrics,
        })
    }

    /// Resident bytes.
    fn memory(&self) -> Result<u64> {
        let file = format!("/proc/{}/status", self.process.id());
        let status = std::fs::read_to_string(file)?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next());
        let kilobytes = kilobytes.context("the process has memory")?;
        Ok(kilobytes.parse::<u64>()? * 1024)
    }

    fn scrape(&self) -> Result<(Duration, String)> {
        let begun = Instant::now();
        let page = http::get(&format!("{}/metrics", self.metrics))?;
        Ok((begun.elapsed(), page))
    }
}

/// Runs all of it and prints a line for each figure.
///
/// # Errors
/// Something does not work; a figure that is too high is no error.
pub fn run(load: Load) -> Result<()> {
    raise_file_limit()?;
    let folder = tempfile::tempdir()?;
    let store = format!("file://{}", folder.path().join("store").display());
    let begun = Instant::now();
    state::restore(folder.path(), &store, load.ended)?;
    let coordinator = Coordinator::start(folder.path(), &store, load)?;
    println!(
        "BENCH start: {} ended jobs restored and read in {:.1} s",
        load.ended,
        begun.elapsed().as_secs_f64()
    );
    let dataset = format!("file://{}", folder.path().join("figures").display());
    coordinator_command(&synthesize(&dataset))?;
    let runtime = tokio::runtime::Runtime::new()?;
    let took = runtime.block_on(submits::run(&coordinator.rpc, &dataset, load.jobs))?;
    println!(
        "BENCH submits: {} durable submits on one data set in {:.2} s (goal: 1,000 in 2 s)",
        load.jobs,
        took.as_secs_f64()
    );
    let before = coordinator.memory()?;
    let mut workers = runtime.block_on(workers::attach(&coordinator.rpc, load))?;
    let latencies = runtime.block_on(workers.reports(load));
    let after = coordinator.memory()?;
    print_reports(load, &latencies);
    println!(
        "BENCH memory: {:.1} kB of the coordinator for each worker (goal: 50 kB); {} MiB in all",
        float(after.saturating_sub(before)) / 1000.0 / f64::from(load.workers.max(1)),
        after >> 20
    );
    let mut times = Vec::new();
    let mut bytes = 0;
    for _ in 0..load.scrapes {
        let (took, page) = coordinator.scrape()?;
        let up = page
            .lines()
            .filter(|line| line.starts_with("retri_worker_up{"));
        ensure!(
            up.count() == load.workers as usize,
            "/metrics does not show all workers as they are"
        );
        bytes = page.len();
        times.push(took);
    }
    times.sort();
    println!(
        "BENCH metrics: median {:.0} ms, longest {:.0} ms for {:.1} MB, with {} live and {} ended \
         jobs and {} workers (goal: 200 ms)",
        millis(quantile(&times, 0.5)),
        millis(quantile(&times, 1.0)),
        float(bytes as u64) / 1e6,
        load.jobs,
        load.ended,
        load.workers
    );
    drop(workers);
    Ok(())
}

fn print_reports(load: Load, latencies: &[Duration]) {
    println!(
        "BENCH reports: {} of {} workers within {} s: median {:.1} ms, p99 {:.1} ms, longest \
         {:.0} ms until the answer (goal: p99 100 ms)",
        latencies.len(),
        load.workers,
        load.reports_for.as_secs(),
        millis(quantile(latencies, 0.5)),
        millis(quantile(latencies, 0.99)),
        millis(quantile(latencies, 1.0))
    );
}

/// Of sorted times.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss
)] // An index.
fn quantile(sorted: &[Duration], part: f64) -> Duration {
    let last = sorted.len().saturating_sub(1);
    let index = (last as f64 * part).round() as usize;
    sorted.get(index).copied().unwrap_or_default()
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[allow(clippy::cast_precision_loss)] // A few digits are shown.
fn float(count: u64) -> f64 {
    count as f64
}

/// Runs `coordinator ARGUMENTS`.
fn coordinator_command(arguments: &[&str]) -> Result<()> {
    let output = Command::new(binary("coordinator")?)
        .args(arguments)
        .output()?;
    ensure!(
        output.status.success(),
        "coordinator {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Each worker has a connection of its own.
fn raise_file_limit() -> Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("raising the limit of open files")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_sorted_times() {
        let times: Vec<Duration> = (0..=100).map(Duration::from_millis).collect();
        assert_eq!(quantile(&times, 0.5), Duration::from_millis(50));
        assert_eq!(quantile(&times, 0.99), Duration::from_millis(99));
        assert_eq!(quantile(&times, 1.0), Duration::from_millis(100));
        assert_eq!(quantile(&[], 0.5), Duration::ZERO);
    }
}
