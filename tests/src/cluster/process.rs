//! One server process: its log, its first output, its exit. The process is killed when dropped.

use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

/// A process that is not ready after this long is broken, on any machine.
const START_WITHIN: Duration = Duration::from_secs(60);
const LOG_TAIL_LINES: usize = 15;

#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    /// Its output until it was ready.
    first_lines: Vec<String>,
    /// Its output since then.
    lines: mpsc::Receiver<String>,
    log: PathBuf,
    /// Threads that copy its output into the log; each ends with its stream.
    followers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts `command` and returns when it has printed a line that contains `ready`, on stdout or
    /// stderr. Its output is appended to `<directory>/<name>.log`.
    ///
    /// # Errors
    /// It cannot be started, exits, or is not ready in time; the message ends with its last output.
    pub fn start(name: &str, mut command: Command, directory: &Path, ready: &str) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let log_file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .context("the log of a process")?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let (sender, lines) = mpsc::channel();
        let stdout = child.stdout.take().context("stdout was asked for")?;
        let stderr = child.stderr.take().context("stderr was asked for")?;
        let followers = [
            follow(stdout, log_file.try_clone()?, sender.clone()),
            follow(stderr, log_file, sender),
        ];
        let mut process = Self {
            name: name.to_owned(),
            child,
            first_lines: Vec::new(),
            lines,
            log,
            followers: followers.into(),
        };
        // The channel closes when the process has closed both streams.
        while let Ok(line) = process.lines.recv_timeout(START_WITHIN) {
            let done = line.contains(ready);
            process.first_lines.push(line);
            if done {
                return Ok(process);
            }
        }
        bail!("{name} did not become ready\n{}", process.log_tail())
    }

    /// Waits for a line that contains `part`, after those that were waited for before; returns it.
    ///
    /// # Errors
    /// The process exits, or prints nothing for too long; the message ends with its last output.
    pub fn wait_for(&self, part: &str) -> Result<String> {
        while let Ok(line) = self.lines.recv_timeout(START_WITHIN) {
            if line.contains(part) {
                return Ok(line);
            }
        }
        bail!("{} did not print {part:?}\n{}", self.name, self.log_tail())
    }

    /// The value of the last `key=value` that it printed until it was ready.
    ///
    /// # Errors
    /// There is none.
    pub fn announced(&self, key: &str) -> Result<String> {
        let words = self
            .first_lines
            .iter()
            .flat_map(|line| line.split_whitespace());
        let value = words
            .filter_map(|word| word.strip_prefix(key)?.strip_prefix('='))
            .next_back();
        value.map(str::to_owned).with_context(|| {
            format!(
                "{} printed {:?} without {key}=",
                self.name, self.first_lines
            )
        })
    }

    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status, if it has exited.
    ///
    /// # Errors
    /// The operating system reports an error.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let name = &self.name;
        self.child
            .try_wait()
            .with_context(|| format!("the exit status of {name}"))
    }

    /// Ids of its child processes, in ascending order.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn children(&self) -> Result<Vec<u32>> {
        let mut children = Vec::new();
        // Every thread of the process has its own list of children.
        let threads = PathBuf::from(format!("/proc/{}/task", self.child.id()));
        for thread in
            std::fs::read_dir(&threads).with_context(|| format!("reading {}", threads.display()))?
        {
            // A thread may end meanwhile; its children then move to another thread.
            let list = std::fs::read_to_string(thread?.path().join("children")).unwrap_or_default();
            children.extend(
                list.split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
        }
        children.sort_unstable();
        Ok(children)
    }

    /// Sends SIGKILL and waits for the exit.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn kill(mut self) -> Result<()> {
        self.end().with_context(|| format!("killing {}", self.name))
    }

    /// Waits for a process that is about to exit; returns its exit status and its last output.
    ///
    /// # Errors
    /// The operating system reports an error.
    pub fn wait(mut self) -> Result<(ExitStatus, String)> {
        let status = self.child.wait()?;
        for follower in self.followers.drain(..) {
            // A thread that panicked has nothing more to write.
            follower.join().ok();
        }
        Ok((status, self.log_tail()))
    }

    /// Sends SIGTERM and waits for the exit, which must be with code 0.
    ///
    /// # Errors
    /// Another exit code.
    pub fn terminate(mut self) -> Result<()> {
        signal("TERM", self.child.id())?;
        let status = self.child.wait()?;
        ensure!(
            status.success(),
            "{} exited with {status} after SIGTERM\n{}",
            self.name,
            self.log_tail()
        );
        Ok(())
    }

    /// Its whole log.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
        format!("--- last output of {}:\n{}", self.name, last.join("\n"))
    }

    fn end(&mut self) -> std::io::Result<()> {
        // Harmless for a process that has been waited for: the standard library checks that.
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end().ok();
    }
}

/// Drains a stream into the log, so that the process never blocks on a full pipe, and sends the
/// lines to the channel as long as it has a receiver.
fn follow(
    stream: impl Read + Send + 'static,
    mut log: File,
    lines: mpsc::Sender<String>,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut lines = Some(lines);
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            // A full disk fails the test itself.
            writeln!(log, "{line}").ok();
            if lines
                .as_ref()
                .is_some_and(|lines| lines.send(line).is_err())
            {
                lines = None;
            }
        }
    })
}

/// Sends a signal by process id.
///
/// # Errors
/// There is no such process.
pub fn signal(name: &str, pid: u32) -> Result<()> {
    let status = Command::new("sh")
        .args(["-c", &format!("kill -{name} {pid}")])
        .status()?;
    ensure!(
        status.success(),
        "signal {name} could not be sent to process {pid}"
    );
    Ok(())
}

/// Waits for the exit of a process that is not our child.
///
/// # Errors
/// It still exists after a long time.
pub fn wait_until_exited(pid: u32) -> Result<()> {
    let status = Command::new("timeout")
        .args(["30", "tail", &format!("--pid={pid}"), "-f", "/dev/null"])
        .status()?;
    ensure!(
        status.success(),
        "process {pid} should have died with its parent and still runs"
    );
    Ok(())
}
