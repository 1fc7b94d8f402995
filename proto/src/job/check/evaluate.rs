//! `[evaluate]`: defaults and bounds. Called by [`super::check`].

use super::data::absolute;
use super::sample::{self, check_settings};
use crate::evaluate::{
    Characters, EvaluateWork, EvaluatedModel, EvaluationPlan, FileCharacter, MetricSettings,
    Prompts, VqaSettings,
};
use crate::id::JobId;
use crate::job::faults::Faults;
use crate::job::raw::{CharactersToml, EvaluateToml, EvaluatedToml, FileCharacterToml, VqaToml};
use crate::limits::{LIST, PROMPT_BYTES, TEXT_BYTES};
use crate::sample::{SampleMethod, SamplePrompt, Weights};
use crate::score::{Expression, Source};
use crate::spec::Pairing;
use std::collections::BTreeSet;
use std::path::Path;

const IMAGES_MAX: u64 = 10_000_000;
/// Models of one evaluation: a rank's order names the weights of each.
pub(super) const MODELS_MAX: usize = 256;
const RESOLUTION_MAX: u32 = 4096;
const FAILED_SHARE: f64 = 0.01;
const CONCURRENCY: u32 = 4;
/// The topics are the paper's (A.2); the wording is ours, because the paper's list is unknown:
/// those of `deploy/vqa/questions.toml`.
const QUESTIONS: [&str; 4] = [
    "Which way is the character's head turned? Answer in a few words.",
    "What is the character's facial expression? Answer in a few words.",
    "What is the character doing with the arms and hands? Answer in a few words.",
    "What is the character doing? Answer in a few words.",
];

/// `directory`: the base of relative paths, where the user's files are readable.
pub(super) fn evaluate(
    raw: &EvaluateToml,
    directory: Option<&Path>,
    faults: &mut Faults,
) -> EvaluateWork {
    let plan = plan(raw, directory.is_some(), faults);
    let work = EvaluateWork {
        models: models(raw, directory, faults),
        metrics: metrics(raw, directory, faults),
        failed_share_max: failed_share_max(raw, faults),
        plan,
    };
    for model in &work.models {
        check_model(model, &work.plan, &format!("{:?}: ", model.name), faults);
    }
    check_images(work.images(), faults);
    work
}

pub(super) fn check_images(images: u64, faults: &mut Faults) {
    faults.need(images <= IMAGES_MAX, "evaluate", || {
        format!(
            "results in {images} images (models times characters times prompts times seeds times \
             samples); at most {IMAGES_MAX} are allowed"
        )
    });
}

/// `named`: the model, where there are several.
pub(super) fn check_model(
    model: &EvaluatedModel,
    plan: &EvaluationPlan,
    named: &str,
    faults: &mut Faults,
) {
    let mut found = Faults::default();
    check_settings(&model.as_sample(plan), &mut found);
    for fault in found.0 {
        let field = fault.field.strip_prefix("sample.").unwrap_or(&fault.field);
        if named.is_empty() {
            faults.add(&format!("evaluate.{field}"), fault.message);
        } else {
            let message = format!("{named}{field}: {}", fault.message);
            faults.add("evaluate.models", message);
        }
    }
}

pub(super) fn failed_share_max(raw: &EvaluateToml, faults: &mut Faults) -> f64 {
    let share = raw.failed_share_max.unwrap_or(FAILED_SHARE);
    faults.fraction("evaluate.failed_share_max", share);
    share
}

/// An expression of scores.
pub(super) fn expression(field: &str, text: &str, faults: &mut Faults) -> Option<Expression> {
    match Expression::parse(text) {
        Ok(expression) => Some(expression),
        Err(why) => {
            faults.add(field, why);
            None
        }
    }
}

/// The scores that an expression names must be computed.
pub(super) fn check_scores(
    field: &str,
    expression: &Expression,
    metrics: &MetricSettings,
    faults: &mut Faults,
) {
    let absent = expression.scores().find(|(_, source)| match source {
        Source::Clip => metrics.clip.is_none(),
        Source::Lpips => metrics.lpips.is_none(),
        Source::Faces => metrics.faces.is_none(),
        Source::Vqa => metrics.vqa.is_none(),
    });
    if let Some((name, source)) = absent {
        let needed = source.field();
        faults.add(
            field,
            format!("is \"{expression}\", but {name} is absent without {needed}: set it"),
        );
    }
}

