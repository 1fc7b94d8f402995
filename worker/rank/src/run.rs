//! The life of one rank process: connect to the daemon, do the work, say how it ended, leave. What
//! goes wrong with the group is no end: the process waits for the next generation. Whatever else
//! goes wrong becomes one line that says which rank, where and why. Called by `main`.

use crate::collective::precision::full_fp32;
use crate::collective::{exit_now, first_line};
use crate::link::Link;
use crate::process::{Permanent, Rank, Settings};
use crate::{sample, train};
use anyhow::Context;
use proto::message::{RankPhase, Run};
use proto::spec::Work;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tokio::runtime::Builder;

/// Threads for sockets, storage and sample loading; the model has the main thread.
const RUNTIME_THREADS: usize = 2;

/// Returns only when the work could not even begin.
pub(crate) fn run(settings: &Settings) -> anyhow::Result<()> {
    die_with(settings.parent)?;
    full_fp32();
    let runtime = Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .enable_all()
        .build()?;
    let (link, task) = Link::connect(runtime.handle(), &settings.socket)?;
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
            // What an object store answers begins with a line that only says that it is XML.
            let error = format!("{error:#}").replace("?>\n", "?> ");
            let error = format!("{}: {}", link.who(), first_line(&error));
            eprintln!("error: {error}");
            link.last(RankPhase::Failed { error, permanent });
            exit_now(1)
        }
    }
}

/// Leaves only by an error: the daemon tells the process when to end.
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
                .context("the order names no trained job")?;
            sample::sample(rank, work, source).context("sampling")
        }
        (work @ Work::Train(_), Run::Units(_)) | (work @ Work::Sample(_), Run::Gang(_)) => {
            anyhow::bail!(
                "the daemon's order runs [{}] of {} in the other way",
                work.table(),
                assignment.job
            )
        }
    }
}

/// Asks the kernel to end this process with its parent, and leaves at once if the parent is gone
/// already.
fn die_with(parent: i32) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let now = rustix::process::getppid().map(rustix::process::Pid::as_raw_pid);
    anyhow::ensure!(now == Some(parent), "the daemon (process {parent}) is gone");
    Ok(())
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a message");
    first_line(&text.replace("\\n", "\n")).to_owned()
}
