//! `worker doctor`: asks the program that holds libtorch, because this one does not. Adds nothing of its own.

use crate::child::rank_program;
use crate::config::Config;
use anyhow::Context;
use std::process::{Command, ExitCode};

/// Runs `worker-rank doctor` with this node's settings, passes its output on and answers as it does.
pub(crate) fn run(config: &Config, output: &str) -> anyhow::Result<ExitCode> {
    let program = rank_program()?;
    let mut command = Command::new(&program);
    command
        .args(["doctor", "--output", output])
        .args([
            "--device",
            config.device.name(),
            "--devices",
            &config.devices.to_string(),
        ])
        .args([
            "--address",
            &config.address,
            "--metrics-listen",
            &config.metrics_listen.to_string(),
        ]);
    if let Some(store) = &config.store {
        command.args(["--store", store]);
    }
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", program.display()))?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
