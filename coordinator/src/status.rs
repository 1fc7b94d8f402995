//! Converts the state machine's view to protobuf messages, with the phase and the reason as text.
//! Pure. Called by the daemon's loop on request.

use coordinator_core::event::{
    Adapted, Evaluation, EvaluationState, Evaluations, Incident, JobPhase, LostTag, Member,
};
use coordinator_core::{JobView, RankView, UnitsView, WorkerView};
use proto::job::overrides::Override;
use proto::message::RankPhase;
use proto::pb;
use proto::phase::Phase;
use proto::spec::JobSpec;

/// How much of a job is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detail {
    /// One row of a table: without job.toml, members and incidents.
    Brief,
    Full,
}

pub(crate) fn job_view(
    job: &JobView<'_>,
    last_step: Option<&pb::StepReport>,
    store_url: &str,
    detail: Detail,
) -> pb::JobView {
    let record = &job.record;
    let (phase, reason) = phase(job);
    let training = job.spec.and_then(JobSpec::training);
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
        name: job.spec.map_or_else(String::new, |spec| spec.name.clone()),
        phase: phase.word().into(),
        reason,
        cause: match &record.phase {
            JobPhase::Queued { reason } => Some(reason.into()),
            JobPhase::Failed { cause, .. } => Some(cause.into()),
            JobPhase::Running { .. } | JobPhase::Done { .. } | JobPhase::Cancelled { .. } => None,
        },
        generation: record.generation.0,
        world: members.iter().map(|it| it.ranks).sum(),
        step: job.step.0,
        steps: training.map_or(0, |work| work.train.steps),
        last_step: job.last_step.map(Into::into).or_else(|| last_step.cloned()),
        checkpoints: record.checkpoints.iter().map(|it| (*it).into()).collect(),
        members: members
            .iter()
            .filter(|_| full)
            .map(|it| member(it, job))
            .collect(),
        incidents: record
            .incidents
            .iter()
            .filter(|_| full)
            .map(incident)
            .collect(),
        submitted_ms: record.submitted_ms,
        ended_ms: ended_ms(&record.phase),
        job_toml: if full {
            record.job_toml.clone()
        } else {
            String::new()
        },
        store_url: store_url.to_owned(),
        dataset_version: record.dataset_version.clone(),
        cut_prompts: record.cut_prompts,
        lost_tags: record.lost_tags.iter().map(lost_tag).collect(),
        pressure: Vec::new(),
        queue: None,
        adapted: record.adapted.as_ref().map(adapted),
        restarts: record.restarts,
        ledger: Some(pb::LedgerTip {
            entries: record.ledger.entries,
            hash: record.ledger.hash.clone(),
            generation: record.ledger.generation.0,
            step: record.ledger.step.0,
        }),
        units: job.units.as_ref().map(units),
        work: job.spec.map_or("", |spec| spec.work.table()).into(),
        source: job
            .spec
            .and_then(|spec| Some(spec.work.sampling()?.job.0.clone())),
        overrides: record.overrides.iter().map(overridden).collect(),
        owner: record.about.owner.clone(),
        labels: record.about.labels.clone().into_iter().collect(),
        note: record.about.note.clone(),
        account: Some((&record.account).into()),
        faults: record.faults.clone().into_iter().collect(),
        committed_ms: record.committed_ms.unwrap_or(0),
        checkpoint_every: training.map_or(0, |work| work.checkpoint.every),
        team: job
            .spec
            .map_or_else(String::new, |spec| spec.resources.team.clone()),
        evaluations: evaluations(record.evaluations.as_ref()),
        evaluation_due: record
            .evaluations
            .as_ref()
            .and_then(|it| Some(it.due?.step.0)),
        evaluations_skipped: record.evaluations.as_ref().map_or(0, |it| it.skipped),
        parent: record.parent.as_ref().map(|parent| parent.job.0.clone()),
        after: job
            .spec
            .map(|spec| spec.after.iter().map(|job| job.0.clone()).collect())
            .unwrap_or_default(),
    }
}

fn overridden(it: &Override) -> pb::Override {
    pb::Override {
        key: it.key.clone(),
        value: it.value.clone(),
    }
}

