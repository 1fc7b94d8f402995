//! Why samples cannot be loaded: the file, row group, row and id, or what the job's settings leave.

use crate::dataset::DatasetError;
use crate::image_file::ImageError;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Dataset(Box<DatasetError>),
    #[error("row {row} (id {id:?}) of row group {group} of {path:?} cannot be used")]
    Row {
        path: String,
        group: usize,
        row: usize,
        id: String,
        source: ImageError,
    },
    #[error(
        "row {row} (id {id:?}) of row group {group} of {path:?} lists position {similar} as \
         similar, which is not in its row group"
    )]
    Similar {
        path: String,
        group: usize,
        row: usize,
        id: String,
        similar: u64,
    },
    #[error(
        "the data set {url:?} has version {found}, the job was submitted with {pinned}, which is \
         no longer there: it was replaced by an earlier release or its files were deleted"
    )]
    Version {
        url: String,
        found: String,
        pinned: String,
    },
    #[error(
        "nothing to train on in {url:?}: {held_out} of {samples} samples are held out, \
         {without_similar} have no similar image{}",
        left_out.as_ref().map_or(String::new(), |line| format!(", {line}"))
    )]
    NothingToTrain {
        url: String,
        samples: u64,
        held_out: u64,
        without_similar: u64,
        /// How many samples have ratings that the job does not use.
        left_out: Option<String>,
    },
    #[error("sample {position} of {url:?} has no similar image to use as reference (pairing b)")]
    NoSimilar { url: String, position: u64 },
    #[error("the step's samples {first}..{last} are outside its global batch of {global_batch}")]
    Range {
        first: u32,
        last: u32,
        global_batch: u32,
    },
    #[error("preparing samples was cancelled: the program is shutting down")]
    Cancelled,
}

impl From<DatasetError> for LoadError {
    fn from(error: DatasetError) -> Self {
        Self::Dataset(Box::new(error))
    }
}
