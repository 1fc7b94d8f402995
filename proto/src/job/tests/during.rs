//! Evaluations while a job trains: `train.evaluate_every`, `train.samples_every`,
//! `train.evaluate_on`, `checkpoint.keep_best` and the plan in the job's own `[evaluate]`.

use super::*;
use crate::during::{EvaluateOn, TrainingEvaluation};
use crate::evaluate::MetricSettings;
use crate::id::{JobId, Step};
use crate::sample::Weights;
use crate::spec::Work;

const EVERY: &str = "micro_batch = 8\nevaluate_every = 50\n";

/// A job that is evaluated, with these lines in [train], [checkpoint] and [evaluate].
fn text(train: &str, checkpoint: &str, evaluate: &str) -> String {
    let text = GOOD.replace("micro_batch = 8\n", &format!("{EVERY}{train}"));
    let text = text.replace("every = 50\n\n", "every = 50\n");
    format!("{text}{checkpoint}[evaluate]\nprompts = [\"1girl\"]\n{evaluate}")
}

const CHARACTERS: &str = "in_domain = { trained = 4 }\n";

fn evaluation(text: &str) -> TrainingEvaluation {
    let work = read(text).unwrap_or_else(|errors| panic!("{errors}"));
    *work.evaluation.unwrap()
}

fn refused(text: &str, message: &str) {
    let errors = job(text).unwrap_err();
    assert!(errors.contains(message), "{errors}\n{message}");
}

#[test]
fn a_job_that_is_not_evaluated_is_as_it_was() {
    assert_eq!(read(GOOD).unwrap().evaluation, None);
    let zero = GOOD.replace("micro_batch = 8\n", "micro_batch = 8\nevaluate_every = 0\n");
    assert_eq!(job(&zero), job(GOOD));
    let canonical = to_toml(&job(GOOD).unwrap());
    for field in ["evaluate", "keep_best"] {
        assert!(
            !canonical.contains(field),
            "older releases do not know {field}"
        );
    }
}

#[test]
fn the_plan_has_the_defaults_of_a_job_of_its_own() {
    let plain = text("", "", CHARACTERS);
    let found = evaluation(&plain);
    assert_eq!((found.every, found.on), (50, EvaluateOn::Free));
    assert_eq!((found.model.steps, found.model.guidance), (50, 7.5));
    assert_eq!(found.plan.images(), 4);
    check_canonical(&plain);
    let all = text(
        "evaluate_on = \"shrink\"\nreduction = \"exact\"\n",
        "keep_best = \"clip_i * clip_t\"\n",
        "in_domain = { ids = [\"7\"] }\nseeds = [3]\nsamples = 2\nsteps = 20\nguidance = 3.0\n\
         method = \"dpm-solver\"\nnegative_prompt = \"bad\"\nfailed_share_max = 0.5\nclip = \
         \"file:///clip\"\nresolution = 64\npairing = \"a\"\ntask = \"reconstruction\"\n",
    );
    let found = evaluation(&all);
    assert_eq!((found.on, found.model.steps), (EvaluateOn::Shrink, 20));
    check_canonical(&all);
}

#[test]
fn each_evaluation_is_a_job_that_a_user_could_have_written() {
    let spec = job(&text(
        "",
        "keep_best = \"clip_i - clip_t\"\n",
        "in_domain = { trained = 4 }\nclip = \"file:///clip\"\n",
    ))
    .unwrap();
    let work = spec.training().unwrap();
    let (parent, step) = (JobId("demo-7".to_owned()), Step(50));
    let child = work.evaluation_job(&parent, &spec, step).unwrap();
    let written = to_toml(&child);
    assert_eq!(parse("child", &written, None).unwrap(), child, "{written}");
    assert_eq!(child.name, "demo-eval");
    let resources = &child.resources;
    assert_eq!((resources.workers_min, resources.workers_max), (1, 1));
    let Work::Evaluate(child) = child.work else {
        panic!("it evaluates")
    };
    let model = &child.models[0];
    assert_eq!((&model.job, model.weights), (&parent, Weights::Step(step)));
    assert_eq!(model.name, "demo-7@50");
    assert_eq!(child.metrics.score.unwrap().to_string(), "clip_i - clip_t");
    let evaluation = work.evaluation.as_ref().unwrap();
    let due = |step| evaluation.is_due(Step(step), Step(120));
    assert!(due(50) && due(100) && due(120) && !due(60));
    assert_eq!((evaluation.count(100), evaluation.count(120)), (2, 3));
}

/// A job that samples, with these lines behind.
fn sampled(lines: &str) -> String {
    let every = "micro_batch = 8\nsamples_every = 50\n";
    format!("{}{lines}", GOOD.replace("micro_batch = 8\n", every))
}

