//! `coordinator pause`, `resume`, `scale`, `drain` and `undrain`: set the desired state of a job or
//! worker, which holds until it is changed. Pause and drain wait for it to take effect, unless
//! `--no-wait` is given.

use super::client::{self, Client, connect, request_error};
use super::interrupt::Interrupt;
use super::{Global, Outcome, Output, print_json};
use crate::text::{errln, outln};
use anyhow::{Result, anyhow};
use clap::Args;
use proto::pb;
use proto::phase::{Phase, is_over};
use std::time::Duration;

/// Interval at which a drain checks whether the worker is empty.
const POLL_INTERVAL: Duration = Duration::from_millis(300);

#[derive(Debug, Args)]
pub(crate) struct PauseArgs {
    job: String,
    /// Return without waiting until the job has released its workers
    #[arg(long)]
    no_wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ScaleArgs {
    job: String,
    /// Desired number of workers; the job gets fewer if fewer are free
    #[arg(long, value_name = "N")]
    workers: u32,
}

#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    worker: String,
    /// Return without waiting until the worker is empty
    #[arg(long)]
    no_wait: bool,
}

pub(crate) async fn pause(global: &Global, args: &PauseArgs) -> Result<Outcome> {
    let mut client = connect(global).await?;
    let mut phase = set_paused(global, &mut client, &args.job, true).await?;
    if !args.no_wait && phase != Phase::Paused {
        let job = args.job.clone();
        let waiting = Interrupt::catch(move || {
            errln!("{job} is still being paused; `coordinator resume {job}` undoes it");
        })?;
        phase = until_paused(global, &mut client, &args.job).await?;
        waiting.release();
    }
    print(global, &args.job, &phase);
    let paused = phase == Phase::Paused || args.no_wait;
    Ok(if paused {
        Outcome::True
    } else {
        Outcome::False
    })
}

pub(crate) async fn resume(global: &Global, job: &str) -> Result<Outcome> {
    let mut client = connect(global).await?;
    let phase = set_paused(global, &mut client, job, false).await?;
    print(global, job, &phase);
    Ok(Outcome::True)
}

pub(crate) async fn scale(global: &Global, args: &ScaleArgs) -> Result<Outcome> {
    let mut client = connect(global).await?;
    let request = pb::ScaleRequest {
        job: args.job.clone(),
        workers: args.workers,
    };
    let reply = client
        .scale(request)
        .await
        .map_err(|status| request_error(global, &status))?;
    let phase = reply.into_inner().phase;
    match global.output {
        Output::Json => {
            print_json(
                &serde_json::json!({ "job": args.job, "phase": phase, "workers": args.workers }),
            );
        }
        Output::Table => outln!("{} is {phase}; desired workers: {}", args.job, args.workers),
    }
    Ok(Outcome::True)
}

pub(crate) async fn drain(global: &Global, args: &DrainArgs) -> Result<Outcome> {
    let mut client = connect(global).await?;
    set_drained(global, &mut client, &args.worker, true).await?;
    let empty = if args.no_wait {
        false
    } else {
        let worker = args.worker.clone();
        let waiting = Interrupt::catch(move || {
            errln!("{worker} is still being drained; `coordinator undrain {worker}` undoes it");
        })?;
        let empty = until_empty(global, &mut client, &args.worker).await?;
        waiting.release();
        empty
    };
    match global.output {
        Output::Json => {
            print_json(
                &serde_json::json!({ "worker": args.worker, "drained": true, "empty": empty }),
            );
        }
        Output::Table if empty => outln!("{} is drained and empty", args.worker),
        Output::Table => outln!("{} is being drained", args.worker),
    }
    Ok(Outcome::True)
}

pub(crate) async fn undrain(global: &Global, worker: &str) -> Result<Outcome> {
    let mut client = connect(global).await?;
    set_drained(global, &mut client, worker, false).await?;
    match global.output {
        Output::Json => print_json(&serde_json::json!({ "worker": worker, "drained": false })),
        Output::Table => outln!("{worker} accepts work again"),
    }
    Ok(Outcome::True)
}

async fn set_paused(
    global: &Global,
    client: &mut Client,
    job: &str,
    paused: bool,
) -> Result<String> {
    let request = pb::PauseRequest {
        job: job.to_owned(),
        paused,
    };
    let reply = client
        .pause(request)
        .await
        .map_err(|status| request_error(global, &status))?;
    Ok(reply.into_inner().phase)
}

async fn set_drained(
    global: &Global,
    client: &mut Client,
    worker: &str,
    drained: bool,
) -> Result<()> {
    let request = pb::DrainRequest {
        worker: worker.to_owned(),
        drained,
    };
    client
        .drain(request)
        .await
        .map_err(|status| request_error(global, &status))?;
    Ok(())
}

/// Waits until the job is paused or over; returns its phase. The phase may be another one if
/// somebody resumed the job meanwhile.
async fn until_paused(global: &Global, client: &mut Client, job: &str) -> Result<String> {
    let failed = |status| request_error(global, &status);
    let request = pb::JobRequest {
        job: job.to_owned(),
    };
    let mut views = client
        .watch_job(request)
        .await
        .map_err(failed)?
        .into_inner();
    while let Some(view) = views.message().await.map_err(failed)? {
        if view.phase == Phase::Paused || is_over(&view.phase) {
            return Ok(view.phase);
        }
    }
    Ok(client::describe(global, client, job).await?.phase)
}

/// Waits until the worker is empty. False if somebody undrained it meanwhile.
async fn until_empty(global: &Global, client: &mut Client, name: &str) -> Result<bool> {
    loop {
        let reply = client.list_workers(pb::ListWorkersRequest {}).await;
        let workers = reply
            .map_err(|status| request_error(global, &status))?
            .into_inner()
            .workers;
        let named =
            |it: &&pb::WorkerView| it.worker.as_ref().is_some_and(|worker| worker.name == name);
        let worker = workers
            .iter()
            .find(named)
            .ok_or_else(|| anyhow!("worker {name} no longer exists"))?;
        if worker.devices_used == 0 || !worker.drained {
            return Ok(worker.drained);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

fn print(global: &Global, job: &str, phase: &str) {
    match global.output {
        Output::Json => print_json(&serde_json::json!({ "job": job, "phase": phase })),
        Output::Table => outln!("{job} is {phase}"),
    }
}
