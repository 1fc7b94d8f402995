//! The `preprocessor_config.json` beside a CLIP's weights: how an image becomes the tower's input.

use super::{Fields, Found};
use crate::layout::Colours;
use serde_json::{Value, json};

/// Reads the configuration of a `CLIPImageProcessor` for a tower of this side, also inside the
/// `processor_config.json` that newer releases write. Resizing is always bicubic, of the shorter
/// side to `side`, and the middle is kept.
///
/// # Errors
/// The first field with another preprocessing.
pub fn preprocessor(text: &str, side: i64) -> Found<Colours> {
    let whole = Fields::parse(text)?;
    let mut fields = match whole.remaining.get("image_processor") {
        Some(Value::Object(inner)) => Fields {
            remaining: inner.clone(),
            prefix: "image_processor.".to_owned(),
        },
        _ => whole,
    };
    for field in ["do_center_crop", "do_normalize", "do_rescale", "do_resize"] {
        if !fields.flag(field, true)? {
            return Err(fields.fault(field, &json!(false), "only true is supported"));
        }
    }
    let factor = fields.number("rescale_factor", 1.0 / 255.0)?;
    if (factor * 255.0 - 1.0).abs() > 1e-6 {
        return Err(fields.fault("rescale_factor", &json!(factor), "1/255 is expected"));
    }
    // Pillow's number of its bicubic filter.
    const BICUBIC: i64 = 3;
    if let Some(value) = fields.take("resample").filter(|it| *it != json!(BICUBIC)) {
        return Err(fields.fault("resample", &value, "only 3 (bicubic) is supported"));
    }
    for field in ["size", "crop_size"] {
        let Some(value) = fields.take(field) else {
            continue;
        };
        let sides: Vec<Option<i64>> = match &value {
            Value::Object(sides) => sides.values().map(Value::as_i64).collect(),
            single => vec![single.as_i64()],
        };
        let stretches = field == "size" && value.get("height").is_some();
        if stretches || sides.is_empty() || sides.iter().any(|it| *it != Some(side)) {
            let expected = format!("the tower reads {side} pixels, of the shorter side");
            return Err(fields.fault(field, &value, expected));
        }
    }
    Ok(Colours {
        means: channels(&mut fields, "image_mean", Colours::CLIP.means)?,
        deviations: channels(&mut fields, "image_std", Colours::CLIP.deviations)?,
    })
}

fn channels(fields: &mut Fields, field: &str, default: [f32; 3]) -> Found<[f32; 3]> {
    let Some(value) = fields.take(field) else {
        return Ok(default);
    };
    let numbers: Option<Vec<f32>> = value.as_array().and_then(|all| {
        let numbers = all.iter().map(|it| it.as_f64().map(|it| it as f32));
        numbers.collect()
    });
    let numbers = numbers.and_then(|all| <[f32; 3]>::try_from(all).ok());
    let divides = |all: &[f32; 3]| field != "image_std" || all.iter().all(|it| *it > 0.0);
    numbers
        .filter(divides)
        .ok_or_else(|| fields.fault(field, &value, "a number for each of 3 channels is expected"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Of openai/clip-vit-large-patch14, as newer releases write it.
    const OPENAI: &str = r#"{"crop_size": {"height": 224, "width": 224}, "do_center_crop": true,
        "do_convert_rgb": true, "do_normalize": true, "do_rescale": true, "do_resize": true,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3,
        "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 224}}"#;

    #[test]
    fn openai_s_are_the_defaults_wherever_they_are_written() {
        assert_eq!(preprocessor(OPENAI, 224), Ok(Colours::CLIP));
        assert_eq!(preprocessor("{}", 224), Ok(Colours::CLIP));
        let nested = format!("{{\"image_processor\": {OPENAI}, \"processor_class\": \"x\"}}");
        assert_eq!(preprocessor(&nested, 224), Ok(Colours::CLIP));
        let old = r#"{"crop_size": 224, "size": 224, "image_mean": [0, 0.5, 1],
            "feature_extractor_type": "CLIPFeatureExtractor"}"#;
        assert_eq!(preprocessor(old, 224).unwrap().means, [0.0, 0.5, 1.0]);
    }

    #[test]
    fn another_preprocessing_is_refused_by_field() {
        let refused = |from: &str, to: &str| {
            let text = OPENAI.replace(from, to);
            preprocessor(&text, 224).unwrap_err().to_string()
        };
        assert_eq!(
            refused("\"resample\": 3", "\"resample\": 2"),
            "resample is 2; only 3 (bicubic) is supported"
        );
        assert!(refused("\"do_center_crop\": true", "\"do_center_crop\": false").contains("true"));
        assert!(refused("0.00392156862745098", "1.0").starts_with("rescale_factor is 1.0"));
        assert!(
            refused("{\"shortest_edge\": 224}", "{\"shortest_edge\": 336}")
                .contains("the tower reads 224 pixels")
        );
        let stretched = refused(
            "{\"shortest_edge\": 224}",
            "{\"height\": 224, \"width\": 224}",
        );
        assert!(stretched.starts_with("size is"), "{stretched}");
        assert!(refused("0.26862954", "0").starts_with("image_std is"));
        let nested = format!("{{\"image_processor\": {OPENAI}}}").replace(": 3,", ": 1,");
        let error = preprocessor(&nested, 224).unwrap_err().to_string();
        assert!(
            error.starts_with("image_processor.resample is 1"),
            "{error}"
        );
    }
}
