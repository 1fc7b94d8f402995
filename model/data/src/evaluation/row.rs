//! One image of an evaluation with everything that it was made of, and its scores. Plain data.

use metric::Scores;
use proto::evaluate::Domain;
use proto::id::JobId;
use proto::sample::{Concept, SampleMethod};
use serde::{Deserialize, Serialize};

/// A row of the table; also the record beside each image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub unit: u64,
    /// Digest of plan, model, character, prompt, seed and sample.
    pub key: String,
    /// The same without the model: two models' images with the same one are a pair.
    pub pair: String,
    /// Digest of the plan and the data set's version.
    pub plan: String,
    pub dataset_version: String,
    pub model: String,
    /// Digest of the model's weights and settings.
    pub model_digest: String,
    pub job: JobId,
    /// None: the initial weights.
    pub step: Option<u64>,
    pub domain: Domain,
    pub character: String,
    /// Id of the sample that stands for it. None for a character of files.
    pub sample_id: Option<String>,
    pub prompt: String,
    /// The model's text encoder does not read all of it.
    pub prompt_cut: bool,
    pub seed: u64,
    pub sample: u32,
    /// Of the noise that the image was made from.
    pub noise_seed: u64,
    pub method: SampleMethod,
    pub steps: u32,
    pub guidance: f64,
    pub reference_guidance: f64,
    pub negative_prompt: String,
    /// `[sample.knobs]` as JSON.
    pub knobs: String,
    pub resolution: u32,
    /// Ids of samples or names of files, as the model was shown them.
    pub references: Vec<String>,
    pub concepts: Vec<Concept>,
    /// Images are bit-identical only within the same environment.
    pub environment: String,
    /// The image's file beside the table.
    pub image: String,
    pub image_sha256: String,
    /// Digest of CLIP's weights; None: CLIP-I and CLIP-T were not computed.
    pub clip: Option<String>,
    /// Digest of the weights of LPIPS; None: it was not computed. Likewise those that find and
    /// embed faces.
    #[serde(default)]
    pub lpips: Option<String>,
    #[serde(default)]
    pub faces: Option<String>,
    /// Cosine with each reference as the model was shown it.
    pub clip_i_each: Vec<f64>,
    /// Cosine with each reference's whole image.
    pub clip_i_whole_each: Vec<f64>,
    /// CLIP-T of the prompt cut without its end token, as torchmetrics cuts it; None if the prompt
    /// is not cut.
    pub clip_t_sliced: Option<f64>,
    pub vqa: Option<Answers>,
    pub scores: Scores,
}

/// What a model answered about an image and about its references.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Answers {
    /// The model's name, as the server gave it.
    pub model: String,
    pub questions: Vec<String>,
    /// None: refused or empty.
    pub image: Vec<Option<String>>,
    /// For each reference.
    pub references: Vec<Vec<Option<String>>>,
}
