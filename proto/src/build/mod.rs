//! `[build]`: one stage of the pipeline that makes a data set like the paper's (section 3; appendix
//! A.1) from published metadata, as numbered units. Plain values; what a stage does is in the
//! program `worker-build`, and a user's `pipeline.toml` is in [`pipeline`].
//!
//! The output of a stage is a folder `stages/<stage>/<key>` below [`BuildWork::out`]. The key is a
//! digest of the stage's version, its settings and the keys of its inputs, so equal work has one
//! name, whoever does it and however often. A stage is complete if its `manifest.json` exists,
//! which is written last.

mod check;
pub mod funnel;
pub mod image_stages;
pub mod pipeline;
mod raw;
pub mod report;
pub mod settings;
mod stages;
pub mod truth;

use crate::spec::{OnFailedUnit, UnitPlan};
use crate::text::hex_sha256;
use serde::{Deserialize, Serialize};
use settings::Settings;
use std::fmt;

/// Most units of a stage, without the closing one.
pub const UNITS_MAX: u32 = 65_536;

/// A step of the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Recognises the files of metadata by their content and divides them into pieces.
    Sources,
    /// Reads the pieces into one table of posts, whatever edition they are of.
    Posts,
    /// Resolves duplicate ids and keeps figures with one character, one artist and clothes.
    Filter,
    /// Recognises folders of images of characters or people, instead of the three before.
    Folders,
    /// Crops the single figures of images.
    Figures,
    /// Asks a model about the figures' outfits.
    Outfits,
    /// Tags the figures' clothes with a model that runs on workers.
    Tagger,
    /// Groups the figures of a character and artist by outfit, and drops those that are alone.
    Clusters,
    /// Segments the clusters' figures from their backgrounds.
    Masks,
    /// Detects the faces of figures.
    Faces,
    /// Finds the images of the clusters' figures, and writes a data set.
    Dataset,
}

impl Stage {
    pub const ALL: [Self; 11] = [
        Self::Sources,
        Self::Posts,
        Self::Filter,
        Self::Folders,
        Self::Figures,
        Self::Outfits,
        Self::Tagger,
        Self::Clusters,
        Self::Masks,
        Self::Faces,
        Self::Dataset,
    ];

    /// Its word in job.toml, in names of objects and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sources => "sources",
            Self::Posts => "posts",
            Self::Filter => "filter",
            Self::Folders => "folders",
            Self::Figures => "figures",
            Self::Outfits => "outfits",
            Self::Tagger => "tagger",
            Self::Clusters => "clusters",
            Self::Masks => "masks",
            Self::Faces => "faces",
            Self::Dataset => "dataset",
        }
    }

    /// Counts the changes of what it writes for the same input. Part of its key.
    #[must_use]
    pub fn version(self) -> u32 {
        match self {
            Self::Sources
            | Self::Posts
            | Self::Filter
            | Self::Folders
            | Self::Figures
            | Self::Outfits
            | Self::Tagger
            | Self::Clusters
            | Self::Masks
            | Self::Faces
            | Self::Dataset => 1,
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The output of a stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageKey {
    pub stage: Stage,
    /// 64 hexadecimal digits.
    pub key: String,
}

impl StageKey {
    /// Its folder, relative to [`BuildWork::out`].
    #[must_use]
    pub fn folder(&self) -> String {
        // Half of the digest distinguishes more outputs than there will be.
        format!(
            "stages/{}/{}",
            self.stage,
            &self.key[..self.key.len().min(32)]
        )
    }
}

/// A stage with its settings and inputs: everything that determines its output. Stored as
/// `plan.json` in the stage's folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StagePlan {
    pub settings: Settings,
    /// The outputs that it reads, in the order of the stage's definition.
    pub inputs: Vec<StageKey>,
}

impl StagePlan {
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.settings.stage()
    }

    /// The name of its output.
    #[must_use]
    pub fn key(&self) -> StageKey {
        let stage = self.stage();
        let all = serde_json::json!({
            "stage": stage.name(),
            "version": stage.version(),
            "settings": self.settings,
            "inputs": self.inputs,
        });
        StageKey {
            stage,
            key: hex_sha256(all.to_string().as_bytes()),
        }
    }

    /// The input of this stage.
    #[must_use]
    pub fn input(&self, stage: Stage) -> Option<&StageKey> {
        self.inputs.iter().find(|input| input.stage == stage)
    }
}

/// A job that builds the output of one stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildWork {
    /// URL of the folder of the pipeline's outputs.
    pub out: String,
    /// Names the plan, which is in the store: lists of files are too long for a job.
    pub key: StageKey,
    /// Units, without the closing one. The rows that are written do not depend on it.
    pub units: u32,
}

impl BuildWork {
    /// The closing unit writes the manifest.
    #[must_use]
    pub fn units(&self) -> UnitPlan {
        UnitPlan {
            count: u64::from(self.units) + 1,
            closing: true,
            on_failed: OnFailedUnit::Stop,
            pause_above: None,
        }
    }
}
