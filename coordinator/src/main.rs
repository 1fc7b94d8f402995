//! The coordinator's binary: the `serve` daemon and the command-line client.

mod checkpoint;
mod cli;
mod config;
mod daemon;
mod events;
mod inspect;
mod jobs;
mod journal;
mod metrics;
mod pin;
mod retention;
mod rpc;
mod serve;
mod session;
mod status;
mod store;
mod text;
mod time;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod serve_tests;

use anyhow::Context;
use clap::Parser;
use cli::{Cli, Command, Outcome};
use config::Config;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if matches!(cli.command, Command::Inspect) {
        return inspect::child::run();
    }
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
                text::errln!("error: {line}");
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
    logging::start(&config.log);
    serve::serve(config).await?;
    Ok(Outcome::True)
}
