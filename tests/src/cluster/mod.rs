//! Real processes on loopback: one coordinator, some workers and their ranks, started as a user
//! would, on free ports and in their own folder. All processes that a [`Cluster`] started are
//! killed by process id when it is dropped; nothing is looked up by name. Waiting means waiting for
//! output of a process or for its exit, never sleeping.
//!
//! Used by `tests/tests/cluster*.rs`. The binaries are those beside the test's own (`make build`).

pub mod command;
pub mod fake_s3;
pub mod http;
pub mod job;
pub mod network;
pub mod nvml;
pub mod process;
pub mod prometheus;
pub mod reason;
pub mod relay;
pub mod seaweedfs;
pub mod tool;
pub mod watch;

use anyhow::{Context, Result, ensure};
use command::{Outcome, run};
use network::Network;
use process::Process;
use proto::pb::JobView;
use proto::phase::Phase;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use watch::Watch;

/// Configuration of a cluster.
#[derive(Debug, Clone)]
pub struct Options {
    /// Workers at the start, named w1, w2, …, with one CPU device each.
    pub workers: usize,
    /// URL of the object store for state, checkpoints and data; None: the cluster's own folder.
    pub store: Option<String>,
    /// Environment variables of every process, for instance S3 credentials.
    pub environment: Vec<(String, String)>,
    /// The hosts of the workers; None: all run on this host.
    pub network: Option<Arc<Network>>,
}

impl Options {
    #[must_use]
    pub fn with_workers(workers: usize) -> Self {
        Self {
            workers,
            store: None,
            environment: Vec::new(),
            network: None,
        }
    }
}

/// Long enough that a busy machine does not count as lost. Only the loss of a whole worker is
/// detected by this timeout.
const DETECT_WITHIN_MS: u64 = 4000;

#[derive(Debug)]
pub struct Cluster {
    options: Options,
    directory: tempfile::TempDir,
    coordinator: Option<Process>,
    workers: Vec<Option<Process>>,
    /// Chosen at the first start and kept at every later one.
    url: String,
    metrics: String,
    web: String,
    /// The URL that workers use for the coordinator, if not `url`.
    relay: Option<String>,
    coordinators: usize,
}

/// A coordinator that another one has replaced.
#[derive(Debug)]
pub struct Former {
    pub process: Process,
    pub url: String,
}

const ANY_PORT: &str = "http://127.0.0.1:0";

impl Cluster {
    /// Returns when the coordinator and every worker are ready.
    ///
    /// # Errors
    /// A process did not start; the message ends with its last output.
    pub fn start(options: Options) -> Result<Self> {
        let directory = tempfile::tempdir().context("a folder for the cluster")?;
        let mut cluster = Self {
            options: options.clone(),
            directory,
            coordinator: None,
            workers: Vec::new(),
            url: match &options.network {
                Some(network) => format!("http://{}:0", network.address(0)),
                None => ANY_PORT.to_owned(),
            },
            metrics: ANY_PORT.to_owned(),
            web: ANY_PORT.to_owned(),
            relay: None,
            coordinators: 1,
        };
        cluster.start_coordinator()?;
        for index in 0..options.workers {
            cluster.start_worker(index)?;
        }
        Ok(cluster)
    }

    /// Starts the coordinator, at the same addresses and on the same store as the last time.
    ///
    /// # Errors
    /// It did not become ready.
    pub fn start_coordinator(&mut self) -> Result<()> {
        let mut command = self.command("coordinator")?;
        command
            .arg("serve")
            .env("RETRI_COORDINATOR__LISTEN", host_and_port(&self.url))
            .env(
                "RETRI_COORDINATOR__METRICS_LISTEN",
                host_and_port(&self.metrics),
            )
            .env("RETRI_COORDINATOR__WEB_LISTEN", host_and_port(&self.web))
            .env("RETRI_COORDINATOR__STORE", self.store())
            .env(
                "RETRI_COORDINATOR__DETECT_WITHIN_MS",
                DETECT_WITHIN_MS.to_string(),
            );
        let name = match self.coordinators {
            1 => "coordinator".to_owned(),
            number => format!("coordinator-{number}"),
        };
        let process = Process::start(
            &name,
            command,
            self.directory.path(),
            "coordinator ready rpc=http",
        )?;
        self.url = process.announced("rpc")?;
        self.metrics = process.announced("metrics")?;
        self.web = process.announced("web")?;
        self.coordinator = Some(process);
        Ok(())
    }

