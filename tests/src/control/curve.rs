//! A job that has done very many steps, reported by one worker, for the page that shows its curve.

use super::workers::{Stream, rack};
use anyhow::{Context, Result, ensure};
use proto::id::{Generation, JobId, Rank, Step};
use proto::message::{PhaseSeconds, RankPhase, RankReport, STEPS_MAX, StepReport, UnitReport};
use proto::pb;
use proto::pb::control_client::ControlClient;
use proto::version::{self, Stamp};
use std::time::Duration;
use tonic::transport::Endpoint;

/// Steps in one report.
const STEPS: u64 = STEPS_MAX as u64;
/// The worker's number, beyond those of the others.
const WORKER: u32 = 70_000;

/// A job with its worker, which goes on to report.
pub(super) struct Trained {
    pub(super) job: String,
    pub(super) worker: Stream,
    /// How long the steps took to be reported and stored.
    pub(super) took: Duration,
}

/// Submits the job, which is the only one that fits the worker, and reports `steps` steps of it.
pub(super) async fn train(
    rpc: &str,
    dataset: &str,
    steps: u64,
    detect_within: Duration,
) -> Result<Trained> {
    let channel = Endpoint::from_shared(rpc.to_owned())?.connect().await?;
    let stamp: Stamp = version::stamp;
    let mut control = ControlClient::with_interceptor(channel, stamp);
    let request = pb::SubmitRequest {
        file_name: "job.toml".to_owned(),
        job_toml: job_toml(dataset, steps),
        ..Default::default()
    };
    let job = control.submit(request).await?.into_inner().job;
    let mut worker = Stream::attach(rpc, WORKER, rack(WORKER), detect_within).await?;
    let assignment = worker.last.assignments.first().context("no assignment")?;
    ensure!(assignment.job == job, "another job got the worker");
    let generation = assignment.generation;
    let begun = std::time::Instant::now();
    let mut done = 0;
    while done < steps {
        let next = steps.min(done + STEPS);
        let rank = rank(&job, generation, (done + 1..=next).map(step).collect());
        worker.report.ranks = vec![(&rank).into()];
        worker.exchange().await?;
        // Returns when the steps are stored: their queue is bounded, and what does not fit is lost.
        let request = pb::LogsRequest {
            job: job.clone(),
            tail: Some(1),
            ..Default::default()
        };
        let mut lines = control.logs(request).await?.into_inner();
        while lines.message().await?.is_some() {}
        done = next;
    }
    let took = begun.elapsed();
    // From here on it says what it is at, and that nothing is new.
    worker.report.ranks = vec![(&rank(&job, generation, vec![step(steps)])).into()];
    let request = pb::JobRequest { job: job.clone() };
    let view = control.describe_job(request).await?.into_inner();
    ensure!(view.step == steps, "{job} is at step {}", view.step);
    Ok(Trained { job, worker, took })
}

fn job_toml(dataset: &str, steps: u64) -> String {
    // It must not end.
    let steps = steps + 1;
    format!(
        "name = \"long\"\n\
         [resources]\nworkers = {{ min = 1, max = 1 }}\ndevice = \"cpu\"\n\
         [data]\ndataset = \"{dataset}\"\nresolution = 32\n\
         [model]\narchitecture = \"autoencoder\"\nsize = \"tiny\"\n\
         [train]\nsteps = {steps}\nglobal_batch = 4\nmicro_batch = 2\n\
         [checkpoint]\nevery = {steps}\n"
    )
}

fn rank(job: &str, generation: u64, steps: Vec<StepReport>) -> RankReport {
    RankReport {
        job: JobId(job.to_owned()),
        generation: Generation(generation),
        rank: Rank(0),
        phase: RankPhase::Training,
        store_address: None,
        steps,
        shards: vec![],
        digests: vec![],
        units: UnitReport::default(),
        activity: None,
        totals: None,
    }
}

/// A loss that falls, with waves.
#[allow(clippy::cast_precision_loss)] // Steps of a bench.
fn step(number: u64) -> StepReport {
    let at = number as f64;
    StepReport {
        step: Step(number),
        loss: 1.0 / (1.0 + at / 1e4) + 0.1 * (at / 100.0).sin().abs(),
        terms: Vec::new(),
        gradient_norm: 1.0,
        learning_rate: 1e-4,
        samples: 4,
        seconds: PhaseSeconds {
            forward: 0.1,
            backward: 0.2,
            ..PhaseSeconds::default()
        },
        peak_memory_bytes: 1 << 30,
        peak_device_memory_bytes: 0,
        skipped_steps: 0,
        loss_scale: 1.0,
    }
}