/// `is_local`: the user's files are readable.
pub(super) fn plan(raw: &EvaluateToml, is_local: bool, faults: &mut Faults) -> EvaluationPlan {
    let plan = EvaluationPlan {
        resolution: raw.resolution,
        in_domain: characters("in_domain", raw.in_domain.as_ref(), is_local, faults),
        out_of_domain: characters(
            "out_of_domain",
            raw.out_of_domain.as_ref(),
            is_local,
            faults,
        ),
        prompts: prompts(raw, faults),
        seeds: raw.seeds.clone().unwrap_or_else(|| vec![0]),
        samples: raw.samples.unwrap_or(1),
        task: raw.task,
        pairing: raw.pairing.unwrap_or(Pairing::B),
    };
    check_plan(&plan, faults);
    plan
}

fn check_plan(plan: &EvaluationPlan, faults: &mut Faults) {
    if let Some(side) = plan.resolution {
        faults.count("evaluate.resolution", side, RESOLUTION_MAX);
    }
    faults.count("evaluate.samples", plan.samples, LIST as u32);
    let seeds = plan.seeds.len();
    faults.need((1..=LIST).contains(&seeds), "evaluate.seeds", || {
        format!("has {seeds} entries; it must have 1 to {LIST}, such as [0]")
    });
    let different: BTreeSet<u64> = plan.seeds.iter().copied().collect();
    faults.need(different.len() == seeds, "evaluate.seeds", || {
        "names a seed twice; equal seeds give equal images: leave one out".into()
    });
    faults.need(0 < plan.characters(), "evaluate", || {
        "has no characters; set evaluate.in_domain or evaluate.out_of_domain, such as \
         in_domain = { trained = 40 }"
            .into()
    });
    if let Prompts::Own { count, .. } = plan.prompts {
        let found = plan.in_domain.as_ref();
        let named = !matches!(found, Some(Characters::Files(_)) | None);
        let inside = found.map_or(0, Characters::count);
        faults.need(
            named && u64::from(count) <= inside,
            "evaluate.own_prompts",
            || {
                format!(
                    "is {count}; prompts are those of in-domain characters of the data set, of \
                     which there are {}: lower it, or write prompts",
                    if named { inside } else { 0 }
                )
            },
        );
    }
}

fn characters(
    name: &str,
    raw: Option<&CharactersToml>,
    is_local: bool,
    faults: &mut Faults,
) -> Option<Characters> {
    let (raw, field) = (raw?, format!("evaluate.{name}"));
    let mut found = Vec::new();
    found.extend(raw.trained.map(Characters::Trained));
    found.extend(raw.held_out.map(Characters::HeldOut));
    found.extend(raw.ids.clone().map(Characters::Ids));
    if let Some(files) = &raw.files {
        let character = |it: &FileCharacterToml| {
            let mut inner = Faults::default();
            let references = sample::references(&it.references, is_local, &mut inner);
            inner.need(!references.is_empty(), "", || {
                "has no references; name at least one image".into()
            });
            let length = it.name.len();
            inner.need((1..=TEXT_BYTES).contains(&length), "", || {
                format!("has a name of {length} bytes; it must have 1 to {TEXT_BYTES}")
            });
            for fault in inner.0 {
                faults.add(&field, format!("character {:?} {}", it.name, fault.message));
            }
            FileCharacter {
                name: it.name.clone(),
                references,
            }
        };
        found.push(Characters::Files(files.iter().map(character).collect()));
    }
    if let Some(folder) = &raw.folder {
        faults.add(
            &field,
            format!(
                "names the folder {folder:?}, which only `coordinator evaluate` and `coordinator \
                 submit` read: they write its characters into `files`"
            ),
        );
        return None;
    }
    if found.len() != 1 {
        faults.add(
            &field,
            format!(
                "has {} of trained, held_out, ids, files and folder; it must have exactly one",
                found.len()
            ),
        );
    }
    let found = found.pop()?;
    let count = found.count();
    faults.need((1..=LIST as u64).contains(&count), &field, || {
        format!("has {count} characters; it must have 1 to {LIST}")
    });
    check_names(&field, &found, faults);
    Some(found)
}

