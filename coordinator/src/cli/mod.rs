//! The command line. One file per group of commands; each reads its arguments, asks the coordinator
//! or the object store, and prints a table for people or JSON for programs. Nothing here is used by
//! `serve`.

mod audit;
mod checkpoint;
mod client;
mod control;
mod curve;
mod dataset;
mod describe;
mod job;
mod json;
mod ledger;
mod logs;
mod preview;
mod provenance;
mod reference;
mod sample;
mod submit;
mod target;
mod watch;
mod why;
mod worker;

use crate::words::say;
use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use target::Target;

/// Trains RetriNet on a cluster of workers.
#[derive(Debug, Parser)]
#[command(name = "coordinator", version, about, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// URL of the coordinator
    #[arg(
        long,
        global = true,
        env = "COORDINATOR_URL",
        default_value = "http://127.0.0.1:7070",
        value_name = "URL"
    )]
    pub(crate) coordinator: String,
    /// A table for people or JSON for programs
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "table",
        value_name = "FORM"
    )]
    pub(crate) output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the coordinator
    Serve {
        /// TOML file that replaces single defaults; see default.toml
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Check job.toml and hand it to the coordinator; prints the job's id
    Submit(submit::SubmitArgs),
    /// List all jobs
    Jobs,
    /// Show one job: phase and reason, members, step times, checkpoints, incidents
    Describe(describe::DescribeArgs),
    /// Follow a job until it ends; exit code 0 only if it is done
    Watch { job: String },
    /// Show what a job's ranks printed
    Logs(logs::LogsArgs),
    /// Say what a job waits for right now, and what would let it go on
    Why { job: String },
    /// Replay a job's ledger against its data set; exit code 0 only if all is proved
    Audit { job: String },
    /// Tell in which steps, generations and on which ranks a sample was seen
    Provenance(provenance::ProvenanceArgs),
    /// Stop a job for good; its checkpoints stay
    Cancel { job: String },
    /// Let a job leave its workers, with a checkpoint of the step it is at; returns when it has
    Pause(control::PauseArgs),
    /// Let a paused job go on from where it was
    Resume { job: String },
    /// Give a job this many workers, as far as they are there
    Scale(control::ScaleArgs),
    /// Give a worker nothing new and let what it runs go on elsewhere; returns when it is empty
    Drain(control::DrainArgs),
    /// Use a drained worker again
    Undrain { worker: String },
    /// List the workers
    Workers,
    /// List a job's checkpoints
    Checkpoints { job: String },
    /// Verify, digest or export one checkpoint
    #[command(subcommand)]
    Checkpoint(checkpoint::CheckpointCommand),
    /// Make, describe and verify data sets
    #[command(subcommand)]
    Dataset(dataset::DatasetCommand),
    /// Let a worker draw pictures with a job's checkpoint, and fetch them
    Sample(sample::SampleArgs),
}

/// Whether what was asked for is true. Anything else than `True` and an error is exit code 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    True,
    /// Already said on stdout or stderr.
    False,
}

/// Runs every command but `serve`.
pub(crate) async fn run(global: &Global, command: Command) -> Result<Outcome> {
    match command {
        Command::Serve { .. } => unreachable!("main runs serve itself"),
        Command::Submit(args) => submit::submit(global, &args).await,
        Command::Jobs => job::jobs(global).await,
        Command::Describe(args) => describe::describe(global, &args).await,
        Command::Watch { job } => watch::watch(global, &job).await,
        Command::Logs(args) => logs::logs(global, &args).await,
        Command::Why { job } => why::why(global, &job).await,
        Command::Audit { job } => audit::audit(global, &job).await,
        Command::Provenance(args) => provenance::provenance(global, &args).await,
        Command::Cancel { job } => job::cancel(global, &job).await,
        Command::Pause(args) => control::pause(global, &args).await,
        Command::Resume { job } => control::resume(global, &job).await,
        Command::Scale(args) => control::scale(global, &args).await,
        Command::Drain(args) => control::drain(global, &args).await,
        Command::Undrain { worker } => control::undrain(global, &worker).await,
        Command::Workers => worker::workers(global).await,
        Command::Checkpoints { job } => checkpoint::checkpoints(global, &job).await,
        Command::Checkpoint(command) => checkpoint::checkpoint(global, &command).await,
        Command::Dataset(command) => dataset::dataset(global, &command).await,
        Command::Sample(args) => sample::sample(global, &args).await,
    }
}

/// A table without rules between rows, so that it can be grepped.
fn table(header: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table
        .load_preset(comfy_table::presets::NOTHING)
        .set_header(header);
    table
}

fn print_json(value: &serde_json::Value) {
    say!("{value:#}");
}
