//! `worker-rank`: the process that holds libtorch. One per device, started by the worker daemon,
//! which holds none; also the part of `worker doctor` that needs libtorch.

mod checkpoint;
mod clock;
mod closing;
mod collective;
mod conversation;
mod deadline;
mod device;
mod doctor;
mod environment;
mod exact;
mod forward;
mod gpu_check;
mod group;
mod images;
mod init;
mod link;
mod load;
mod maps;
mod outage;
mod position;
mod prefetch;
mod process;
mod run;
mod sample;
mod score;
mod sharding;
mod sidecar;
mod state;
mod step;
mod studio;
mod subject;
mod task;
mod tokenize;
mod train;
mod upload;
mod watchdog;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// The libtorch side of a worker. People use `worker`; this program is started by it.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Be a rank of a job's generations, one after another, as the daemon at the socket says.
    Run(process::Settings),
    /// Check libtorch, devices, object store and ports of this node.
    Doctor(doctor::Node),
    /// Compare the GPU with the CPU, try NCCL and time steps; for a machine with a GPU and nothing
    /// else of ours.
    GpuCheck(gpu_check::Options),
    Forward(forward::Options),
    Tokenize(tokenize::Options),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Run(settings) => {
            start_logging();
            run::run(&settings).map(|()| true)
        }
        Command::Doctor(node) => doctor::run(&node),
        Command::GpuCheck(options) => gpu_check::run(&options).map(|()| true),
        Command::Forward(options) => forward::run(&options).map(|()| true),
        Command::Tokenize(options) => tokenize::run(&options).map(|()| true),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Plain lines on standard error; the daemon gives each its rank and time.
fn start_logging() {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .init();
}
