//! `worker`: the program of a node. Reads settings and runs the requested command. This process is
//! not linked with libtorch.

mod child;
mod config;
mod daemon;
mod doctor;
mod link;
mod logs;
mod metrics;
mod peers;

use clap::{Parser, Subcommand, ValueEnum};
use config::Config;
use proto::settings::LogFormat;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// A node of the RetriNet training fleet.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Attach to the coordinator and run ranks until SIGTERM.
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
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Daemon { config } => {
            let config = config::load(config.as_deref(), variables())?;
            start_logging(&config);
            // A single-threaded runtime on the main thread: the parent-death signal of a rank is
            // tied to the thread that started it.
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(daemon::run(config))?;
            Ok(ExitCode::SUCCESS)
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
        Command::Tokenize { options } => child::run_rank_program("tokenize", options),
    }
}

/// The environment variables. Those that are not UTF-8 are ignored; they are not settings.
fn variables() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
}

fn start_logging(config: &Config) {
    let filter = tracing_subscriber::EnvFilter::new(&config.log.filter);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match config.log.format {
        LogFormat::Text => builder
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .init(),
        LogFormat::Json => builder.json().init(),
    }
}
