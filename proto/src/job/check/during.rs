//! `[evaluate]` of a job that trains, with `train.evaluate_every`, `train.evaluate_on` and
//! `checkpoint.keep_best`. Called by [`super::check`].

use super::evaluate::{
    check_images, check_model, check_scores, failed_share_max, metrics, model, plan,
};
use crate::during::{EVALUATIONS_MAX, EvaluateOn, TrainingEvaluation};
use crate::evaluate::Characters;
use crate::job::faults::Faults;
use crate::job::raw::{EvaluateToml, EvaluatedToml, JobToml, TrainToml};
use crate::spec::{CheckpointPolicy, Reduction, TrainWork};
use std::path::Path;

/// Stands for the job itself, whose id is not known yet.
const ITSELF: &str = "itself";

/// None: the job is not evaluated while it trains.
pub(super) fn during(
    raw: &JobToml,
    train: &TrainToml,
    checkpoint: &CheckpointPolicy,
    directory: Option<&Path>,
    faults: &mut Faults,
) -> Option<TrainingEvaluation> {
    let every = train.evaluate_every.unwrap_or(0);
    let on = train.evaluate_on.unwrap_or_default();
    if every == 0 {
        without(raw, on, checkpoint, faults);
        return None;
    }
    let Some(raw) = &raw.evaluate else {
        faults.add(
            "train.evaluate_every",
            format!(
                "is {every}, but there is no plan: add a table [evaluate] without models, or \
                 leave this out"
            ),
        );
        return None;
    };
    faults.need(
        every.is_multiple_of(checkpoint.every.max(1)),
        "train.evaluate_every",
        || {
            format!(
                "is {every}; it must be a multiple of checkpoint.every, which is {}, because a \
                 checkpoint is evaluated",
                checkpoint.every
            )
        },
    );
    let count = train.steps.div_ceil(every);
    faults.need(count <= EVALUATIONS_MAX, "train.evaluate_every", || {
        format!(
            "is {every}, which gives {count} evaluations; at most {EVALUATIONS_MAX} are allowed: \
             raise it to {} or more",
            train.steps.div_ceil(EVALUATIONS_MAX)
        )
    });
    let reduction = train.reduction.unwrap_or(Reduction::Fast);
    faults.need(
        on == EvaluateOn::Free || reduction == Reduction::Exact,
        "train.evaluate_on",
        || {
            "is \"shrink\"; that needs train.reduction = \"exact\", without which another number \
             of workers gives other weights: set it, or write \"free\""
                .into()
        },
    );
    let (plan, metrics) = (
        plan(raw, directory.is_some(), faults),
        metrics(raw, directory, faults),
    );
    no_models(raw, faults);
    if let Some(best) = &checkpoint.keep_best {
        check_scores("checkpoint.keep_best", best, &metrics, faults);
    }
    let itself = EvaluatedToml {
        name: Some(ITSELF.to_owned()),
        job: ITSELF.to_owned(),
        ..EvaluatedToml::default()
    };
    let model = model(raw, &itself, directory, faults);
    check_model(&model, &plan, "", faults);
    check_images(plan.images(), faults);
    Some(TrainingEvaluation {
        every,
        on,
        metrics,
        failed_share_max: failed_share_max(raw, faults),
        model,
        plan,
    })
}

/// What has no meaning without evaluations.
fn without(raw: &JobToml, on: EvaluateOn, checkpoint: &CheckpointPolicy, faults: &mut Faults) {
    let needs = "train.evaluate_every, the steps between two evaluations";
    faults.need(raw.evaluate.is_none(), "evaluate", || {
        format!("is the plan of evaluations while the job trains; it needs {needs}: set it above 0")
    });
    faults.need(on == EvaluateOn::Free, "train.evaluate_on", || {
        format!("is \"shrink\"; it needs {needs}: set that, or leave this out")
    });
    if let Some(best) = &checkpoint.keep_best {
        faults.add(
            "checkpoint.keep_best",
            format!("is \"{best}\"; it needs {needs}: set that, or leave this out"),
        );
    }
}

/// What only a job that evaluates others has.
fn no_models(raw: &EvaluateToml, faults: &mut Faults) {
    faults.need(raw.models.is_empty(), "evaluate.models", || {
        "names models; while a job trains, its own checkpoints are evaluated: leave it out, and \
         evaluate other jobs by a job of their own"
            .into()
    });
    faults.need(raw.score.is_none(), "evaluate.score", || {
        "is set beside [train]: write checkpoint.keep_best instead".into()
    });
    let domains = [
        ("evaluate.in_domain", &raw.in_domain),
        ("evaluate.out_of_domain", &raw.out_of_domain),
    ];
    for (field, characters) in domains {
        let files = characters.as_ref().is_some_and(|it| it.files.is_some());
        faults.need(!files, field, || {
            "has characters of files, which are stored with a job that exists; use trained, \
             held_out or ids"
                .into()
        });
    }
}

/// Rules that involve the data set's settings.
pub(super) fn check_across_sections(work: &TrainWork, faults: &mut Faults) {
    let Some(evaluation) = &work.evaluation else {
        return;
    };
    let domains = [
        ("evaluate.in_domain", &evaluation.plan.in_domain),
        ("evaluate.out_of_domain", &evaluation.plan.out_of_domain),
    ];
    for (field, characters) in domains {
        let held_out = matches!(characters, Some(Characters::HeldOut(_)));
        faults.need(!held_out || 0.0 < work.data.holdout, field, || {
            "asks for held_out characters, but data.holdout is 0: set that above 0, such as 0.05"
                .into()
        });
    }
    let images = work.model.architecture.facts().sampling.images;
    let noun = work.model.architecture.facts().noun;
    faults.need(images, "train.evaluate_every", || {
        format!("is set, but a {noun} makes no images that could be evaluated: leave it out")
    });
}
