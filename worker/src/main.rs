//! `worker`: the program of a node. Reads settings and runs the requested command. This process is
//! not linked with libtorch.

// They panic when nobody reads; `outln!` and `errln!` of `shell` do not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod child;
mod config;
mod daemon;
mod doctor;
mod gpu;
mod lines;
mod link;
mod logs;
mod metrics;
mod patience;
mod peers;
mod probe;
mod run_dir;
mod start;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use daemon::Displaced;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// The exit code of a daemon that another one of its name has displaced. The systemd unit does not
/// restart it then: the two would displace each other for ever.
const DISPLACED: u8 = 78;
/// How long the end of the process waits for calls that block, for instance on a file server.
const BLOCKED_MAX: Duration = Duration::from_secs(1);

/// A node of the RetriNet training fleet.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Attach to the coordinator and run ranks until SIGTERM, SIGINT or SIGHUP. Exit code 78 if
    /// another daemon of this name took its place.
    Daemon {
        /// Settings that replace the shipped defaults (see worker/default.toml).
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Check libtorch, devices, object store and ports of this node; exit code 1 if a check fails.
    Doctor {
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Object store to check, for instance s3://bucket/folder; replaces the setting `store`.
        #[arg(long, value_name = "URL")]
        store: Option<String>,
        #[arg(long, value_enum, default_value = "table")]
        output: Output,
    },
    /// Run one component of a model on given tensors, for comparison with another implementation.
    #[command(disable_help_flag = true)]
    Forward {
        /// See `worker forward --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<OsString>,
    },
    /// Give the latents of an autoencoder mean 0 and deviation 1 in every channel.
    #[command(disable_help_flag = true)]
    NormalizeLatents {
        /// See `worker normalize-latents --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<OsString>,
    },
    /// Score images with CLIP against references and prompts, or embed texts.
    #[command(disable_help_flag = true)]
    Score {
        /// See `worker score --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<OsString>,
    },
    /// Print the tokens of prompts, for comparison with another implementation.
    #[command(disable_help_flag = true)]
    Tokenize {
        /// See `worker tokenize --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<OsString>,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    Table,
    Json,
}

fn main() -> ExitCode {
    let code = match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            shell::print::err_lines(&format!("error: {error:#}"));
            if error.is::<Displaced>() {
                ExitCode::from(DISPLACED)
            } else {
                ExitCode::FAILURE
            }
        }
    };
    shell::log::flush();
    code
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Daemon { config } => {
            let config = config::load(config.as_deref(), variables())?;
            shell::log::start(&config.log).context("cannot start the log")?;
            // A single-threaded runtime on the main thread: the parent-death signal of a rank is
            // tied to the thread that started it.
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let result = runtime.block_on(daemon::run(config));
            runtime.shutdown_timeout(BLOCKED_MAX);
            result.map(|()| ExitCode::SUCCESS)
        }
        Command::Doctor {
            config,
            store,
            output,
        } => {
            let mut config = config::load(config.as_deref(), variables())?;
            config.store = store.or(config.store);
            let output = match output {
                Output::Table => "table",
                Output::Json => "json",
            };
            doctor::run(&config, output)
        }
        Command::Forward { options } => child::run_rank_program("forward", options),
        Command::NormalizeLatents { options } => {
            child::run_rank_program("normalize-latents", options)
        }
        Command::Score { options } => child::run_rank_program("score", options),
        Command::Tokenize { options } => child::run_rank_program("tokenize", options),
    }
}

/// The environment variables. Those that are not UTF-8 are ignored; they are not settings.
fn variables() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
}
