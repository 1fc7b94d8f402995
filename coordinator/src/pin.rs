//! Looks whether what a job reads is there and gives it something to train on, and which version of its data set it pins. Called by `submit`
//! on the user's machine and by the coordinator again.

use model_data::loader::{LoadError, Loader, LoaderOptions};
use model_data::store::{StoreError, local_folder, open};
use object_store::ObjectStoreExt;
use proto::spec::{Architecture, JobSpec};

#[derive(Debug, thiserror::Error)]
pub(crate) enum PinError {
    #[error("{}", crate::words::chain(.0))]
    Dataset(#[from] LoadError),
    #[error("there is no folder {url}; make the data set first, or correct the path")]
    NoFolder { url: String },
    #[error("{}", crate::words::chain(.0))]
    Store(#[from] StoreError),
    #[error("there is no {file} under {url}; the architecture begins from it")]
    NoInit { url: String, file: &'static str },
    #[error("cannot look for {file} under {url}: {source}")]
    Init {
        url: String,
        file: &'static str,
        source: object_store::Error,
    },
}

impl PinError {
    /// The field of job.toml that names what is not there.
    pub(crate) fn field(&self) -> &'static str {
        match self {
            Self::Dataset(_) | Self::NoFolder { .. } => "data.dataset",
            Self::Store(_) | Self::NoInit { .. } | Self::Init { .. } => "model.init",
        }
    }
}

/// The SHA-256 of `dataset.json`.
pub(crate) async fn pin(spec: &JobSpec) -> Result<String, PinError> {
    let url = &spec.data.dataset;
    // Opening a local store makes its folder, which must not happen to a mistyped path.
    if let Ok(Some(folder)) = local_folder(url)
        && !folder.is_dir()
    {
        return Err(PinError::NoFolder { url: url.clone() });
    }
    // As a rank will open it: nothing to train on shows here, and not after a queue.
    let options = LoaderOptions {
        needs_references: spec.model.architecture == Architecture::Retrinet,
        cache_bytes: 0,
        version: None,
    };
    let loader = Loader::open(&spec.data, options).await?;
    if let Some(init) = &spec.model.init {
        look_for_init(init, spec.model.architecture).await?;
    }
    Ok(loader.dataset().version().to_owned())
}

/// A RetriNet begins from a whole base model; the others can do with an autoencoder.
async fn look_for_init(url: &str, architecture: Architecture) -> Result<(), PinError> {
    let needed: &[&'static str] = match architecture {
        Architecture::Autoencoder | Architecture::TextToImage => &["autoencoder.safetensors"],
        Architecture::Retrinet => &[
            "autoencoder.safetensors",
            "text_encoder.safetensors",
            "unet.safetensors",
        ],
    };
    if let Some(folder) = local_folder(url)?
        && !folder.is_dir()
    {
        return Err(PinError::NoInit {
            url: url.to_owned(),
            file: needed[0],
        });
    }
    let (store, prefix) = open(url)?;
    for file in needed {
        match store.head(&prefix.clone().join(*file)).await {
            Ok(_) => {}
            Err(object_store::Error::NotFound { .. }) => {
                return Err(PinError::NoInit {
                    url: url.to_owned(),
                    file,
                });
            }
            Err(source) => {
                return Err(PinError::Init {
                    url: url.to_owned(),
                    file,
                    source,
                });
            }
        }
    }
    Ok(())
}
