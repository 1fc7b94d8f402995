//! `dataset.json`, the small file that makes a folder of Parquet files a data set. No I/O.

use serde::{Deserialize, Serialize};

pub const DATASET_FILE: &str = "dataset.json";
pub const DATASET_SCHEMA_VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetManifest {
    pub schema_version: u32,
    /// Where the rows come from, in one line for people ("synthetic figures, seed 7").
    pub source: String,
    pub samples: u64,
    pub characters: u64,
    /// Sample files in order; sample position p is row p of their concatenation.
    pub files: Vec<SampleFile>,
    /// Parquet file from id to position, sorted by id.
    pub index: IndexFile,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleFile {
    pub path: String,
    pub size_bytes: u64,
    pub sha256: String,
    /// Rows of each row group; all rows of one identity (character, outfit, artist) are in one row
    /// group.
    pub row_groups: Vec<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexFile {
    pub path: String,
    pub size_bytes: u64,
    pub sha256: String,
}
