//! The texts of `[evaluate]`: the canonical one, which [`super::to_toml`] writes, and one that
//! names files and jobs which only the command line can look up: [`Open`].

use super::raw::{CharactersToml, EvaluateToml, EvaluatedToml, FileCharacterToml, VqaToml};
use super::{reference_toml, weights_toml};
use crate::during::TrainingEvaluation;
use crate::evaluate::{
    Characters, EvaluateWork, EvaluatedModel, EvaluationPlan, FileCharacter, MetricSettings,
    Prompts, VqaSettings,
};
use std::collections::BTreeMap;
use toml::{Table, Value};

/// What the text of an evaluation leaves to the command line, in no order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Open {
    /// `evaluate.prompt_file`.
    pub prompt_file: Option<String>,
    /// Folders of characters.
    pub folders: Vec<String>,
    /// The jobs of its models: ids, or names of jobs.
    pub jobs: Vec<String>,
}

/// What the command line found for [`Open`].
#[derive(Debug, Clone, Default)]
pub struct Found {
    pub prompts: Option<Vec<String>>,
    /// By folder: the text of its `characters.toml`, a list `characters` as in `files`.
    pub folders: BTreeMap<String, String>,
    /// Ids, by name, where they differ.
    pub jobs: BTreeMap<String, String>,
    /// Jobs that are not over yet, which the evaluation comes after.
    pub after: Vec<String>,
}

/// None if the text has no `[evaluate]`, or is no TOML, which a parser says better.
#[must_use]
pub fn open(text: &str) -> Option<Open> {
    let table: Table = toml::from_str(text).ok()?;
    let evaluate = table.get("evaluate")?.as_table()?;
    let string = |value: &Value| value.as_str().map(str::to_owned);
    let folder = |domain: &&str| string(evaluate.get(*domain)?.get("folder")?);
    let models = evaluate.get("models").and_then(Value::as_array);
    let jobs = models.into_iter().flatten();
    Some(Open {
        prompt_file: evaluate.get("prompt_file").and_then(string),
        folders: DOMAINS.iter().filter_map(folder).collect(),
        jobs: jobs.filter_map(|model| string(model.get("job")?)).collect(),
    })
}

const DOMAINS: [&str; 2] = ["in_domain", "out_of_domain"];

/// The text with what was found. Unchanged, so that errors name its lines, if nothing was.
///
/// # Errors
/// The file of a folder is not what it should be.
pub fn fill(text: &str, found: &Found) -> Result<String, String> {
    let Ok(mut table) = toml::from_str::<Table>(text) else {
        return Ok(text.to_owned());
    };
    let before = table.clone();
    let Some(evaluate) = table.get_mut("evaluate").and_then(Value::as_table_mut) else {
        return Ok(text.to_owned());
    };
    if let Some(prompts) = &found.prompts
        && evaluate.remove("prompt_file").is_some()
    {
        let prompts = prompts.iter().cloned().map(Value::String).collect();
        let prompts = Value::Array(prompts);
        if evaluate.insert("prompts".to_owned(), prompts).is_some() {
            return Err("evaluate.prompts: is set beside prompt_file: leave one out".to_owned());
        }
    }
    for domain in DOMAINS {
        let characters = evaluate.get_mut(domain).and_then(Value::as_table_mut);
        if let Some(characters) = characters
            && let Some(folder) = characters.get("folder").and_then(Value::as_str)
            && let Some(text) = found.folders.get(folder)
        {
            let files = characters_of(folder, text)?;
            characters.remove("folder");
            characters.insert("files".to_owned(), Value::Array(files));
        }
    }
    let models = evaluate.get_mut("models").and_then(Value::as_array_mut);
    for model in models.into_iter().flatten() {
        let Some(model) = model.as_table_mut() else {
            continue;
        };
        let named = model.get("job").and_then(Value::as_str);
        let Some((name, id)) = named.and_then(|name| found.jobs.get_key_value(name)) else {
            continue;
        };
        model
            .entry("name")
            .or_insert_with(|| Value::String(name.clone()));
        model.insert("job".to_owned(), Value::String(id.clone()));
    }
    if !found.after.is_empty() {
        let after = table
            .entry("after")
            .or_insert_with(|| Value::Array(Vec::new()));
        if let Some(after) = after.as_array_mut() {
            for job in found.after.iter().cloned().map(Value::String) {
                if !after.contains(&job) {
                    after.push(job);
                }
            }
        }
    }
    if table == before {
        return Ok(text.to_owned());
    }
    toml::to_string(&table).map_err(|error| error.to_string())
}

