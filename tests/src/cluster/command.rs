//! One run of a program to its end, with what it printed.

use anyhow::{Context, Result, bail};
use std::process::{Command, Stdio};

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// As typed, for messages.
    pub command: String,
    /// None: killed by a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// What it printed on stdout, given that it exited with 0.
    ///
    /// # Errors
    /// It did not; the message holds what it printed.
    pub fn success(self) -> Result<String> {
        match self.code {
            Some(0) => Ok(self.stdout),
            _ => bail!(
                "`{}` ended with {:?}\n{}{}",
                self.command,
                self.code,
                self.stdout,
                self.stderr
            ),
        }
    }

    /// What it printed on stderr, given that it exited with 1 or more.
    ///
    /// # Errors
    /// It succeeded or was killed.
    pub fn failure(self) -> Result<String> {
        match self.code {
            Some(code) if code != 0 => Ok(self.stderr),
            code => bail!(
                "`{}` ended with {code:?}, it should have failed\n{}",
                self.command,
                self.stdout
            ),
        }
    }
}

/// Runs `command` to its end.
///
/// # Errors
/// It cannot be started.
pub fn run(mut command: Command) -> Result<Outcome> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let text = words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ");
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting `{text}`"))?;
    Ok(Outcome {
        command: text,
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
