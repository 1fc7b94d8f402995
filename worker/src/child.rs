//! Rank processes: starts them, sends them orders and reads their reports over one Unix socket per
//! process, captures their output line by line, and reports how they exit. All decisions are made
//! by the machine. Called by [`crate::daemon`].
//!
//! A rank is its own process group, so that killing it also kills its children. It exits with the
//! daemon: it requests a parent-death signal from the kernel, and exits when its socket closes.

use crate::lines::{LineReader, RawLine};
use crate::logs::{LINE_BYTES_MAX, Line, Logs};
use crate::probe::Asked;
use crate::start::socket_path;
use anyhow::Context;
use proto::id::{JobId, Rank};
use proto::message::{Assignment, RankOrder, RankReport, Stage};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use worker_core::event::{Input, RankKey};

/// Settings common to all ranks of this node.
#[derive(Debug, Clone)]
pub(crate) struct RankSettings {
    /// The `worker-rank` program.
    pub(crate) program: PathBuf,
    /// Folder for sockets.
    pub(crate) run_dir: PathBuf,
    pub(crate) cache_dir: PathBuf,
    /// The address at which ranks of other nodes reach this node.
    pub(crate) address: String,
}

/// Longest line of a rank on its socket: a report with a failure of every unit of a lease.
const REPORT_LINE_BYTES: usize = 16 << 20;

/// The current orders for a rank; newer ones replace older ones.
#[derive(Debug, Clone)]
struct Orders {
    rank: Rank,
    device: u32,
    assignment: Box<Assignment>,
    stop: bool,
    kill: bool,
}

/// The rank processes of this daemon.
#[derive(Debug)]
pub(crate) struct Children {
    settings: RankSettings,
    inputs: mpsc::Sender<Input>,
    logs: Logs,
    orders: BTreeMap<RankKey, Running>,
    tasks: JoinSet<()>,
    started: u64,
}

/// A process that was started and has not been waited for.
#[derive(Debug)]
struct Running {
    orders: watch::Sender<Orders>,
    socket: PathBuf,
    /// None until it runs.
    process: Arc<Mutex<Option<u32>>>,
}

impl Children {
    /// [`Input::RankReported`] and [`Input::RankExited`] are sent to `inputs`.
    pub(crate) fn new(settings: RankSettings, inputs: mpsc::Sender<Input>, logs: Logs) -> Self {
        Self {
            settings,
            inputs,
            logs,
            orders: BTreeMap::new(),
            tasks: JoinSet::new(),
            started: 0,
        }
    }

    /// Starts a process; a failure to start is reported as its exit.
    pub(crate) fn spawn(&mut self, key: RankKey, device: u32, assignment: Box<Assignment>) {
        self.started += 1;
        let socket = socket_path(&self.settings.run_dir, self.started);
        let (sender, receiver) = watch::channel(Orders {
            rank: key.rank,
            device,
            assignment,
            stop: false,
            kill: false,
        });
        let process = Arc::default();
        let running = Running {
            orders: sender,
            socket: socket.clone(),
            process: Arc::clone(&process),
        };
        self.orders.insert(key.clone(), running);
        let (settings, inputs, logs) = (
            self.settings.clone(),
            self.inputs.clone(),
            self.logs.clone(),
        );
        self.tasks.spawn(async move {
            let rank = RankProcess {
                key: key.clone(),
                socket,
                inputs: inputs.clone(),
                logs,
                step: Arc::default(),
                process,
            };
            let outcome = rank.run(&settings, receiver).await;
            // A send error is ignored: without a receiver the daemon has ended.
            let _ = match outcome {
                Ok((status, last_line)) => {
                    let outcome = describe(status, last_line.as_deref());
                    inputs
                        .send(Input::RankExited {
                            key,
                            success: status.success(),
                            outcome,
                        })
                        .await
                }
                Err(error) => {
                    inputs
                        .send(Input::RankExited {
                            key,
                            success: false,
                            outcome: error,
                        })
                        .await
                }
            };
        });
    }

