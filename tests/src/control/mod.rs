//! `make bench-control`: the coordinator under the load of a large cluster, on this machine. Many
//! real worker streams, each on its own connection, beside one process that is the coordinator;
//! many submits; a job that has done very many steps; `/metrics` and the pages with all of it. Only
//! measures; see `tests/src/bin/control.rs`. Beside what a user waits for stands how much of the
//! processors the coordinator used, which other programs on the machine change less.

mod curve;
mod pages;
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
use tokio::runtime::Runtime;
use workers::Workers;

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
    /// How often `/metrics` and each page are read.
    pub scrapes: u32,
    /// Steps that one job has done.
    pub steps: u64,
    /// People who look at a page while reports are measured again.
    pub open_pages: u32,
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
            steps: 1_000_000,
            open_pages: 200,
        }
    }
}

/// A running coordinator.
#[derive(Debug)]
struct Coordinator {
    process: Child,
    rpc: String,
    metrics: String,
    web: String,
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
            "listen = \"127.0.0.1:0\"\nmetrics_listen = \"127.0.0.1:0\"\n\
             web_listen = \"127.0.0.1:0\"\nstore = \"{store}\"\n\
             detect_within_ms = {}\nmax_workers = {}\n\
             quotas = [\"*=any waiting={} ended={}\"]\n[log]\nfilter = \"error\"\n",
            load.detect_within.as_millis(),
            // One of them has the long curve, as one of the jobs.
            load.workers + 1,
            load.jobs + 3,
            load.ended + 2,
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
        let (rpc, metrics, web) = (word("rpc=")?, word("metrics=")?, word("web=")?);
        Ok(Self {
            process,
            rpc,
            metrics,
            web,
        })
    }

    /// Processor time that it has used.
    fn used(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        // The name before may have spaces.
        let (_, fields) = stat.rsplit_once(") ").context("the process has a name")?;
        let ticks = |index: usize| -> Result<u64> {
            let field = fields.split(' ').nth(index).context("a field of times")?;
            Ok(field.parse()?)
        };
        // User and system time, in hundredths of a second.
        Ok(Duration::from_millis(10 * (ticks(11)? + ticks(12)?)))
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

/// A bench that runs.
struct Bench {
    load: Load,
    coordinator: Coordinator,
    runtime: Runtime,
    dataset: String,
    workers: Option<Workers>,
    /// The job with the long curve.
    long: String,
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
    let mut bench = Bench {
        load,
        coordinator,
        runtime: Runtime::new()?,
        dataset,
        workers: None,
        long: String::new(),
    };
    bench.submits()?;
    bench.memory()?;
    bench.attach()?;
    bench.reports("")?;
    bench.metrics()?;
    bench.pages()?;
    bench.open_pages()
}

impl Bench {
    fn submits(&self) -> Result<()> {
        let (coordinator, load) = (&self.coordinator, self.load);
        // The first one finds too many ended jobs in memory, and they are archived.
        let first = submits::run(&coordinator.rpc, &self.dataset, 1);
        let took = self.runtime.block_on(first)?;
        println!(
            "BENCH archive: {} ended jobs in {:.1} s",
            load.ended,
            took.as_secs_f64()
        );
        let used = coordinator.used()?;
        let submits = submits::run(&coordinator.rpc, &self.dataset, load.jobs);
        let took = self.runtime.block_on(submits)?;
        println!(
            "BENCH submits: {} durable submits on one data set in {:.2} s, {:.2} s of a processor \
             (goal: 1,000 in 2 s)",
            load.jobs,
            took.as_secs_f64(),
            (coordinator.used()? - used).as_secs_f64()
        );
        Ok(())
    }

    /// Memory is measured before there is a long curve: workers would use what that leaves free, as
    /// they use what archiving left. With few `--ended` jobs the figure is whole.
    fn memory(&self) -> Result<()> {
        let (coordinator, load) = (&self.coordinator, self.load);
        let before = coordinator.memory()?;
        let workers = self
            .runtime
            .block_on(workers::attach(&coordinator.rpc, load))?;
        let after = coordinator.memory()?;
        drop(workers);
        println!(
            "BENCH memory: {:.1} kB more for each worker (goal: 50 kB), {} MiB in all",
            float(after.saturating_sub(before)) / 1000.0 / f64::from(load.workers.max(1)),
            after >> 20
        );
        Ok(())
    }

    fn attach(&mut self) -> Result<()> {
        let (coordinator, load) = (&self.coordinator, self.load);
        let (rpc, within) = (&coordinator.rpc, load.detect_within);
        let long = curve::train(rpc, &self.dataset, load.steps, within);
        let long = self.runtime.block_on(long)?;
        println!(
            "BENCH steps: {} steps of {} reported and stored in {:.1} s",
            load.steps,
            long.job,
            long.took.as_secs_f64()
        );
        let (begun, used) = (Instant::now(), coordinator.used()?);
        let mut workers = self.runtime.block_on(workers::attach(rpc, load))?;
        println!(
            "BENCH attach: {} workers in {:.1} s, {:.1} s of a processor",
            load.workers,
            begun.elapsed().as_secs_f64(),
            (coordinator.used()? - used).as_secs_f64()
        );
        workers.add(long.worker);
        self.workers = Some(workers);
        self.long = long.job;
        Ok(())
    }

    /// `beside`: what happens meanwhile.
    fn reports(&mut self, beside: &str) -> Result<()> {
        let load = self.load;
        let used = self.coordinator.used()?;
        let workers = self.workers.as_mut().context("there are workers")?;
        let latencies = self.runtime.block_on(workers.reports(load));
        println!(
            "BENCH reports{beside}: {} of {} workers within {} s: median {:.1} ms, p99 {:.1} ms, \
             longest {:.0} ms until the answer, {:.0} % of a processor (goal: p99 100 ms)",
            latencies.len(),
            load.workers,
            load.reports_for.as_secs(),
            millis(quantile(&latencies, 0.5)),
            millis(quantile(&latencies, 0.99)),
            millis(quantile(&latencies, 1.0)),
            100.0 * (self.coordinator.used()? - used).as_secs_f64()
                / load.reports_for.as_secs_f64()
        );
        Ok(())
    }

    fn metrics(&self) -> Result<()> {
        let load = self.load;
        let mut times = Vec::new();
        let mut bytes = 0;
        for _ in 0..load.scrapes {
            let (took, page) = self.coordinator.scrape()?;
            let is_up =
                |line: &&str| line.starts_with("retri_worker_up{") && line.ends_with(" 1.0");
            let up = page.lines().filter(is_up).count();
            ensure!(
                up == load.workers as usize + 1,
                "/metrics shows {up} workers that are up"
            );
            bytes = page.len();
            times.push(took);
        }
        times.sort();
        println!(
            "BENCH metrics: median {:.0} ms, longest {:.0} ms for {:.1} MB, with {} live and {} \
             ended jobs and {} workers (goal: 200 ms)",
            millis(quantile(&times, 0.5)),
            millis(quantile(&times, 1.0)),
            float(bytes as u64) / 1e6,
            load.jobs + 2,
            load.ended,
            load.workers + 1
        );
        Ok(())
    }

    fn pages(&self) -> Result<()> {
        let (web, load) = (&self.coordinator.web, self.load);
        let long = format!("/jobs/{}", self.long);
        let url = format!("{web}{long}");
        let curve = pages::get(&url, pages::person(0));
        let (first, page) = self.runtime.block_on(curve)?;
        println!(
            "BENCH curve: a page with {} steps opens in {:.0} ms, {} kB (goal: 1,000 ms)",
            load.steps,
            millis(first),
            page.len() / 1000
        );
        let waiting = format!("/jobs/waiting-{}", load.ended + 1);
        let tabs = ["logs", "ledger", "toml"].map(|tab| format!("{long}?tab={tab}"));
        let compare = format!("/compare?a={}&b=waiting-{}", self.long, load.ended + 1);
        let paths = ["/", "/jobs", &long, &waiting, &tabs[0], &tabs[1], &tabs[2]];
        let more = ["/workers", "/workers/w1", "/events", "/usage", &compare];
        for (path, number) in paths.into_iter().chain(more).zip(1..) {
            let url = format!("{web}{path}");
            let times = pages::times(&url, load.scrapes, number * load.scrapes);
            let (times, bytes) = self.runtime.block_on(times)?;
            println!(
                "BENCH page {path}: median {:.0} ms, longest {:.0} ms, {} kB (goal: 200 ms)",
                millis(quantile(&times, 0.5)),
                millis(quantile(&times, 1.0)),
                bytes / 1000
            );
        }
        let bytes = self.runtime.block_on(pages::assets(web))?;
        println!(
            "BENCH assets: {} kB in all (goal: 300 kB)",
            bytes.div_ceil(1000)
        );
        Ok(())
    }

    fn open_pages(&mut self) -> Result<()> {
        let count = self.load.open_pages;
        let open = pages::Open::of(&self.coordinator.web, "/", count);
        let mut open = self.runtime.block_on(open)?;
        self.reports(&format!(" beside {count} open pages"))?;
        let left = open.count();
        ensure!(left == count as usize, "only {left} pages stayed open");
        Ok(())
    }
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
