//! The canonical text of `[evaluate]`. Called by [`super::to_toml`].

use super::raw::{CharactersToml, EvaluateToml, EvaluatedToml, FileCharacterToml, VqaToml};
use super::{reference_toml, weights_toml};
use crate::evaluate::{
    Characters, EvaluateWork, EvaluatedModel, FileCharacter, Prompts, VqaSettings,
};

pub(super) fn evaluate_toml(work: &EvaluateWork) -> EvaluateToml {
    let plan = &work.plan;
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
        failed_share_max: Some(work.failed_share_max),
        clip: work.metrics.clip.clone(),
        vqa: work.metrics.vqa.as_ref().map(vqa_toml),
        models: work.models.iter().map(model_toml).collect(),
        // Every model has its own.
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
        method: Some(model.method),
        steps: Some(model.steps),
        guidance: Some(model.guidance),
        reference_guidance: Some(model.reference_guidance),
        negative_prompt: Some(model.negative_prompt.clone()).filter(|it| !it.is_empty()),
        knobs: Some(model.knobs.clone()).filter(|knobs| !knobs.is_empty()),
    }
}