    pub(crate) fn update(
        &mut self,
        key: &RankKey,
        rank: Rank,
        device: u32,
        assignment: Box<Assignment>,
    ) {
        self.order(key, |orders| {
            orders.rank = rank;
            orders.device = device;
            orders.assignment = assignment;
        });
    }

    pub(crate) fn stop(&mut self, key: &RankKey) {
        self.order(key, |orders| orders.stop = true);
    }

    pub(crate) fn kill(&mut self, key: &RankKey) {
        self.order(key, |orders| orders.kill = true);
    }

    /// Forgets a process that has exited.
    pub(crate) fn forget(&mut self, key: &RankKey) {
        self.orders.remove(key);
        while self.tasks.try_join_next().is_some() {}
    }

    fn order(&mut self, key: &RankKey, change: impl FnOnce(&mut Orders)) {
        if let Some(running) = self.orders.get(key) {
            running.orders.send_modify(change);
        }
    }

    /// The ranks that can be asked something, as which they work now.
    pub(crate) fn askable(&self) -> Vec<Asked> {
        let asked = |(started, running): (&RankKey, &Running)| {
            let orders = running.orders.borrow();
            let process = running.process.lock();
            Asked {
                key: RankKey {
                    job: started.job.clone(),
                    generation: orders.assignment.generation,
                    rank: orders.rank,
                },
                socket: probe_socket(&running.socket),
                process: *process.unwrap_or_else(PoisonError::into_inner),
            }
        };
        self.orders.iter().map(asked).collect()
    }
}

/// Where a rank listens for questions; a shorter path than that of its orders.
fn probe_socket(socket: &Path) -> PathBuf {
    socket.with_extension("ask")
}

struct RankProcess {
    /// The rank as which it was started.
    key: RankKey,
    socket: PathBuf,
    inputs: mpsc::Sender<Input>,
    logs: Logs,
    /// The newest step that it has reported.
    step: Arc<Mutex<Option<u64>>>,
    process: Arc<Mutex<Option<u32>>>,
}

impl RankProcess {
    /// Runs the process to its end. Returns the exit status and the last line of standard error.
    async fn run(
        &self,
        settings: &RankSettings,
        mut orders: watch::Receiver<Orders>,
    ) -> Result<(ExitStatus, Option<String>), String> {
        // The file may exist from a daemon with the same process id before the last reboot.
        let _ = std::fs::remove_file(&self.socket);
        let listener = UnixListener::bind(&self.socket)
            .map_err(|error| format!("cannot listen on {}: {error}", self.socket.display()))?;
        let started = self.start(settings);
        let result = match started {
            Ok(mut child) => {
                *self.process.lock().unwrap_or_else(PoisonError::into_inner) = child.id();
                let last_line = Arc::new(Mutex::new(None));
                let mut output = JoinSet::new();
                if let Some(stdout) = child.stdout.take() {
                    output.spawn(self.output(&orders).forward(stdout, None));
                }
                if let Some(stderr) = child.stderr.take() {
                    output.spawn(
                        self.output(&orders)
                            .forward(stderr, Some(Arc::clone(&last_line))),
                    );
                }
                let status = self.supervise(&mut child, &listener, &mut orders).await;
                // No effect if it has exited. Otherwise supervising failed, and its pipes must
                // close.
                kill(&child);
                while output.join_next().await.is_some() {}
                let line = last_line
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take();
                status.map(|status| (status, line))
            }
            Err(error) => Err(error),
        };
        // Errors are ignored: leftover socket files are never used again.
        let _ = std::fs::remove_file(&self.socket);
        let _ = std::fs::remove_file(probe_socket(&self.socket));
        result
    }