/// Ids or names that occur twice would be one character with twice the weight.
fn check_names(field: &str, characters: &Characters, faults: &mut Faults) {
    let names: Vec<&str> = match characters {
        Characters::Trained(_) | Characters::HeldOut(_) => return,
        Characters::Ids(ids) => ids.iter().map(String::as_str).collect(),
        Characters::Files(files) => files.iter().map(|it| it.name.as_str()).collect(),
    };
    let mut seen = BTreeSet::new();
    for name in names {
        faults.need((1..=TEXT_BYTES).contains(&name.len()), field, || {
            format!(
                "has an id of {} bytes; it must have 1 to {TEXT_BYTES}",
                name.len()
            )
        });
        faults.need(seen.insert(name), field, || {
            format!("names {name:?} twice: leave one out")
        });
    }
}

fn prompts(raw: &EvaluateToml, faults: &mut Faults) -> Prompts {
    if let Some(file) = &raw.prompt_file {
        faults.add(
            "evaluate.prompt_file",
            format!(
                "is {file:?}, which only `coordinator evaluate` and `coordinator submit` read: \
                 they write its lines into `prompts`"
            ),
        );
        return Prompts::Texts(vec![String::new()]);
    }
    let count = raw.prompts.len();
    match raw.own_prompts {
        Some(own) => {
            faults.need(count == 0, "evaluate.own_prompts", || {
                "is a second source of prompts: leave it or evaluate.prompts out".into()
            });
            faults.positive("evaluate.own_prompts", own.into());
        }
        None => faults.need((1..=LIST).contains(&count), "evaluate.prompts", || {
            format!(
                "has {count} prompts; it must have 1 to {LIST}, or own_prompts must say from how \
                 many in-domain characters they are taken"
            )
        }),
    }
    faults.need(
        raw.prompt.is_none() || raw.own_prompts.is_some(),
        "evaluate.prompt",
        || "is set without own_prompts, to which it belongs: leave it out".into(),
    );
    faults.need(
        raw.prompt != Some(SamplePrompt::Empty),
        "evaluate.prompt",
        || "is \"empty\"; it must be \"full\" or \"pose\"; write prompts = [\"\"] for none".into(),
    );
    let long = raw.prompts.iter().find(|it| PROMPT_BYTES < it.len());
    if let Some(long) = long {
        faults.add(
            "evaluate.prompts",
            format!(
                "has a prompt of {} bytes; at most {PROMPT_BYTES} are allowed",
                long.len()
            ),
        );
    }
    let different: BTreeSet<&String> = raw.prompts.iter().collect();
    faults.need(different.len() == count, "evaluate.prompts", || {
        "has a prompt twice: leave one out, and raise evaluate.samples for more images".into()
    });
    match raw.own_prompts {
        Some(count) => Prompts::Own {
            count,
            prompt: raw.prompt.unwrap_or(SamplePrompt::Full),
        },
        None => Prompts::Texts(raw.prompts.clone()),
    }
}

fn models(
    raw: &EvaluateToml,
    directory: Option<&Path>,
    faults: &mut Faults,
) -> Vec<EvaluatedModel> {
    let (field, count) = ("evaluate.models", raw.models.len());
    if !(1..=MODELS_MAX).contains(&count) {
        faults.add(
            field,
            format!("has {count} models; it must have 1 to {MODELS_MAX}"),
        );
        return Vec::new();
    }
    let mut names = BTreeSet::new();
    let mut models = Vec::new();
    for one in &raw.models {
        let model = model(raw, one, directory, faults);
        faults.need(names.insert(model.name.clone()), field, || {
            format!(
                "has two models named {:?}: give one of them another name",
                model.name
            )
        });
        let length = model.name.len();
        faults.need((1..=TEXT_BYTES).contains(&length), field, || {
            format!("has a name of {length} bytes; it must have 1 to {TEXT_BYTES}")
        });
        models.push(model);
    }
    models
}

