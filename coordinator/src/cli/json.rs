//! Views as JSON, for `--output json`. Field names are those of train.proto; timestamps are
//! milliseconds since 1970. Pure.

use super::goodput::json as account;
use proto::pb;
use proto::wire::loss_terms;
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub(crate) fn job(view: &pb::JobView) -> Value {
    let mut value = all_but_queue(view);
    // One field more than one `json!` takes.
    value["queue"] = view.queue.as_ref().map_or(Value::Null, |it| {
        json!({
            "place": it.place,
            "waiting": it.waiting,
            "starts_in_ms": it.starts_in_ms,
        })
    });
    value
}

fn all_but_queue(view: &pb::JobView) -> Value {
    json!({
        "job": view.job,
        "name": view.name,
        "phase": view.phase,
        "reason": view.reason_sentence(),
        "cause": view.cause.as_ref().and_then(reason_json),
        "generation": view.generation,
        "world": view.world,
        "step": view.step,
        "steps": view.steps,
        "last_step": view.last_step.as_ref().map(step),
        "checkpoints": view.checkpoints.iter().map(checkpoint).collect::<Vec<_>>(),
        "members": view.members.iter().map(member).collect::<Vec<_>>(),
        "incidents": view.incidents.iter().map(incident).collect::<Vec<_>>(),
        "restarts": view.restarts,
        "ledger_entries": view.ledger.as_ref().map(|it| it.entries),
        "submitted_ms": view.submitted_ms,
        "ended_ms": (view.ended_ms != 0).then_some(view.ended_ms),
        "store_url": view.store_url,
        "dataset_version": view.dataset_version,
        "cut_prompts": view.cut_prompts,
        "lost_tags": view.lost_tags.iter().map(lost_tag).collect::<Vec<_>>(),
        "adapted": view.adapted.as_ref().map(adapted),
        "work": view.work,
        "sample_of": view.source,
        "after": view.after,
        "parent": view.parent,
        "evaluations": view.evaluations.iter().map(evaluation).collect::<Vec<_>>(),
        "evaluation_due": view.evaluation_due,
        "evaluations_skipped": view.evaluations_skipped,
        "overrides": view.overrides.iter().map(set_since).collect::<Vec<_>>(),
        "team": view.team,
        "units": view.units.as_ref().map(units),
        "job_toml": view.job_toml,
        "pressure": pressure(&view.pressure),
        "owner": view.owner,
        "labels": view.labels.iter().collect::<BTreeMap<_, _>>(),
        "note": view.note,
        "account": view.account.as_ref().map(|it| account(&view.job, &it.into())),
        "faults": view.faults.iter().collect::<BTreeMap<_, _>>(),
        "committed_ms": (view.committed_ms != 0).then_some(view.committed_ms),
        "checkpoint_every": (view.checkpoint_every != 0).then_some(view.checkpoint_every),
    })
}

fn evaluation(it: &pb::Evaluation) -> Value {
    let means = it.means.iter();
    let means: serde_json::Map<String, Value> = means
        .map(|mean| (mean.name.clone(), json!(mean.value)))
        .collect();
    let scored = it.state == "scored";
    json!({
        "step": it.step,
        "job": it.job,
        "state": it.state,
        "images": scored.then_some(it.images),
        "missing": scored.then_some(it.missing),
        "means": means,
        "score": it.score,
        "best": it.best,
        "reason": Some(&it.reason).filter(|reason| !reason.is_empty()),
    })
}

fn adapted(it: &pb::Adapted) -> Value {
    json!({
        "training": it.training,
        "held_out": it.held_out,
        "left_out": it.left_out,
        "enlarged": it.enlarged,
        "padded": it.padded,
        "repeated": it.repeated,
    })
}

