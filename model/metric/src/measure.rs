//! The measures by their names in tables, and which of them the paper pairs.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a measure says of an image, and so its place in SWD (equation 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// How much of the references or of the prompt is in the image: `sim`.
    Similarity,
    /// How much the image differs from what a copy of its references would be: `div`.
    Diversity,
}

/// A number of one generated image. The serialized name is the column's name.
///
/// CLIP-I and CLIP-T are cosines in [-1, 1] as they are: not multiplied by 100, not clamped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Cosine of CLIP's embeddings of the image and of a reference as the model was shown it
    /// (cropped, on a plain background); the mean over the references. The paper's CLIP-I.
    ClipI,
    /// The largest of these cosines.
    ClipIMax,
    /// As `ClipI`, of the whole images of the references.
    ClipIWhole,
    /// The largest of these cosines.
    ClipIWholeMax,
    /// Cosine of CLIP's embeddings of the image and of its prompt.
    ClipT,
    /// Cosine of the embedded answers about the image and about its references, mean over the
    /// questions: reading (a), which equation 1 needs and tables show as the VQA score.
    Vqa,
    /// Cosine of the embedded answers about the image and about the other images of the same
    /// character and prompt: reading (b), after the paper's sentence about two generated images.
    VqaGenerated,
    /// 1 - `Vqa`: reading (c), a distance, for which a negative correlation with CLIP-I speaks.
    VqaDistance,
    /// 1 - `VqaGenerated`: reading (c) of (b).
    VqaGeneratedDistance,
    /// LPIPS between the image and a reference, mean over the references: the `div` of "Trusted
    /// Div." (section 4.1).
    Lpips,
    /// Cosine of embeddings of the faces in the image and in a reference, at least 0, and 0 without
    /// a face in the image: FastComposer's identity.
    Face,
    /// Euclidean distance of embeddings of the faces, as DeepFace's: smaller is more similar.
    FaceDistance,
}

impl Measure {
    /// All, in the order of tables.
    pub const ALL: [Self; 12] = [
        Self::Vqa,
        Self::VqaGenerated,
        Self::VqaDistance,
        Self::VqaGeneratedDistance,
        Self::ClipI,
        Self::ClipIMax,
        Self::ClipIWhole,
        Self::ClipIWholeMax,
        Self::ClipT,
        Self::Lpips,
        Self::Face,
        Self::FaceDistance,
    ];

    /// The name in columns and plans, for instance "clip_i".
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ClipI => "clip_i",
            Self::ClipIMax => "clip_i_max",
            Self::ClipIWhole => "clip_i_whole",
            Self::ClipIWholeMax => "clip_i_whole_max",
            Self::ClipT => "clip_t",
            Self::Vqa => "vqa",
            Self::VqaGenerated => "vqa_generated",
            Self::VqaDistance => "vqa_distance",
            Self::VqaGeneratedDistance => "vqa_generated_distance",
            Self::Lpips => "lpips",
            Self::Face => "face",
            Self::FaceDistance => "face_distance",
        }
    }

    /// The name in headings of tables and plots, for instance "CLIP-I".
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::ClipI => "CLIP-I",
            Self::ClipIMax => "CLIP-I max",
            Self::ClipIWhole => "CLIP-I whole",
            Self::ClipIWholeMax => "CLIP-I whole max",
            Self::ClipT => "CLIP-T",
            Self::Vqa => "VQA",
            Self::VqaGenerated => "VQA gen-gen",
            Self::VqaDistance => "1 - VQA",
            Self::VqaGeneratedDistance => "1 - VQA gen-gen",
            Self::Lpips => "LPIPS",
            Self::Face => "Face",
            Self::FaceDistance => "Face distance",
        }
    }

    /// The measure with this name in columns.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.name() == name)
    }

    /// The role in which the paper uses it. CLIP-T is `div` beside CLIP-I (section 4) and `sim`
    /// beside VQA, so [`Pair`] says it for each pair.
    #[must_use]
    pub fn role(self) -> Role {
        match self {
            Self::ClipI
            | Self::ClipIMax
            | Self::ClipIWhole
            | Self::ClipIWholeMax
            | Self::Face
            | Self::FaceDistance => Role::Similarity,
            Self::ClipT
            | Self::Vqa
            | Self::VqaGenerated
            | Self::VqaDistance
            | Self::VqaGeneratedDistance
            | Self::Lpips => Role::Diversity,
        }
    }

    /// False for distances of which a smaller one is better. The paper marks VQA and every SWD as
    /// better when higher.
    #[must_use]
    pub fn higher_is_better(self) -> bool {
        self != Self::FaceDistance
    }
}