/// The entries of a folder's `characters.toml`, with their files in the folder.
fn characters_of(folder: &str, text: &str) -> Result<Vec<Value>, String> {
    let table: Table = toml::from_str(text)
        .map_err(|error| format!("{folder}/characters.toml: {}", error.message()))?;
    let Some(characters) = table.get("characters").and_then(Value::as_array) else {
        return Err(format!(
            "{folder}/characters.toml has no list `characters`; write [[characters]] with a name \
             and references = [{{ file = \"a.png\", concept = \"face\", face_box = [0.5, 0.3, 0.2, \
             0.2] }}] for each"
        ));
    };
    let mut characters = characters.clone();
    for reference in characters.iter_mut().flat_map(|character| {
        let references = character.get_mut("references");
        references
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
    }) {
        for key in ["file", "mask"] {
            if let Some(Value::String(file)) = reference.get_mut(key) {
                *file = format!("{}/{file}", folder.trim_end_matches('/'));
            }
        }
    }
    Ok(characters)
}

pub(super) fn evaluate_toml(work: &EvaluateWork) -> EvaluateToml {
    EvaluateToml {
        failed_share_max: Some(work.failed_share_max),
        models: work.models.iter().map(model_toml).collect(),
        // Every model has its own settings of images.
        ..plan_toml(&work.plan, &work.metrics)
    }
}

/// The plan of a training job, which has no models.
pub(super) fn during_toml(evaluation: &TrainingEvaluation) -> EvaluateToml {
    let model = model_toml(&evaluation.model);
    EvaluateToml {
        failed_share_max: Some(evaluation.failed_share_max),
        method: model.method,
        steps: model.steps,
        guidance: model.guidance,
        reference_guidance: model.reference_guidance,
        negative_prompt: model.negative_prompt,
        knobs: model.knobs,
        ..plan_toml(&evaluation.plan, &evaluation.metrics)
    }
}

fn plan_toml(plan: &EvaluationPlan, metrics: &MetricSettings) -> EvaluateToml {
    let (prompts, own_prompts, prompt) = match &plan.prompts {
        Prompts::Texts(texts) => (texts.clone(), None, None),
        Prompts::Own { count, prompt } => (Vec::new(), Some(*count), Some(*prompt)),
    };
    EvaluateToml {
        resolution: plan.resolution,
        in_domain: plan.in_domain.as_ref().map(characters_toml),
        out_of_domain: plan.out_of_domain.as_ref().map(characters_toml),
        prompts,
        own_prompts,
        prompt,
        seeds: Some(plan.seeds.clone()),
        samples: Some(plan.samples),
        task: plan.task,
        pairing: Some(plan.pairing),
        clip: metrics.clip.clone(),
        lpips: metrics.lpips.clone(),
        faces: metrics.faces.clone(),
        vqa: metrics.vqa.as_ref().map(vqa_toml),
        score: metrics.score.clone().map(Into::into),
        ..EvaluateToml::default()
    }
}

fn characters_toml(characters: &Characters) -> CharactersToml {
    let mut toml = CharactersToml::default();
    match characters {
        Characters::Trained(count) => toml.trained = Some(*count),
        Characters::HeldOut(count) => toml.held_out = Some(*count),
        Characters::Ids(ids) => toml.ids = Some(ids.clone()),
        Characters::Files(files) => {
            let character = |it: &FileCharacter| FileCharacterToml {
                name: it.name.clone(),
                references: it.references.iter().map(reference_toml).collect(),
            };
            toml.files = Some(files.iter().map(character).collect());
        }
    }
    toml
}

fn vqa_toml(vqa: &VqaSettings) -> VqaToml {
    VqaToml {
        endpoint: vqa.endpoint.clone(),
        model: vqa.model.clone(),
        questions: Some(vqa.questions.clone()),
        concurrency: Some(vqa.concurrency),
        embedder: vqa.embedder.clone(),
    }
}

fn model_toml(model: &EvaluatedModel) -> EvaluatedToml {
    EvaluatedToml {
        name: Some(model.name.clone()),
        job: model.job.0.clone(),
        weights: Some(weights_toml(model.weights)),
        init: model.init.clone(),
        task: model.task,
        method: Some(model.method),
        steps: Some(model.steps),
        guidance: Some(model.guidance),
        reference_guidance: Some(model.reference_guidance),
        negative_prompt: Some(model.negative_prompt.clone()).filter(|it| !it.is_empty()),
        knobs: Some(model.knobs.clone()).filter(|knobs| !knobs.is_empty()),
    }
}
