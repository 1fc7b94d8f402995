//! Runs a child process that looks into files: request in, answer out, both bounded. However the
//! child ends, there is an answer.

use super::child::{Answer, Line, Look, MEMORY_BYTES_MAX, Request};
use rustix::process::{Pid, Signal, kill_process_group};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

/// Longest output of a child: the names of the files that it reads, and the answer.
const OUTPUT_BYTES_MAX: u64 = 4 << 20;
/// As much of its standard error is read.
const ERRORS_BYTES_MAX: u64 = 16 << 10;

/// Asks a child about `url`, which the request names.
pub(super) async fn run(
    program: &Path,
    arguments: &[String],
    request: &Request,
    url: &str,
    within: Duration,
) -> Answer {
    let started = Command::new(program)
        .args(arguments)
        // Each arena of glibc's allocator reserves address space, which is limited.
        .env("MALLOC_ARENA_MAX", "1")
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn();
    let mut child = match started {
        Ok(child) => Group(child),
        Err(error) => {
            let reason = format!("the program that looks into {url} cannot be started: {error}");
            return refused(request, reason);
        }
    };
    let mut output = Output::default();
    let talk = child.talk(request, &mut output);
    let end = match tokio::time::timeout(within, talk).await {
        Ok(status) => End::Status(status),
        Err(_) => End::Late(within),
    };
    child.end().await;
    if let Some(answer) = output.answer() {
        return answer;
    }
    let reason = output.why(&end, url);
    tracing::warn!(reason, "a job is refused: looking into its input failed");
    let hint = match request.look {
        Look::Dataset => format!("; `coordinator dataset verify {url}` lists its faults"),
        Look::Base => String::new(),
    };
    refused(request, reason + &hint)
}

fn refused(request: &Request, reason: String) -> Answer {
    let field = request.look.field().to_owned();
    Answer::Refused { field, reason }
}

/// The child and whatever it has started; ended when this is dropped.
struct Group(Child);

impl Group {
    async fn talk(
        &mut self,
        request: &Request,
        output: &mut Output,
    ) -> std::io::Result<ExitStatus> {
        let bytes = serde_json::to_vec(request).expect("plain data is JSON");
        let stdin = self.0.stdin.take();
        let write = async {
            if let Some(mut stdin) = stdin {
                // It fails if the child has ended already; its status says why.
                stdin.write_all(&bytes).await.ok();
            }
        };
        tokio::join!(
            write,
            read(self.0.stdout.take(), OUTPUT_BYTES_MAX, &mut output.lines),
            read(self.0.stderr.take(), ERRORS_BYTES_MAX, &mut output.errors)
        );
        self.0.wait().await
    }

    /// Ends every process of the group and waits for the child.
    async fn end(&mut self) {
        self.kill();
        // Fails only if it was waited for.
        self.0.wait().await.ok();
    }

    fn kill(&self) {
        // None once it was waited for: its number may belong to another process then.
        let id = self.0.id().and_then(|id| i32::try_from(id).ok());
        if let Some(group) = id.and_then(Pid::from_raw) {
            // Fails only if the group is gone.
            kill_process_group(group, Signal::KILL).ok();
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

enum End {
    Status(std::io::Result<ExitStatus>),
    /// It was ended because it took longer.
    Late(Duration),
}

/// What a child has written so far.
#[derive(Debug, Default)]
struct Output {
    lines: Vec<u8>,
    errors: Vec<u8>,
}

impl Output {
    fn lines(&self) -> impl DoubleEndedIterator<Item = Line> {
        let lines = self.lines.split(|byte| *byte == b'\n');
        lines.filter_map(|line| serde_json::from_slice(line).ok())
    }

    fn answer(&self) -> Option<Answer> {
        self.lines().find_map(|line| match line {
            Line::Answer(answer) => Some(answer),
            Line::Reading(_) => None,
        })
    }

    /// Why there is no answer, in words for the user.
    fn why(&self, end: &End, url: &str) -> String {
        let file = self.lines().rev().find_map(|line| match line {
            Line::Reading(path) => Some(format!("{path:?} of {url}")),
            Line::Answer(_) => None,
        });
        let file = file.unwrap_or_else(|| url.to_owned());
        let errors = String::from_utf8_lossy(&self.errors);
        let last = errors
            .trim_end()
            .lines()
            .next_back()
            .unwrap_or("without a message");
        let status = match end {
            End::Late(within) => {
                return format!("reading {file} took longer than {} s", within.as_secs_f64());
            }
            End::Status(Err(error)) => return format!("reading {file} failed: {error}"),
            End::Status(Ok(status)) => status,
        };
        // How Rust's runtime ends a process that gets no memory.
        if errors.contains("memory allocation of") {
            let limit = MEMORY_BYTES_MAX >> 20;
            return format!("reading {file} takes more than {limit} MiB of memory");
        }
        match (status.signal(), status.code()) {
            (Some(signal), _) => {
                format!("the program that read {file} was ended by signal {signal}: {last}")
            }
            (None, code) => {
                let code = code.unwrap_or_default();
                format!("the program that read {file} ended with exit status {code}: {last}")
            }
        }
    }
}

/// Appends at most `max` bytes of what the child writes. The pipe is closed then, which ends a
/// child that writes more.
async fn read(pipe: Option<impl AsyncRead + Unpin>, max: u64, to: &mut Vec<u8>) {
    let Some(pipe) = pipe else { return };
    let mut pipe = pipe.take(max);
    while pipe.read_buf(to).await.is_ok_and(|count| count > 0) {}
}
