//! What people see of the machine: its view as protobuf messages, with the phase and the reason spelled
//! out. Pure. Called by the daemon's loop when somebody asks.

use coordinator_core::event::{Incident, JobPhase, Member};
use coordinator_core::{JobView, RankView, WorkerView};
use proto::message::RankPhase;
use proto::pb;
use proto::spec::Work;

/// How much of a job is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detail {
    /// A line of a table: without job.toml, members and incidents.
    Brief,
    Full,
}

pub(crate) fn job_view(
    job: &JobView<'_>,
    last_step: Option<&pb::StepReport>,
    store_url: &str,
    detail: Detail,
) -> pb::JobView {
    let record = job.record;
    let (phase, reason) = phase(job);
    let members: &[Member] = match &record.phase {
        JobPhase::Running { members } => members,
        JobPhase::Queued { .. }
        | JobPhase::Done { .. }
        | JobPhase::Failed { .. }
        | JobPhase::Cancelled { .. } => &[],
    };
    let full = detail == Detail::Full;
    pb::JobView {
        job: record.id.0.clone(),
        name: record.spec.name.clone(),
        phase: phase.into(),
        reason,
        generation: record.generation.0,
        world: members.iter().map(|it| it.ranks).sum(),
        step: job.step.0,
        steps: record.spec.training().map_or(0, |work| work.train.steps),
        last_step: job.last_step.map(Into::into).or_else(|| last_step.copied()),
        checkpoints: record.checkpoints.iter().map(|it| (*it).into()).collect(),
        members: members
            .iter()
            .filter(|_| full)
            .map(|it| member(it, &job.ranks))
            .collect(),
        incidents: record.incidents.iter().filter(|_| full).map(incident).collect(),
        submitted_ms: record.submitted_ms,
        ended_ms: ended_ms(&record.phase),
        job_toml: if full {
            record.job_toml.clone()
        } else {
            String::new()
        },
        store_url: store_url.to_owned(),
        dataset_version: record.dataset_version.clone(),
        restarts: record.restarts,
        ledger: Some(pb::LedgerTip {
            entries: record.ledger.entries,
            hash: record.ledger.hash.clone(),
            generation: record.ledger.generation.0,
            step: record.ledger.step.0,
        }),
        units: None,
        work: record.spec.work.table().into(),
    }
}

pub(crate) fn worker_view(worker: &WorkerView<'_>, jobs: &[JobView<'_>], now_ms: u64) -> pb::WorkerView {
    let has = |job: &&JobView<'_>| match &job.record.phase {
        JobPhase::Running { members } => members.iter().any(|it| it.worker == *worker.id),
        JobPhase::Queued { .. }
        | JobPhase::Done { .. }
        | JobPhase::Failed { .. }
        | JobPhase::Cancelled { .. } => false,
    };
    pb::WorkerView {
        worker: Some(worker.id.into()),
        device: worker.device.name().into(),
        devices: worker.devices,
        devices_used: worker.used,
        up: worker.up,
        jobs: jobs.iter().filter(has).map(|it| it.record.id.0.clone()).collect(),
        last_heard_ms: worker
            .last_heard_ms
            .map_or(0, |heard| now_ms.saturating_sub(heard)),
        drained: worker.drained,
        apart: worker.apart.clone(),
    }
}

/// Whether a job in this phase will never change again.
pub(crate) fn is_over(phase: &str) -> bool {
    matches!(phase, "done" | "failed" | "cancelled")
}

fn phase(job: &JobView<'_>) -> (&'static str, String) {
    let record = job.record;
    match &record.phase {
        JobPhase::Queued { reason } => (record.word(), reason.clone()),
        JobPhase::Running { .. } => match (&job.halting, running_phase(&job.ranks)) {
            (Some(why), ("training" | "finishing", reason)) => ("halting", format!("{why}; {reason}")),
            (_, (phase, reason)) => (phase, reason + &newcomers(&record.reserves)),
        },
        JobPhase::Done { .. } => match &record.spec.work {
            Work::Train(work) => ("done", format!("all {} steps are done", work.train.steps)),
            Work::Sample(work) => ("done", format!("{} images are made", work.images())),
        },
        JobPhase::Failed { reason, .. } => ("failed", reason.clone()),
        JobPhase::Cancelled { .. } => ("cancelled", "somebody cancelled it".into()),
    }
}

/// Who joins before long, as the end of a sentence.
fn newcomers(reserves: &[Member]) -> String {
    let names: Vec<&str> = reserves.iter().map(|it| it.worker.name.as_str()).collect();
    match names[..] {
        [] => String::new(),
        [one] => format!("; {one} gets ready to join"),
        _ => format!("; {} get ready to join", names.join(", ")),
    }
}

/// A group forms until its slowest rank trains, and finishes from when its first rank is done.
fn running_phase(ranks: &[RankView<'_>]) -> (&'static str, String) {
    let missing = |text: &str, rank: &RankView<'_>| {
        (
            "forming",
            format!("rank {} on {} {text}", rank.rank, rank.worker.name),
        )
    };
    let mut finished = 0;
    for rank in ranks {
        match rank.phase {
            None => return missing("has not been reported yet", rank),
            Some(RankPhase::Starting) => return missing("starts", rank),
            Some(RankPhase::Ready) => return missing("waits for a place", rank),
            Some(RankPhase::Joining) => return missing("joins the group", rank),
            Some(RankPhase::Training) => {}
            Some(RankPhase::Finished) => finished += 1,
            Some(RankPhase::Broken { error }) => {
                return missing(&format!("waits for the next generation: {error}"), rank);
            }
            Some(RankPhase::Failed { error, .. }) => return missing(&format!("failed: {error}"), rank),
        }
    }
    match finished {
        0 if ranks.len() == 1 => ("training", "its one rank is at work".into()),
        0 => ("training", format!("all {} ranks are at work", ranks.len())),
        _ => (
            "finishing",
            format!("{finished} of {} ranks are done", ranks.len()),
        ),
    }
}

fn member(member: &Member, ranks: &[RankView<'_>]) -> pb::Member {
    let own = member.first_rank.0..member.first_rank.0.saturating_add(member.ranks);
    pb::Member {
        worker: Some((&member.worker).into()),
        first_rank: member.first_rank.0,
        ranks: member.ranks,
        phases: ranks
            .iter()
            .filter(|it| own.contains(&it.rank.0))
            .map(|it| rank_phase(it.phase))
            .collect(),
    }
}

fn rank_phase(phase: Option<&RankPhase>) -> String {
    match phase {
        None => "unknown".into(),
        Some(RankPhase::Starting) => "starting".into(),
        Some(RankPhase::Ready) => "ready".into(),
        Some(RankPhase::Joining) => "joining".into(),
        Some(RankPhase::Training) => "training".into(),
        Some(RankPhase::Finished) => "finished".into(),
        Some(RankPhase::Broken { .. }) => "between generations".into(),
        Some(RankPhase::Failed { error, .. }) => format!("failed: {error}"),
    }
}

fn incident(incident: &Incident) -> pb::Incident {
    pb::Incident {
        at_ms: incident.at_ms,
        generation: incident.generation.0,
        what: incident.what.clone(),
    }
}

fn ended_ms(phase: &JobPhase) -> u64 {
    match phase {
        JobPhase::Queued { .. } | JobPhase::Running { .. } => 0,
        JobPhase::Done { ended_ms }
        | JobPhase::Failed { ended_ms, .. }
        | JobPhase::Cancelled { ended_ms } => *ended_ms,
    }
}
