//! Runs a program to its end and captures its output.

use anyhow::{Context, Result, bail};
use std::process::{Command, Stdio};

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The command line, for messages.
    pub command: String,
    /// None: killed by a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// Its stdout, if it exited with 0.
    ///
    /// # Errors
    /// It did not; the message contains its output.
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

    /// Its stderr, if it exited with 1 or more.
    ///
    /// # Errors
    /// It succeeded or was killed.
    pub fn failure(self) -> Result<String> {
        match self.code {
            Some(code) if code != 0 => Ok(self.stderr),
            code => bail!(
                "`{}` ended with {code:?}; it should have failed\n{}",
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
