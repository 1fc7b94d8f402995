//! The JSON record beside each generated image: every input that is needed to generate it again.
//! Plain data. Called by [`crate::unit_runner`].

use crate::identity::Classification;
use crate::subject::{Origin, Subject};
use model_data::loader::Loader;
use proto::knobs::Knobs;
use proto::sample::{Concept, SampleMethod, SampleWork};
use proto::spec::{Pairing, Task, Transform};
use serde::{Deserialize, Serialize};

/// The inputs that all images of a job have in common.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Provenance {
    /// The sampling job.
    pub(crate) job: String,
    /// The training job.
    pub(crate) source: String,
    /// None: the base weights.
    pub(crate) checkpoint: Option<Checkpoint>,
    pub(crate) init_digest: Option<String>,
    pub(crate) dataset_version: String,
    pub(crate) resolution: u32,
    pub(crate) task: Task,
    pub(crate) pairing: Pairing,
    /// The random transforms of pairing a, if references are drawn under them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) transform: Option<Transform>,
    /// Images are bit-identical only within the same environment.
    pub(crate) environment: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    pub(crate) step: u64,
    pub(crate) generation: u64,
    /// As `coordinator checkpoint digest` prints it.
    pub(crate) digest: String,
    /// As `coordinator checkpoint export` prints it.
    pub(crate) weights: String,
}

/// One image: `NNN.json` beside `NNN.png`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) file: String,
    pub(crate) prompt: String,
    pub(crate) seed: u64,
    pub(crate) method: SampleMethod,
    pub(crate) steps: u32,
    pub(crate) guidance: f64,
    pub(crate) reference_guidance: f64,
    /// Empty: the empty prompt, which records of older releases do not say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) negative_prompt: String,
    #[serde(default, skip_serializing_if = "Knobs::is_empty")]
    pub(crate) knobs: Knobs,
    pub(crate) references: Vec<ReferenceRecord>,
    /// None if the request names its references.
    pub(crate) target: Option<Target>,
    #[serde(flatten)]
    pub(crate) provenance: Provenance,
}

/// A reference as the model received it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ReferenceRecord {
    pub(crate) concept: Concept,
    #[serde(flatten)]
    pub(crate) origin: Origin,
}

/// The sample that the image should reproduce, and the identity that the image is nearest to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Target {
    pub(crate) position: u64,
    pub(crate) id: String,
    pub(crate) character: String,
    pub(crate) outfit: String,
    /// The sample whose references the image was generated from, if they were swapped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) references_of: Option<String>,
    /// Index of the candidate that the image is nearest to; 0 is the target's identity, and with
    /// swapped references 1 is theirs. None if the identity cannot be evaluated.
    pub(crate) nearest: Option<usize>,
    pub(crate) nearest_identity: Option<u64>,
    /// Whether that is the identity of the references.
    pub(crate) correct: Option<bool>,
}

impl Provenance {
    pub(crate) fn image_record(
        &self,
        name: &str,
        subject: &Subject,
        prompt: &str,
        seed: u64,
        request: &SampleWork,
    ) -> ImageRecord {
        let references = subject.example.references.iter().zip(&subject.origins);
        ImageRecord {
            file: format!("{name}.png"),
            prompt: prompt.to_owned(),
            seed,
            method: request.method,
            steps: request.steps,
            guidance: request.guidance,
            reference_guidance: request.reference_guidance,
            negative_prompt: request.negative_prompt.clone(),
            knobs: request.knobs.clone(),
            references: references
                .map(|(reference, origin)| ReferenceRecord {
                    concept: reference.concept,
                    origin: origin.clone(),
                })
                .collect(),
            target: None,
            provenance: self.clone(),
        }
    }
}

impl Target {
    pub(crate) fn of(
        loader: &Loader,
        position: u64,
        donor: Option<u64>,
        classification: Option<Classification>,
    ) -> anyhow::Result<Self> {
        let sample = &loader.rows()[usize::try_from(position)?];
        let references_of = match donor {
            Some(donor) => Some(loader.rows()[usize::try_from(donor)?].id.clone()),
            None => None,
        };
        let wanted = usize::from(donor.is_some());
        Ok(Self {
            references_of,
            position,
            id: sample.id.clone(),
            character: sample.character.clone(),
            outfit: sample.outfit.clone(),
            nearest: classification.map(|found| found.nearest),
            nearest_identity: classification.map(|found| found.identity),
            correct: classification.map(|found| found.nearest == wanted),
        })
    }
}
