//! The story of a world in plain words: one sentence for what a machine was told or wants, if it is
//! worth a sentence. Heartbeats, and states that are only repeated, are not.

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
        "a world of {} nodes with {} devices, {} jobs and {} faults; rough until {} s, with {}",
        plan.nodes.len(),
        devices.join(", "),
        plan.jobs.len(),
        plan.faults.len(),
        plan.heal_at as f64 / 1000.0,
        plan.noise.words()
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

/// What the coordinator was told.
pub(crate) fn heard(event: &coordinator::Input) -> Option<String> {
    use coordinator::Input;
    let words = match event {
        Input::Submit { spec, .. } => {
            let resources = &spec.resources;
            let (min, max) = (resources.workers_min, resources.workers_max);
            let devices = resources.devices_per_worker;
            let (count, what) = match &spec.work {
                Work::Train(work) => (work.train.steps, "steps"),
                Work::Sample(work) => (work.units().count, "units"),
            };
            format!(
                "somebody submits a job of {count} {what} for {min} to {max} workers with \
                {devices} devices each"
            )
        }
        Input::Cancel { job, .. } => format!("somebody cancels {job}"),
        Input::Pause {
            job, paused: true, ..
        } => format!("somebody pauses {job}"),
        Input::Pause { job, .. } => format!("somebody resumes {job}"),
        Input::Scale { job, workers, .. } => format!("somebody wants {job} on {workers} workers"),
        Input::Drain {
            worker,
            drained: true,
            ..
        } => format!("somebody drains {worker}"),
        Input::Drain { worker, .. } => format!("somebody takes back the drain of {worker}"),
        Input::Disconnected { worker } => {
            format!("the coordinator learns that the stream of {worker} broke")
        }
        Input::ManifestWritten {
            job,
            checkpoint: at,
            result,
        } => {
            let at = checkpoint(*at);
            match result {
                Ok(()) => {
                    format!("the coordinator learns that the manifest of {job} {at} is written")
                }
                Err(error) => {
                    format!(
                        "the coordinator learns that the manifest of {job} {at} failed: {error}"
                    )
                }
            }
        }
        Input::Received { .. } | Input::Deadline => return None,
        #[allow(unreachable_patterns)]
        other => format!("the coordinator hears {other:?}"),
    };
    Some(words)
}

/// What the coordinator wants.
pub(crate) fn wanted(effect: &coordinator::Effect) -> Option<String> {
    use coordinator::Effect;
    let words = match effect {
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
                format!("the coordinator answers: {worker} is used again")
            }
            Reply::Refused { reason } => format!("the coordinator refuses: {reason}"),
        },
        Effect::WriteManifest { manifest } => format!(
            "the coordinator puts the manifest of {} step {} (generation {})",
            manifest.job, manifest.step, manifest.generation
        ),
        Effect::DeleteCheckpoint {
            job,
            checkpoint: at,
        } => {
            format!("the coordinator deletes {job} {}", checkpoint(*at))
        }
        Effect::Emit(event) => return noted(event),
        Effect::Send { .. } => return None,
        #[allow(unreachable_patterns)]
        other => format!("the coordinator wants {other:?}"),
    };
    Some(words)
}

fn record(record: &Record) -> String {
    match record {
        Record::Counters(counters) => format!("that there were {} jobs", counters.jobs),
        Record::Drained(names) if names.is_empty() => "that nobody is drained".to_owned(),
        Record::Drained(names) => {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            format!("that {} is drained", names.join(" and "))
        }
        Record::Ledger { job, entries } => {
            format!("{} entries more of {job}'s ledger", entries.len())
        }
        Record::Job(job) => phase(job),
    }
}

/// A job as its record says, in a few words.
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
        JobPhase::Failed { reason, .. } => format!("failed: {reason}"),
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

