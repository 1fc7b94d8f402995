//! `worker doctor`: runs the checks in `worker-rank`, because this program is not linked with
//! libtorch.

use crate::child::run_rank_program;
use crate::config::Config;
use std::process::ExitCode;

/// Runs `worker-rank doctor` with this node's settings.
pub(crate) fn run(config: &Config, output: &str) -> anyhow::Result<ExitCode> {
    let devices = config.devices.to_string();
    let metrics_listen = config.metrics_listen.to_string();
    let mut options = vec!["--output", output, "--name", &config.name];
    options.extend(["--device", config.device.name(), "--devices", &devices]);
    options.extend([
        "--address",
        &config.address,
        "--metrics-listen",
        &metrics_listen,
    ]);
    options.extend(["--coordinator", &config.coordinator]);
    if let Some(store) = &config.store {
        options.extend(["--store", store]);
    }
    run_rank_program("doctor", options)
}