/// What senders send too much of.
pub(crate) fn pressure(reasons: &[pb::Reason]) -> Value {
    let one = |reason: &pb::Reason| {
        let pressure = reason.pressure()?;
        let mut value = serde_json::to_value(&pressure).ok()?;
        value["per_second"] = json!(pressure.per_second());
        value["sentence"] = json!(pressure.to_string());
        Some(value)
    };
    reasons.iter().filter_map(one).collect()
}

fn units(units: &pb::UnitsView) -> Value {
    let failed = |it: &pb::UnitFailure| json!({ "unit": it.unit, "error": it.error });
    json!({
        "total": units.total,
        "done": units.done,
        "leased": units.leased,
        "set_aside": units.set_aside,
        "per_second": units.per_second,
        "failed": units.failed.iter().map(failed).collect::<Vec<_>>(),
    })
}

pub(crate) fn step(step: &pb::StepReport) -> Value {
    let seconds = step.seconds.unwrap_or_default();
    let mut value = json!({
        "step": step.step,
        "loss": step.loss,
        "gradient_norm": step.gradient_norm,
        "learning_rate": step.learning_rate,
        "samples": step.samples,
        "seconds": {
            "data": seconds.data,
            "forward": seconds.forward,
            "backward": seconds.backward,
            "communication": seconds.communication,
            "optimizer": seconds.optimizer,
            "checkpoint": seconds.checkpoint,
            "validation": seconds.validation,
        },
        "peak_memory_bytes": step.peak_memory_bytes,
        "peak_device_memory_bytes": step.peak_device_memory_bytes,
        "skipped_steps": step.skipped_steps,
        "loss_scale": step.loss_scale,
    });
    // One `loss_NAME` for every loss term.
    for term in loss_terms(step) {
        value[format!("loss_{}", term.name)] = json!(term.value);
    }
    value
}

fn set_since(it: &pb::Override) -> Value {
    json!({ "key": it.key, "value": it.value })
}

fn checkpoint(checkpoint: &pb::CheckpointRef) -> Value {
    json!({ "step": checkpoint.step, "generation": checkpoint.generation })
}

fn member(member: &pb::Member) -> Value {
    json!({
        "worker": member.worker.as_ref().map(|it| it.name.clone()),
        "boot": member.worker.as_ref().map(|it| it.boot),
        "first_rank": member.first_rank,
        "ranks": member.ranks,
        "phases": member.phases,
    })
}

fn lost_tag(lost: &pb::LostTag) -> Value {
    json!({ "tag": lost.tag, "samples": lost.samples })
}

pub(crate) fn incident(incident: &pb::Incident) -> Value {
    json!({
        "at_ms": incident.at_ms,
        "generation": incident.generation,
        "what": incident.sentence(),
        "cause": incident.cause.as_ref().and_then(reason_json),
    })
}

pub(crate) fn worker(worker: &pb::WorkerView) -> Value {
    json!({
        "worker": worker.worker.as_ref().map(|it| it.name.clone()),
        "boot": worker.worker.as_ref().map(|it| it.boot),
        "device": worker.device,
        "devices": worker.devices,
        "devices_used": worker.devices_used,
        "up": worker.up,
        "drained": worker.drained,
        "sick": worker.sick,
        "apart": worker.unreachable,
        "jobs": worker.jobs,
        "last_heard_ms": worker.last_heard_ms,
        "displaced": worker.displaced.as_ref().map(|it| json!({
            "boot": it.worker.as_ref().map(|it| it.boot),
            "address": it.address,
            "ago_ms": it.ago_ms,
        })),
    })
}

pub(crate) fn log_line(line: &pb::LogLine) -> Value {
    json!({
        "job": line.job,
        "generation": line.generation,
        "rank": line.rank,
        "step": line.step,
        "at_ms": line.at_ms,
        "dropped": line.dropped,
        "text": line.text,
    })
}
/// A reason as data, for scripts.
fn reason_json(reason: &pb::Reason) -> Option<Value> {
    serde_json::from_str(&reason.json).ok()
}
