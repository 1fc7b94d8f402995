//! `pipeline.toml` as it is written. Plain data; [`super::pipeline`] checks it.

use super::image_stages::{FacesToml, FiguresToml, MasksToml, TaggerToml};
use super::settings::{FolderKind, NearDuplicates, OnBadRow, OutfitQuestion, Publish, TagTypes};
use crate::rating::Rating;
use serde::Deserialize;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PipelineToml {
    pub(super) name: Option<String>,
    pub(super) out: String,
    pub(super) on_bad_row: Option<OnBadRow>,
    #[serde(default)]
    pub(super) posts: Vec<PostsToml>,
    #[serde(default)]
    pub(super) folders: Vec<FolderToml>,
    #[serde(default)]
    pub(super) filter: FilterToml,
    #[serde(default)]
    pub(super) clusters: ClustersToml,
    pub(super) figures: Option<FiguresToml>,
    pub(super) outfits: Option<OutfitsToml>,
    pub(super) tagger: Option<TaggerToml>,
    pub(super) masks: Option<MasksToml>,
    pub(super) faces: Option<FacesToml>,
    pub(super) dataset: Option<DatasetToml>,
    #[serde(default)]
    pub(super) units: UnitsToml,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OutfitsToml {
    pub(super) images: Option<String>,
    pub(super) endpoint: String,
    pub(super) model: String,
    pub(super) questions: Option<Vec<OutfitQuestion>>,
    pub(super) concurrency: Option<u32>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DatasetToml {
    pub(super) images: Option<String>,
    pub(super) masks: Option<String>,
    pub(super) boxes: Option<String>,
    pub(super) near_duplicates: Option<NearDuplicates>,
    pub(super) near_bits: Option<u32>,
    pub(super) publish: Option<Publish>,
    pub(super) whole: Option<bool>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PostsToml {
    pub(super) from: String,
    pub(super) tag_types: Option<TagTypes>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FolderToml {
    pub(super) from: String,
    pub(super) kind: Option<FolderKind>,
    pub(super) artist: Option<String>,
    pub(super) rating: Option<Rating>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FilterToml {
    pub(super) cloth_tags: Option<String>,
    pub(super) ratings: Option<Vec<Rating>>,
    pub(super) deleted: Option<bool>,
    pub(super) figures: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClustersToml {
    pub(super) signature: Option<SignatureToml>,
    pub(super) answers: Option<String>,
    #[serde(default)]
    pub(super) questions: Vec<String>,
    pub(super) size_min: Option<u32>,
    pub(super) truth: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum SignatureToml {
    Tags,
    Model,
    Answers,
    Tagger,
    Given,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UnitsToml {
    pub(super) posts: Option<u32>,
    pub(super) figures: Option<u32>,
    pub(super) outfits: Option<u32>,
    pub(super) tagger: Option<u32>,
    pub(super) masks: Option<u32>,
    pub(super) faces: Option<u32>,
    pub(super) piece_mib: Option<u32>,
    pub(super) piece_rows: Option<u32>,
}
