//! `worker-build`: runs units of `[build]`. A rank starts it beside itself, because it links an
//! engine and readers that no other program needs; a crash of it is a failed unit.

use anyhow::Context;
use clap::{Parser, Subcommand};
use pipeline::preview::{self, Order};
use proto::build::BuildWork;
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

/// Largest order that is read from standard input.
const ORDER_BYTES_MAX: u64 = 1 << 20;

/// Build stages of a data set.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one unit of the stage whose JSON is on standard input
    Unit {
        #[arg(long)]
        unit: u64,
        /// Folder for files that are deleted at the end
        #[arg(long, value_name = "DIR")]
        scratch: PathBuf,
        /// The process that started this one: it is killed when that one exits
        #[arg(long, value_name = "PID")]
        parent: Option<i32>,
    },
    /// Write a contact sheet of the stage whose JSON is on standard input
    Sheet {
        /// Image to write
        #[arg(long, value_name = "PNG")]
        out: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            shell::print::err_lines(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Asks the kernel to kill this process when its parent exits. Fails if it has exited already.
fn exit_with_parent(parent: i32) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let now = rustix::process::getppid().map(rustix::process::Pid::as_raw_pid);
    anyhow::ensure!(now == Some(parent), "the process {parent} has exited");
    Ok(())
}

fn standard_input() -> anyhow::Result<String> {
    let mut text = String::new();
    let mut input = std::io::stdin().lock().take(ORDER_BYTES_MAX);
    input
        .read_to_string(&mut text)
        .context("cannot read standard input")?;
    Ok(text)
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    match &arguments.command {
        Command::Unit {
            unit,
            scratch,
            parent,
        } => {
            if let Some(parent) = parent {
                exit_with_parent(*parent)?;
            }
            let work: BuildWork = serde_json::from_str(&standard_input()?)
                .context("standard input is not the JSON of a stage")?;
            runtime.block_on(pipeline::unit::run(&work, *unit, scratch))?;
        }
        Command::Sheet { out } => {
            let order: Order = serde_json::from_str(&standard_input()?)
                .context("standard input is not the JSON of a sheet")?;
            let scratch = tempfile::tempdir().context("cannot make a folder for scratch files")?;
            let sheet = runtime.block_on(preview::sheet(&order, scratch.path()))?;
            std::fs::write(out, sheet)
                .with_context(|| format!("cannot write {}", out.display()))?;
        }
    }
    Ok(())
}
