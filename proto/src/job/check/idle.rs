//! Fields that nothing would read beside the others: refused, because whoever wrote one expects something of it. At
//! its default such a field is accepted, for the canonical text has every field. Called by [`super::check`].

use super::{Faults, kebab};
use crate::size;
use crate::spec::{Architecture, Clothes, LossWeighting, Pairing, Task, TrainWork};
use serde::Serialize;

/// Notes every field that means nothing in this job and does not stand at its default.
pub(super) fn idle(spec: &TrainWork, faults: &mut Faults) {
    let architecture = spec.model.architecture;
    if architecture != Architecture::Retrinet {
        let why = format!("{} is shown no references", kebab(&architecture));
        references(spec, &Idle(&why), faults);
    } else if spec.data.task != Task::Multitask {
        let why = format!("data.task is {}", kebab(&spec.data.task));
        mixture(spec, &Idle(&why), faults);
        if spec.data.task == Task::Reconstruction {
            concepts(spec, &Idle(&why), faults);
        }
    }
    if architecture == Architecture::Autoencoder {
        noise(spec, faults);
    }
}

/// Why fields are idle.
struct Idle<'a>(&'a str);

impl Idle<'_> {
    fn need<T: PartialEq + Serialize>(&self, field: &str, value: &T, default: &T, faults: &mut Faults) {
        faults.need(value == default, field, || {
            let value = toml::Value::try_from(value).map_or_else(|_| String::new(), |it| it.to_string());
            format!("is {value}; it means nothing because {}: leave it out", self.0)
        });
    }
}

fn references(spec: &TrainWork, why: &Idle<'_>, faults: &mut Faults) {
    let data = &spec.data;
    why.need("data.task", &data.task, &Task::Composition, faults);
    why.need("data.pairing", &data.pairing, &Pairing::B, faults);
    why.need("data.references", &data.references, &0, faults);
    why.need("data.reference_scale", &data.reference_scale, &0.8, faults);
    mixture(spec, why, faults);
    concepts(spec, why, faults);
}

fn mixture(spec: &TrainWork, why: &Idle<'_>, faults: &mut Faults) {
    let share = spec.data.multitask_reconstruction;
    why.need("data.multitask_reconstruction", &share, &0.5, faults);
}

/// How faces and clothes are chosen and cut.
fn concepts(spec: &TrainWork, why: &Idle<'_>, faults: &mut Faults) {
    let data = &spec.data;
    why.need("data.face_probability", &data.face_probability, &0.5, faults);
    why.need("data.face_enlargement", &data.face_enlargement, &1.33, faults);
    why.need("data.figure_threshold", &data.figure_threshold, &0.5, faults);
    let (clothes, usual) = (data.clothes, Clothes::default());
    for (field, value, default) in [
        ("data.clothes.cut_off", clothes.cut_off, usual.cut_off),
        (
            "data.clothes.cut_off_minimum",
            clothes.cut_off_minimum,
            usual.cut_off_minimum,
        ),
        ("data.clothes.background", clothes.background, usual.background),
    ] {
        why.need(field, &value, &default, faults);
    }
}

/// What has to do with prompts, noise and the network that takes it away.
fn noise(spec: &TrainWork, faults: &mut Faults) {
    let why = Idle("an autoencoder sees pictures alone, without prompt and noise");
    let (model, train) = (&spec.model, &spec.train);
    why.need("data.prompt_drop", &spec.data.prompt_drop, &0.5, faults);
    why.need("train.face_loss_weight", &train.face_loss_weight, &1.0, faults);
    let threshold = train.target_mask_threshold;
    why.need("train.target_mask_threshold", &threshold, &0.5, faults);
    let weighting = train.loss_weighting;
    why.need(
        "train.loss_weighting",
        &weighting,
        &LossWeighting::Epsilon,
        faults,
    );
    let sizes: Vec<_> = size::NAMES.iter().filter_map(|name| size::named(name)).collect();
    let table = |field: &str, is_of_a_size: bool, faults: &mut Faults| {
        faults.need(is_of_a_size, field, || {
            "is for text-to-image and retrinet; an autoencoder has no such part: leave the table out".into()
        });
    };
    table("model.unet", sizes.iter().any(|it| it.0 == model.unet), faults);
    let known = sizes.iter().any(|it| it.2 == model.text_encoder);
    table("model.text_encoder", known, faults);
}
