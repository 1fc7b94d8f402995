//! The coordinator's binary: the `serve` daemon and the command-line client.

// They panic when nobody reads; `outln!` and `errln!` of `shell` do not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod admission;
mod archived;
mod budget;
mod calls;
mod checkpoint;
mod cli;
mod comparison;
mod config;
mod connections;
mod curve;
mod daemon;
mod evaluation;
mod event_log;
mod events;
mod gaps;
mod inspect;
mod jobs;
mod journal;
mod log_limit;
mod measured;
mod measures;
mod metrics;
mod notify;
mod opening;
mod own_log;
mod paired;
mod pin;
mod pressure;
mod probes;
mod quota;
mod retention;
mod rpc;
mod serve;
mod session;
mod status;
mod store;
mod streams;
mod subject;
mod text;
mod time;
mod usage;
mod web;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod limit_tests;
#[cfg(test)]
mod serve_tests;

use anyhow::Context;
use clap::Parser;
use cli::{Cli, Command, Outcome};
use config::Config;
use shell::errln;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// How long the end of the process waits for calls that block, for instance on a file server.
const BLOCKED_MAX: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let cli = Cli::parse();
    if matches!(cli.command, Command::Inspect) {
        return inspect::child::run();
    }
    let result = tokio::runtime::Runtime::new()
        .context("cannot start the async runtime")
        .and_then(|runtime| {
            let result = runtime.block_on(run(cli));
            runtime.shutdown_timeout(BLOCKED_MAX);
            result
        });
    let code = match result {
        Ok(Outcome::True) => ExitCode::SUCCESS,
        Ok(Outcome::False) => ExitCode::FAILURE,
        Err(error) => {
            // Skip a cause whose text the message already contains.
            let mut text = String::new();
            for cause in error.chain().map(ToString::to_string) {
                if !text.contains(&cause) {
                    text = if text.is_empty() {
                        cause
                    } else {
                        format!("{text}: {cause}")
                    };
                }
            }
            for line in text.lines() {
                errln!("error: {line}");
            }
            ExitCode::FAILURE
        }
    };
    shell::log::flush();
    code
}

async fn run(cli: Cli) -> anyhow::Result<Outcome> {
    match cli.command {
        Command::Serve { config } => serve(config.as_deref()).await,
        command => cli::run(cli.global, command).await,
    }
}

async fn serve(file: Option<&Path>) -> anyhow::Result<Outcome> {
    // Our variables are UTF-8; skip all others.
    let text = |(key, value): (OsString, OsString)| {
        Some((key.into_string().ok()?, value.into_string().ok()?))
    };
    let config = Config::load(file, std::env::vars_os().filter_map(text))?;
    shell::log::start(&config.log).context("cannot start the log")?;
    serve::serve(config).await?;
    Ok(Outcome::True)
}