    /// Starts another coordinator on the same store, at new addresses. Returns the previous one,
    /// which still runs.
    ///
    /// # Errors
    /// No coordinator is running, or the new one did not become ready.
    pub fn replace_coordinator(&mut self) -> Result<Former> {
        let process = self.coordinator.take();
        let process = process.context("the coordinator is not running")?;
        let url = std::mem::replace(&mut self.url, ANY_PORT.to_owned());
        self.metrics = ANY_PORT.to_owned();
        self.web = ANY_PORT.to_owned();
        self.coordinators += 1;
        self.start_coordinator()?;
        Ok(Former { process, url })
    }

    /// Workers that are started from now on use this URL for the coordinator.
    pub fn reach_coordinator_at(&mut self, url: &str) {
        self.relay = Some(url.to_owned());
    }

    /// Starts or restarts worker `index` (0-based), which may exceed the initial number of workers.
    ///
    /// # Errors
    /// It did not become ready.
    pub fn start_worker(&mut self, index: usize) -> Result<()> {
        let name = format!("w{}", index + 1);
        let mut command = match &self.options.network {
            None => self.command("worker")?,
            Some(network) => {
                let mut command = network.on(index + 1, binary("worker")?);
                command.env("RETRI_WORKER__ADDRESS", network.address(index + 1));
                self.prepare(&mut command);
                command
            }
        };
        command
            .arg("daemon")
            .env("RETRI_WORKER__NAME", &name)
            .env(
                "RETRI_WORKER__COORDINATOR",
                self.relay.as_ref().unwrap_or(&self.url),
            )
            .env("RETRI_WORKER__DEVICE", "cpu")
            .env("RETRI_WORKER__DEVICES", "1")
            .env("RETRI_WORKER__METRICS_LISTEN", "127.0.0.1:0")
            .env(
                "RETRI_WORKER__RUN_DIR",
                self.directory.path().join(format!("run-{name}")),
            )
            .env(
                "RETRI_WORKER__CACHE_DIR",
                self.directory.path().join("cache"),
            );
        if self.workers.len() <= index {
            self.workers.resize_with(index + 1, || None);
        }
        self.workers[index] = Some(Process::start(
            &name,
            command,
            self.directory.path(),
            "worker ready name=",
        )?);
        Ok(())
    }

    /// Kills the coordinator (SIGKILL).
    ///
    /// # Errors
    /// It is not running.
    pub fn kill_coordinator(&mut self) -> Result<()> {
        self.coordinator
            .take()
            .context("the coordinator is not running")?
            .kill()
    }

    /// Kills a worker's daemon (SIGKILL) and returns when its ranks have died with it.
    ///
    /// # Errors
    /// It is not running, or a rank outlives it.
    pub fn kill_worker(&mut self, index: usize) -> Result<()> {
        let daemon = self.workers[index]
            .take()
            .with_context(|| format!("worker {index} is not running"))?;
        let ranks = daemon.children()?;
        daemon.kill()?;
        ranks.into_iter().try_for_each(process::wait_until_exited)
    }

    /// Shuts a worker's daemon down (SIGTERM) and returns when it has exited, which must be with 0.
    ///
    /// # Errors
    /// It is not running, or exits with another code.
    pub fn terminate_worker(&mut self, index: usize) -> Result<()> {
        let daemon = self.workers[index]
            .take()
            .with_context(|| format!("worker {index} is not running"))?;
        daemon.terminate()
    }

    /// Kills the only rank of a worker (SIGKILL); its daemon keeps running.
    ///
    /// # Errors
    /// The worker has no rank or several.
    pub fn kill_rank(&self, index: usize) -> Result<()> {
        process::signal("KILL", self.rank(index)?)
    }

    /// The process ids of all ranks of a worker.
    ///
    /// # Errors
    /// The worker is not running.
    pub fn ranks(&self, index: usize) -> Result<Vec<u32>> {
        self.worker(index)?.children()
    }

