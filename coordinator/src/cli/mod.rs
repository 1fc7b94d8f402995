//! The command line. One file per group of commands; each parses its arguments, queries the
//! coordinator or the object store, and prints a table for people or JSON for programs. `serve`
//! uses nothing of it.

mod ask;
mod audit;
mod build;
mod checkpoint;
mod client;
mod compare;
mod control;
mod convert;
mod curve;
mod dataset;
mod describe;
mod evaluate;
mod evaluations;
mod events;
mod export_curve;
mod goodput;
mod interrupt;
mod job;
mod json;
mod ledger;
mod logs;
mod manual;
mod new;
mod patience;
mod preview;
mod provenance;
mod reference;
mod sample;
mod spark;
mod stacks;
mod state;
mod submit;
mod target;
mod tensorboard;
mod top;
mod trace;
mod twins;
mod watch;
mod why;
mod worker;

use crate::text::out_lines;
use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use proto::printable::{printable, printable_json};
use std::path::PathBuf;
use target::Target;

/// Release and commit, for `--version`.
const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (commit ",
    env!("RETRI_COMMIT"),
    ")"
);

const EXIT_CODES: &str = "Exit codes: 0 what was asked for is true; 1 it is not, or the command \
    failed; 2 wrong arguments; 141 the reader of the output went away.";

/// Trains RetriNet on a cluster of workers.
#[derive(Debug, Parser)]
#[command(
    name = "coordinator",
    version = VERSION,
    about,
    max_term_width = 100,
    after_help = EXIT_CODES
)]
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
    /// A table for people, JSON for programs; `usage` also writes csv
    #[arg(
        long = "output",
        global = true,
        value_enum,
        default_value = "table",
        value_name = "FORM"
    )]
    form: Form,
    /// `form` of the commands that know two.
    #[arg(skip)]
    pub(crate) output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    Table,
    Json,
    Csv,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Output {
    #[default]
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the coordinator
    Serve {
        /// TOML file that overrides defaults; see default.toml
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Look into a data set or a base model for the coordinator, which starts this itself
    #[command(hide = true)]
    Inspect,
    /// Check job.toml and submit it to the coordinator; prints the job's id
    Submit(submit::SubmitArgs),
    /// Print a commented job file to start from
    New(new::NewArgs),
    /// Watch jobs and workers at a glance; prints once into a pipe
    Top(top::TopArgs),
    /// List jobs, the newest last
    Jobs(job::JobsArgs),
    /// Show one job: phase and reason, members, step times, checkpoints and incidents
    Describe(describe::DescribeArgs),
    /// Follow a job until it ends; exit code 0 only if it is done
    Watch { job: String },
    /// Show the output of a job's ranks
    Logs(logs::LogsArgs),
    /// Show what a job is waiting for, and how to unblock it
    Why { job: String },
    /// Show what happened to jobs and workers since the coordinator started
    Events(events::EventsArgs),
    /// List what went wrong in a job, or in all jobs in memory
    Incidents(events::IncidentsArgs),
    /// Show where every thread of a job's ranks is now
    Stacks(stacks::StacksArgs),
    /// Write what a job's ranks did in some steps, and when, for Perfetto or chrome://tracing
    Trace(trace::TraceArgs),
    /// Print a job's steps as CSV or JSON lines, or write them for TensorBoard
    Curve(export_curve::CurveArgs),
    /// Compare two jobs: their settings, and their losses at equal steps
    Compare(compare::CompareArgs),
    /// Show where the time of a job's devices went; the buckets add up
    Goodput(goodput::GoodputArgs),
    /// Sum up the device-hours of all jobs by team, user, job, name or label
    Usage(goodput::UsageArgs),
    /// Replay a job's ledger against its data set; exit code 0 only if there is no violation
    Audit { job: String },
    /// List the steps, generations and ranks in which a sample was seen
    Provenance(provenance::ProvenanceArgs),
    /// Stop a job permanently; its checkpoints remain
    Cancel { job: String },
    /// Continue a failed or cancelled job under its own id, from its last checkpoint
    Retry(job::RetryArgs),
    /// Delete an ended job: its record, ledger, curve and log lines
    Delete(job::DeleteArgs),
    /// Checkpoint a job at its current step and release its workers; returns when this is done
    Pause(control::PauseArgs),
    /// Resume a paused job from its checkpoint
    Resume { job: String },
    /// Set the desired number of workers of a job
    Scale(control::ScaleArgs),
    /// Schedule nothing new on a worker and move its jobs elsewhere; returns when it is empty
    Drain(control::DrainArgs),
    /// Make a drained worker schedulable again
    Undrain { worker: String },
    /// List the workers
    Workers,
    /// List a job's checkpoints
    Checkpoints { job: String },
    /// Verify, digest or export one checkpoint
    #[command(subcommand)]
    Checkpoint(checkpoint::CheckpointCommand),
    /// Back up the coordinator's state, or restore it
    #[command(subcommand)]
    State(state::StateCommand),
    /// Create, describe and verify data sets
    #[command(subcommand)]
    Dataset(dataset::DatasetCommand),
    /// Convert weights that torch.save wrote to safetensors, once; nothing of Python runs
    Convert(convert::ConvertArgs),
    /// Generate images with several jobs by one plan, score them, and report
    Evaluate(evaluate::EvaluateArgs),
    /// Generate images on a worker with a job's checkpoint, and download them
    Sample(sample::SampleArgs),
    /// Print a script that completes commands in a shell
    Completions(manual::CompletionsArgs),
    /// Print the manual page, or write one for each command
    Man(manual::ManArgs),
}

/// The result of a command without an error. `True` is exit code 0; `False` is exit code 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    True,
    /// The reason has been printed.
    False,
}