impl std::fmt::Display for Measure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// All numbers of one image. A measure is absent where it cannot be computed: no weights, no face,
/// or no answer.
pub type Scores = BTreeMap<Measure, f64>;

/// The two measures of an SWD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pair {
    pub div: Measure,
    pub sim: Measure,
}

impl Pair {
    /// SWD(VQA, CLIP-I), SWD(VQA, CLIP-T) and SWD(CLIP-T, CLIP-I), in the order of table 3. Table 2
    /// has the last alone.
    pub const PAPER: [Self; 3] = [
        Self::new(Measure::Vqa, Measure::ClipI),
        Self::new(Measure::Vqa, Measure::ClipT),
        Self::new(Measure::ClipT, Measure::ClipI),
    ];

    /// Every pair that a report has where both were computed: the paper's, those of "Trusted Div."
    /// (section 4.1), and those with the identity of faces.
    pub const ALL: [Self; 8] = [
        Self::PAPER[0],
        Self::PAPER[1],
        Self::PAPER[2],
        Self::new(Measure::Lpips, Measure::ClipI),
        Self::new(Measure::Lpips, Measure::ClipT),
        Self::new(Measure::Vqa, Measure::Face),
        Self::new(Measure::ClipT, Measure::Face),
        Self::new(Measure::Lpips, Measure::Face),
    ];

    #[must_use]
    pub const fn new(div: Measure, sim: Measure) -> Self {
        Self { div, sim }
    }

    /// The image's product div * sim, whose mean is the SWD; None if it lacks one of them.
    #[must_use]
    pub fn of(self, scores: &Scores) -> Option<f64> {
        Some(scores.get(&self.div)? * scores.get(&self.sim)?)
    }

    /// The name in columns, for instance "swd_vqa_clip_i".
    #[must_use]
    pub fn name(self) -> String {
        format!("swd_{}_{}", self.div, self.sim)
    }

    /// The name in headings, for instance "SWD(VQA, CLIP-I)".
    #[must_use]
    pub fn title(self) -> String {
        format!("SWD({}, {})", self.div.title(), self.sim.title())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_measure_has_one_name_everywhere() {
        let names: std::collections::BTreeSet<&str> =
            Measure::ALL.iter().map(|it| it.name()).collect();
        assert_eq!(names.len(), Measure::ALL.len());
        for measure in Measure::ALL {
            assert_eq!(Measure::named(measure.name()), Some(measure));
            let json = serde_json::to_string(&measure).unwrap();
            assert_eq!(json, format!("{:?}", measure.name()));
        }
        assert_eq!(Measure::named("clip"), None);
    }

    #[test]
    fn scores_are_a_json_object_of_columns() {
        let scores = Scores::from([(Measure::ClipT, 0.25), (Measure::Vqa, 0.5)]);
        let json = serde_json::to_string(&scores).unwrap();
        assert_eq!(json, r#"{"clip_t":0.25,"vqa":0.5}"#);
        assert_eq!(serde_json::from_str::<Scores>(&json).unwrap(), scores);
    }

    #[test]
    fn an_image_without_one_of_both_has_no_product() {
        let scores = Scores::from([(Measure::ClipT, 0.25), (Measure::Vqa, 0.5)]);
        assert_eq!(Pair::PAPER[1].of(&scores), Some(0.125));
        assert_eq!(Pair::PAPER[0].of(&scores), None);
        assert_eq!(Pair::PAPER[2].name(), "swd_clip_t_clip_i");
        assert_eq!(Pair::PAPER[0].title(), "SWD(VQA, CLIP-I)");
    }
}