    /// The process id of the only rank of a worker.
    ///
    /// # Errors
    /// The worker has no rank or several.
    pub fn rank(&self, index: usize) -> Result<u32> {
        let ranks = self.worker(index)?.children()?;
        ensure!(
            ranks.len() == 1,
            "worker {index} has the ranks {ranks:?}; one was expected"
        );
        Ok(ranks[0])
    }

    /// Shuts workers and then the coordinator down (SIGTERM); all must exit with 0.
    ///
    /// # Errors
    /// One of them exits with another code.
    pub fn stop(mut self) -> Result<()> {
        for worker in self.workers.drain(..).flatten() {
            worker.terminate()?;
        }
        self.coordinator.take().map_or(Ok(()), Process::terminate)
    }

    #[must_use]
    pub fn has_coordinator(&self) -> bool {
        self.coordinator.is_some()
    }

    #[must_use]
    pub fn has_worker(&self, index: usize) -> bool {
        self.workers.get(index).is_some_and(Option::is_some)
    }

    /// # Errors
    /// It is not running.
    pub fn coordinator_pid(&self) -> Result<u32> {
        let coordinator = self.coordinator.as_ref();
        Ok(coordinator.context("the coordinator is not running")?.id())
    }

    /// # Errors
    /// It is not running.
    pub fn worker_pid(&self, index: usize) -> Result<u32> {
        Ok(self.worker(index)?.id())
    }

    /// The exit status of the coordinator, if it has exited by itself.
    ///
    /// # Errors
    /// The operating system reports an error.
    pub fn coordinator_ended(&mut self) -> Result<Option<ExitStatus>> {
        self.coordinator.as_mut().map_or(Ok(None), Process::ended)
    }

    /// The exit status of a worker's daemon, if it has exited by itself.
    ///
    /// # Errors
    /// The operating system reports an error.
    pub fn worker_ended(&mut self, index: usize) -> Result<Option<ExitStatus>> {
        let worker = self.workers.get_mut(index).and_then(Option::as_mut);
        worker.map_or(Ok(None), Process::ended)
    }

    /// Marks the coordinator, which has exited, as not running.
    pub fn forget_coordinator(&mut self) {
        self.coordinator = None;
    }

    /// Marks a worker, whose daemon has exited, as not running.
    pub fn forget_worker(&mut self, index: usize) {
        self.workers[index] = None;
    }

    /// Keeps the folder with the logs when the cluster is dropped; returns its path.
    pub fn keep_directory(&mut self) -> PathBuf {
        self.directory.disable_cleanup(true);
        self.directory.path().to_owned()
    }

    /// Everything that the coordinator has printed.
    ///
    /// # Errors
    /// It is not running.
    pub fn coordinator_log(&self) -> Result<String> {
        let coordinator = self.coordinator.as_ref();
        Ok(coordinator.context("the coordinator is not running")?.log())
    }

    /// The largest resident memory of the coordinator so far, in MB of 10^6 bytes.
    ///
    /// # Errors
    /// It is not running.
    pub fn coordinator_memory_mb(&self) -> Result<f64> {
        let path = format!("/proc/{}/status", self.coordinator_pid()?);
        let status = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        Ok(kib.with_context(|| format!("{path} has no VmHWM"))? * 1024.0 / 1e6)
    }