/// Runs every command but `serve` and `inspect`.
pub(crate) async fn run(global: Global, command: Command) -> Result<Outcome> {
    let output = match global.form {
        Form::Json => Output::Json,
        Form::Csv if !matches!(command, Command::Usage(_)) => {
            bail!(
                "--output is csv, which only `coordinator usage` writes; it must be table or json"
            )
        }
        Form::Table | Form::Csv => Output::Table,
    };
    let global = &Global { output, ..global };
    match command {
        Command::Serve { .. } | Command::Inspect => unreachable!("main handles them"),
        Command::Submit(args) => submit::submit(global, &args).await,
        Command::New(args) => new::new(global, &args),
        Command::Top(args) => top::top(global, &args).await,
        Command::Completions(args) => Ok(manual::completions(&args)),
        Command::Man(args) => manual::man(&args),
        Command::Jobs(args) => job::jobs(global, &args).await,
        Command::Describe(args) => describe::describe(global, &args).await,
        Command::Watch { job } => watch::watch(global, &job).await,
        Command::Logs(args) => logs::logs(global, &args).await,
        Command::Why { job } => why::why(global, &job).await,
        Command::Events(args) => events::events(global, &args).await,
        Command::Incidents(args) => events::incidents(global, &args).await,
        Command::Stacks(args) => stacks::stacks(global, &args).await,
        Command::Trace(args) => trace::trace(global, &args).await,
        Command::Curve(args) => export_curve::curve(global, &args).await,
        Command::Compare(args) => compare::compare(global, &args).await,
        Command::Goodput(args) => goodput::goodput(global, &args).await,
        Command::Usage(args) => goodput::usage(global, &args).await,
        Command::Audit { job } => audit::audit(global, &job).await,
        Command::Provenance(args) => provenance::provenance(global, &args).await,
        Command::Cancel { job } => job::cancel(global, &job).await,
        Command::Retry(args) => job::retry(global, &args).await,
        Command::Delete(args) => job::delete(global, &args).await,
        Command::State(command) => state::run(global, command).await,
        Command::Pause(args) => control::pause(global, &args).await,
        Command::Resume { job } => control::resume(global, &job).await,
        Command::Scale(args) => control::scale(global, &args).await,
        Command::Drain(args) => control::drain(global, &args).await,
        Command::Undrain { worker } => control::undrain(global, &worker).await,
        Command::Workers => worker::workers(global).await,
        Command::Checkpoints { job } => checkpoint::checkpoints(global, &job).await,
        Command::Convert(args) => convert::run(global, &args),
        Command::Checkpoint(command) => checkpoint::checkpoint(global, &command).await,
        Command::Dataset(command) => dataset::dataset(global, &command).await,
        Command::Evaluate(args) => evaluate::evaluate(global, &args).await,
        Command::Sample(args) => sample::sample(global, &args).await,
    }
}

/// A table without borders, so that it can be grepped. A row is one line, whatever its cells hold.
struct Table(comfy_table::Table);

fn table(header: &[&str]) -> Table {
    let mut table = comfy_table::Table::new();
    table
        .load_preset(comfy_table::presets::NOTHING)
        .set_header(header);
    Table(table)
}

impl Table {
    fn add_row<const COLUMNS: usize>(&mut self, cells: [String; COLUMNS]) {
        self.add_cells(&cells);
    }

    /// The same for a table whose columns depend on what it shows.
    fn add_cells(&mut self, cells: &[String]) {
        self.0
            .add_row(cells.iter().map(|cell| printable(cell).into_owned()));
    }

    fn print(&self) {
        out_lines(&self.0.to_string());
    }

    /// Prints an empty line and the table.
    fn print_below(&self) {
        out_lines(&format!("\n{}", self.0));
    }
}

fn print_json(value: &serde_json::Value) {
    out_lines(&printable_json(&format!("{value:#}")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_one_line_whatever_its_cells_hold() {
        let mut table = table(&["WORKER", "STATE"]);
        table.add_row(["\u{1b}[2Jw1\nw2  up\u{202e}".to_owned(), "down".to_owned()]);
        let text = table.0.to_string();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains(r"\u{1b}[2Jw1\nw2  up\u{202e}"), "{text}");
    }
}
