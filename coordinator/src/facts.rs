//! Facts of the machine as log lines: ERROR when somebody must act, WARN when the system is mending
//! something, INFO for the life of jobs and workers, DEBUG for every step. Called by the daemon's loop.

use coordinator_core::event::Fact;

pub(crate) fn log(fact: &Fact) {
    match fact {
        Fact::WorkerUp { worker } => tracing::info!(%worker, "worker is up"),
        Fact::WorkerDown { worker, reason } => tracing::warn!(%worker, %reason, "worker is down"),
        Fact::JobQueued { job, reason } => tracing::info!(%job, %reason, "job is queued"),
        Fact::GenerationFormed {
            job,
            generation,
            world,
        } => {
            tracing::info!(%job, %generation, world, "generation formed");
        }
        Fact::GenerationEnded {
            job,
            generation,
            reason,
        } => {
            tracing::warn!(%job, %generation, %reason, "generation ended");
        }
        Fact::Halting {
            job,
            generation,
            reason,
        } => {
            tracing::info!(%job, %generation, %reason, "generation is to end in order");
        }
        Fact::Halted {
            job,
            generation,
            reason,
        } => {
            tracing::info!(%job, %generation, %reason, "generation ended in order");
        }
        Fact::Stepped {
            job,
            generation,
            report,
        } => {
            tracing::debug!(%job, %generation, step = %report.step, loss = report.loss, "step done");
        }
        Fact::Committed { job, checkpoint } => {
            let (step, generation) = (checkpoint.step, checkpoint.generation);
            tracing::info!(%job, %step, %generation, "checkpoint committed");
        }
        Fact::Reserved {
            job,
            generation,
            worker,
        } => {
            tracing::info!(%job, %generation, %worker, "worker is in reserve");
        }
        Fact::ReserveLost {
            job,
            generation,
            worker,
            reason,
        } => {
            tracing::warn!(%job, %generation, %worker, %reason, "reserve is lost");
        }
        Fact::JobDone { job, step } => tracing::info!(%job, %step, "job is done"),
        Fact::JobFailed { job, reason } => tracing::error!(%job, %reason, "job failed"),
        Fact::JobCancelled { job } => tracing::info!(%job, "job is cancelled"),
        Fact::UnitFailed { .. } | Fact::UnitSetAside { .. } => log_of_unit(fact),
        Fact::Parted { what } => tracing::warn!("{what}"),
        Fact::Ignored { worker, what } => tracing::warn!(%worker, %what, "report ignored"),
    }
}

fn log_of_unit(fact: &Fact) {
    if let Fact::UnitFailed {
        job,
        unit,
        worker,
        failures,
        error,
    } = fact
    {
        tracing::warn!(%job, unit, %worker, failures, %error, "unit failed");
    }
    if let Fact::UnitSetAside { job, unit, error } = fact {
        tracing::error!(%job, unit, %error, "unit is set aside");
    }
}
