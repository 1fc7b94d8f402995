//! Writes the state machine's events as log lines: ERROR when somebody must act, WARN when the
//! system recovers from a fault, INFO for the life cycle of jobs and workers, DEBUG for every step.
//! Called by the daemon's loop.

use crate::log_limit::LogLimit;
use coordinator_core::event::Event;
use proto::id::{Generation, JobId, Step, WorkerId};
use proto::limits::{TEXT_BYTES, cut};
use proto::pb;
use std::sync::LazyLock;
use std::time::Duration;

/// Workers that come and go, and their violations: anybody can invent workers.
static WORKERS: LazyLock<LogLimit> = LazyLock::new(|| LogLimit::at_most(200));
/// So many workers that come up within ten seconds deserve a warning.
static MANY: LazyLock<LogLimit> = LazyLock::new(|| LogLimit::burst(200));

pub(crate) fn log(event: &Event) {
    match event {
        Event::WorkerUp { .. }
        | Event::WorkerDown { .. }
        | Event::WorkersForgotten { .. }
        | Event::WorkerDisplaced { .. }
        | Event::Ignored { .. } => log_worker(event),
        Event::JobQueued { job, reason } => tracing::info!(%job, %reason, "job is queued"),
        Event::GenerationFormed {
            job,
            generation,
            world,
        } => {
            tracing::info!(%job, %generation, world, "generation formed");
        }
        Event::GenerationEnded {
            job,
            generation,
            reason,
        } => {
            tracing::warn!(%job, %generation, %reason, "generation ended");
        }
        Event::Stopping {
            job,
            generation,
            reason,
        } => {
            tracing::info!(%job, %generation, %reason, "graceful stop of generation requested");
        }
        Event::Stopped {
            job,
            generation,
            reason,
        } => {
            tracing::info!(%job, %generation, %reason, "generation stopped gracefully");
        }
        Event::Stepped {
            job,
            generation,
            report,
        } => {
            let (step, loss) = (report.step, report.loss);
            tracing::debug!(%job, %generation, %step, loss, "step done");
        }
        Event::Committed { job, checkpoint } => {
            let (step, generation) = (checkpoint.step, checkpoint.generation);
            tracing::info!(%job, %step, %generation, "checkpoint committed");
        }
        Event::StandbyAdded {
            job,
            generation,
            worker,
        } => {
            tracing::info!(%job, %generation, %worker, "standby added");
        }
        Event::StandbyLost {
            job,
            generation,
            worker,
            reason,
        } => {
            tracing::warn!(%job, %generation, %worker, %reason, "standby lost");
        }
        Event::JobDone { job, step } => tracing::info!(%job, %step, "job is done"),
        Event::JobFailed { job, cause } => tracing::error!(%job, %cause, "job failed"),
        Event::JobCancelled { job } => tracing::info!(%job, "job is cancelled"),
        Event::UnitFailed { .. } | Event::UnitSetAside { .. } => log_unit(event),
        Event::EvaluationSubmitted { .. }
        | Event::EvaluationScored { .. }
        | Event::EvaluationUnscored { .. }
        | Event::EvaluationSkipped { .. } => log_evaluation(event),
        Event::Unreachable { pair } => tracing::warn!("{pair}"),
    }
}

fn log_worker(event: &Event) {
    match event {
        Event::WorkerUp { worker } => {
            if let Some(count) = WORKERS.admit() {
                tracing::info!(%worker, count, "worker is up");
            }
            if let Some(workers) = MANY.admit() {
                tracing::warn!(
                    workers,
                    last = %worker,
                    "many workers came up within ten seconds; if the cluster has fewer, somebody \
                     invents them, and they are forgotten an hour after they left"
                );
            }
        }
        Event::WorkerDown { worker, reason } => {
            if let Some(count) = WORKERS.admit() {
                tracing::warn!(%worker, %reason, count, "worker is down");
            }
        }
        Event::WorkersForgotten { workers } => {
            let first = workers.first().map(|it| it.name.as_str());
            let count = workers.len();
            tracing::info!(
                count,
                first,
                "workers that never held anything are forgotten"
            );
        }
        Event::WorkerDisplaced { worker, by } => {
            let address = by.address.as_deref().unwrap_or("unknown");
            tracing::warn!(
                %worker, by = %by.worker, address,
                "two daemons have one name; the older one is told to leave"
            );
        }
        Event::Ignored { worker, violation } => {
            if let Some(count) = WORKERS.admit() {
                tracing::warn!(%worker, %violation, count, "report ignored");
            }
        }
        _ => {}
    }
}

