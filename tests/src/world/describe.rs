//! One sentence for an input or effect of a machine, for the printed trace. Heartbeats and repeated
//! states have none.

use super::plan::Plan;
use coordinator_core::event as coordinator;
use coordinator_core::event::{JobPhase, JobRecord, Record, Reply};
use proto::checkpoint::CheckpointRef;
use proto::id::WorkerId;
use proto::message::RankPhase;
use proto::spec::Work;
use worker_core::event as worker;
use worker_core::event::RankKey;

pub(crate) fn plan(plan: &Plan) -> String {
    let devices: Vec<String> = plan.nodes.iter().map(ToString::to_string).collect();
    format!(
        "a world of {} nodes with {} devices, {} jobs and {} faults until {} s, with {}",
        plan.nodes.len(),
        devices.join(", "),
        plan.jobs.len(),
        plan.faults.len(),
        plan.heal_at as f64 / 1000.0,
        plan.noise.describe()
    )
}

pub(crate) fn checkpoint(checkpoint: CheckpointRef) -> String {
    format!(
        "step {} (generation {})",
        checkpoint.step, checkpoint.generation
    )
}

pub(crate) fn key(key: &RankKey) -> String {
    format!(
        "rank {} of {} generation {}",
        key.rank, key.job, key.generation
    )
}

/// An input of the coordinator.
pub(crate) fn input(event: &coordinator::Input) -> Option<String> {
    use coordinator::Input;
    let text = match event {
        Input::Submit { spec, .. } => {
            let resources = &spec.resources;
            let (min, max) = (resources.workers_min, resources.workers_max);
            let devices = resources.devices_per_worker;
            let (count, what) = match &spec.work {
                Work::Train(work) => (work.train.steps, "steps"),
                Work::Sample(work) => (work.units().count, "units"),
                Work::Evaluate(work) => (work.units().count, "units"),
                Work::Build(work) => (work.units().count, "units"),
            };
            format!(
                "a client submits a job of {count} {what} for {min} to {max} workers with \
                {devices} devices each"
            )
        }
        Input::Cancel { job, .. } => format!("a client cancels {job}"),
        Input::Pause {
            job, paused: true, ..
        } => format!("a client pauses {job}"),
        Input::Pause { job, .. } => format!("a client resumes {job}"),
        Input::Scale { job, workers, .. } => format!("a client scales {job} to {workers} workers"),
        Input::Drain {
            worker,
            drained: true,
            ..
        } => format!("a client drains {worker}"),
        Input::Drain { worker, .. } => format!("a client undrains {worker}"),
        Input::Disconnected { worker } => {
            format!("the coordinator sees that the stream of {worker} broke")
        }
        Input::ManifestWritten {
            job,
            checkpoint: at,
            result,
        } => {
            let at = checkpoint(*at);
            match result {
                Ok(()) => {
                    format!("the manifest of {job} {at} is written")
                }
                Err(error) => {
                    format!("writing the manifest of {job} {at} failed: {error}")
                }
            }
        }
        Input::ScoresRead { evaluation, result } => match result {
            Ok(_) => format!("the scores of {evaluation} are read"),
            Err(error) => format!("reading the scores of {evaluation} failed: {error}"),
        },
        Input::Received { .. } | Input::Deadline => return None,
        #[allow(unreachable_patterns)]
        other => format!("the coordinator receives {other:?}"),
    };
    Some(text)
}

