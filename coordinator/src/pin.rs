//! Checks that a job's data set and base weights exist and give it something to train on, and
//! returns the data set version that the job pins. Called by `submit` on the user's machine and
//! again by the coordinator.

use anyhow::Chain;
use base_weights::base::{Base, BaseError};
use model_data::loader::{LoadError, Loader, LoaderOptions};
use proto::spec::TrainWork;
use storage::local_folder;

#[derive(Debug, thiserror::Error)]
pub(crate) enum PinError {
    #[error("{}", proto::text::chain(.0))]
    Dataset(#[from] LoadError),
    #[error("there is no folder {url}; create the data set first, or correct the path")]
    NoFolder { url: String },
    #[error("is {every}, but no sample of {url} is held out: data.holdout is {holdout}; raise it")]
    NothingHeldOut {
        every: u64,
        url: String,
        holdout: f64,
    },
    #[error("{}", proto::text::chain(.0))]
    Init(#[from] BaseError),
}

impl PinError {
    /// Whether this machine may be unable to see the input, which may exist elsewhere: no folder,
    /// no connection, no permission.
    pub(crate) fn is_unreachable(&self) -> bool {
        use object_store::Error as ObjectError;
        if matches!(
            self,
            Self::NoFolder { .. } | Self::Init(BaseError::NoFolder { .. })
        ) {
            return true;
        }
        Chain::new(self).any(|cause| {
            matches!(
                cause.downcast_ref::<ObjectError>(),
                Some(
                    ObjectError::Generic { .. }
                        | ObjectError::PermissionDenied { .. }
                        | ObjectError::Unauthenticated { .. }
                )
            )
        })
    }

    /// The field of job.toml that caused the error.
    pub(crate) fn field(&self) -> &'static str {
        match self {
            Self::Dataset(_) | Self::NoFolder { .. } => "data.dataset",
            Self::NothingHeldOut { .. } => "train.validate_every",
            Self::Init(_) => "model.init",
        }
    }
}

/// Checks the job's inputs and returns the SHA-256 of `dataset.json`.
pub(crate) async fn pin(spec: &TrainWork) -> Result<String, PinError> {
    let version = pin_dataset(spec).await?;
    check_init(spec).await?;
    Ok(version)
}

/// Checks the job's data set and returns the SHA-256 of its `dataset.json`.
pub(crate) async fn pin_dataset(spec: &TrainWork) -> Result<String, PinError> {
    let url = &spec.data.dataset;
    // Opening a local store creates its folder; a mistyped path must not create one.
    if let Ok(Some(folder)) = local_folder(url)
        && !folder.is_dir()
    {
        return Err(PinError::NoFolder { url: url.clone() });
    }
    // Open it as a rank does, so that an empty training set fails now and not after queueing.
    let options = LoaderOptions::new(&spec.model.architecture, 0, None);
    let loader = Loader::open(&spec.data, options).await?;
    if spec.train.validate_every != 0 && loader.held_out().is_empty() {
        return Err(PinError::NothingHeldOut {
            every: spec.train.validate_every,
            url: url.clone(),
            holdout: spec.data.holdout,
        });
    }
    Ok(loader.dataset().version().to_owned())
}

/// Checks the job's base weights, if it names any.
pub(crate) async fn check_init(spec: &TrainWork) -> Result<(), PinError> {
    if let Some(init) = &spec.model.init {
        Base::find(init).await?.suits(&spec.model).await?;
    }
    Ok(())
}
