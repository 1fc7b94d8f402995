//! The life of a rank process: connect to the daemon, run the work, report how it ended, exit. A
//! failure of the group does not end the process: it waits for the next generation. Any other
//! failure is reported in one line with the rank, the context and the reason. Called by `main`.

use crate::collective::precision::full_fp32;
use crate::collective::{exit_now, first_line};
use crate::link::Link;
use crate::process::{Permanent, Rank, Settings};
use crate::{build, evaluate, probe, sample, train};
use anyhow::Context;
use proto::message::{RankPhase, Run};
use proto::reason::RankFailure;
use proto::spec::Work;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tokio::runtime::Builder;

/// Threads for sockets, storage and sample loading; the model runs on the main thread.
const RUNTIME_THREADS: usize = 2;

/// Returns only if the process cannot connect; otherwise the process exits.
pub(crate) fn run(settings: &Settings) -> anyhow::Result<()> {
    exit_with_parent(settings.parent)?;
    full_fp32();
    let runtime = Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .enable_all()
        .build()?;
    let (link, task) = Link::connect(runtime.handle(), &settings.socket, settings.parent)?;
    if let Some(socket) = &settings.probe {
        probe::start(socket, link.progress().clone());
    }
    let begin = || {
        let assignment = &task.assignment;
        let job = proto::job::parse_stored(&assignment.job, &assignment.job_toml)?;
        work(&Rank {
            runtime: runtime.handle(),
            link: &link,
            task: &task,
            job: &job,
            settings,
        })
    };
    let outcome = catch_unwind(AssertUnwindSafe(begin))
        .unwrap_or_else(|panic| Err(anyhow::anyhow!("panic: {}", panic_text(&*panic))));
    match outcome {
        Ok(never) => match never {},
        Err(error) => {
            let permanent = error.downcast_ref::<Permanent>().is_some();
            // The first line of an object store's error is only an XML declaration: join it.
            let error = format!("{error:#}").replace("?>\n", "?> ");
            let error = format!("{}: {}", link.rank_name(), first_line(&error));
            shell::errln!("error: {error}");
            let failure = RankFailure::error(&error, permanent);
            link.send_final(RankPhase::Failed { failure });
            exit_now(1)
        }
    }
}

/// Returns only on an error: the daemon orders the process to stop.
fn work(rank: &Rank<'_>) -> anyhow::Result<Infallible> {
    let (assignment, settings) = (&rank.task.assignment, rank.settings);
    anyhow::ensure!(
        assignment.job.0 == settings.job,
        "the daemon's order is for {}, and this process was started for {}",
        assignment.job,
        settings.job
    );
    match (&rank.job.work, &assignment.run) {
        (Work::Train(work), Run::Gang(_)) => train::train(rank, work),
        (Work::Sample(work), Run::Units(order)) => {
            let source = order
                .source
                .as_ref()
                .context("the order has no source job")?;
            sample::sample(rank, work, source).context("sampling")
        }
        (Work::Evaluate(work), Run::Units(order)) => {
            evaluate::evaluate(rank, work, &order.models).context("evaluating")
        }
        (Work::Build(work), Run::Units(_)) => build::build(rank, work).context("building"),
        (work @ Work::Train(_), Run::Units(_))
        | (work @ (Work::Sample(_) | Work::Evaluate(_) | Work::Build(_)), Run::Gang(_)) => {
            anyhow::bail!(
                "the daemon's order does not match [{}] of {}: gang or units",
                work.table(),
                assignment.job
            )
        }
    }
}

/// Asks the kernel to kill this process when its parent exits. Fails if the parent has already
/// exited.
fn exit_with_parent(parent: i32) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let now = rustix::process::getppid().map(rustix::process::Pid::as_raw_pid);
    anyhow::ensure!(
        now == Some(parent),
        "the daemon (process {parent}) has exited"
    );
    Ok(())
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a message");
    first_line(&text.replace("\\n", "\n")).to_owned()
}