fn noted(event: &coordinator::Event) -> Option<String> {
    use coordinator::Event;
    let words = match event {
        Event::WorkerUp { worker } => format!("{worker} is up"),
        Event::WorkerDown { worker, reason } => format!("{worker} counts as down: {reason}"),
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
        } => format!("{worker} is in reserve beside {job} generation {generation}"),
        Event::StandbyLost {
            job,
            generation,
            worker,
            reason,
        } => format!("{worker} is no reserve of {job} generation {generation} any more: {reason}"),
        Event::GenerationEnded {
            job,
            generation,
            reason,
        } => format!("{job} generation {generation} is broken: {reason}"),
        Event::Stopping {
            job,
            generation,
            reason,
        } => format!("{job} generation {generation} is asked to end in order: {reason}"),
        Event::Stopped {
            job,
            generation,
            reason,
        } => format!("{job} generation {generation} has ended in order: {reason}"),
        Event::Stepped {
            job,
            generation,
            report,
        } => format!(
            "the coordinator hears of step {} of {job} generation {generation}",
            report.step
        ),
        Event::Committed {
            job,
            checkpoint: at,
        } => format!("{job} {} is committed", checkpoint(*at)),
        Event::JobDone { job, step } => format!("{job} is done at step {step}"),
        Event::JobFailed { job, reason } => format!("{job} has failed: {reason}"),
        Event::JobCancelled { job } => format!("{job} is cancelled"),
        Event::Ignored { worker, what } => format!("the coordinator ignores {worker}: {what}"),
        Event::UnitFailed {
            job,
            unit,
            worker,
            failures,
            error,
        } => format!("unit {unit} of {job} fails on {worker}, for the {failures}. time: {error}"),
        Event::UnitSetAside { job, unit, .. } => format!("unit {unit} of {job} is set aside"),
        Event::Parted { what } => format!("the coordinator learns that {what}"),
    };
    Some(words)
}

/// What a daemon was told.
pub(crate) fn daemon_heard(id: &WorkerId, event: &worker::Input) -> Option<String> {
    use worker::Input;
    let words = match event {
        Input::Connected => format!("{id} has a stream to the coordinator"),
        Input::RankSaid { report, .. } => match &report.phase {
            RankPhase::Broken { error } => format!(
                "{id} hears from rank {} of {} generation {}: the group is broken: {error}",
                report.rank, report.job, report.generation
            ),
            RankPhase::Failed { error, .. } => format!(
                "{id} hears from rank {} of {} generation {}: failed: {error}",
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
            format!("{id} learns that {} ended: {outcome}", key(it))
        }
        Input::Shutdown => format!("{id} is asked to leave"),
        Input::Disconnected
        | Input::Desired(_)
        | Input::PeerAnswered { .. }
        | Input::PeerFailed { .. }
        | Input::Deadline => return None,
    };
    Some(words)
}

/// What a daemon wants.
pub(crate) fn daemon_wanted(id: &WorkerId, effect: &worker::Effect) -> Option<String> {
    use worker::{Effect, Event};
    let words = match effect {
        Effect::Spawn {
            key: it, device, ..
        } => format!("{id} starts {} on device {device}", key(it)),
        Effect::Update {
            key: it,
            rank,
            assignment,
            ..
        } if it.generation < assignment.generation => format!(
            "{id} hands the process of {} generation {}, as rank {rank}",
            key(it),
            assignment.generation
        ),
        Effect::Stop { key: it } => format!("{id} asks {} to leave", key(it)),
        Effect::Kill { key: it } => format!("{id} kills {}", key(it)),
        Effect::Emit(Event::RankSilent { key: it, silent_ms }) => {
            format!("{id} has not heard {} for {silent_ms} ms", key(it))
        }
        Effect::Emit(Event::Ignored { what, .. }) => {
            format!("{id} ignores the coordinator: {what}")
        }
        Effect::Exit => format!("{id} leaves"),
        _ => return None,
    };
    Some(words)
}
