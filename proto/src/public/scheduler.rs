//! Reads and writes the `scheduler/scheduler_config.json` of a `diffusers` folder: the noise
//! schedule and the prediction type that the U-Net was trained with. Its other fields are about
//! sampling, and are ignored. Pure.

use super::agree::Disagreement;
use super::config::{ConfigError, Fields};
use super::names::MODELSPEC_PREDICTION;
use super::write::DIFFUSERS;
use crate::architecture::{Noise, NoiseKind, Prediction};
use serde_json::{Value, json};

/// In a `diffusers` folder.
pub const SCHEDULER_FILE: &str = "scheduler/scheduler_config.json";

/// Classes in which the fields below mean the same. Those of flow matching and of EDM have other
/// schedules.
const CLASSES: [&str; 18] = [
    "DDIMScheduler",
    "DDIMInverseScheduler",
    "DDIMParallelScheduler",
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
];

/// Fields that change the schedule in a way that no job can.
const UNSUPPORTED: [(&str, &str); 3] = [
    (
        "trained_betas",
        "only a schedule that beta_schedule names is supported",
    ),
    ("rescale_betas_zero_snr", "only false is supported"),
    ("use_flow_sigmas", "only false is supported"),
];

/// Compares the file with a job's `[model.noise]`. A field that the file does not name has the
/// default of `diffusers`.
///
/// # Errors
/// The first field that is not supported or that differs.
pub fn agree(text: &str, job: &Noise) -> Result<(), Disagreement> {
    let mut fields = Fields::parse(text)?;
    fields.class("_class_name", &CLASSES)?;
    for (field, expected) in UNSUPPORTED {
        if let Some(value) = fields.take(field).filter(|value| *value != json!(false)) {
            return Err(fields.fault(field, &value, expected).into());
        }
    }
    let mut compare = |theirs, default: Value, ours, expected: Value, shown: Value| {
        let found = fields.take(theirs);
        let why = match found {
            Some(_) => "",
            None => ", the default of diffusers, because it is absent",
        };
        let found = found.unwrap_or(default);
        if equal(&found, &expected) {
            return Ok(());
        }
        Err(Disagreement::Field {
            theirs,
            found: format!("{found}{why}"),
            ours,
            expected: shown.to_string(),
        })
    };
    compare(
        "prediction_type",
        json!("epsilon"),
        "model.noise.prediction",
        json!(prediction(job.prediction)),
        json!(job.prediction),
    )?;
    compare(
        "num_train_timesteps",
        json!(1000),
        "model.noise.steps",
        json!(job.steps),
        json!(job.steps),
    )?;
    compare(
        "beta_schedule",
        json!("linear"),
        "model.noise.kind",
        json!(kind(job.kind)),
        json!(job.kind),
    )?;
    // A cosine schedule uses no betas.
    if job.kind == NoiseKind::Cosine {
        return Ok(());
    }
    for (theirs, default, ours, expected) in [
        (
            "beta_start",
            0.0001,
            "model.noise.beta_start",
            job.beta_start,
        ),
        ("beta_end", 0.02, "model.noise.beta_end", job.beta_end),
    ] {
        compare(
            theirs,
            json!(default),
            ours,
            json!(expected),
            json!(expected),
        )?;
    }
    Ok(())
}

/// Compares what a single file says about its noise, as
/// [`single_file_noise`](super::names::single_file_noise) finds it. Most files say nothing.
///
/// # Errors
/// The first field that is not supported or that differs.
pub fn agree_single_file(noise: &[(String, String)], job: &Noise) -> Result<(), Disagreement> {
    for (field, value) in noise {
        let (theirs, found) = match (field.as_str(), value.as_str()) {
            ("ztsnr", _) => {
                return Err(ConfigError::Field {
                    field: field.clone(),
                    value: value.clone(),
                    expected: "a schedule that ends in pure noise is not supported".to_owned(),
                }
                .into());
            }
            ("v_pred", _) => ("the tensor v_pred", "v"),
            (_, "v" | "v_prediction") => (MODELSPEC_PREDICTION, "v"),
            (_, value) => (MODELSPEC_PREDICTION, value),
        };
        let expected = json!(job.prediction);
        if expected != json!(found) {
            return Err(Disagreement::Field {
                theirs,
                found: value.clone(),
                ours: "model.noise.prediction",
                expected: expected.to_string(),
            });
        }
    }
    Ok(())
}

/// The file for weights of a job with this schedule.
#[must_use]
pub fn write(noise: &Noise) -> String {
    let config = json!({
        "_class_name": "DDIMScheduler",
        "_diffusers_version": DIFFUSERS,
        "beta_end": noise.beta_end,
        "beta_schedule": kind(noise.kind),
        "beta_start": noise.beta_start,
        "clip_sample": false,
        "num_train_timesteps": noise.steps,
        "prediction_type": prediction(noise.prediction),
        "set_alpha_to_one": false,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "trained_betas": null,
    });
    format!("{config:#}\n")
}

fn kind(kind: NoiseKind) -> &'static str {
    match kind {
        NoiseKind::ScaledLinear => "scaled_linear",
        NoiseKind::Linear => "linear",
        NoiseKind::Cosine => "squaredcos_cap_v2",
    }
}