pub(crate) fn worker_view(worker: &WorkerView<'_>, now_ms: u64) -> pb::WorkerView {
    pb::WorkerView {
        worker: Some(worker.id.into()),
        device: worker.device.name().into(),
        devices: worker.devices,
        devices_used: worker.used,
        up: worker.up,
        jobs: worker.jobs.iter().map(|job| job.0.clone()).collect(),
        last_heard_ms: worker
            .last_heard_ms
            .map_or(0, |heard| now_ms.saturating_sub(heard)),
        drained: worker.drained,
        unreachable: worker.unreachable.clone(),
        displaced: worker.displaced.map(|it| pb::Displaced {
            worker: Some(it.worker.into()),
            address: it.address.map(str::to_owned),
            ago_ms: now_ms.saturating_sub(it.last_report_ms),
        }),
        sick: None,
    }
}

fn units(units: &UnitsView) -> pb::UnitsView {
    let named = units.named.iter().map(|it| pb::UnitFailure {
        unit: it.unit,
        error: it.error.to_string(),
    });
    pb::UnitsView {
        total: units.total,
        done: units.done,
        leased: units.leased,
        set_aside: units.set_aside,
        per_second: units.per_second,
        failed: named.collect(),
    }
}

fn phase(job: &JobView<'_>) -> (Phase, String) {
    let record = &job.record;
    match (&record.phase, &job.units) {
        (JobPhase::Queued { reason }, _) => (record.shown(), reason.to_string()),
        (JobPhase::Running { .. }, Some(units)) => running_units(job, units),
        (JobPhase::Running { .. }, None) => match (&job.stopping, running_phase(&job.ranks)) {
            (Some(why), (Phase::Training | Phase::Finishing, reason)) => {
                (Phase::Stopping, format!("{why}; {reason}"))
            }
            (_, (phase, reason)) => (phase, reason + &standbys_text(&record.standbys)),
        },
        (JobPhase::Done { .. }, Some(units)) => (Phase::Done, done_units(units)),
        (JobPhase::Done { .. }, None) => {
            let steps = job
                .spec
                .and_then(JobSpec::training)
                .map_or(0, |work| work.train.steps);
            (Phase::Done, format!("all {steps} steps are done"))
        }
        (JobPhase::Failed { cause, .. }, _) => (Phase::Failed, cause.to_string()),
        (JobPhase::Cancelled { .. }, _) => (Phase::Cancelled, "cancelled on request".into()),
    }
}

/// The job is forming until the first process has loaded everything, and working from then on.
fn running_units(job: &JobView<'_>, units: &UnitsView) -> (Phase, String) {
    let workers = match &job.record.phase {
        JobPhase::Running { members } => members.len(),
        _ => 0,
    };
    let mut reason = format!(
        "{} of {} units are done, {} leased to {workers} workers",
        units.done, units.total, units.leased
    );
    for (count, what) in [
        (units.failed, "to be retried"),
        (units.set_aside, "set aside"),
    ] {
        if count != 0 {
            reason += &format!(", {count} {what}");
        }
    }
    if let Some(why) = &job.stopping {
        return (Phase::Stopping, format!("{why}; {reason}"));
    }
    let is_loading = |it: &RankView<'_>| matches!(it.phase, None | Some(RankPhase::Starting));
    if job.ranks.iter().all(is_loading) {
        (
            Phase::Forming,
            format!("its processes are loading; {reason}"),
        )
    } else {
        (Phase::Working, reason)
    }
}

fn done_units(units: &UnitsView) -> String {
    let named: Vec<String> = units
        .named
        .iter()
        .take(3)
        .map(|it| it.unit.to_string())
        .collect();
    match units.set_aside {
        0 => format!("all {} units are done", units.total),
        some => format!(
            "{} of {} units are done; {some} are set aside, including {}",
            units.done,
            units.total,
            named.join(", ")
        ),
    }
}

/// The standbys that are preparing to join, as the end of a sentence.
fn standbys_text(standbys: &[Member]) -> String {
    let names: Vec<&str> = standbys.iter().map(|it| it.worker.name.as_str()).collect();
    match names[..] {
        [] => String::new(),
        [one] => format!("; {one} is preparing to join"),
        _ => format!("; {} are preparing to join", names.join(", ")),
    }
}