fn log_evaluation(event: &Event) {
    match event {
        Event::EvaluationSubmitted {
            job,
            step,
            evaluation,
        } => tracing::info!(%job, %step, %evaluation, "checkpoint is being evaluated"),
        Event::EvaluationScored {
            job,
            step,
            evaluation,
            scored,
        } => {
            let (images, missing, score) = (scored.images, scored.missing, scored.score);
            tracing::info!(
                %job, %step, %evaluation, images, missing, score, "checkpoint is evaluated"
            );
        }
        Event::EvaluationUnscored {
            job,
            step,
            evaluation,
            why,
        } => tracing::warn!(%job, %step, %evaluation, %why, "checkpoint has no scores"),
        Event::EvaluationSkipped { job, step } => {
            tracing::warn!(%job, %step, "checkpoint is not evaluated: a newer one is due");
        }
        _ => {}
    }
}

fn log_unit(event: &Event) {
    if let Event::UnitFailed {
        job,
        unit,
        worker,
        failures,
        error,
    } = event
    {
        tracing::warn!(%job, unit, %worker, failures, %error, "unit failed");
    }
    if let Event::UnitSetAside { job, unit, error } = event {
        tracing::error!(%job, unit, %error, "unit is set aside");
    }
}

/// The kind of an event in a word.
pub(crate) fn kind(event: &Event) -> &'static str {
    match event {
        Event::WorkerUp { .. } => "worker-up",
        Event::WorkerDown { .. } => "worker-down",
        Event::WorkersForgotten { .. } => "workers-forgotten",
        Event::WorkerDisplaced { .. } => "worker-displaced",
        Event::Ignored { .. } => "report-ignored",
        Event::JobQueued { .. } => "job-queued",
        Event::GenerationFormed { .. } => "generation-formed",
        Event::GenerationEnded { .. } => "generation-ended",
        Event::Stopping { .. } => "stopping",
        Event::Stopped { .. } => "stopped",
        Event::StandbyAdded { .. } => "standby-added",
        Event::StandbyLost { .. } => "standby-lost",
        Event::Stepped { .. } => "stepped",
        Event::Committed { .. } => "committed",
        Event::JobDone { .. } => "job-done",
        Event::JobFailed { .. } => "job-failed",
        Event::JobCancelled { .. } => "job-cancelled",
        Event::UnitFailed { .. } => "unit-failed",
        Event::UnitSetAside { .. } => "unit-set-aside",
        Event::EvaluationSubmitted { .. } => "evaluation-submitted",
        Event::EvaluationScored { .. } => "evaluation-scored",
        Event::EvaluationUnscored { .. } => "evaluation-unscored",
        Event::EvaluationSkipped { .. } => "evaluation-skipped",
        Event::Unreachable { .. } => "unreachable",
    }
}

/// A job does steps again. `took`: since its generation ended early.
pub(crate) fn recovered(job: &JobId, step: Step, took: Duration) -> pb::EventLine {
    let seconds = took.as_secs_f64();
    pb::EventLine {
        kind: "recovered".to_owned(),
        job: job.0.clone(),
        step: step.0,
        text: format!("step {step} is done, {seconds:.1} s after the generation ended"),
        ..Default::default()
    }
}

fn evaluation_line(event: &Event) -> Option<pb::EventLine> {
    let (job, step, text) = match event {
        Event::EvaluationSubmitted {
            job,
            step,
            evaluation,
        } => (job, step, format!("is being evaluated by {evaluation}")),
        Event::EvaluationScored {
            job,
            step,
            evaluation,
            scored,
        } => {
            let mut text = format!("is evaluated by {evaluation}: {} images", scored.images);
            if 0 < scored.missing {
                text += &format!(", {} are missing", scored.missing);
            }
            if let Some(score) = scored.score {
                text += &format!("; checkpoint.keep_best is {score:.4}");
            }
            (job, step, text)
        }
        Event::EvaluationUnscored {
            job,
            step,
            evaluation,
            why,
        } => (job, step, format!("has no scores of {evaluation}: {why}")),
        Event::EvaluationSkipped { job, step } => {
            (job, step, "is not evaluated: a newer one is due".to_owned())
        }
        _ => return None,
    };
    Some(pb::EventLine {
        kind: kind(event).to_owned(),
        job: job.0.clone(),
        step: step.0,
        text: cut(&format!("checkpoint of step {step} {text}"), TEXT_BYTES),
        ..Default::default()
    })
}

