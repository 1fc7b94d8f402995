//! What is written down beside a drawn picture: everything that made it, so that it can be drawn
//! again. Plain data. Called by [`crate::studio`].

use crate::score::Verdict;
use crate::subject::{Origin, Subject};
use model_data::loader::Loader;
use proto::sample::{Concept, SampleMethod, SampleWork};
use proto::spec::{Pairing, Task};
use serde::{Deserialize, Serialize};

/// What all pictures of a request share.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Subjects {
    /// The job that drew, and the one that trained.
    pub(crate) job: String,
    pub(crate) source: String,
    /// None: the base weights.
    pub(crate) checkpoint: Option<Checkpoint>,
    pub(crate) init_digest: Option<String>,
    pub(crate) dataset_version: String,
    pub(crate) resolution: u32,
    pub(crate) task: Task,
    pub(crate) pairing: Pairing,
    /// Bits are comparable only where these agree.
    pub(crate) environment: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    pub(crate) step: u64,
    pub(crate) generation: u64,
    /// As `coordinator checkpoint digest` prints it.
    pub(crate) digest: String,
    /// As `coordinator checkpoint export` says it.
    pub(crate) weights: String,
}

/// One picture; `NNN.json` beside `NNN.png`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Drawn {
    pub(crate) file: String,
    pub(crate) prompt: String,
    pub(crate) seed: u64,
    pub(crate) method: SampleMethod,
    pub(crate) steps: u32,
    pub(crate) guidance: f64,
    pub(crate) reference_guidance: f64,
    pub(crate) references: Vec<Shown>,
    /// Absent where the references were named.
    pub(crate) target: Option<Target>,
    #[serde(flatten)]
    pub(crate) of: Subjects,
}

/// A reference as the model saw it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Shown {
    pub(crate) concept: Concept,
    #[serde(flatten)]
    pub(crate) from: Origin,
}

/// The sample that was to be drawn, and whose picture it became.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Target {
    pub(crate) position: u64,
    pub(crate) id: String,
    pub(crate) character: String,
    pub(crate) outfit: String,
    /// Which candidate the picture is nearest to; 0 is its own identity. Absent where its identity
    /// cannot be told.
    pub(crate) nearest: Option<usize>,
    pub(crate) nearest_identity: Option<u64>,
    pub(crate) correct: Option<bool>,
}

impl Subjects {
    pub(crate) fn drawn(
        &self,
        name: &str,
        subject: &Subject,
        prompt: &str,
        seed: u64,
        request: &SampleWork,
    ) -> Drawn {
        let references = subject.example.references.iter().zip(&subject.from);
        Drawn {
            file: format!("{name}.png"),
            prompt: prompt.to_owned(),
            seed,
            method: request.method,
            steps: request.steps,
            guidance: request.guidance,
            reference_guidance: request.reference_guidance,
            references: references
                .map(|(reference, from)| Shown {
                    concept: reference.concept,
                    from: from.clone(),
                })
                .collect(),
            target: None,
            of: self.clone(),
        }
    }
}

impl Target {
    pub(crate) fn of(
        loader: &Loader,
        position: u64,
        verdict: Option<Verdict>,
    ) -> anyhow::Result<Self> {
        let sample = &loader.rows()[usize::try_from(position)?];
        Ok(Self {
            position,
            id: sample.id.clone(),
            character: sample.character.clone(),
            outfit: sample.outfit.clone(),
            nearest: verdict.map(|verdict| verdict.nearest),
            nearest_identity: verdict.map(|verdict| verdict.identity),
            correct: verdict.map(|verdict| verdict.nearest == 0),
        })
    }
}