/// An effect of the coordinator.
pub(crate) fn effect(effect: &coordinator::Effect) -> Option<String> {
    use coordinator::Effect;
    let text = match effect {
        Effect::Save(records) => {
            let saved: Vec<String> = records.iter().map(record).collect();
            format!("the coordinator saves {}", saved.join("; "))
        }
        Effect::Reply { reply, .. } => match reply {
            Reply::Accepted { job } => format!("the coordinator answers: accepted as {job}"),
            Reply::Phase { phase } => format!("the coordinator answers: the job is {phase}"),
            Reply::Worker {
                worker,
                drained: true,
            } => format!("the coordinator answers: {worker} is drained"),
            Reply::Worker { worker, .. } => {
                format!("the coordinator answers: {worker} is undrained")
            }
            Reply::Deleted { job } => format!("the coordinator answers: {job} is deleted"),
            Reply::Refused { reason } => format!("the coordinator refuses: {reason}"),
        },
        Effect::WriteManifest { manifest } => format!(
            "the coordinator writes the manifest of {} step {} (generation {})",
            manifest.job, manifest.step, manifest.generation
        ),
        Effect::ReadScores { evaluation } => {
            format!("the coordinator reads the scores of {evaluation}")
        }
        Effect::DeleteCheckpoint {
            job,
            checkpoint: at,
        } => {
            format!("the coordinator deletes {job} {}", checkpoint(*at))
        }
        Effect::Emit(event) => return coordinator_event(event),
        Effect::Send { .. } => return None,
        #[allow(unreachable_patterns)]
        other => format!("the coordinator emits {other:?}"),
    };
    Some(text)
}

fn record(record: &Record) -> String {
    match record {
        Record::Counters(counters) => format!("a count of {} jobs", counters.jobs),
        Record::Drained(names) if names.is_empty() => "that no worker is drained".to_owned(),
        Record::Drained(names) => {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            format!("the drained workers {}", names.join(", "))
        }
        Record::Ledger { job, entries } => {
            format!("{} new ledger entries of {job}", entries.len())
        }
        Record::Job(job) => phase(job),
        Record::Archived(job) => format!("{} in the archive", job.id),
        Record::Deleted(job) => format!("that {job} is deleted"),
    }
}

/// The state of a job, from its record.
pub(crate) fn phase(job: &JobRecord) -> String {
    let what = match &job.phase {
        JobPhase::Queued { reason } => format!("{}: {reason}", job.word()),
        JobPhase::Running { members } => {
            let names: Vec<String> = members.iter().map(|member| name(&member.worker)).collect();
            format!(
                "{} as generation {} on {}",
                job.word(),
                job.generation,
                names.join(", ")
            )
        }
        JobPhase::Failed { cause, .. } => format!("failed: {cause}"),
        JobPhase::Done { .. } | JobPhase::Cancelled { .. } => job.word().to_owned(),
    };
    let committed = job.checkpoints.last().map(|last| checkpoint(*last));
    format!(
        "{} ({what}; ledger to step {}, committed {})",
        job.id,
        job.ledger.step,
        committed.unwrap_or_else(|| "nothing".to_owned())
    )
}

fn name(worker: &WorkerId) -> String {
    worker.to_string()
}

