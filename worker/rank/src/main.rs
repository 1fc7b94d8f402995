//! `worker-rank`: the process that links libtorch. The worker daemon, which does not link it,
//! starts one per device. Also implements the part of `worker doctor` that needs libtorch.

// They panic when nobody reads; `outln!` and `errln!` of `shell` do not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod build;
mod checkpoint;
mod clock;
mod closing;
mod collective;
mod connection;
mod deadline;
mod device;
mod doctor;
mod environment;
mod evaluate;
mod exact;
mod folder;
mod forward;
mod gpu_check;
mod group;
mod identity;
mod images;
mod init;
mod link;
mod load;
mod maps;
mod normalize;
mod outage;
mod position;
mod prefetch;
mod probe;
mod process;
mod run;
mod sample;
mod score;
mod scorers;
mod sharding;
mod sidecar;
mod spans;
mod stacks;
mod state;
mod step;
mod subject;
mod task;
mod tokenize;
mod train;
mod unit_runner;
mod upload;
mod validation;
mod watchdog;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// The libtorch process of a worker. Started by `worker`, not by hand.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one rank of a job, as ordered by the daemon at the socket.
    Run(process::Settings),
    /// Check libtorch, devices, object store and ports of this node.
    Doctor(doctor::Node),
    /// Compare the GPU with the CPU, try NCCL and time steps. Needs only a GPU.
    GpuCheck(gpu_check::Options),
    Forward(forward::Options),
    NormalizeLatents(normalize::Options),
    Score(score::Options),
    Tokenize(tokenize::Options),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Run(settings) => {
            shell::log::start_plain();
            run::run(&settings).map(|()| true)
        }
        Command::Doctor(node) => doctor::run(&node),
        Command::GpuCheck(options) => gpu_check::run(&options).map(|()| true),
        Command::Forward(options) => forward::run(&options).map(|()| true),
        Command::NormalizeLatents(options) => normalize::run(&options).map(|()| true),
        Command::Score(options) => score::run(&options).map(|()| true),
        Command::Tokenize(options) => tokenize::run(&options).map(|()| true),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            shell::print::err_lines(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
