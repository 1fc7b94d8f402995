//! Looks whether what a job reads is there and gives it something to train on, and which version of
//! its data set it pins. Called by `submit` on the user's machine and by the coordinator again.

use base_weights::base::{Base, BaseError};
use model_data::loader::{LoadError, Loader, LoaderOptions};
use proto::spec::TrainWork;
use storage::local_folder;

#[derive(Debug, thiserror::Error)]
pub(crate) enum PinError {
    #[error("{}", proto::text::chain(.0))]
    Dataset(#[from] LoadError),
    #[error("there is no folder {url}; make the data set first, or correct the path")]
    NoFolder { url: String },
    #[error("{}", proto::text::chain(.0))]
    Init(#[from] BaseError),
}

impl PinError {
    /// The field of job.toml that names what is not there.
    pub(crate) fn field(&self) -> &'static str {
        match self {
            Self::Dataset(_) | Self::NoFolder { .. } => "data.dataset",
            Self::Init(_) => "model.init",
        }
    }
}

/// The SHA-256 of `dataset.json`.
pub(crate) async fn pin(spec: &TrainWork) -> Result<String, PinError> {
    let url = &spec.data.dataset;
    // Opening a local store makes its folder, which must not happen to a mistyped path.
    if let Ok(Some(folder)) = local_folder(url)
        && !folder.is_dir()
    {
        return Err(PinError::NoFolder { url: url.clone() });
    }
    // As a rank will open it: nothing to train on shows here, and not after a queue.
    let options = LoaderOptions::new(&spec.model.architecture, 0, None);
    let loader = Loader::open(&spec.data, options).await?;
    if let Some(init) = &spec.model.init {
        Base::find(init).await?.suits(&spec.model).await?;
    }
    Ok(loader.dataset().version().to_owned())
}