/// A gang is forming until its slowest rank trains, and finishing once its first rank is done.
fn running_phase(ranks: &[RankView<'_>]) -> (Phase, String) {
    let forming = |text: &str, rank: &RankView<'_>| {
        (
            Phase::Forming,
            format!("rank {} on {} {text}", rank.rank, rank.worker.name),
        )
    };
    let mut finished = 0;
    for rank in ranks {
        match rank.phase {
            None => return forming("has not been reported yet", rank),
            Some(RankPhase::Starting) => return forming("is starting", rank),
            Some(RankPhase::Ready) => {
                return forming("is loaded and waits for its assignment", rank);
            }
            Some(RankPhase::Joining) => return forming("is joining the group", rank),
            Some(RankPhase::Training) => {}
            Some(RankPhase::Finished) => finished += 1,
            Some(RankPhase::Broken { error }) => {
                return forming(&format!("waits for the next generation: {error}"), rank);
            }
            Some(RankPhase::Failed { failure }) => {
                return forming(&format!("failed: {failure}"), rank);
            }
        }
    }
    match finished {
        0 if ranks.len() == 1 => (Phase::Training, "its only rank is training".into()),
        0 => (
            Phase::Training,
            format!("all {} ranks are training", ranks.len()),
        ),
        _ => (
            Phase::Finishing,
            format!("{finished} of {} ranks are done", ranks.len()),
        ),
    }
}

fn member(member: &Member, job: &JobView<'_>) -> pb::Member {
    // In a job of units each worker numbers its own ranks from 0.
    let belongs = |it: &&RankView<'_>| it.worker == &member.worker && member.runs(it.rank);
    pb::Member {
        worker: Some((&member.worker).into()),
        first_rank: member.first_rank.0,
        ranks: member.ranks,
        phases: job
            .ranks
            .iter()
            .filter(belongs)
            .map(|it| rank_phase(it.phase))
            .collect(),
    }
}

fn rank_phase(phase: Option<&RankPhase>) -> String {
    match phase {
        None => "unknown".into(),
        Some(phase @ RankPhase::Failed { failure }) => format!("{}: {failure}", phase.word()),
        Some(phase) => phase.word().into(),
    }
}

fn adapted(adapted: &Adapted) -> pb::Adapted {
    pb::Adapted {
        training: adapted.training,
        held_out: adapted.held_out,
        left_out: adapted.left_out,
        enlarged: adapted.enlarged,
        padded: adapted.padded,
        repeated: adapted.repeated,
    }
}

fn lost_tag(lost: &LostTag) -> pb::LostTag {
    pb::LostTag {
        tag: lost.tag.clone(),
        samples: lost.samples,
    }
}

fn evaluations(evaluations: Option<&Evaluations>) -> Vec<pb::Evaluation> {
    let Some(evaluations) = evaluations else {
        return Vec::new();
    };
    let best = evaluations.best();
    let one = |it: &Evaluation| {
        let shown = pb::Evaluation {
            step: it.checkpoint.step.0,
            job: it.job.0.clone(),
            best: best == Some(it.checkpoint),
            ..Default::default()
        };
        match &it.state {
            EvaluationState::Running => pb::Evaluation {
                state: "running".into(),
                ..shown
            },
            EvaluationState::Reading => pb::Evaluation {
                state: "reading".into(),
                ..shown
            },
            EvaluationState::Scored(scored) => pb::Evaluation {
                state: "scored".into(),
                images: scored.images,
                missing: scored.missing,
                means: scored
                    .means
                    .iter()
                    .map(|(name, value)| pb::Score {
                        name: name.clone(),
                        value: *value,
                    })
                    .collect(),
                score: scored.score,
                ..shown
            },
            EvaluationState::Unscored(why) => pb::Evaluation {
                state: "unscored".into(),
                reason: why.to_string(),
                ..shown
            },
        }
    };
    evaluations.list.iter().map(one).collect()
}

pub(crate) fn incident(incident: &Incident) -> pb::Incident {
    pb::Incident {
        at_ms: incident.at_ms,
        generation: incident.generation.0,
        what: incident.what.to_string(),
        cause: Some((&incident.what).into()),
        recovered_ms: incident.recovered_ms,
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