pub(super) fn model(
    raw: &EvaluateToml,
    one: &EvaluatedToml,
    directory: Option<&Path>,
    faults: &mut Faults,
) -> EvaluatedModel {
    let name = one
        .name
        .clone()
        .unwrap_or_else(|| without_number(&one.job).to_owned());
    let mut inner = Faults::default();
    let job: JobId = sample::job(&one.job, &mut inner);
    let init = one
        .init
        .as_ref()
        .map(|init| absolute("init", init, directory, &mut inner));
    // Weights of a folder are nobody's checkpoint.
    let weights = match (&one.weights, &init) {
        (None, Some(_)) => Weights::Base,
        (weights, _) => sample::weights(weights.as_ref(), &mut inner),
    };
    inner.need(
        init.is_none() || weights == Weights::Base,
        "weights",
        || "is set beside init, which names the weights: leave one of them out".into(),
    );
    for fault in inner.0 {
        let at = fault.field.strip_prefix("sample.").unwrap_or(&fault.field);
        faults.add(
            "evaluate.models",
            format!("{name:?}: {at}: {}", fault.message),
        );
    }
    EvaluatedModel {
        job,
        weights,
        init,
        task: one.task,
        method: one.method.or(raw.method).unwrap_or(SampleMethod::Ddim),
        steps: one.steps.or(raw.steps).unwrap_or(50),
        guidance: one.guidance.or(raw.guidance).unwrap_or(7.5),
        reference_guidance: one
            .reference_guidance
            .or(raw.reference_guidance)
            .unwrap_or(1.0),
        negative_prompt: one
            .negative_prompt
            .clone()
            .or_else(|| raw.negative_prompt.clone())
            .unwrap_or_default(),
        knobs: one
            .knobs
            .clone()
            .or_else(|| raw.knobs.clone())
            .unwrap_or_default(),
        name,
    }
}

/// The name of a job, from its id.
fn without_number(id: &str) -> &str {
    match id.rsplit_once('-') {
        Some((name, digits))
            if !digits.is_empty() && digits.bytes().all(|it| it.is_ascii_digit()) =>
        {
            name
        }
        _ => id,
    }
}

pub(super) fn metrics(
    raw: &EvaluateToml,
    directory: Option<&Path>,
    faults: &mut Faults,
) -> MetricSettings {
    let score = raw.score.as_deref();
    let mut folder = |field: &str, url: &Option<String>| {
        let url = url.as_ref();
        url.map(|url| absolute(field, url, directory, faults))
    };
    let metrics = MetricSettings {
        clip: folder("evaluate.clip", &raw.clip),
        lpips: folder("evaluate.lpips", &raw.lpips),
        faces: folder("evaluate.faces", &raw.faces),
        vqa: raw.vqa.as_ref().map(|raw| vqa(raw, directory, faults)),
        score: score.and_then(|text| expression("evaluate.score", text, faults)),
    };
    if let Some(score) = &metrics.score {
        check_scores("evaluate.score", score, &metrics, faults);
    }
    metrics
}

fn vqa(raw: &VqaToml, directory: Option<&Path>, faults: &mut Faults) -> VqaSettings {
    let endpoint = raw.endpoint.trim_end_matches('/').to_owned();
    let is_http = endpoint.starts_with("http://") || endpoint.starts_with("https://");
    faults.need(
        is_http && endpoint.len() <= TEXT_BYTES,
        "evaluate.vqa.endpoint",
        || {
            format!(
                "is {:?}; it must be the URL of an OpenAI-compatible server, such as \
                 http://host:8000/v1",
                raw.endpoint
            )
        },
    );
    faults.need(
        (1..=TEXT_BYTES).contains(&raw.model.len()),
        "evaluate.vqa.model",
        || {
            format!(
                "has {} bytes; it must name the server's model",
                raw.model.len()
            )
        },
    );
    let default = || QUESTIONS.iter().map(|it| (*it).to_owned()).collect();
    let questions: Vec<String> = raw.questions.clone().unwrap_or_else(default);
    let valid = (1..=64).contains(&questions.len())
        && questions
            .iter()
            .all(|it| (1..=TEXT_BYTES).contains(&it.len()));
    faults.need(valid, "evaluate.vqa.questions", || {
        format!(
            "has {} questions; it must have 1 to 64, each of 1 to {TEXT_BYTES} bytes",
            questions.len()
        )
    });
    let concurrency = raw.concurrency.unwrap_or(CONCURRENCY);
    faults.count("evaluate.vqa.concurrency", concurrency, 256);
    VqaSettings {
        endpoint,
        model: raw.model.clone(),
        questions,
        concurrency,
        embedder: absolute("evaluate.vqa.embedder", &raw.embedder, directory, faults),
    }
}