    fn start(&self, settings: &RankSettings) -> Result<Child, String> {
        Command::new(&settings.program)
            .arg("run")
            .arg("--socket")
            .arg(&self.socket)
            .arg("--probe")
            .arg(probe_socket(&self.socket))
            .args(["--job", &self.key.job.0])
            .args(["--address", &settings.address])
            .arg("--cache-dir")
            .arg(&settings.cache_dir)
            .args(["--parent", &std::process::id().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", settings.program.display()))
    }

    /// Waits for the process to connect, then serves its connection until it has exited.
    async fn supervise(
        &self,
        child: &mut Child,
        listener: &UnixListener,
        orders: &mut watch::Receiver<Orders>,
    ) -> Result<ExitStatus, String> {
        let waiting = |error: std::io::Error| format!("cannot wait for the process: {error}");
        loop {
            tokio::select! {
                status = child.wait() => return status.map_err(waiting),
                accepted = listener.accept() => {
                    let (stream, _) = accepted.map_err(|error| format!("cannot accept the rank: \
                    {error}"))?;
                    let own = rustix::process::geteuid().as_raw();
                    if let Some(other) = other_user(&stream, own) {
                        let socket = self.socket.display();
                        tracing::error!(%socket, other, "not the rank is at its socket; refused");
                        continue;
                    }
                    return self.serve(child, stream, orders).await;
                }
                changed = orders.changed() => {
                    let must_exit = changed.is_err() || {
                        let orders = orders.borrow();
                        orders.stop || orders.kill
                    };
                    // A process that has not connected yet has nothing to shut down gracefully.
                    if must_exit {
                        kill(child);
                        return child.wait().await.map_err(waiting);
                    }
                }
            }
        }
    }

    /// Forwards reports and orders until the process has exited.
    async fn serve(
        &self,
        child: &mut Child,
        stream: UnixStream,
        orders: &mut watch::Receiver<Orders>,
    ) -> Result<ExitStatus, String> {
        let (reader, writer) = stream.into_split();
        let mut lines = LineReader::new(reader, REPORT_LINE_BYTES);
        let mut open = true;
        // A separate task, so that a process that no longer reads can still be killed. The task
        // ends with this function.
        let mut writing = JoinSet::new();
        orders.mark_changed();
        writing.spawn(write_orders(writer, orders.clone()));
        loop {
            tokio::select! {
                line = lines.next(), if open => match line {
                    Ok(Some(line)) => self.on_line(child, &line).await,
                    // The process is about to exit.
                    Ok(None) | Err(_) => open = false,
                },
                changed = orders.changed() => {
                    if changed.is_err() || orders.borrow_and_update().kill {
                        kill(child);
                        break;
                    }
                }
                // Only after its last report was read.
                status = child.wait(), if !open => {
                    return status.map_err(|error| format!("cannot wait for the process: {error}"));
                }
            }
        }
        child
            .wait()
            .await
            .map_err(|error| format!("cannot wait for the process: {error}"))
    }

    async fn on_line(&self, child: &Child, line: &RawLine) {
        let report: Option<RankReport> = serde_json::from_slice(&line.bytes).ok();
        match report.filter(|report| report.job == self.key.job) {
            Some(report) => {
                let doing = report
                    .activity
                    .filter(|it| !matches!(it.stage, Stage::Unit(_)));
                let doing = doing.map(|activity| activity.step);
                let done = report.totals.map(|totals| totals.step);
                if let Some(step) = doing.or(done) {
                    *self.step.lock().unwrap_or_else(PoisonError::into_inner) = Some(step.0);
                }
                let process = self.key.clone();
                // A send error is ignored: without a receiver the daemon has ended.
                drop(
                    self.inputs
                        .send(Input::RankReported {
                            process,
                            report: Box::new(report),
                        })
                        .await,
                );
            }
            None => {
                let RankKey { job, rank, .. } = &self.key;
                let bytes = line.bytes.len() + line.dropped;
                let line = line.text(LINE_BYTES_MAX);
                tracing::error!(%job, %rank, bytes, line, "invalid report from rank; killing it");
                kill(child);
            }
        }
    }

    fn output(&self, orders: &watch::Receiver<Orders>) -> Output {
        Output {
            job: self.key.job.clone(),
            orders: orders.clone(),
            logs: self.logs.clone(),
            step: Arc::clone(&self.step),
        }
    }
}

struct Output {
    job: JobId,
    step: Arc<Mutex<Option<u64>>>,
    /// They contain the current generation and rank, which label the lines.
    orders: watch::Receiver<Orders>,
    logs: Logs,
}

impl Output {
    async fn forward(
        self,
        stream: impl AsyncRead + Unpin,
        last: Option<Arc<Mutex<Option<String>>>>,
    ) {
        let mut lines = LineReader::new(stream, LINE_BYTES_MAX);
        while let Ok(Some(line)) = lines.next().await {
            let text = line.text(LINE_BYTES_MAX);
            if text.is_empty() {
                continue;
            }
            let key = {
                let orders = self.orders.borrow();
                RankKey {
                    job: self.job.clone(),
                    generation: orders.assignment.generation,
                    rank: orders.rank,
                }
            };
            let step = *self.step.lock().unwrap_or_else(PoisonError::into_inner);
            tracing::info!(
                target: "rank",
                job = %key.job,
                generation = %key.generation,
                rank = %key.rank,
                step,
                "{text}"
            );
            if let Some(last) = &last {
                *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(text.clone());
            }
            self.logs.push(Line {
                key,
                step,
                at_ms: epoch_ms(),
                text,
                dropped: 0,
            });
        }
    }
}

/// Sends the process its newest orders, one JSON object per line, until either side has ended. A
/// failed write needs no handling: a process that no longer reads is detected by its exit or by the
/// machine's deadline.
async fn write_orders(mut writer: OwnedWriteHalf, mut orders: watch::Receiver<Orders>) {
    while orders.changed().await.is_ok() {
        let Orders {
            rank,
            device,
            assignment,
            stop,
            ..
        } = orders.borrow_and_update().clone();
        let order = if stop {
            RankOrder::Stop
        } else {
            RankOrder::Assignment {
                assignment,
                rank,
                device,
            }
        };
        let mut line = serde_json::to_vec(&order).expect("orders are plain data");
        line.push(b'\n');
        if writer.write_all(&line).await.is_err() {
            return;
        }
    }
}

/// Who is at the other end, if it is not `own`, this daemon's user, as a rank is. The folder of the
/// socket is closed to others; this is the second lock.
fn other_user(stream: &UnixStream, own: u32) -> Option<String> {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == own => None,
        Ok(peer) => Some(format!("user {}, this daemon is user {own}", peer.uid())),
        Err(error) => Some(format!("unknown: {error}")),
    }
}

/// Kills the process group, whose leader the process is. No effect once the process was waited for.
fn kill(child: &Child) {
    let pid = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        // An error is ignored: it only occurs if the group no longer exists.
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
    }
}

fn describe(status: ExitStatus, last_line: Option<&str>) -> String {
    use std::os::unix::process::ExitStatusExt;
    let exit = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    };
    match last_line {
        Some(line) => format!("{exit}; its last line: {line}"),
        None => exit,
    }
}

pub(crate) fn epoch_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The path of `worker-rank`, which is in the same folder as the running `worker`.
pub(crate) fn rank_program() -> std::io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.parent().unwrap_or(Path::new(".")).join("worker-rank"))
}

/// Runs a command of `worker-rank` for the user, with inherited output, and returns its exit code.
pub(crate) fn run_rank_program(
    command: &str,
    options: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> anyhow::Result<ExitCode> {
    let program = rank_program()?;
    let status = std::process::Command::new(&program)
        .arg(command)
        .args(options)
        .status()
        .with_context(|| format!("cannot start {}", program.display()))?;
    // For instance 1 if a check failed, or 141 if the reader has left.
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

#[cfg(test)]
mod tests;
