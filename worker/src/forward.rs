//! `worker forward`: asks the program that holds libtorch, because this one does not.

use crate::child::rank_program;
use anyhow::Context;
use std::ffi::OsString;
use std::process::{Command, ExitCode};

/// Runs `worker-rank forward` with these options and answers as it does.
pub(crate) fn run(options: &[OsString]) -> anyhow::Result<ExitCode> {
    let program = rank_program()?;
    let status = Command::new(&program)
        .arg("forward")
        .args(options)
        .status()
        .with_context(|| format!("cannot start {}", program.display()))?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