/// The event as a line, without number and time. None for steps, which are in the curve.
#[allow(clippy::too_many_lines)] // One arm for each kind.
pub(crate) fn line(event: &Event) -> Option<pb::EventLine> {
    let line = |job: Option<&JobId>, worker: Option<&WorkerId>, text: String| pb::EventLine {
        kind: kind(event).to_owned(),
        job: job.map_or_else(String::new, |job| job.0.clone()),
        worker: worker.map_or_else(String::new, |worker| worker.name.clone()),
        text: cut(&text, TEXT_BYTES),
        ..Default::default()
    };
    let of_job = |job, text: String| line(Some(job), None, text);
    let in_generation = |job, generation: &Generation, text| pb::EventLine {
        generation: generation.0,
        ..of_job(job, text)
    };
    Some(match event {
        Event::Stepped { .. } => return None,
        Event::WorkerUp { worker } => line(None, Some(worker), "worker is up".to_owned()),
        Event::WorkerDown { worker, reason } => {
            line(None, Some(worker), format!("worker is down: {reason}"))
        }
        Event::WorkersForgotten { workers } => {
            let text = format!(
                "{} workers that never held anything are forgotten",
                workers.len()
            );
            line(None, None, text)
        }
        Event::WorkerDisplaced { worker, by } => {
            let text = format!("{} has taken its name; it is told to leave", by.worker);
            line(None, Some(worker), text)
        }
        Event::Ignored { worker, violation } => line(
            None,
            Some(worker),
            format!("its report is ignored: {violation}"),
        ),
        Event::JobQueued { job, reason } => of_job(job, format!("job is queued: {reason}")),
        Event::GenerationFormed {
            job,
            generation,
            world,
        } => {
            let ranks = if *world == 1 { "rank" } else { "ranks" };
            let text = format!("generation {generation} formed with {world} {ranks}");
            in_generation(job, generation, text)
        }
        Event::GenerationEnded {
            job,
            generation,
            reason,
        } => in_generation(
            job,
            generation,
            format!("generation {generation} ended: {reason}"),
        ),
        Event::Stopping {
            job,
            generation,
            reason,
        } => in_generation(
            job,
            generation,
            format!("generation {generation} is to stop: {reason}"),
        ),
        Event::Stopped {
            job,
            generation,
            reason,
        } => in_generation(
            job,
            generation,
            format!("generation {generation} stopped: {reason}"),
        ),
        Event::StandbyAdded { job, worker, .. } => {
            line(Some(job), Some(worker), "a standby is added".to_owned())
        }
        Event::StandbyLost {
            job,
            worker,
            reason,
            ..
        } => line(
            Some(job),
            Some(worker),
            format!("a standby is lost: {reason}"),
        ),
        Event::Committed { job, checkpoint } => pb::EventLine {
            step: checkpoint.step.0,
            generation: checkpoint.generation.0,
            ..of_job(
                job,
                format!("checkpoint of step {} is committed", checkpoint.step),
            )
        },
        Event::EvaluationSubmitted { .. }
        | Event::EvaluationScored { .. }
        | Event::EvaluationUnscored { .. }
        | Event::EvaluationSkipped { .. } => return evaluation_line(event),
        Event::JobDone { job, step: Step(0) } => of_job(job, "job is done".to_owned()),
        Event::JobDone { job, step } => of_job(job, format!("job is done after step {step}")),
        Event::JobFailed { job, cause } => of_job(job, format!("job failed: {cause}")),
        Event::JobCancelled { job } => of_job(job, "job is cancelled".to_owned()),
        Event::UnitFailed {
            job,
            unit,
            worker,
            failures,
            error,
        } => {
            let text = format!("unit {unit} failed, {failures} times so far: {error}");
            line(Some(job), Some(worker), text)
        }
        Event::UnitSetAside { job, unit, error } => {
            of_job(job, format!("unit {unit} is set aside: {error}"))
        }
        Event::Unreachable { pair } => line(None, None, pair.to_string()),
    })
}