#[test]
fn samples_every_stands_for_an_evaluation_without_scores() {
    let plain = sampled("");
    let found = evaluation(&plain);
    assert_eq!((found.every, found.model.steps), (50, 20));
    assert_eq!(found.metrics, MetricSettings::default());
    assert_eq!(found.plan.prompts.count(), 2);
    let held_out = plain.replace("references = 2\n", "references = 2\nholdout = 0.1\n");
    let of = |text| evaluation(text).plan.images();
    assert_eq!((of(&plain), of(&held_out)), (4, 8));
    check_canonical(&plain);
    check_canonical(&held_out);
    let own = sampled("[evaluate]\nprompts = [\"1girl\"]\nin_domain = { trained = 3 }\n");
    let found = evaluation(&own);
    assert_eq!((found.plan.images(), found.model.steps), (3, 50));
    for (text, message) in [
        (
            sampled(
                "[evaluate]\nown_prompts = 1\nin_domain = { trained = 1 }\nclip = \"file:///c\"\n",
            ),
            "evaluate.clip: is set, but train.samples_every only makes images",
        ),
        (
            plain.replace(
                "samples_every = 50",
                "samples_every = 50\nevaluate_every = 50",
            ),
            "train.samples_every: is set beside train.evaluate_every",
        ),
        (
            plain.replace("samples_every = 50", "samples_every = 49"),
            "train.samples_every: is 49; it must be a multiple of checkpoint.every",
        ),
        (
            plain.replace("[checkpoint]\n", "[checkpoint]\nkeep_best = \"clip_i\"\n"),
            "checkpoint.keep_best: is \"clip_i\", but clip_i is absent without evaluate.clip",
        ),
    ] {
        refused(&text, message);
    }
}

#[test]
fn what_makes_no_sense_together_is_refused_by_what_would() {
    refused(
        &GOOD.replace("micro_batch = 8\n", EVERY),
        "train.evaluate_every: is 50, but there is no plan: add a table [evaluate]",
    );
    refused(
        &GOOD.replace("every = 50\n", "every = 50\nkeep_best = \"clip_i\"\n"),
        "checkpoint.keep_best: is \"clip_i\"; it needs train.evaluate_every",
    );
    refused(
        &GOOD.replace(
            "micro_batch = 8\n",
            "micro_batch = 8\nevaluate_on = \"shrink\"\n",
        ),
        "train.evaluate_on: is \"shrink\"; it needs train.evaluate_every",
    );
    refused(
        &format!("{GOOD}[evaluate]\nprompts = [\"1girl\"]\n{CHARACTERS}"),
        "evaluate: is a second kind of work; a job has exactly one of [train], [sample], \
         [evaluate] and [build]",
    );
    let zero = GOOD.replace("micro_batch = 8\n", "micro_batch = 8\nevaluate_every = 0\n");
    refused(
        &format!("{zero}[evaluate]\nprompts = [\"1girl\"]\n{CHARACTERS}"),
        "evaluate: is the plan of evaluations while the job trains; it needs train.evaluate_every",
    );
}

#[test]
fn every_rule_of_evaluations_while_training_is_named() {
    for (train, checkpoint, evaluate, message) in [
        (
            "evaluate_on = \"shrink\"\n",
            "",
            CHARACTERS,
            "train.evaluate_on: is \"shrink\"; that needs train.reduction = \"exact\"",
        ),
        (
            "",
            "keep_best = \"clip_i\"\n",
            CHARACTERS,
            "checkpoint.keep_best: is \"clip_i\", but clip_i is absent without evaluate.clip",
        ),
        (
            "",
            "keep_best = \"clip\"\n",
            CHARACTERS,
            "checkpoint.keep_best: is \"clip\", which names \"clip\"; an evaluation computes",
        ),
        (
            "",
            "",
            "in_domain = { trained = 4 }\nmodels = [{ job = \"demo-1\" }]\n",
            "evaluate.models: names models; while a job trains, its own checkpoints",
        ),
        (
            "",
            "",
            "in_domain = { trained = 4 }\nclip = \"file:///clip\"\nscore = \"clip_i\"\n",
            "evaluate.score: is set beside [train]: write checkpoint.keep_best",
        ),
        (
            "",
            "",
            "in_domain = { files = [{ name = \"me\", references = [{ file = \"a.png\" }] }] }\n",
            "evaluate.in_domain: has characters of files",
        ),
        (
            "",
            "",
            "in_domain = { trained = 4 }\nguidance = 1000\n",
            "evaluate.guidance: is 1000",
        ),
        ("", "", "", "evaluate: has no characters"),
    ] {
        refused(&text(train, checkpoint, evaluate), message);
    }
    let held_out = text("", "", "out_of_domain = { held_out = 2 }\n");
    let none = held_out.replace("references = 2\n", "references = 2\nholdout = 0\n");
    refused(
        &none,
        "evaluate.out_of_domain: asks for held_out characters, but data.holdout is 0",
    );
    let odd = text("", "", CHARACTERS).replace("evaluate_every = 50", "evaluate_every = 60");
    refused(
        &odd,
        "is 60; it must be a multiple of checkpoint.every, which is 50",
    );
    let many = text("", "", CHARACTERS).replace("steps = 100", "steps = 20000");
    refused(
        &many,
        "is 50, which gives 400 evaluations; at most 200 are allowed: raise it to 100",
    );
}
