//! `[evaluate]` of a job that trains, with `train.evaluate_every`, `train.samples_every`,
//! `train.evaluate_on` and `checkpoint.keep_best`. Called by [`super::check`].

use super::evaluate::{
    check_images, check_model, check_scores, failed_share_max, metrics, model, plan,
};
use crate::during::{EVALUATIONS_MAX, EvaluateOn, TrainingEvaluation};
use crate::evaluate::Characters;
use crate::job::faults::Faults;
use crate::job::raw::{CharactersToml, EvaluateToml, EvaluatedToml, JobToml, TrainToml};
use crate::spec::{CheckpointPolicy, Reduction, TrainWork};
use std::path::Path;

/// Stands for the job itself, whose id is not known yet.
const ITSELF: &str = "itself";
const EVALUATE_EVERY: &str = "train.evaluate_every";
const SAMPLES_EVERY: &str = "train.samples_every";
/// Characters of each domain, and prompts, of `train.samples_every` without a plan.
const SAMPLED: u32 = 2;
/// Its sampling steps; a plan's default is 50.
const SAMPLED_STEPS: u32 = 20;

/// None: the job is not evaluated while it trains.
pub(super) fn during(
    raw: &JobToml,
    train: &TrainToml,
    checkpoint: &CheckpointPolicy,
    directory: Option<&Path>,
    faults: &mut Faults,
) -> Option<TrainingEvaluation> {
    let on = train.evaluate_on.unwrap_or_default();
    let Some((field, every)) = interval(train, faults) else {
        without(raw, on, checkpoint, faults);
        return None;
    };
    let samples_only = field == SAMPLES_EVERY;
    let few = few_samples(raw);
    let raw = match &raw.evaluate {
        Some(raw) => raw,
        None if samples_only => &few,
        None => {
            faults.add(
                field,
                format!(
                    "is {every}, but there is no plan: add a table [evaluate] without models, or \
                     leave this out"
                ),
            );
            return None;
        }
    };
    check_interval(field, every, train, checkpoint, faults);
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
    if samples_only {
        no_scores(raw, faults);
    }
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

/// The fields that say how often, and how often.
fn set(train: &TrainToml) -> impl Iterator<Item = (&'static str, u64)> {
    let fields = [
        (EVALUATE_EVERY, train.evaluate_every),
        (SAMPLES_EVERY, train.samples_every),
    ];
    fields
        .into_iter()
        .filter_map(|(field, every)| Some((field, every.filter(|every| 0 < *every)?)))
}

/// Which of them counts; None: never.
fn interval(train: &TrainToml, faults: &mut Faults) -> Option<(&'static str, u64)> {
    let mut set = set(train);
    let first = set.next();
    if let Some((field, _)) = set.next() {
        faults.add(
            field,
            "is set beside train.evaluate_every, whose images are samples too: leave one of them \
             out",
        );
    }
    first
}

fn check_interval(
    field: &str,
    every: u64,
    train: &TrainToml,
    checkpoint: &CheckpointPolicy,
    faults: &mut Faults,
) {
    faults.need(every.is_multiple_of(checkpoint.every.max(1)), field, || {
        format!(
            "is {every}; it must be a multiple of checkpoint.every, which is {}, because a \
                 checkpoint is evaluated",
            checkpoint.every
        )
    });
    let count = train.steps.div_ceil(every);
    faults.need(count <= EVALUATIONS_MAX, field, || {
        format!(
            "is {every}, which gives {count} evaluations; at most {EVALUATIONS_MAX} are allowed: \
             raise it to {} or more",
            train.steps.div_ceil(EVALUATIONS_MAX)
        )
    });
}

/// The plan of `train.samples_every`, if the user has none: few images, because they are to be
/// looked at, and the training may be waiting for the device. Characters that are held out are
/// among them if there are any.
fn few_samples(raw: &JobToml) -> EvaluateToml {
    let held_out = raw.data.as_ref().and_then(|data| data.holdout);
    let held_out = held_out.is_some_and(|share| 0.0 < share);
    EvaluateToml {
        in_domain: Some(CharactersToml {
            trained: Some(SAMPLED),
            ..CharactersToml::default()
        }),
        out_of_domain: held_out.then(|| CharactersToml {
            held_out: Some(SAMPLED),
            ..CharactersToml::default()
        }),
        own_prompts: Some(SAMPLED),
        steps: Some(SAMPLED_STEPS),
        ..EvaluateToml::default()
    }
}

/// What only an evaluation has.
fn no_scores(raw: &EvaluateToml, faults: &mut Faults) {
    let fields = [
        ("evaluate.clip", raw.clip.is_some()),
        ("evaluate.lpips", raw.lpips.is_some()),
        ("evaluate.faces", raw.faces.is_some()),
        ("evaluate.vqa", raw.vqa.is_some()),
    ];
    for (field, set) in fields {
        faults.need(!set, field, || {
            "is set, but train.samples_every only makes images: write evaluate_every instead of \
             it, or leave this out"
                .into()
        });
    }
}

/// What has no meaning without evaluations.
fn without(raw: &JobToml, on: EvaluateOn, checkpoint: &CheckpointPolicy, faults: &mut Faults) {
    let needs = "train.evaluate_every or train.samples_every, the steps between two evaluations";
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
pub(super) fn check_across_sections(work: &TrainWork, train: &TrainToml, faults: &mut Faults) {
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
    let field = set(train).next().map_or(EVALUATE_EVERY, |(field, _)| field);
    faults.need(images, field, || {
        format!("is set, but a {noun} makes no images that could be evaluated: leave it out")
    });
}
