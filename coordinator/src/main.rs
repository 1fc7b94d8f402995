//! The coordinator's binary: the `serve` daemon and the command-line client.

mod admission;
mod calls;
mod checkpoint;
mod cli;
mod config;
mod connections;
mod daemon;
mod events;
mod jobs;
mod journal;
mod log_limit;
mod metrics;
mod pin;
mod quota;
mod retention;
mod rpc;
mod serve;
mod session;
mod status;
mod store;
mod streams;
mod text;
mod time;

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
use proto::settings::{Log, LogFormat};
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = tokio::runtime::Runtime::new()
        .context("cannot start the async runtime")
        .and_then(|runtime| runtime.block_on(run(cli)));
    match result {
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
                eprintln!("error: {line}");
            }
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<Outcome> {
    match cli.command {
        Command::Serve { config } => serve(config.as_deref()).await,
        command => cli::run(&cli.global, command).await,
    }
}

async fn serve(file: Option<&Path>) -> anyhow::Result<Outcome> {
    // Our variables are UTF-8; skip all others.
    let text = |(key, value): (OsString, OsString)| {
        Some((key.into_string().ok()?, value.into_string().ok()?))
    };
    let config = Config::load(file, std::env::vars_os().filter_map(text))?;
    log_to_stderr(&config.log);
    serve::serve(config).await?;
    Ok(Outcome::True)
}

fn log_to_stderr(log: &Log) {
    let filter = EnvFilter::new(&log.filter);
    let ansi = std::io::stderr().is_terminal();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(ansi);
    match log.format {
        LogFormat::Text => subscriber.init(),
        LogFormat::Json => subscriber.json().init(),
    }
}
