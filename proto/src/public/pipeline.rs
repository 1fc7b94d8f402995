//! The files around a model's weights that `diffusers` needs to open them as a pipeline:
//! `model_index.json`, the scheduler's and the image processor's configuration. Pure.

use super::write::DIFFUSERS;
use crate::architecture::{
    CONTROLNET, KandinskyPrior, Noise, NoiseKind, PRIOR, Prediction, UNCLIP,
};
use crate::spec::Model;
use serde_json::{Map, Value, json};

/// The mean and standard deviation of CLIP's images.
const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// File names in the exported folder and their contents; None: `diffusers` has no pipeline for the
/// model as it is.
#[must_use]
pub fn files(model: &Model) -> Option<Vec<(String, String)>> {
    let architecture = &model.architecture;
    let noise = architecture.noise()?;
    let own = architecture.facts().own_file;
    let is_prior = architecture.diffusion().is_none();
    let mut files = Vec::new();
    let mut put = |name: &str, value: Value| files.push((name.to_owned(), format!("{value:#}\n")));
    let tokens = json!(["transformers", "CLIPTokenizer"]);
    let none = json!([null, null]);
    let (class, scheduler, components) = if is_prior {
        let image = architecture.image_encoder()?;
        put(
            "image_processor/preprocessor_config.json",
            preprocessor(image.side),
        );
        let text = if architecture.prior()?.text_projection {
            "CLIPTextModelWithProjection"
        } else {
            "CLIPTextModel"
        };
        let components = json!({
            PRIOR: ["diffusers", "PriorTransformer"],
            "text_encoder": ["transformers", text],
            "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
            "tokenizer": tokens,
            "image_processor": ["transformers", "CLIPImageProcessor"],
        });
        ("KandinskyV22PriorPipeline", unclip(), components)
    } else if architecture.kandinsky().is_some() {
        let components = json!({
            "unet": ["diffusers", "UNet2DConditionModel"],
            "movq": ["diffusers", "VQModel"],
        });
        ("KandinskyV22Pipeline", ddpm(&noise), components)
    } else if own == Some(UNCLIP) {
        // The variant of Stable Diffusion's shape is ours: see `unclip_files`.
        return None;
    } else {
        let mut components = json!({
            "vae": ["diffusers", "AutoencoderKL"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": tokens,
            "unet": ["diffusers", "UNet2DConditionModel"],
            "safety_checker": none,
            "feature_extractor": none,
            "image_encoder": none,
            "requires_safety_checker": false,
        });
        let mut class = "StableDiffusionPipeline";
        if own == Some(CONTROLNET) {
            class = "StableDiffusionControlNetPipeline";
            components[CONTROLNET] = json!(["diffusers", "ControlNetModel"]);
        } else if let Some(image) = architecture.image_encoder() {
            put(
                "feature_extractor/preprocessor_config.json",
                preprocessor(image.side),
            );
            components["feature_extractor"] = json!(["transformers", "CLIPImageProcessor"]);
            components["image_encoder"] = json!(["transformers", "CLIPVisionModelWithProjection"]);
        }
        (class, ddim(&noise), components)
    };
    let kind = scheduler["_class_name"].clone();
    put("scheduler/scheduler_config.json", scheduler);
    let mut index = Map::from_iter([
        ("_class_name".to_owned(), json!(class)),
        ("_diffusers_version".to_owned(), json!(DIFFUSERS)),
        ("scheduler".to_owned(), json!(["diffusers", kind])),
    ]);
    if let Value::Object(components) = components {
        index.extend(components);
    }
    put("model_index.json", Value::Object(index));
    Some(files)
}

/// File names and contents of the pipeline of the variant `unclip-sd15`, whose networks are written
/// as [`super::write::unclip`] says; None: the model is another.
#[must_use]
pub fn unclip_files(model: &Model) -> Option<Vec<(String, String)>> {
    super::write::unclip(model, 64)?;
    let index = json!({
        "_class_name": "KandinskyV22Pipeline",
        "_diffusers_version": DIFFUSERS,
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "movq": ["diffusers", "VQModel"],
    });
    let scheduler = ddpm(&model.architecture.noise()?);
    let files = [
        ("model_index.json", index),
        ("scheduler/scheduler_config.json", scheduler),
    ];
    let texts = files.map(|(name, value)| (name.to_owned(), format!("{value:#}\n")));
    Some(texts.to_vec())
}

fn preprocessor(side: u32) -> Value {
    json!({
        "crop_size": { "height": side, "width": side },
        "do_center_crop": true,
        "do_convert_rgb": true,
        "do_normalize": true,
        "do_rescale": true,
        "do_resize": true,
        "image_mean": CLIP_MEAN,
        "image_processor_type": "CLIPImageProcessor",
        "image_std": CLIP_STD,
        "resample": 3,
        "rescale_factor": 1.0 / 255.0,
        "size": { "shortest_edge": side },
    })
}

fn betas(noise: &Noise) -> Value {
    json!({
        "_diffusers_version": DIFFUSERS,
        "num_train_timesteps": noise.steps,
        "beta_start": noise.beta_start,
        "beta_end": noise.beta_end,
        "beta_schedule": match noise.kind {
            NoiseKind::ScaledLinear => "scaled_linear",
            NoiseKind::Linear => "linear",
            NoiseKind::Cosine => "squaredcos_cap_v2",
        },
        "prediction_type": match noise.prediction {
            Prediction::Epsilon => "epsilon",
            Prediction::V => "v_prediction",
        },
        "clip_sample": false,
    })
}

fn ddim(noise: &Noise) -> Value {
    let mut value = betas(noise);
    value["_class_name"] = json!("DDIMScheduler");
    value["set_alpha_to_one"] = json!(false);
    value["steps_offset"] = json!(1);
    value
}

fn ddpm(noise: &Noise) -> Value {
    let mut value = betas(noise);
    value["_class_name"] = json!("DDPMScheduler");
    value["variance_type"] = json!("fixed_small");
    value
}

fn unclip() -> Value {
    json!({
        "_class_name": "UnCLIPScheduler",
        "_diffusers_version": DIFFUSERS,
        "num_train_timesteps": KandinskyPrior::NOISE.steps,
        "variance_type": "fixed_small_log",
        "clip_sample": true,
        "clip_sample_range": 10.0,
        "prediction_type": "sample",
        "beta_schedule": "squaredcos_cap_v2",
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn of(architecture: &str, size: &str) -> Option<BTreeMap<String, Value>> {
        let text = format!(
            "name = \"x\"\n[data]\ndataset = \"file:///d\"\nresolution = 256\n[model]\n\
             architecture = \"{architecture}\"\nsize = \"{size}\"\ninit = \"file:///b\"\n\
             [train]\nsteps = 1\nglobal_batch = 1\nmicro_batch = 1\n"
        );
        let model = crate::job::parse_training("job.toml", &text).unwrap().model;
        let files = files(&model)?.into_iter();
        let parsed = files.map(|(name, text)| (name, serde_json::from_str(&text).unwrap()));
        Some(parsed.collect())
    }

    #[test]
    fn each_peer_opens_as_the_pipeline_of_diffusers_that_it_is() {
        for (architecture, size, class, scheduler) in [
            (
                "controlnet",
                "sd15",
                "StableDiffusionControlNetPipeline",
                "DDIMScheduler",
            ),
            (
                "ip-adapter",
                "sd15",
                "StableDiffusionPipeline",
                "DDIMScheduler",
            ),
            (
                "fastcomposer",
                "sd15",
                "StableDiffusionPipeline",
                "DDIMScheduler",
            ),
            (
                "kandinsky-prior",
                "kandinsky-2.2",
                "KandinskyV22PriorPipeline",
                "UnCLIPScheduler",
            ),
            (
                "kandinsky-decoder",
                "kandinsky-2.2",
                "KandinskyV22Pipeline",
                "DDPMScheduler",
            ),
        ] {
            let files = of(architecture, size).unwrap();
            let index = &files["model_index.json"];
            assert_eq!(index["_class_name"], class);
            assert_eq!(index["scheduler"][1], scheduler);
            let config = &files["scheduler/scheduler_config.json"];
            assert_eq!(config["_class_name"], scheduler);
        }
        assert_eq!(
            of("kandinsky-decoder", "sd15"),
            None,
            "this variant is ours"
        );
        let files = of("kandinsky-decoder", "kandinsky-2.2").unwrap();
        let config = &files["scheduler/scheduler_config.json"];
        assert_eq!(
            (&config["beta_schedule"], &config["steps_offset"]),
            (&json!("linear"), &Value::Null)
        );
        let files = of("ip-adapter", "sd15").unwrap();
        let image = &files["feature_extractor/preprocessor_config.json"];
        assert_eq!(image["size"]["shortest_edge"], 224);
    }
}
