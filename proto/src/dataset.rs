//! `dataset.json`, the manifest that makes a folder of Parquet files a data set. No I/O.

use serde::{Deserialize, Serialize};

pub const DATASET_FILE: &str = "dataset.json";
pub const DATASET_SCHEMA_VERSION: u32 = 1;

/// Where the [`DATASET_FILE`] of a replaced version is kept, next to the new one. `version` is its
/// SHA-256 in hex.
#[must_use]
pub fn kept_manifest(version: &str) -> String {
    format!("dataset-{version}.json")
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetManifest {
    pub schema_version: u32,
    /// A one-line description of where the rows come from ("synthetic figures, seed 7").
    pub source: String,
    pub samples: u64,
    pub characters: u64,
    /// Sample files in order. Sample position p is row p of their concatenation.
    pub files: Vec<SampleFile>,
    /// Parquet file that maps ids to positions, sorted by id.
    pub index: IndexFile,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleFile {
    pub path: String,
    pub size_bytes: u64,
    pub sha256: String,
    /// Number of rows of each row group. All rows of one identity (character, outfit, artist) are
    /// in one row group.
    pub row_groups: Vec<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexFile {
    pub path: String,
    pub size_bytes: u64,
    pub sha256: String,
}