    /// The URL of the coordinator.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    fn worker(&self, index: usize) -> Result<&Process> {
        let worker = self.workers.get(index).and_then(Option::as_ref);
        worker.with_context(|| format!("worker {index} is not running"))
    }

    /// The URL at which the coordinator serves /metrics, for instance `http://127.0.0.1:40123`.
    #[must_use]
    pub fn coordinator_metrics(&self) -> &str {
        &self.metrics
    }

    /// The URL at which the coordinator serves its pages.
    #[must_use]
    pub fn web(&self) -> &str {
        &self.web
    }

    /// The URL at which worker `index` serves /metrics.
    ///
    /// # Errors
    /// It is not running.
    pub fn worker_metrics(&self, index: usize) -> Result<String> {
        self.worker(index)?.announced("metrics")
    }

    /// The cluster's folder, which is deleted with it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// URL of the object store.
    #[must_use]
    pub fn store(&self) -> String {
        let own = || format!("file://{}", self.directory.path().join("store").display());
        self.options.store.clone().unwrap_or_else(own)
    }

    /// Runs `coordinator ARGUMENTS` against this cluster.
    ///
    /// # Errors
    /// The program cannot be started. Its failure is an [`Outcome`].
    pub fn run(&self, arguments: &[&str]) -> Result<Outcome> {
        run(self.client(&self.url, arguments)?)
    }

    /// The command `coordinator ARGUMENTS` for the coordinator with this URL, not yet started.
    ///
    /// # Errors
    /// The program has not been built.
    pub fn client(&self, url: &str, arguments: &[&str]) -> Result<Command> {
        let mut command = self.command("coordinator")?;
        command.args(arguments).env("COORDINATOR_URL", url);
        Ok(command)
    }

    /// Runs `coordinator ARGUMENTS`, which must succeed, and returns what it printed.
    ///
    /// # Errors
    /// It exits with another code than 0.
    pub fn ok(&self, arguments: &[&str]) -> Result<String> {
        self.run(arguments)?.success()
    }

    /// Runs `coordinator ARGUMENTS --output json`, which must succeed.
    ///
    /// # Errors
    /// It fails, or its output is not JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.ok(&[arguments, &["--output", "json"]].concat())?;
        serde_json::from_str(&text)
            .with_context(|| format!("the output of {arguments:?} is not JSON: {text}"))
    }

    /// Submits a job and returns its id.
    ///
    /// # Errors
    /// It is refused.
    pub fn submit(&self, job_toml: &str) -> Result<String> {
        let file = self.write_job(job_toml)?;
        Ok(self.ok(&["submit", &file])?.trim().to_owned())
    }

    /// Writes a job file into the cluster's folder.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_job(&self, job_toml: &str) -> Result<String> {
        let file = self.directory.path().join("job.toml");
        std::fs::write(&file, job_toml).with_context(|| format!("writing {}", file.display()))?;
        Ok(file.display().to_string())
    }

    /// Watches the job until `condition` is true of it.
    ///
    /// # Errors
    /// The job ends or sends no view for too long before the condition is true.
    pub fn wait(
        &self,
        job: &str,
        what: &str,
        condition: impl Fn(&JobView) -> bool,
    ) -> Result<JobView> {
        self.watch(job)?
            .until(what, condition)
            .with_context(|| self.log_tail())
    }

    /// Waits until the job is done.
    ///
    /// # Errors
    /// It ends in another phase.
    pub fn wait_done(&self, job: &str) -> Result<JobView> {
        self.wait(job, "phase done", |view| view.phase == Phase::Done)
    }

    /// Waits until the job has done `step` steps.
    ///
    /// # Errors
    /// It ends before.
    pub fn wait_step(&self, job: &str, step: u64) -> Result<JobView> {
        self.wait(job, &format!("step {step}"), |view| step <= view.step)
    }

    /// The job's views as they change.
    ///
    /// # Errors
    /// The coordinator is unreachable, or does not know the job.
    pub fn watch(&self, job: &str) -> Result<Watch> {
        Watch::start(&self.url, job)
    }

    /// The last lines of every process's output, for error messages.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let processes = self.coordinator.iter().chain(self.workers.iter().flatten());
        processes
            .map(Process::log_tail)
            .collect::<Vec<_>>()
            .join("\n")
    }

    fn command(&self, name: &str) -> Result<Command> {
        let mut command = Command::new(binary(name)?);
        self.prepare(&mut command);
        Ok(command)
    }

    fn prepare(&self, command: &mut Command) {
        command
            .envs(self.options.environment.iter().cloned())
            .current_dir(self.directory.path());
    }
}

/// A binary of this workspace, built beside the running test or program.
///
/// # Errors
/// It has not been built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("the path of the running test")?;
    let folder = own.parent().context("the program has no parent folder")?;
    // A test is in target/PROFILE/deps, a program of this crate beside the others.
    let folder = match folder.file_name() {
        Some(name) if name == "deps" => folder.parent().unwrap_or(folder),
        _ => folder,
    };
    let path = folder.join(name);
    ensure!(
        path.is_file(),
        "{} does not exist: run `make build` first",
        path.display()
    );
    Ok(path)
}

/// The root of the checkout.
#[must_use]
pub fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ has a parent folder")
        .to_owned()
}

fn host_and_port(url: &str) -> &str {
    url.trim_start_matches("http://")
}
