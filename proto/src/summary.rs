//! `evaluation.json`, which the closing unit of an evaluation writes last: what of the plan exists,
//! and the mean scores of each model. A rank writes it, and the coordinator reads it.

use crate::during::Scored;
use crate::score::{Means, SCORES};
use serde::{Deserialize, Serialize};

/// Its name among the images.
pub const SUMMARY_FILE: &str = "evaluation.json";
/// It has the plan's prompts.
pub const SUMMARY_BYTES_MAX: u64 = 32 << 20;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Digest of the plan.
    pub plan: String,
    pub images: u64,
    /// Units whose images were given up.
    pub missing: Vec<u64>,
    pub prompts: Vec<String>,
    /// In the order of the plan. Empty: written by a release that summarized no model.
    #[serde(default)]
    pub models: Vec<ModelSummary>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelSummary {
    pub name: String,
    pub images: u64,
    pub missing: u64,
    /// The mean of each score over the images that have it.
    pub means: Means,
    /// The mean of `evaluate.score` over the images that have all of its scores.
    pub score: Option<f64>,
}

impl Summary {
    /// The scores of the only model.
    ///
    /// # Errors
    /// It has not exactly one.
    pub fn of_one(self) -> Result<Scored, String> {
        let models = self.models.len();
        let mut all = self.models.into_iter();
        let (Some(model), None) = (all.next(), all.next()) else {
            return Err(format!(
                "it summarizes {models} models, and one is expected"
            ));
        };
        let is_known = |name: &String| SCORES.iter().any(|(known, _)| known == name);
        let known = model.means.into_iter().filter(|(name, _)| is_known(name));
        Ok(Scored {
            images: model.images,
            missing: model.missing,
            means: known.filter(|(_, value)| value.is_finite()).collect(),
            score: model.score.filter(|score| score.is_finite()),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_known_scores_of_one_model_are_taken() {
        let model = ModelSummary {
            name: "a-1@4".to_owned(),
            images: 3,
            missing: 1,
            means: [("clip_i".to_owned(), 0.5), ("nonsense".to_owned(), 1.0)].into(),
            score: Some(0.25),
        };
        let summary = |models| Summary {
            plan: String::new(),
            images: 3,
            missing: vec![2],
            prompts: Vec::new(),
            models,
        };
        let scored = summary(vec![model.clone()]).of_one().unwrap();
        assert_eq!((scored.images, scored.missing), (3, 1));
        assert_eq!(scored.means, [("clip_i".to_owned(), 0.5)].into());
        assert_eq!(scored.score, Some(0.25));
        for models in [vec![], vec![model.clone(), model]] {
            assert!(summary(models).of_one().is_err());
        }
        let old = r#"{"plan": "p", "images": 1, "missing": [], "prompts": []}"#;
        let old: Summary = serde_json::from_str(old).unwrap();
        assert_eq!(
            old.of_one().unwrap_err().split(',').next(),
            Some("it summarizes 0 models")
        );
    }
}