fn prediction(prediction: Prediction) -> &'static str {
    match prediction {
        Prediction::Epsilon => "epsilon",
        Prediction::V => "v_prediction",
    }
}

/// Numbers may have been rounded to six digits.
fn equal(found: &Value, expected: &Value) -> bool {
    match (found.as_f64(), expected.as_f64()) {
        (Some(a), Some(b)) => (a - b).abs() <= 1e-6 * b.abs(),
        _ => found == expected,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Stable Diffusion 1.5's.
    const SD15: &str = r#"{"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0",
        "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
        "num_train_timesteps": 1000, "set_alpha_to_one": false, "skip_prk_steps": true,
        "steps_offset": 1, "trained_betas": null, "clip_sample": false}"#;

    fn refusal(text: &str, job: &Noise) -> String {
        agree(text, job).unwrap_err().to_string()
    }

    #[test]
    fn stable_diffusion_s_file_says_what_the_default_says() {
        agree(SD15, &Noise::default()).unwrap();
    }

    #[test]
    fn what_is_written_is_read_back_and_nothing_else() {
        let mut all = Vec::new();
        for kind in [
            NoiseKind::ScaledLinear,
            NoiseKind::Linear,
            NoiseKind::Cosine,
        ] {
            for prediction in [Prediction::Epsilon, Prediction::V] {
                for steps in [500, 1000] {
                    all.push(Noise {
                        kind,
                        prediction,
                        steps,
                        ..Noise::default()
                    });
                }
            }
        }
        for written in &all {
            for job in &all {
                let agrees = agree(&write(written), job).is_ok();
                assert_eq!(agrees, written == job, "{written:?} {job:?}");
            }
        }
    }

    #[test]
    fn every_difference_is_named_with_both_values() {
        let job = Noise::default();
        let with = |old: &str, new: &str| SD15.replace(old, new);
        let v = with("{", "{\"prediction_type\": \"v_prediction\", ");
        assert_eq!(
            refusal(&v, &job),
            "prediction_type is \"v_prediction\", but the job has model.noise.prediction = \
             \"epsilon\""
        );
        let of_v = Noise {
            prediction: Prediction::V,
            ..job
        };
        agree(&v, &of_v).unwrap();
        assert_eq!(
            refusal(SD15, &of_v),
            "prediction_type is \"epsilon\", the default of diffusers, because it is absent, but \
             the job has model.noise.prediction = \"v\""
        );
        for (old, new, parts) in [
            (
                "1000",
                "500",
                ["num_train_timesteps is 500", "model.noise.steps = 1000"],
            ),
            (
                "scaled_linear",
                "linear",
                [
                    "beta_schedule is \"linear\"",
                    "model.noise.kind = \"scaled-linear\"",
                ],
            ),
            (
                "0.00085",
                "0.001",
                ["beta_start is 0.001", "model.noise.beta_start = 0.00085"],
            ),
            (
                "0.012",
                "0.02",
                ["beta_end is 0.02", "model.noise.beta_end = 0.012"],
            ),
        ] {
            let text = refusal(&with(old, new), &job);
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        }
    }

    #[test]
    fn a_single_file_that_says_what_it_predicts_must_agree() {
        let job = Noise::default();
        let of_v = Noise {
            prediction: Prediction::V,
            ..job
        };
        let said = |field: &str, value: &str| vec![(field.to_owned(), value.to_owned())];
        let (mark, ztsnr) = (said("v_pred", "present"), said("ztsnr", "present"));
        let spec = |value| said(MODELSPEC_PREDICTION, value);
        for (noise, epsilon, v) in [
            (Vec::new(), true, true),
            (mark.clone(), false, true),
            (spec("v"), false, true),
            (spec("epsilon"), true, false),
            (ztsnr, false, false),
        ] {
            assert_eq!(
                agree_single_file(&noise, &job).is_ok(),
                epsilon,
                "{noise:?}"
            );
            assert_eq!(agree_single_file(&noise, &of_v).is_ok(), v, "{noise:?}");
        }
        assert_eq!(
            agree_single_file(&mark, &job).unwrap_err().to_string(),
            "the tensor v_pred is present, but the job has model.noise.prediction = \"epsilon\""
        );
    }

    #[test]
    fn schedules_that_no_job_can_have_are_refused_by_field() {
        let job = Noise::default();
        let with = |old: &str, new: &str| SD15.replace(old, new);
        for (old, new, expected) in [
            (
                "PNDMScheduler",
                "FlowMatchEulerDiscreteScheduler",
                "_class_name is \"FlowMatch",
            ),
            (
                "\"trained_betas\": null",
                "\"trained_betas\": [0.1]",
                "trained_betas is [0.1]",
            ),
            (
                "{",
                "{\"rescale_betas_zero_snr\": true, ",
                "rescale_betas_zero_snr is true",
            ),
            (
                "{",
                "{\"use_flow_sigmas\": true, ",
                "use_flow_sigmas is true",
            ),
            ("1000", "\"many\"", "num_train_timesteps is \"many\""),
        ] {
            let text = refusal(&with(old, new), &job);
            assert!(text.starts_with(expected), "{text}");
        }
        assert!(refusal("[]", &job).contains("not a JSON object"));
        let off = with("{", "{\"rescale_betas_zero_snr\": false, ");
        agree(&off, &job).unwrap();
    }
}