fn coordinator_event(event: &coordinator::Event) -> Option<String> {
    use coordinator::Event;
    let text = match event {
        Event::WorkerUp { worker } => format!("{worker} is up"),
        Event::WorkerDown { worker, reason } => format!("{worker} is down: {reason}"),
        Event::WorkersForgotten { workers } => format!("{} workers are forgotten", workers.len()),
        Event::JobQueued { job, reason } => format!("{job} waits: {reason}"),
        Event::GenerationFormed {
            job,
            generation,
            world,
        } => format!("{job} generation {generation} is formed, of {world} ranks"),
        Event::StandbyAdded {
            job,
            generation,
            worker,
        } => format!("{worker} is a standby of {job} generation {generation}"),
        Event::StandbyLost {
            job,
            generation,
            worker,
            reason,
        } => format!("{worker} is no standby of {job} generation {generation} any more: {reason}"),
        Event::GenerationEnded {
            job,
            generation,
            reason,
        } => format!("{job} generation {generation} has ended: {reason}"),
        Event::Stopping {
            job,
            generation,
            reason,
        } => format!("{job} generation {generation} is asked to stop: {reason}"),
        Event::Stopped {
            job,
            generation,
            reason,
        } => format!("{job} generation {generation} has stopped: {reason}"),
        Event::Stepped {
            job,
            generation,
            report,
        } => format!(
            "the coordinator receives step {} of {job} generation {generation}",
            report.step
        ),
        Event::Committed {
            job,
            checkpoint: at,
        } => format!("{job} {} is committed", checkpoint(*at)),
        Event::JobDone { job, step } => format!("{job} is done at step {step}"),
        Event::JobFailed { job, cause } => format!("{job} has failed: {cause}"),
        Event::JobCancelled { job } => format!("{job} is cancelled"),
        Event::WorkerDisplaced { worker, by } => {
            format!(
                "the coordinator tells {worker} to leave: {} is there",
                by.worker
            )
        }
        Event::Ignored { worker, violation } => {
            format!("the coordinator ignores {worker}: {violation}")
        }
        Event::UnitFailed {
            job,
            unit,
            worker,
            failures,
            error,
        } => format!("unit {unit} of {job} fails on {worker}, failure {failures}: {error}"),
        Event::EvaluationSubmitted {
            job,
            step,
            evaluation,
        } => format!("{evaluation} evaluates step {step} of {job}"),
        Event::EvaluationScored {
            job, step, scored, ..
        } => {
            let score = scored.score.unwrap_or_default();
            format!("step {step} of {job} is scored: {score}")
        }
        Event::EvaluationUnscored { job, step, why, .. } => {
            format!("step {step} of {job} has no scores: {why}")
        }
        Event::EvaluationSkipped { job, step } => {
            format!("step {step} of {job} is not evaluated")
        }
        Event::UnitSetAside { job, unit, .. } => format!("unit {unit} of {job} is set aside"),
        Event::Unreachable { pair } => format!("the coordinator sees that {pair}"),
    };
    Some(text)
}

/// An input of a daemon.
pub(crate) fn daemon_input(id: &WorkerId, event: &worker::Input) -> Option<String> {
    use worker::Input;
    let text = match event {
        Input::Connected => format!("{id} has a stream to the coordinator"),
        Input::RankReported { report, .. } => match &report.phase {
            RankPhase::Broken { error } => format!(
                "{id} receives from rank {} of {} generation {}: the group is broken: {error}",
                report.rank, report.job, report.generation
            ),
            RankPhase::Failed { failure } => format!(
                "{id} receives from rank {} of {} generation {}: failed: {failure}",
                report.rank, report.job, report.generation
            ),
            RankPhase::Starting
            | RankPhase::Ready
            | RankPhase::Joining
            | RankPhase::Training
            | RankPhase::Finished => return None,
        },
        Input::RankExited {
            key: it, outcome, ..
        } => {
            format!("{id} sees that {} exited: {outcome}", key(it))
        }
        Input::Shutdown => format!("{id} is asked to shut down"),
        Input::Disconnected
        | Input::Desired(_)
        | Input::PeerAnswered { .. }
        | Input::PeerFailed { .. }
        | Input::Deadline => return None,
    };
    Some(text)
}

/// An effect of a daemon.
pub(crate) fn daemon_effect(id: &WorkerId, effect: &worker::Effect) -> Option<String> {
    use worker::{Effect, Event};
    let text = match effect {
        Effect::Spawn {
            key: it, device, ..
        } => format!("{id} starts {} on device {device}", key(it)),
        Effect::Update {
            key: it,
            rank,
            assignment,
            ..
        } if it.generation < assignment.generation => format!(
            "{id} sends the process of {} generation {}, as rank {rank}",
            key(it),
            assignment.generation
        ),
        Effect::Stop { key: it } => format!("{id} asks {} to exit", key(it)),
        Effect::Kill { key: it } => format!("{id} kills {}", key(it)),
        Effect::Emit(Event::RankSilent { key: it, silent_ms }) => {
            format!(
                "{id} has received nothing from {} for {silent_ms} ms",
                key(it)
            )
        }
        Effect::Emit(Event::Displaced { by, .. }) => {
            format!("{id} leaves, because {} took its place", by.worker)
        }
        Effect::Emit(Event::Ignored { what, .. }) => {
            format!("{id} ignores the coordinator: {what}")
        }
        Effect::Exit => format!("{id} exits"),
        _ => return None,
    };
    Some(text)
}
